// kill -9 at random moments: the same command continues, and ends in the same bits as an undisturbed run.
//
// The number of kills comes from KILLS in the environment (default 8; `scripts/prove kills` runs 100).
#include <chrono>
#include <cstdlib>
#include <random>
#include <thread>

#include <gtest/gtest.h>

#include "tests/support/process.h"
#include "tests/support/run_folder.h"
#include "tests/support/tiny_run.h"

namespace qt::test {
namespace {

using namespace std::chrono_literals;

class Kill : public ::testing::Test {
 protected:
  TempDir dir;

  void SetUp() override { write_text(dir / "text.txt", tiny_text(4000)); }

  std::vector<std::string> command(const std::string& run) {
    return {QTRAIN_PROGRAM,
            "--model",
            "d2",
            "--quant",
            "nf4",
            "--ckpt-activations",
            "--data",
            dir / "text.txt",
            "--tokenizer-kind",
            "bytes",
            "--cache",
            dir / "tokens",
            "--seq-len",
            "32",
            "--batch-tokens",
            "128",
            "--steps",
            "24",
            "--dtype",
            "f32",
            "--eval-every",
            "8",
            "--eval-tokens",
            "256",
            "--save-every",
            "2",
            "--sample-tokens",
            "4",
            "--threads",
            "1",
            "--out",
            run};
  }

  static pid_t start(const std::vector<std::string>& args, const std::string& output) {
    return start_process(args, {.out = output, .err = {}, .folder = {}});
  }
  static int finish(pid_t pid) { return finish_process(pid); }

  static std::string final_hash(const std::string& output) {
    const std::size_t at = output.rfind("; state ");
    return at == std::string::npos ? "none in: " + output : output.substr(at + 8, 32);
  }
};

TEST_F(Kill, RandomKillsAndContinuingGiveTheSameBits) {
  const char* wanted = std::getenv("KILLS");
  const int kills = wanted != nullptr ? std::atoi(wanted) : 8;
  const int kills_in_save = std::max(3, kills * 3 / 10);

  ASSERT_EQ(finish(start(command(dir / "straight"), dir / "straight.out")), 0)
      << read_text(dir / "straight.out");
  const std::string reference = final_hash(read_text(dir / "straight.out"));
  ASSERT_EQ(reference.size(), 32u) << reference;

  std::mt19937 random(20251016);
  int done = 0, in_save = 0, runs = 0, torn = 0;
  std::size_t lines = 0;
  const auto give_up = std::chrono::steady_clock::now() + std::chrono::seconds(60 + 6 * kills);
  while ((done < kills || in_save < kills_in_save) && std::chrono::steady_clock::now() < give_up) {
    const std::string run = dir / ("run" + std::to_string(runs++));
    // Until this run ends by itself it is killed again and again; not for ever, where a start takes longer
    // than any wait.
    for (;;) {
      const pid_t pid = start(command(run), dir / "out");
      const bool aim_at_save = in_save < kills_in_save;
      const auto wait_us = std::chrono::microseconds(std::uniform_int_distribution<int>(0, 400000)(random));
      const auto until = std::chrono::steady_clock::now() + wait_us;
      bool ended = false;
      while (!ended) {
        int status = 0;
        ended = waitpid(pid, &status, WNOHANG) == pid;
        if (ended) {
          ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << read_text(dir / "out");
          break;
        }
        const auto now = std::chrono::steady_clock::now();
        const bool late = now >= until && now < give_up;
        if (late && (!aim_at_save || is_saving(run, pid))) break;
        std::this_thread::sleep_for(200us);
      }
      if (ended) break;
      ::kill(pid, SIGSTOP);  // hold it still, so that what is seen is where it dies
      const bool caught_saving = is_saving(run, pid);
      ::kill(pid, SIGKILL);
      finish(pid);
      ++done;
      // Every line of the log but the last can be read, at once and after the next start has gone on with it.
      const std::string log = read_text(run + "/log.jsonl");
      EXPECT_TRUE(unreadable_lines(log).empty()) << unreadable_lines(log).front();
      torn += log.empty() || log.back() == '\n' ? 0 : 1;
      in_save += caught_saving ? 1 : 0;
    }
    EXPECT_EQ(reference, final_hash(read_text(dir / "out"))) << "run " << run;
    const std::string log = read_text(run + "/log.jsonl");
    EXPECT_TRUE(unreadable_lines(log).empty()) << unreadable_lines(log).front();
    EXPECT_TRUE(log.ends_with("\"}\n")) << "the last line of a run that ended is whole";
    lines += whole_lines(log).size();
  }
  std::printf("%d kills, %d of them inside a save, %d runs, all ended in %s\n", done, in_save, runs,
              reference.c_str());
  std::printf("%zu log lines, all readable; %d kills tore the last one\n", lines, torn);
  EXPECT_GE(done, kills);
  EXPECT_GE(in_save, kills_in_save);
}

TEST(LogLines, ALineTornInTheMiddleOfALogIsSeen) {
  const std::string good = "{\"kind\":\"step\",\"step\":1}\n";
  EXPECT_TRUE(unreadable_lines(good + good + "{\"kind\":\"st").empty()) << "the last line may be torn";
  EXPECT_EQ(unreadable_lines(good + "{\"kind\":\"st" + good + good).size(), 1u);
  EXPECT_EQ(unreadable_lines(good + std::string(10, '\0') + "\n" + good).size(), 1u);
}

TEST_F(Kill, ASecondProcessOnTheRunFolderIsTurnedAway) {
  std::vector<std::string> slow = command(dir / "run");
  for (std::string& arg : slow) {
    if (arg == "24") arg = "100000";
  }
  const pid_t first = start(slow, dir / "first.out");
  for (int i = 0; i < 200 && !std::filesystem::exists(dir / "run/log.jsonl"); ++i)
    std::this_thread::sleep_for(50ms);
  const int second = finish(start(slow, dir / "second.out"));
  EXPECT_EQ(second, 2);
  EXPECT_NE(read_text(dir / "second.out").find(std::to_string(first)), std::string::npos)
      << read_text(dir / "second.out");
  ::kill(first, SIGTERM);
  EXPECT_EQ(finish(first), 75) << read_text(dir / "first.out");
}

}  // namespace
}  // namespace qt::test
