// Signals and second processes at random moments of the real program. A signal in any phase: exit code 75,
// nothing lost, and the same command ends where an untroubled one ends. A second process on a run folder: it
// is refused, and the first does not notice.
//
// SIGNALS and PAIRS in the environment set their numbers (`scripts/prove signals` and `pairs` run 100 each).
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <random>
#include <thread>

#include "src/io/checkpoint.h"
#include "tests/support/cli.h"
#include "tests/support/mini_engine.h"
#include "tests/support/run_folder.h"

namespace qt::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

// Words of random letters: enough different pairs for a vocabulary to learn.
std::string random_words(int words) {
  std::mt19937 random(9);
  std::string text;
  for (int i = 0; i < words; ++i) {
    for (auto letters = 2 + random() % 7; letters > 0; --letters)
      text += static_cast<char>('a' + std::min(random() % 26, random() % 26));
    text += i % 12 == 11 ? ".\n" : " ";
  }
  return text;
}

class Signals : public Cli {
 protected:
  std::mt19937 random{20251117};
  double worst_s = 0;  // from a signal to the end

  // Waits until `here` or the end of the process.
  template <class Condition>
  static void wait_until(pid_t pid, Condition&& here) {
    while (!here()) {
      siginfo_t info{};
      if (waitid(P_PID, static_cast<id_t>(pid), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
          info.si_pid == pid)
        return;
      std::this_thread::sleep_for(100us);
    }
  }

  // The program takes its signals by waiting for them: they are blocked once it is ready.
  static bool takes_signals(pid_t pid) {
    const std::string status = read_text("/proc/" + std::to_string(pid) + "/status");
    const std::size_t at = status.find("SigBlk:");
    if (at == std::string::npos) return false;
    return (std::stoull(status.substr(at + 7), nullptr, 16) >> (SIGTERM - 1) & 1) != 0;
  }

  void wait_random(int most_us) {
    std::this_thread::sleep_for(
        std::chrono::microseconds(std::uniform_int_distribution<int>(0, most_us)(random)));
  }

  // Starts, waits for `here` and a random moment more, sends a signal, and says how it ended.
  template <class Condition>
  Ended interrupt(const Words& args, Condition&& here, int then_us) {
    const Streams streams{.out = dir / "out", .err = dir / "err", .folder = dir / "work"};
    const pid_t pid = start_process(Words{QTRAIN_PROGRAM} + args, streams);
    wait_until(pid, [&] { return takes_signals(pid) && here(pid); });
    wait_random(then_us);
    constexpr int kStops[] = {SIGTERM, SIGINT, SIGHUP};
    ::kill(pid, kStops[random() % 3]);
    const auto sent = Clock::now();
    Ended ended;
    ended.code = finish_process(pid);
    worst_s = std::max(worst_s, std::chrono::duration<double>(Clock::now() - sent).count());
    ended.out = read_text(streams.out);
    ended.err = read_text(streams.err);
    return ended;
  }
  static bool anywhere(pid_t) { return true; }

  static void expect_continuable(const Ended& ended) {
    expect_refusal(ended, 75, {"stopped", "the same command", "continues"});
  }
};

// Training, and in it: saves, evaluations, samples.
class SignalsInTraining : public Signals {
 protected:
  std::string reference, folder;
  int runs = 0;

  Words command(const std::string& out) const {
    return with(train(out, "16"), {"--eval-every", "4", "--eval-tokens", "8192", "--val-data",
                                   dir / "val.txt", "--sample-every", "4", "--sample-tokens", "31"});
  }
  void SetUp() override {
    Cli::SetUp();
    write_text(dir / "val.txt", tiny_text(1000));
    const Ended straight = run(command(dir / "straight"));
    ASSERT_EQ(straight.code, 0) << straight.err;
    reference = state_of(straight);
    folder = dir / "run0";
  }

