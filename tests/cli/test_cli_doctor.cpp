// `qtrain doctor` as a person meets it.
#include <chrono>
#include <thread>

#include <nlohmann/json.hpp>

#include "tests/support/cli.h"

namespace qt::test {
namespace {

class CliDoctor : public Cli {
 protected:
  Ended doctor(const Words& more) const { return run(Words{"doctor", "--device", "cpu"} + shape() + more); }
};

TEST_F(CliDoctor, LooksAtThisMachineAndLeavesNothingBehind) {
  const Ended text = doctor({});
  expect_success(text);
  expect_words(text.out,
               {"processor", "memory", "GB/s to the device", "written and synced", "plan", "0 problems"});
  const Ended json = doctor({"--json"});
  expect_success(json);
  const auto parsed = nlohmann::json::parse(json.out);
  EXPECT_EQ(parsed["problems"], 0);
  EXPECT_GE(parsed["findings"].size(), 5u);
  EXPECT_TRUE(std::filesystem::is_empty(dir / "work"));
}

TEST_F(CliDoctor, EndsWithTheCodeOfTheFirstProblem) {
  const Ended small = doctor({"--ram", "1MiB"});
  expect_refusal(small, 3, {"see the findings"});
  expect_words(small.out, {"FAIL", "does not fit", "1 problem"});
  write_text(dir / "file", "x");
  const Ended disk = doctor({"--out", dir / "file/run"});
  expect_refusal(disk, 7, {"see the findings"});
  expect_words(disk.out, {"is no folder", "--out"});
}

TEST_F(CliDoctor, RefusesWrongWords) {
  const std::pair<Words, Words> cases[] = {
      {{"--jsn"}, {"'jsn'"}},
      {{"--card", "4070"}, {"--card", "`qtrain estimate`"}},
      {{"stray"}, {"'stray'"}},
      {{"--model", "d3"}, {"d3"}},
      {{"--json", "--json"}, {"--json", "twice"}},
      {{"--micro-batch", "-1"}, {"--micro-batch"}},
  };
  for (const auto& [args, words] : cases) {
    SCOPED_TRACE(args.front());
    expect_refusal(run(Words{"doctor"} + args), 2, words);
  }
}

// What it says of a run that goes on is asked of the lock, not guessed.
TEST_F(CliDoctor, NamesTheProcessThatTrainsThere) {
  const Words long_run = with(train(dir / "run", "100000"), {"--device", "cpu"});
  const Streams streams{.out = dir / "a", .err = dir / "b", .folder = dir / "work"};
  const pid_t trainer = start_process(Words{QTRAIN_PROGRAM} + long_run, streams);
  for (int i = 0; i < 600 && !std::filesystem::exists(dir / "run/log.jsonl"); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  const Ended ended = doctor({"--out", dir / "run"});
  kill(trainer, SIGKILL);
  finish_process(trainer);
  expect_success(ended);
  expect_words(ended.out, {fmt::format("process {} is training in the run folder", trainer)});
  const Ended after = doctor({"--out", dir / "run"});
  EXPECT_EQ(after.out.find("is training"), std::string::npos) << "the lock of a dead process is no lock";
}

}  // namespace
}  // namespace qt::test
