// `qtrain plan --rehearse`: the run for a few steps, killed and continued; what it measures; that it leaves
// nothing behind and touches nothing; how it ends when something is wrong.
#include <signal.h>
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "src/cli/rehearse.h"
#include "src/core/units.h"
#include "src/io/checkpoint.h"
#include "src/plan/planner.h"
#include "tests/support/cli.h"
#include "tests/support/run_folder.h"

namespace qt::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

class Rehearse : public Cli {
 protected:
  Words rehearse(const std::string& out) const { return Words{"plan", "--rehearse"} + train(out, "1000"); }
  // All that lies beside the run folder `out` and is not the data.
  std::vector<std::string> beside() const {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(dir.path())) {
      const std::string name = entry.path().filename().string();
      if (name != "text.txt" && name != "tokens" && name != "work" && name != "out" && name != "err")
        names.push_back(name);
    }
    std::sort(names.begin(), names.end());
    return names;
  }
  fs::path scratch() const { return dir / "runs/one.rehearsal"; }
  std::string out() const { return dir / "runs/one"; }

  pid_t start(const Words& args) const {
    return start_process(Words{QTRAIN_PROGRAM} + args,
                         {.out = dir / "out", .err = dir / "err", .folder = dir / "work"});
  }
  Ended finish(pid_t pid) const {
    Ended ended;
    ended.code = finish_process(pid);
    ended.out = read_text(dir / "out");
    ended.err = read_text(dir / "err");
    return ended;
  }
  // Until the rehearsed run has logged its first step.
  void wait_for_step(pid_t pid) const {
    for (int i = 0; i < 2000; ++i) {
      if (read_text((scratch() / "run/log.jsonl").string()).find("\"step\"") != std::string::npos) return;
      siginfo_t info{};
      if (waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
          info.si_pid == pid)
        return;
      std::this_thread::sleep_for(5ms);
    }
  }
  // Processes that were started with the folder among their words.
  static int processes_on(const fs::path& folder) {
    int n = 0;
    for (const auto& entry : fs::directory_iterator("/proc")) {
      const std::string command = read_text((entry.path() / "cmdline").string());
      n += command.find(folder.string()) != std::string::npos ? 1 : 0;
    }
    return n;
  }
};

TEST_F(Rehearse, TrainsIsKilledContinuesInTheSameBitsAndLeavesNothing) {
  const Ended ended = run(rehearse(out()));
  expect_success(ended);
  expect_words(ended.out,
               {"rehearsal of qtrain ", scratch().string(), "7 steps of 128 tokens", "step 1 took ",
                "killed in step 6 (kill -9); continued from step 3", "bit for bit: ", "planned", "measured",
                "a step", "an evaluation", "in memory", "a checkpoint", "a save", "the disk",
                "not known before", "steps 3 to 5 of this rehearsal", "time ", "measured)"});
  EXPECT_TRUE(beside().empty()) << beside().front() << " is left";
  EXPECT_TRUE(fs::is_directory(dir / "tokens")) << "the run itself will use them";
  // The state is that of the run: trained for real, it is the same after five steps.
  const Words real = with(train(dir / "real", "1000"), {"--save-every", "5"});
  const pid_t pid = start(real + Words{"--halt-in-step", "6"});
  int status = 0;
  ASSERT_EQ(waitpid(pid, &status, WUNTRACED), pid);
  ASSERT_TRUE(WIFSTOPPED(status)) << read_text(dir / "err");
  ::kill(pid, SIGKILL);
  finish_process(pid);
  const std::string state = tensors_hash(fs::path(dir / "real") / checkpoint_name(5));
  expect_words(ended.out, {"bit for bit: " + state});
}

TEST_F(Rehearse, TouchesNoRunThatIsThere) {
  expect_success(run(train(out())));
  const std::string before = tree_of(out()), log = read_text(out() + "/log.jsonl");
  const auto written = fs::last_write_time(out() + "/log.jsonl");
  expect_success(run(rehearse(out())));
  EXPECT_EQ(tree_of(out()), before);
  EXPECT_EQ(read_text(out() + "/log.jsonl"), log);
  EXPECT_EQ(fs::last_write_time(out() + "/log.jsonl"), written);
  EXPECT_FALSE(fs::exists(scratch()));
}

TEST_F(Rehearse, WorksWithoutValidationWithoutSamplesAndWithOptionsFromElsewhere) {
  // 1000 steps from the environment, a model from a file: the rehearsed run gets what they say, as words.
  write_text(dir / "run.ini", "val-fraction = 0\nsample-tokens = 0\nmicro-batch = 2\n");
  Words args = with(rehearse(out()), {"--config", dir / "run.ini"});
  for (const char* word : {"--sample-tokens", "--steps"}) {
    const auto at = std::find(args.begin(), args.end(), word);
    args.erase(at, at + 2);
  }
  setenv("QTRAIN_STEPS", "900", 1);
  const Ended ended = run(args);
  unsetenv("QTRAIN_STEPS");
  expect_success(ended);
  expect_words(ended.out, {"--steps 900", "--micro-batch 2", "7 saves", "bit for bit", "900 steps x 128"});
  EXPECT_EQ(ended.out.find("an evaluation  "), std::string::npos) << ended.out;
  EXPECT_TRUE(beside().empty() || beside() == std::vector<std::string>{"run.ini"});
}