  // One signal in `phase`; true when it stopped the run. A run that ends first must end as the reference.
  bool hit(const std::string& phase) {
    const auto here = [&](pid_t pid) {
      if (phase == "save") return is_saving(folder, pid);
      const std::string kind = last_kind(folder);
      if (phase == "eval") return kind == "save" && json_int(last_record(folder), "step", "log") % 4 == 0;
      if (phase == "sample") return kind == "eval";
      return kind == "step";
    };
    const Ended ended = interrupt(command(folder), here, phase == "train" ? 30'000 : 1'000);
    EXPECT_TRUE(unreadable_lines(read_text(folder + "/log.jsonl")).empty());
    if (ended.code == 0) {
      EXPECT_EQ(state_of(ended), reference);
      folder = dir / ("run" + std::to_string(++runs));
      return false;
    }
    expect_continuable(ended);
    EXPECT_EQ(last_kind(folder), "stop");
    // No completed step is lost.
    const auto checkpoints = find_checkpoints(folder);
    if (checkpoints.empty()) {
      ADD_FAILURE() << "stopped without a checkpoint";
      return true;
    }
    EXPECT_EQ(checkpoints.back().step, json_int(last_record(folder), "step", "log"));
    return true;
  }
};

TEST_F(SignalsInTraining, StopItAndTheSameCommandEndsInTheSameBits) {
  const int wanted = std::max(4, repeats("SIGNALS", 6) * 2 / 3);
  std::map<std::string, int> hits;
  const std::vector<std::string> phases = {"train", "save", "eval", "sample"};
  int stopped = 0;
  for (int attempt = 0; stopped < wanted && attempt < 4 * wanted + 20; ++attempt) {
    const std::string& phase = phases[static_cast<std::size_t>(stopped) % phases.size()];
    if (!hit(phase)) continue;
    ++hits[phase];
    ++stopped;
  }
  const Ended last = run(command(folder));
  expect_success(last);
  EXPECT_EQ(state_of(last), reference);
  for (const auto& [phase, n] : hits) std::printf("%-7s %3d signals aimed at it\n", phase.c_str(), n);
  std::printf("%d stops in %d runs, all ended in %s; slowest stop %.3f s\n", stopped, runs + 1,
              reference.c_str(), worst_s);
  EXPECT_EQ(stopped, wanted);
  EXPECT_LT(worst_s, 10) << "a micro-batch and a save of this size take milliseconds";
}

// The control: what the comparison of hashes is worth.
TEST_F(SignalsInTraining, AStopThatLostAStepWouldBeSeen) {
  Ended ended;
  for (int attempt = 0; attempt < 20 && ended.code != 75; ++attempt)
    ended = interrupt(
        command(folder), [&](pid_t) { return last_kind(folder) == "save"; }, 1'000);
  ASSERT_EQ(ended.code, 75) << ended.err;
  const auto checkpoints = find_checkpoints(folder);
  ASSERT_FALSE(checkpoints.empty());
  // As if the stop had saved its number and not the step's work: the window is left out.
  const fs::path path = checkpoints.back().path;
  RunState state = CheckpointStore::read_state(path.string());
  ++state.step;
  ++state.window;
  CheckpointWriter writer(posix_fs(), folder, state.step);
  for (const auto& file : verify_checkpoint(path).files) {
    const std::string content = read_text(path / file.name);
    writer.add_file(file.name).write(file.name == "run.json" ? run_state_json(state) : content);
  }
  writer.finish();
  const Ended continued = run(command(folder));
  expect_success(continued);
  EXPECT_NE(state_of(continued), reference);
}

TEST_F(Signals, InTokenizingKeepWhatIsDone) {
  const int wanted = std::max(2, repeats("SIGNALS", 6) / 6);
  write_text(dir / "words.txt", random_words(150'000));
  const auto command = [&](const std::string& cache) {
    return Words{"tokenize",     "--data", dir / "words.txt", "--tokenizer-kind", "bpe",
                 "--vocab-size", "600",    "--cache",         dir / cache};
  };
  const auto start = Clock::now();
  expect_success(run(command("straight")));
  const int whole_us = static_cast<int>(std::chrono::microseconds((Clock::now() - start) / 1us).count());
  const std::string reference = tree_of(dir / "straight");
  int stopped = 0, finished = 0;
  for (int attempt = 0; stopped < wanted && attempt < 4 * wanted; ++attempt) {
    const std::string cache = "cache" + std::to_string(finished);
    const Ended ended = interrupt(command(cache), anywhere, whole_us);
    if (ended.code == 0) {
      EXPECT_EQ(tree_of(dir / cache), reference);
      ++finished;
      continue;
    }
    expect_continuable(ended);
    ++stopped;
  }
  const std::string cache = "cache" + std::to_string(finished);
  expect_success(run(command(cache)));
  EXPECT_EQ(tree_of(dir / cache), reference);
  std::printf("tokenize: %d stops, %d folders, all as if never stopped; slowest stop %.3f s\n", stopped,
              finished + 1, worst_s);
  EXPECT_EQ(stopped, wanted);
  EXPECT_LT(worst_s, 10);
}

TEST_F(Signals, InEvaluatingAndSamplingChangeNothing) {
  const int wanted = std::max(2, repeats("SIGNALS", 6) / 6);
  write_text(dir / "text.txt", random_words(30'000));
  const Words made = with(train(dir / "run", "2"), {"--seq-len", "1024", "--batch-tokens", "1024"});
  expect_success(run(made));
  const std::string before = tree_of(dir / "run");
  const Words verbs[] = {{"eval", "--out", dir / "run", "--eval-tokens", "0", "--threads", "1"},
                         {"sample", "--out", dir / "run", "--sample-tokens", "1000", "--threads", "1"}};
  for (const Words& verb : verbs) {
    const auto start = Clock::now();
    const Ended straight = run(verb);
    expect_success(straight);
    const int whole_us = static_cast<int>((Clock::now() - start) / 1us);
    int stopped = 0;
    worst_s = 0;
    for (int attempt = 0; stopped < wanted && attempt < 6 * wanted + 10; ++attempt) {
      const Ended ended = interrupt(verb, anywhere, whole_us);
      if (ended.code == 0) {
        EXPECT_EQ(ended.out, straight.out);
        continue;
      }
      expect_refusal(ended, 75, {"stopped on request", "nothing was changed", "starts over"});
      ++stopped;
    }
    EXPECT_EQ(tree_of(dir / "run"), before);
    const Ended again = run(verb);
    EXPECT_EQ(again.out, straight.out);
    std::printf("%s: %d stops, nothing changed; slowest stop %.3f s\n", verb.front().c_str(), stopped,
                worst_s);
    EXPECT_EQ(stopped, wanted);
    EXPECT_LT(worst_s, 10);
  }
}

// --- two processes on one run folder -----------------------------------------------------------------------

class Pairs : public Cli {
 protected:
  std::mt19937 random{4};

  static std::vector<std::int64_t> logged_steps(const std::string& run) {
    std::vector<std::int64_t> steps;
    for (const std::string& line : whole_lines(read_text(run + "/log.jsonl"))) {
      const Json record = parse_json(line, "log");
      if (json_string(record, "kind", "log") == "step") steps.push_back(json_int(record, "step", "log"));
    }
    return steps;
  }
};

TEST_F(Pairs, TheSecondIsRefusedAndTheFirstDoesNotNotice) {
  const int wanted = repeats("PAIRS", 5);
  const Ended straight = run(train(dir / "straight", "20"));
  expect_success(straight);
  int refused = 0, by_tokens = 0, damaged = 0, late = 0;
  for (int i = 0; refused < wanted && i < 3 * wanted; ++i) {
    const std::string out = dir / ("run" + std::to_string(i));
    const Words command = Words{QTRAIN_PROGRAM} + train(out, "20");
    const Streams one{.out = dir / "one.out", .err = dir / "one.err", .folder = dir / "work"};
    const Streams two{.out = dir / "two.out", .err = dir / "two.err", .folder = dir / "work"};
    const pid_t first = start_process(command, one);
    // At once, in the middle of the start, in the middle of the run.
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 3 * (random() % 40'000)));
    const pid_t second = start_process(command, two);
    const int second_code = finish_process(second), first_code = finish_process(first);
    if (first_code == 0 && second_code == 0) {  // on a busy machine the first may be through by then
      ++late;
      continue;
    }
    // Started at the same time, either may be the first to get there; never both, and never none.
    const bool first_won = first_code == 0;
    EXPECT_TRUE((first_code == 0 && second_code == 2) || (first_code == 2 && second_code == 0))
        << first_code << " and " << second_code << read_text(one.err) << read_text(two.err);
    const Ended winner{0, read_text((first_won ? one : two).out), {}};
    const Ended loser{first_won ? second_code : first_code, {}, read_text((first_won ? two : one).err)};
    const bool tokens = loser.err.find("tokenizing into this folder") != std::string::npos;
    expect_refusal(loser, 2, tokens ? Words{dir / "tokens", "wait for it"} : Words{out, "in use by process"});
    by_tokens += tokens ? 1 : 0;
    refused += loser.code == 2 ? 1 : 0;

    bool whole = state_of(winner) == state_of(straight);
    for (const Checkpoint& checkpoint : find_checkpoints(out))
      EXPECT_NO_THROW(verify_checkpoint(checkpoint.path));
    const std::string log = read_text(out + "/log.jsonl");
    const std::vector<std::int64_t> steps = logged_steps(out);
    whole = whole && unreadable_lines(log).empty() && find_checkpoints(out).size() == 2;
    whole = whole && steps.size() == 20 && std::is_sorted(steps.begin(), steps.end());
    EXPECT_TRUE(whole) << state_of(winner) << "\n" << log;
    damaged += whole ? 0 : 1;
    fs::remove_all(out);
  }
  std::printf(
      "%d pairs wanted: %d refused (%d of them while the tokens were looked at), %d too late, %d damaged\n",
      wanted, refused, by_tokens, late, damaged);
  EXPECT_EQ(refused, wanted);
  EXPECT_EQ(damaged, 0);
}

// The control: without the lock two processes do write into each other's run.
TEST_F(Pairs, WithoutTheLockTheyWouldDoHarm) {
  bool harm = false;
  for (int attempt = 0; attempt < 5 && !harm; ++attempt) {
    const std::string out = dir / ("run" + std::to_string(attempt));
    const Words command = Words{QTRAIN_PROGRAM} + with(train(out, "100"), {"--save-every", "10"});
    const Streams one{.out = dir / "one.out", .err = dir / "one.err", .folder = dir / "work"};
    const Streams two{.out = dir / "two.out", .err = dir / "two.err", .folder = dir / "work"};
    const pid_t first = start_process(command, one);
    for (int i = 0; i < 20'000 && find_checkpoints(out).empty(); ++i) std::this_thread::sleep_for(500us);
    fs::remove(out + "/lock");  // the second will lock another file
    const pid_t second = start_process(command, two);
    const int second_code = finish_process(second), first_code = finish_process(first);
    harm = first_code != 0 || second_code != 0 || logged_steps(out).size() != 100;
  }
  EXPECT_TRUE(harm) << "each step once and both content: the comparison above could not fail";
}

}  // namespace
}  // namespace qt::test
