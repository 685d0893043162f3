// The program and run folders that are damaged, hostile or another's, and a disk that ends.
#include <sys/mount.h>
#include <sys/resource.h>

#include <chrono>
#include <cstring>
#include <limits>
#include <thread>

#include "src/io/checkpoint.h"
#include "src/io/file_system.h"
#include "src/io/hash.h"
#include "src/io/json.h"
#include "src/io/safetensors.h"
#include "tests/support/cli.h"
#include "tests/support/reseal.h"
#include "tests/support/run_folder.h"

namespace qt::test {
namespace {

namespace fs = std::filesystem;
using namespace std::chrono_literals;

// --- run folders -------------------------------------------------------------------------------------------

// Each test gets a copy of one finished run with checkpoints at steps 2 and 4.
class CliRun : public Cli {
 protected:
  std::string folder;
  std::string reference;

  void SetUp() override {
    Cli::SetUp();
    folder = dir / "run";
    const Ended made = run(train(folder));
    ASSERT_EQ(made.code, 0) << made.err;
    reference = state_of(made);
    ASSERT_EQ(find_checkpoints(folder).size(), 2u);
    fs::rename(folder, dir / "good");
    restore();
  }
  void restore() {
    fs::remove_all(folder);
    fs::copy(dir / "good", folder, fs::copy_options::recursive);
  }
  fs::path at(std::int64_t step, const std::string& file) const {
    return fs::path(folder) / checkpoint_name(step) / file;
  }
};

TEST_F(CliRun, AreNotStartedAnewByAccident) {
  const std::string before = tree_of(folder);
  expect_refusal(run(train(folder) + Words{"--fresh"}), 2, {"--fresh", folder, "--out"});
  EXPECT_EQ(tree_of(folder), before);
}

TEST_F(CliRun, AreNotContinuedAsAnotherRun) {
  const std::string before = tree_of(folder);
  write_text(dir / "other.txt", tiny_text(300));
  struct Change {
    Words args, words;
    bool can_be_allowed;
  };
  const Change cases[] = {
      {{"--model", "d4"}, {"model: d2 -> d4"}, false},
      {{"--quant", "none"}, {"quant: nf4 -> none"}, false},
      {{"--optim", "adamw"}, {"optim: adamw8 -> adamw"}, false},
      {{"--dtype", "bf16"}, {"dtype: f32 -> bf16"}, false},
      {{"--master", "bf16-sr"}, {"master: f32 -> bf16-sr", "--init-from"}, false},
      {{"--seq-len", "64"}, {"seq-len: 32 -> 64"}, false},
      {{"--vocab-size", "300"}, {"vocab-size: 265 -> 300"}, false},
      {{"--tokenizer-kind", "char", "--cache", dir / "chars", "--prompt", "t"}, {"tokenizer"}, false},
      {{"--data", dir / "other.txt", "--cache", dir / "other"}, {"data: "}, true},
      {{"--batch-tokens", "256"}, {"batch-tokens: 128 -> 256"}, true},
      {{"--batch-tokens", "64"}, {"batch-tokens: 128 -> 64"}, true},
      {{"--seed", "7"}, {"seed: 42 -> 7"}, true},
  };
  for (const Change& c : cases) {
    SCOPED_TRACE(c.args.front() + " " + c.args[1]);
    const Words changed = with(train(folder, "6"), c.args);
    expect_refusal(run(changed), 2, c.words + Words{"--out"});
    EXPECT_EQ(tree_of(folder), before);
    const Ended allowed = run(changed + Words{"--allow-changes"});
    if (c.can_be_allowed) {
      expect_success(allowed);
      expect_words(allowed.out, c.words);
      restore();
    } else {
      expect_refusal(allowed, 2, c.words);
      EXPECT_EQ(tree_of(folder), before);
    }
  }
  // What changes no result needs no permission.
  const Ended threads = run(with(train(folder, "6"), {"--threads", "2", "--keep", "3"}));
  expect_success(threads);
}

// A run that went on to step 6 evaluated none of its steps twice, its old end among them.
TEST_F(CliRun, AreNotEvaluatedAgainWhereCheckpointOrLogKnowsBetter) {
  const Words more = train(folder, "6") + Words{"--eval-every", "2"};
  const auto evaluations_of_step_4 = [&] {
    expect_success(run(more));
    const std::string log = read_text(fs::path(folder) / "log.jsonl"), eval = "\"kind\":\"eval\",\"step\":4,";
    int count = 0;
    for (std::size_t at = log.find(eval); at != std::string::npos; at = log.find(eval, at + 1)) ++count;
    return count;
  };
  const auto forget = [&] {  // as programs did that kept no account of evaluations
    reseal(folder, 4, "run.json", [](std::string& text) {
      Json state = Json::parse(text);
      ASSERT_EQ(state.erase("evaluated_step"), 1u);
      text = state.dump(1) + "\n";
    });
    ASSERT_FALSE(fs::exists(at(4, "evaluated")));
  };
  ASSERT_TRUE(fs::exists(at(4, "evaluated")));
  EXPECT_EQ(evaluations_of_step_4(), 1) << "the checkpoint knows";
  restore();
  fs::remove(fs::path(folder) / "log.jsonl");
  EXPECT_EQ(evaluations_of_step_4(), 0) << "it needs no log";
  restore();
  forget();
  EXPECT_EQ(evaluations_of_step_4(), 1) << "the log knows";
  restore();
  forget();
  fs::remove(fs::path(folder) / "log.jsonl");
  EXPECT_EQ(evaluations_of_step_4(), 1) << "nothing knows, and it is evaluated now";
}

TEST_F(CliRun, ThatCannotBeSavedFromDivergingEndWithTheirOwnExitCode) {
  // Weights so large that products overflow, in a checkpoint that verifies: every restore leads back to them.
  reseal(folder, 4, "weights.safetensors", [&](std::string& file) {
    const Safetensors tensors = Safetensors::open(at(4, "weights.safetensors"));
    const float huge = 3e38f;
    const std::string name = "transformer.h.0.attn.c_v.weight.absmax";
    std::uint64_t offset = 0, bytes = 0;
    for (const StoredTensor& t : tensors.tensors()) {
      if (t.name != name) continue;
      offset = t.file_offset;
      bytes = t.bytes;
    }
    ASSERT_GT(bytes, 0u);
    for (std::uint64_t i = 0; i < bytes; i += sizeof huge)
      file.replace(offset + i, sizeof huge, reinterpret_cast<const char*>(&huge), sizeof huge);
  });
  expect_refusal(run(train(folder, "40")), 5, {"not finite", "3 restores", "--matrix-lr"});
  EXPECT_NO_THROW(verify_checkpoint(fs::path(folder) / checkpoint_name(2))) << "what was good before stays";
}

TEST_F(CliRun, FallBackToTheCheckpointBeforeADamagedOne) {
  struct Damage {
    const char* file;
    std::function<void(std::string&)> change;
    Words words;
  };
  const Damage cases[] = {
      {"weights.safetensors", cut_in_half, {"weights.safetensors", "bytes"}},
      {"weights.safetensors", flip_a_bit, {"weights.safetensors", "hash"}},
      {"state.safetensors", flip_a_bit, {"state.safetensors", "hash"}},
      {"state.safetensors", [](std::string& s) { s.clear(); }, {"state.safetensors"}},
      {"run.json", flip_a_bit, {"run.json", "hash"}},
      {"manifest.json", flip_a_bit, {"manifest.json"}},
      {"manifest.json", cut_in_half, {"manifest.json"}},
      {"manifest.json", [](std::string& s) { s = std::string(3000, '['); }, {"manifest.json"}},
      {"manifest.json",
       [](std::string& s) { s.replace(s.find("run.json"), 8, "../x.jsn"); },
       {"manifest.json"}},
  };
  for (const Damage& c : cases) {
    SCOPED_TRACE(c.file + std::string(", ") + c.words.back());
    restore();
    edit(at(4, c.file), c.change);
    const Ended ended = run(train(folder));
    expect_success(ended);
    expect_words(ended.out, {"step-000000004", "using step-000000002"});
    expect_words(ended.out, c.words);
    EXPECT_EQ(state_of(ended), reference) << "steps 3 and 4 again give what was lost";
  }
  for (const char* file : {"weights.safetensors", "manifest.json"}) {
    SCOPED_TRACE(file);
    restore();
    fs::remove(at(4, file));
    const Ended ended = run({"sample", "--out", folder, "--sample-tokens", "4"});
    expect_success(ended);
    expect_words(ended.err, {file, "using step-000000002"});
  }
}

TEST_F(CliRun, AreLeftAsTheyAreWhenNoCheckpointCanBeUsed) {
  edit(at(2, "state.safetensors"), flip_a_bit);
  edit(at(4, "weights.safetensors"), cut_in_half);
  const std::string before = tree_of(folder);
  for (const Words& args : {train(folder), train(folder) + Words{"--fresh"}, Words{"sample", "--out", folder},
                            Words{"eval", "--out", folder}}) {
    expect_refusal(
        run(args), 4,
        {folder, "step-000000002", "state.safetensors", "step-000000004", "weights.safetensors", "backup"});
    EXPECT_EQ(tree_of(folder), before);
  }
}

TEST_F(CliRun, WithHostileContentAreRefusedByName) {
  struct Hostile {
    const char* file;
    std::function<void(std::string&)> change;
    Words words;
  };
  const auto replace = [](const char* what, const char* with) {
    return [=](std::string& s) { s.replace(s.find(what), std::strlen(what), with); };
  };
  // The last element of the file's last tensor that is a float.
  const auto poison = [](std::string& s) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(s.data() + s.size() - 4, &nan, 4);
  };
  const Hostile cases[] = {
      {"weights.safetensors", poison, {"weights.safetensors", "tensor '", "element", "not a finite number"}},
      {"weights.safetensors", [](std::string& s) { s[3] = '\x7f'; }, {"weights.safetensors"}},
      {"weights.safetensors", replace("transformer", "transfomrer"), {"weights.safetensors"}},
      {"state.safetensors", cut_in_half, {"state.safetensors"}},
      {"run.json", replace("\"step\"", "\"stop\""), {"run.json", "step"}},
      {"run.json", replace("\"seconds\": ", "\"seconds\": -"), {"run.json", "seconds"}},
      {"run.json", [](std::string& s) { s = "{"; }, {"run.json"}},
      {"run.json", [](std::string& s) { s = "[]"; }, {"run.json", "object"}},
      {"run.json",
       replace("\"format_version\": 1", "\"format_version\": 99"),
       {"run.json", "format_version", "99"}},
  };
  for (const Hostile& c : cases) {
    SCOPED_TRACE(c.file + std::string(", ") + c.words.back());
    restore();
    reseal(folder, 4, c.file, c.change);
    const std::string before = tree_of(folder);
    expect_refusal(run(train(folder, "6")), 4, c.words);
    if (std::string(c.file) != "state.safetensors")
      expect_refusal(run({"sample", "--out", folder}), 4, c.words);
    EXPECT_EQ(tree_of(folder), before);
  }
  restore();
  reseal(folder, 4, "run.json", replace("\"model\": \"d2\"", "\"model\": \"d99\""));
  expect_refusal(run({"sample", "--out", folder}), 4, {"run.json", "d99"});
}

TEST_F(CliRun, OfAnotherProcessAreNotTouched) {
  const fs::path in_progress = fs::path(folder) / ".tmp-step-000000006-1";
  fs::create_directory(in_progress);
  {
    const RunLock lock(folder);
    expect_refusal(run(train(folder)), 2, {folder, std::to_string(getpid()), "kill"});
    EXPECT_TRUE(fs::exists(in_progress)) << "another's save was deleted";
    expect_success(run({"sample", "--out", folder, "--sample-tokens", "4"}));
    EXPECT_TRUE(fs::exists(in_progress)) << "reading deleted a save";
  }
  expect_success(run(train(folder)));
  EXPECT_FALSE(fs::exists(in_progress)) << "what a killed save left stays";
}

TEST_F(CliRun, AreAskedForWhenTheyAreMissing) {
  for (const char* verb : {"sample", "eval"}) {
    expect_refusal(run({verb, "--out", dir / "nowhere"}), 2, {dir / "nowhere", "--out"});
    expect_refusal(run({verb, "--out", dir / "work"}), 2, {dir / "work", "no checkpoint"});
  }
  EXPECT_FALSE(fs::exists(dir / "nowhere"));
  expect_refusal(run({"sample", "--out", folder, "--prompt", std::string(100, 'x')}), 2,
                 {"--prompt", "101 tokens", "32"});
  expect_refusal(run({"sample", "--out", folder, "--sample-tokens", "9223372036854775807"}), 2,
                 {"--sample-tokens"});
  expect_refusal(run({"eval", "--out", folder, "--data", dir / "nowhere.txt"}), 2, {dir / "nowhere.txt"});
  expect_refusal(run({"eval", "--out", folder, "--val-fraction", "0"}), 2, {"--val-data"});
  fs::remove(fs::path(folder) / "tokenizer.txt");
  expect_refusal(run({"sample", "--out", folder}), 4, {"tokenizer.txt"});
}

// --- a disk that ends --------------------------------------------------------------------------------------

class CliDisk : public Cli {
 protected:
  // Starts a run and holds it still once its first checkpoint is there. Saves every second step of many.
  pid_t start_and_hold(const std::string& out) {
    const Streams streams{.out = dir / "out", .err = dir / "err", .folder = dir / "work"};
    const pid_t pid = start_process(Words{QTRAIN_PROGRAM} + train(out, "40"), streams);
    for (int i = 0; i < 20000 && find_checkpoints(out).empty(); ++i) std::this_thread::sleep_for(500us);
    ::kill(pid, SIGSTOP);
    return pid;
  }