TEST_F(Rehearse, IsStoppedByASignalAndCleansUp) {
  for (const int signal : {SIGINT, SIGTERM}) {
    // Steps of a second: the signal comes in the middle of one.
    const pid_t pid = start(with(rehearse(out()), {"--batch-tokens", "65536"}));
    wait_for_step(pid);
    ASSERT_GE(processes_on(scratch()), 1);
    ::kill(pid, signal);
    const Ended ended = finish(pid);
    expect_refusal(ended, 75, {"stopped on request", "the same command starts it over"});
    EXPECT_TRUE(beside().empty()) << beside().front();
    EXPECT_EQ(processes_on(scratch()), 0);
  }
}

TEST_F(Rehearse, KilledItTakesItsRunWithItAndTheNextOneCleansUp) {
  const pid_t pid = start(with(rehearse(out()), {"--batch-tokens", "65536"}));
  wait_for_step(pid);
  // A second one at the same time is turned away.
  const Ended second = run(rehearse(out()));
  // Its files are those of `pid` too: only the code and the folder tell.
  EXPECT_EQ(second.code, 2);
  EXPECT_TRUE(fs::exists(scratch()));
  ::kill(pid, SIGKILL);
  finish_process(pid);
  for (int i = 0; i < 400 && processes_on(scratch()) > 0; ++i) std::this_thread::sleep_for(5ms);
  EXPECT_EQ(processes_on(scratch()), 0) << "the run outlives its rehearsal";
  EXPECT_TRUE(fs::exists(scratch()));
  expect_success(run(rehearse(out())));
  EXPECT_EQ(beside(), std::vector<std::string>{"runs"});  // made by the killed rehearsal
  EXPECT_TRUE(fs::is_empty(dir / "runs"));
}

TEST_F(Rehearse, EndsAsTheRunWould) {
  // It does not fit: 3, and what would make it fit.
  const Ended small = run(rehearse(out()) + Words{"--vram", "1MiB"});
  expect_refusal(small, 3, {"does not fit"});
  expect_words(small.out, {"DOES NOT FIT 1.0 MiB"});
  // Bad data: 4.
  expect_success(run(train(dir / "first", "1")));
  edit(dir / "tokens/train_000000.bin", flip_a_bit);
  const Ended damaged = run(with(rehearse(out()), {"--data", dir / "tokens"}));
  expect_refusal(damaged, 4, {"in the rehearsal: ", "train_000000.bin", "checksum", "damaged"});
  fs::remove_all(dir / "tokens");
  // The disk: 7, with the run's own words.
  expect_success(run(train(dir / "second", "1")));
  const pid_t pid = start(rehearse(out()));
  const rlimit limit{.rlim_cur = 512 * 1024, .rlim_max = 512 * 1024};
  ASSERT_EQ(prlimit(pid, RLIMIT_FSIZE, &limit, nullptr), 0);
  expect_refusal(finish(pid), 7, {"in the rehearsal: ", "File too large"});
  EXPECT_FALSE(fs::exists(scratch()));
  // A prompt that the vocabulary cannot spell: what the run says, it says.
  const Words chars = with(rehearse(out()), {"--tokenizer-kind", "char", "--cache", dir / "chars"});
  expect_refusal(run(chars + Words{"--prompt", "\xE2\x82\xAC"}), 2, {"in the rehearsal: ", "--prompt"});
  EXPECT_FALSE(fs::exists(scratch()));
}

TEST_F(Rehearse, RefusesWrongWords) {
  struct Case {
    Words args;
    Words words;
  };
  const Case cases[] = {
      {{"--json"}, {"--rehearse and --json exclude each other"}},
      {{"--rehearse"}, {"--rehearse", "twice"}},
      {{"--rehearsal"}, {"'rehearsal'", "did you mean --rehearse?"}},
      {{"--steps", "5"}, {"a run of 5 steps", "start it"}},
      {{"--data", "-", "--cache", dir / "stdin"}, {"standard input", "qtrain tokenize"}},
      {{"--data", dir / "nowhere.txt"}, {"nowhere.txt", "no such file"}},
      {{"--micro-batch", "3"}, {"--micro-batch 3", "4 rows"}},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.args.front());
    const bool is_option = c.args.size() > 1;
    expect_refusal(run(is_option ? with(rehearse(out()), c.args) : rehearse(out()) + c.args), 2, c.words);
    EXPECT_FALSE(fs::exists(dir / "runs"));
  }
  expect_refusal(run(Words{"plan", "--rehearse=yes"}), 2, {"--rehearse", "takes no value"});
  expect_refusal(run(Words{"train", "--rehearse"}), 2, {"--rehearse is not for `qtrain train`"});
  for (const char* step : {"0", "-1", "many", ""}) {
    SCOPED_TRACE(step);
    expect_refusal(run(train(out()) + Words{"--halt-in-step", step}), 2, {"--halt-in-step"});
  }
  EXPECT_FALSE(fs::exists(out()));
