// For programs with tests that run on a card. Without one nothing here can run: said once, with the reason, and
// with the exit code that CTest takes for skipped; a machine that must have a card (QTRAIN_REQUIRE_CUDA=1)
// fails instead, so that it cannot be green by accident.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string_view>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "kernels/cuda_entry.h"

namespace qt::test {
namespace {

class CardNeeded : public ::testing::Environment {
 public:
  void SetUp() override {
    const char* required = std::getenv("QTRAIN_REQUIRE_CUDA");
    const bool must = required != nullptr && std::string_view(required) == "1";
    constexpr int kFailed = 1, kSkipped = 77;
    std::fflush(nullptr);  // what is buffered would be printed by the child once more
    // A child looks: what has opened the driver can give it to no children, and some tests run in those.
    const pid_t pid = fork();
    ASSERT_GE(pid, 0);
    if (pid == 0) {
      int code = 0;
      try {
        probe_cuda_device();
      } catch (const std::exception& error) {
        fmt::print("{}: nothing runs on cuda: {}\n", must ? "QTRAIN_REQUIRE_CUDA=1" : "skipped",
                   error.what());
        code = must ? kFailed : kSkipped;
      }
      std::fflush(nullptr);
      _exit(code);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    ASSERT_TRUE(WIFEXITED(status)) << "looking for a card ended in signal " << WTERMSIG(status);
    if (WEXITSTATUS(status) != 0) std::exit(WEXITSTATUS(status));
  }
};
::testing::Environment* const card_needed = ::testing::AddGlobalTestEnvironment(new CardNeeded);

}  // namespace
}  // namespace qt::test
