#include "src/cli/child.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string_view>

#include "src/core/error.h"
#include "src/core/units.h"

namespace qt {

namespace {

constexpr int kCannotStart = 127;

std::vector<char*> pointers(std::vector<std::string>& words) {
  std::vector<char*> p;
  for (std::string& word : words) p.push_back(word.data());
  p.push_back(nullptr);
  return p;
}

// Between fork and exec, where only what is safe in a signal handler may be called: the caller has threads.
[[noreturn]] void become(char* const* argv, char* const* envp, const char* out_path, const char* err_path,
                         pid_t parent) {
  ::setpgid(0, 0);
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(kCannotStart);  // it has ended since
  const auto redirect = [](const char* path, int to) {
    const int fd = ::open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || ::dup2(fd, to) < 0) ::_exit(kCannotStart);
    ::close(fd);
  };
  redirect(out_path, STDOUT_FILENO);
  redirect(err_path, STDERR_FILENO);
  // The caller takes its signals by waiting, which blocks them, and ignores two: the new program decides for
  // itself.
  sigset_t none;
  ::sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  ::signal(SIGPIPE, SIG_DFL);
  ::signal(SIGXFSZ, SIG_DFL);
  ::execve("/proc/self/exe", argv, envp);
  ::_exit(kCannotStart);
}

}  // namespace

Child::Child(const std::vector<std::string>& words, const std::filesystem::path& out,
             const std::filesystem::path& err) {
  std::vector<std::string> command{"qtrain"}, environment;
  command.insert(command.end(), words.begin(), words.end());
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!std::string_view(*variable).starts_with("QTRAIN_")) environment.emplace_back(*variable);
  }
  const std::vector<char*> argv = pointers(command), envp = pointers(environment);
  const pid_t parent = ::getpid();
  pid_ = ::fork();
  if (pid_ == 0) become(argv.data(), envp.data(), out.c_str(), err.c_str(), parent);
  if (pid_ < 0) {
    throw ConfigError(fmt::format("cannot start another process: {}", std::strerror(errno)),
                      "raise the limit on processes (ulimit -u), or free memory");
  }
}

Child::~Child() { kill(); }

void Child::note_end(int status) {
  pid_ = -1;
  exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

Child::State Child::poll() {
  if (pid_ < 0) return State::ended;
  int status = 0;
  if (::waitpid(pid_, &status, WNOHANG | WUNTRACED) == pid_) {
    if (WIFSTOPPED(status))
      halted_ = true;
    else
      note_end(status);
  }
  return pid_ < 0 ? State::ended : halted_ ? State::halted : State::running;
}

void Child::kill() {
  if (pid_ < 0) return;
  ::kill(pid_, SIGKILL);
  int status = 0;
  while (::waitpid(pid_, &status, 0) != pid_ && errno == EINTR) {
  }
  note_end(status);
}

std::int64_t Child::peak_resident_bytes() const {
  std::ifstream status(fmt::format("/proc/{}/status", pid_));
  std::string line;
  constexpr std::string_view kField = "VmHWM:";
  while (std::getline(status, line)) {
    if (line.starts_with(kField)) return std::strtoll(line.c_str() + kField.size(), nullptr, 10) * kKiB;
  }
  return 0;
}

}  // namespace qt
