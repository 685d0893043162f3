// Starting the built program, and waiting for it: what it printed, and how it ended.
#pragma once

#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace qt::test {

inline std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

struct Streams {
  std::string out;     // file for standard output
  std::string err;     // file for standard error; empty: the same
  std::string folder;  // working directory; empty: the caller's
};

// args[0] is the program. Ends with 127 where it cannot be started.
inline pid_t start_process(const std::vector<std::string>& args, const Streams& streams) {
  std::vector<char*> argv;
  for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
  argv.push_back(nullptr);
  const pid_t pid = fork();
  if (pid != 0) return pid;
  const int out = open(streams.out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  const int err = streams.err.empty() ? out : open(streams.err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  if (out < 0 || err < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0) _exit(126);
  if (!streams.folder.empty() && chdir(streams.folder.c_str()) != 0) _exit(126);
  execv(argv[0], argv.data());
  _exit(127);
}

// The exit code, or 128 + the signal that ended it.
inline int finish_process(pid_t pid) {
  int status = 0;
  waitpid(pid, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace qt::test
