// A child process that runs this very program, for rehearsals: started with words of its own, watched, and
// never left behind.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace qt {

class Child {
 public:
  // Starts the program again with `words` as its command line, without QTRAIN_* variables, in a process group
  // of its own, so that Ctrl+C reaches the caller alone. Its standard output and error go to files. It is
  // killed when the calling thread ends, however it ends. ConfigError where no process can be started.
  Child(const std::vector<std::string>& words, const std::filesystem::path& out,
        const std::filesystem::path& err);
  ~Child();  // kills it
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  enum class State { running, halted, ended };
  // Does not wait. `halted`: stopped by SIGSTOP.
  State poll();
  // Of one that has ended: its exit code, or 128 + the signal that ended it.
  int exit_code() const { return exit_code_; }
  // SIGKILL, and waits for the end.
  void kill();

  // Most memory that was resident at a time (VmHWM); 0 where the system does not tell, or once it has ended.
  std::int64_t peak_resident_bytes() const;

 private:
  void note_end(int status);

  pid_t pid_ = -1;  // -1: ended
  bool halted_ = false;
  int exit_code_ = 0;
};

}  // namespace qt