  // After the failure: an older checkpoint is whole, and the same command ends where an untroubled run ends.
  void expect_recovery(const std::string& out) {
    const auto left = find_checkpoints(out);
    ASSERT_FALSE(left.empty());
    for (const Checkpoint& checkpoint : left) EXPECT_NO_THROW(verify_checkpoint(checkpoint.path));
    const Ended continued = run(train(out, "40")), straight = run(train(dir / "straight", "40"));
    expect_success(continued);
    EXPECT_EQ(state_of(continued), state_of(straight));
  }
};

TEST_F(CliDisk, WritesThatFailEndTheRunAndLoseNothing) {
  const std::string out = dir / "run";
  const pid_t pid = start_and_hold(out);
  const rlimit small{.rlim_cur = 64 * 1024, .rlim_max = 64 * 1024};
  ASSERT_EQ(prlimit(pid, RLIMIT_FSIZE, &small, nullptr), 0);
  ::kill(pid, SIGCONT);
  const int code = finish_process(pid);
  expect_refusal({code, {}, read_text(dir / "err")}, 7, {out, "File too large"});
  expect_recovery(out);
}

TEST_F(CliDisk, AFullDiskEndsTheRunAndLosesNothing) {
  const std::string out = dir / "disk";
  fs::create_directory(out);
  // Enough for what the plan asks for at the start, not for that and two checkpoints: those count as the
  // run's own.
  if (mount("tmpfs", out.c_str(), "tmpfs", 0, "size=78m") != 0) {
    GTEST_SKIP() << "mounting a small disk needs root: " << std::strerror(errno);
  }
  struct Unmount {
    std::string path;
    ~Unmount() { umount2(path.c_str(), MNT_DETACH); }
  } const unmount{out};
  const std::string folder = out + "/run", filler = out + "/filler";
  const pid_t pid = start_and_hold(folder);
  {
    const int fd = open(filler.c_str(), O_WRONLY | O_CREAT, 0644);
    const std::string block(1 << 16, 'x');
    while (write(fd, block.data(), block.size()) > 0) continue;
    close(fd);
  }
  ::kill(pid, SIGCONT);
  const int code = finish_process(pid);
  expect_refusal({code, {}, read_text(dir / "err")}, 7, {folder});
  // Started again while it is still full, it says so before any work.
  expect_refusal(run(train(folder, "40")), 3, {"disk", "DOES NOT FIT", "--out"});
  ASSERT_TRUE(fs::remove(filler));
  expect_recovery(folder);
}

TEST_F(CliDisk, AReadOnlyRunFolderIsRefused) {
  if (geteuid() == 0) GTEST_SKIP() << "root may write everywhere";
  const std::string out = dir / "run";
  fs::create_directory(out);
  fs::permissions(out, fs::perms::owner_read | fs::perms::owner_exec);
  expect_refusal(run(train(out)), 7, {out, "Permission denied"});
  fs::permissions(out, fs::perms::owner_all);
}

}  // namespace
}  // namespace qt::test