#ifndef QTRAIN_HAVE_CUDA
  expect_refusal(run(rehearse(out()) + Words{"--device", "cuda"}), 2, {"no CUDA backend", "--device cpu"});
#endif
  EXPECT_FALSE(fs::exists(dir / "tokens")) << "refused before the text is tokenized";
  // A folder of somebody else's is left alone.
  fs::create_directories(scratch());
  write_text(scratch() / "thesis.txt", "mine");
  expect_refusal(run(rehearse(out())), 2, {"one.rehearsal", "holds something else"});
  EXPECT_EQ(read_text((scratch() / "thesis.txt").string()), "mine");
}

// --- what is compared --------------------------------------------------------------------------------------

TEST_F(Rehearse, TellsCheckpointsApartByTheirTensors) {
  expect_success(run(train(dir / "a", "4")));
  expect_success(run(train(dir / "b", "4")));
  expect_success(run(with(train(dir / "c", "4"), {"--seed", "7"})));
  const auto hash = [&](const char* name, std::int64_t step) {
    return tensors_hash(fs::path(dir / name) / checkpoint_name(step));
  };
  EXPECT_EQ(hash("a", 4), hash("b", 4));
  EXPECT_NE(hash("a", 4), hash("a", 2));
  EXPECT_NE(hash("a", 4), hash("c", 4));
  edit(fs::path(dir / "b") / checkpoint_name(4) / "state.safetensors", flip_a_bit);
  EXPECT_THROW(hash("b", 4), DataError);
}

TEST(RehearsedBits, OfAContinuedRunThatDiffersAreADefect) {
  const PlayedBits before{.first_step = 1, .loss = {{3, 2.5}, {4, 2.25}, {5, 2.125}}, .state = "ab"};
  const PlayedBits same{.first_step = 4, .loss = {{4, 2.25}, {5, 2.125}}, .state = "ab"};
  EXPECT_NO_THROW(require_same_bits(before, same));
  PlayedBits other = same;
  other.state = "ac";
  PlayedBits later = same;
  later.first_step = 5;
  PlayedBits loss = same;
  loss.loss[5] = 2.1250000000000004;
  PlayedBits unknown = same;
  unknown.loss[6] = 2;
  for (const PlayedBits& wrong : {other, later, loss, unknown}) {
    try {
      require_same_bits(before, wrong);
      ADD_FAILURE() << "accepted";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::internal);
      EXPECT_FALSE(std::string(e.what()).empty());
    }
  }
}

TEST(RehearsalText, SetsMeasuredBesidePlannedAndSaysByHowMuchAStepDiffers) {
  Plan run;
  run.config.target = cuda_target(89);
  run.device_bytes = 6 * kGiB;
  run.host_bytes = 12 * kGiB;
  run.checkpoint_bytes = 14 * kGiB;
  Rehearsal m;
  m.step_s = {.low = 190, .high = 210};
  m.resident_bytes = 13 * kGiB;
  m.device_used_bytes = 7 * kGiB;
  m.checkpoint_bytes = 14'000'000'000;
  m.save_s = 14;
  m.eval_s = 30;
  m.eval_tokens = 1000;
  Estimate assumed;
  assumed.step_s = {.low = 80, .high = 120};
  const std::string text = rehearsal_text(run, m, assumed);
  for (const char* words : {"1 min 20 s to 2 min", "3 min 10 s to 3 min 30 s", "6.0 GiB", "7.0 GiB",
                            "12.0 GiB", "13.0 GiB", "14.0 GiB", "13.0 GiB", "7.0 s to 28 s", "14 s",
                            "0.5 GB/s to 2 GB/s", "1 GB/s", "2.00 times the middle of what was assumed"})
    EXPECT_NE(text.find(words), std::string::npos) << words << " in:\n" << text;
  EXPECT_EQ(text.find("lies in its range"), std::string::npos);
  assumed.step_s = {.low = 100, .high = 300};
  EXPECT_NE(rehearsal_text(run, m, assumed).find("1.00 times the middle of what was assumed, and lies in"),
            std::string::npos);
  m.device_used_bytes = 0;
  EXPECT_NE(rehearsal_text(run, m, std::nullopt).find("unknown"), std::string::npos);
}

}  // namespace
}  // namespace qt::test
