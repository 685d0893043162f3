// A clock that is set a day ahead and a day back all the time while the program runs: durations, rates, the
// estimate and --stop-after come from the steady clock and do not notice. tests/support/clock_jump.cpp is
// preloaded into the program for this.
#include <chrono>
#include <regex>

#include "src/io/checkpoint.h"
#include "tests/support/cli.h"
#include "tests/support/run_folder.h"

namespace qt::test {
namespace {

// For the processes started while it lives.
class JumpingClock {
 public:
  explicit JumpingClock(const char* which) {
    setenv("LD_PRELOAD", QTRAIN_CLOCK_JUMP, 1);
    setenv("CLOCK_JUMP", which, 1);
    const char* asan = std::getenv("ASAN_OPTIONS");
    if (asan != nullptr) before_ = asan;
    // AddressSanitizer wants to be the first library; this one needs nothing of it.
    setenv("ASAN_OPTIONS", (before_ + (before_.empty() ? "" : ":") + "verify_asan_link_order=0").c_str(), 1);
  }
  ~JumpingClock() {
    unsetenv("LD_PRELOAD");
    unsetenv("CLOCK_JUMP");
    before_.empty() ? unsetenv("ASAN_OPTIONS") : setenv("ASAN_OPTIONS", before_.c_str(), 1);
  }
  JumpingClock(const JumpingClock&) = delete;
  JumpingClock& operator=(const JumpingClock&) = delete;

 private:
  std::string before_;
};

class Clock : public Cli {
 protected:
  static constexpr double kLimitSeconds = 600;  // no run here takes as long, on any machine

  // Numbers in the log that no clock can have measured in a run that took less than kLimitSeconds.
  static std::vector<std::string> impossible_numbers(const std::string& log) {
    std::vector<std::string> bad;
    for (const std::string& line : whole_lines(log)) {
      const Json record = parse_json(line, "log.jsonl");
      for (const auto& [name, value] : record.items()) {
        if (name == "seconds" && !(value.get<double>() >= 0 && value.get<double>() < kLimitSeconds))
          bad.push_back(line);
        if (name == "executed_flops_s" && !(value.is_number() && value.get<double>() > 1e3))
          bad.push_back(line);
        if (name == "tokens_per_s" && !(value.is_number() && value.get<double>() > 1)) bad.push_back(line);
      }
    }
    return bad;
  }
  // Estimates on the screen, the last column of the step lines: nothing here takes an hour.
  static std::vector<std::string> impossible_estimates(const std::string& screen) {
    const std::regex step(R"(^ +\d+/\d+ .*$)"), short_time(R"( +(-|((\d+ms|[0-9.]+s|\d+m \d+s)-?){1,2}))");
    std::vector<std::string> bad;
    int seen = 0;
    for (const std::string& line : whole_lines(screen)) {
      if (!std::regex_match(line, step)) continue;
      ++seen;
      if (!std::regex_match(line.substr(line.size() - 17), short_time)) bad.push_back(line);
    }
    EXPECT_GT(seen, 0) << screen;
    return bad;
  }
};

TEST_F(Clock, ThatIsSetWhileTrainingChangesNoDurationAndNoResult) {
  const Ended straight = run(train(dir / "straight", "12"));
  expect_success(straight);
  Ended jumped;
  {
    const JumpingClock clock("realtime");
    // An hour is far away, a day is not.
    jumped = run(train(dir / "run", "12") + Words{"--stop-after", "1h"});
  }
  expect_success(jumped);
  EXPECT_EQ(state_of(jumped), state_of(straight));
  EXPECT_TRUE(impossible_numbers(read_text(dir / "run/log.jsonl")).empty())
      << impossible_numbers(read_text(dir / "run/log.jsonl")).front();
  EXPECT_TRUE(impossible_estimates(jumped.out).empty()) << jumped.out;
  // The date in a manifest is the clock's, and proves that the clock was another.
  const auto checkpoints = find_checkpoints(dir / "run");
  ASSERT_FALSE(checkpoints.empty());
  const auto date = [](const Checkpoint& c) { return verify_checkpoint(c.path).created.substr(0, 10); };
  EXPECT_NE(date(checkpoints.back()), date(find_checkpoints(dir / "straight").back()));
  EXPECT_TRUE(std::regex_match(verify_checkpoint(checkpoints.back().path).created,
                               std::regex(R"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)")));
}

TEST_F(Clock, ThatIsSetWhileTokenizingChangesNoToken) {
  const auto command = [&](const std::string& cache) {
    return Words{"tokenize", "--data", dir / "text.txt", "--tokenizer-kind", "bytes", "--cache", dir / cache};
  };
  expect_success(run(command("straight")));
  Ended jumped;
  {
    const JumpingClock clock("realtime");
    jumped = run(command("jumped"));
  }
  expect_success(jumped);
  EXPECT_EQ(tree_of(dir / "jumped"), tree_of(dir / "straight"));
  EXPECT_TRUE(std::regex_search(jumped.out, std::regex(R"(\d MB/s, \d[0-9.]* (ms|s) in all)"))) << jumped.out;
}

// The control: if durations came from such a clock, these checks would see it.
TEST_F(Clock, ThatRunsAwayWithTheDurationsIsSeen) {
  Ended jumped, stopped;
  {
    const JumpingClock clock("all");
    jumped = run(train(dir / "run", "12"));
    stopped = run(train(dir / "stopped", "12") + Words{"--stop-after", "1h"});
  }
  EXPECT_FALSE(impossible_numbers(read_text(dir / "run/log.jsonl")).empty());
  EXPECT_FALSE(impossible_estimates(jumped.out).empty()) << jumped.out;
  EXPECT_EQ(stopped.code, 75) << "an hour is over at once";
}

}  // namespace
}  // namespace qt::test
