// Power loss at any operation of real saves: a checkpoint is found that is the newest finished one or the
// one being written, whole, and nothing that has a checkpoint's name is anything less.
//
// Saves are recorded once and replayed with every prefix of their operations; what is not certain to be on
// the disk by then is dropped, cut, zeroed or garbled at random (tests/support/power_loss.h). The number of
// crashes comes from CRASHES in the environment (`scripts/prove power` runs 5,000 and more).
#include <cstdio>

#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/io/checkpoint.h"
#include "src/io/hash.h"
#include "tests/support/mini_engine.h"
#include "tests/support/power_loss.h"

namespace qt::test {
namespace {

namespace fs = std::filesystem;
using Kind = DiskOp::Kind;

// Names and bytes of every file in a folder.
std::string content_of(const fs::path& folder) {
  Xxh3 hash;
  for (const std::string& name : list_dir(folder)) hash.update(bytes_of(name + "\n" + get(folder / name)));
  return hash.hex();
}

struct Save {
  std::size_t operations;  // of the recording when it was finished
  std::string content;
};

// A run of the real CheckpointStore, from the first command on, that folder included.
struct Recording {
  TempDir disk;
  std::vector<DiskOp> log;
  std::vector<Save> saves;
  bool exchange = true;
};

fs::path run_of(const fs::path& disk) { return disk / "runs" / "one"; }

std::unique_ptr<Recording> record(const std::function<bool(const DiskOp&)>& forgets = {},
                                  bool exchange = true) {
  auto recording = std::make_unique<Recording>();
  recording->exchange = exchange;
  RecordingFs disk(forgets);
  disk.set_exchange_supported(exchange);
  const fs::path run = run_of(recording->disk.path());
  const auto engine = mini_engine();
  CheckpointStore store(run.string(), 2, disk);
  // The last step twice: a run that fell back to an older checkpoint comes by the damaged one again.
  std::uint64_t seed = 0;
  for (const std::int64_t step : {2, 4, 6, 8, 8}) {
    engine->init_weights(++seed);
    store.save(*engine, state_at(step));
    recording->saves.push_back({disk.log().size(), content_of(run / checkpoint_name(step))});
  }
  recording->log = disk.log();
  return recording;
}

struct Findings {
  int crashes = 0;
  int lost = 0;        // no checkpoint, or an older one than the last that was finished
  int corrupt = 0;     // accepted with other bytes than were saved
  int half = 0;        // has a checkpoint's name and is damaged
  int no_restart = 0;  // the next start cannot clean up and save

  int bad() const { return lost + corrupt + half + no_restart; }
  void print(const char* what) const {
    std::printf(
        "%-34s %6d crashes: %d lost, %d corrupt accepted, %d half under a final name, %d not continued\n",
        what, crashes, lost, corrupt, half, no_restart);
  }
};

// What the next start finds on a disk on which `operations` of the recording were asked for.
void judge(const Recording& recording, std::size_t operations, const fs::path& disk, VerifyDepth depth,
           Findings& findings) {
  ++findings.crashes;
  const fs::path run = run_of(disk);
  std::size_t finished = 0;
  while (finished < recording.saves.size() && recording.saves[finished].operations <= operations) ++finished;
  const CheckpointChoice choice = choose_checkpoint(run, depth);
  if (!choice.checkpoint) {
    findings.lost += finished > 0 ? 1 : 0;
  } else {
    const std::string content = content_of(choice.checkpoint->path);
    // Without an atomic swap there is a moment in which a step that is saved again has no folder.
    const std::size_t back = recording.exchange ? 1 : 2;
    bool known = false, recent = false;
    for (std::size_t i = 0; i <= finished && i < recording.saves.size(); ++i) {
      if (recording.saves[i].content != content) continue;
      known = true;
      recent = recent || i + back >= finished;
    }
    findings.corrupt += known ? 0 : 1;
    findings.lost += known && !recent ? 1 : 0;
  }
  for (const Checkpoint& checkpoint : find_checkpoints(run)) {
    if (message_of<Error>([&] { verify_checkpoint(checkpoint.path); }).empty()) continue;
    ++findings.half;
    break;
  }
}

// The next start, on the real file system from here on: clean up, save, and find it.
bool continues(FileSystem& disk, const fs::path& run) {
  make_folders(disk, run);
  remove_stale_folders(disk, run);
  for (const std::string& name : list_dir(run)) {
    if (name.front() == '.') return false;
  }
  CheckpointWriter writer(disk, run, 10);
  writer.add_file("weights.safetensors").write("ten");
  writer.finish();
  prune_checkpoints(disk, run, 2);
  const CheckpointChoice choice = choose_checkpoint(run);
  return choice.checkpoint && choice.checkpoint->step == 10 && find_checkpoints(run).size() <= 2;
}

// The same operation below another folder.
DiskOp moved(DiskOp op, const fs::path& from, const fs::path& to) {
  op.path = to / op.path.lexically_relative(from);
  if (!op.other.empty()) op.other = to / op.other.lexically_relative(from);
  return op;
}

Findings crash_everywhere(const Recording& recording, int wanted, VerifyDepth depth = VerifyDepth::hashes) {
  Findings findings;
  std::mt19937_64 random(20251117);
  const int each = std::max(
      1, (wanted + static_cast<int>(recording.log.size())) / static_cast<int>(recording.log.size() + 1));
  const TempDir empty;
  SimDisk disk(empty.path());
  for (std::size_t done = 0;; ++done) {
    for (int i = 0; i < each; ++i) {
      const TempDir after;
      disk.crash(after.path(), random);
      judge(recording, done, after.path(), depth, findings);
      findings.no_restart += continues(posix_fs(), run_of(after.path())) ? 0 : 1;
    }
    if (done == recording.log.size()) return findings;
    disk.apply(moved(recording.log[done], recording.disk.path(), empty.path()));
  }
}

int crashes() { return repeats("CRASHES", 300); }

TEST(PowerLoss, AtAnyOperationLeavesTheNewestOrTheOneBefore) {
  const auto recording = record();
  const Findings findings = crash_everywhere(*recording, crashes());
  std::printf("%zu operations in %zu saves\n", recording->log.size(), recording->saves.size());
  findings.print("swapped in one step");
  EXPECT_GE(findings.crashes, crashes());
  EXPECT_EQ(findings.bad(), 0);
}

TEST(PowerLoss, WhereFoldersCannotBeSwappedAlso) {
  const auto recording = record({}, false);
  const Findings findings = crash_everywhere(*recording, crashes());
  findings.print("moved away first");
  EXPECT_EQ(findings.bad(), 0);
}

// The power fails again while the start after the first failure cleans up, saves and deletes.
TEST(PowerLoss, TwiceInARowIsSurvivedToo) {
  const auto recording = record();
  std::mt19937_64 random(7);
  const int wanted = std::max(20, crashes() / 10);
  const TempDir empty;
  SimDisk disk(empty.path());
  // In the middle of everything: three saves are finished.
  const std::size_t first = recording->saves[2].operations;
  const std::size_t last = recording->saves[3].operations;
  int second = 0, bad = 0;
  for (std::size_t done = 0; done < last && second < wanted; ++done) {
    disk.apply(moved(recording->log[done], recording->disk.path(), empty.path()));
    if (done + 1 < first) continue;
    const TempDir between;
    disk.crash(between.path(), random);
    SimDisk again(between.path());
    RecordingFs restart;
    ASSERT_TRUE(continues(restart, run_of(between.path())));
    for (const DiskOp& next : restart.log()) {
      again.apply(next);
      if (random() % 8 != 0) continue;
      const TempDir after;
      again.crash(after.path(), random);
      ++second;
      const CheckpointChoice choice = choose_checkpoint(run_of(after.path()));
      bad += choice.checkpoint && choice.rejected.empty() && choice.checkpoint->step >= 6 ? 0 : 1;
    }
  }
  std::printf("%d second crashes, %d bad\n", second, bad);
  EXPECT_GE(second, 20);
  EXPECT_EQ(bad, 0);
}

TEST(PowerLoss, AFileReplacedAtomicallyIsTheOldOrTheNewOne) {
  const auto violations = [](const std::function<bool(const DiskOp&)>& forgets) {
    const TempDir source, empty;
    RecordingFs recorder(forgets);
    std::vector<std::size_t> ends;
    const std::vector<std::string> versions = {std::string(500, 'a'), std::string(70'000, 'b'), "c"};
    for (const std::string& version : versions) {
      write_file_atomically(recorder, source / "tokenizer.txt", bytes_of(version));
      ends.push_back(recorder.log().size());
    }
    SimDisk disk(empty.path());
    std::mt19937_64 random(3);
    int bad = 0;
    for (std::size_t done = 0;; ++done) {
      const std::size_t finished = static_cast<std::size_t>(
          std::count_if(ends.begin(), ends.end(), [&](auto end) { return end <= done; }));
      for (int i = 0; i < 8; ++i) {
        const TempDir after;
        disk.crash(after.path(), random);
        const bool there = fs::exists(after / "tokenizer.txt");
        const std::string content = there ? get(after / "tokenizer.txt") : "";
        const bool old_one = finished == 0 ? !there : content == versions[finished - 1];
        bad += old_one || (finished < versions.size() && content == versions[finished]) ? 0 : 1;
      }
      if (done == recorder.log().size()) return bad;
      disk.apply(moved(recorder.log()[done], source.path(), empty.path()));
    }
  };
  EXPECT_EQ(violations({}), 0);
  EXPECT_GT(violations([](const DiskOp& op) { return op.kind == Kind::fsync && op.path.has_extension(); }),
            0);
  EXPECT_GT(violations([](const DiskOp& op) { return op.kind == Kind::fsync && !op.path.has_extension(); }),
            0);
}

// --- controls: a writer with one step left out must be caught by the same crashes
// ---------------------------

TEST(PowerLossControl, WithoutFsyncOfTheFiles) {
  const auto recording =
      record([](const DiskOp& op) { return op.kind == Kind::fsync && op.path.has_extension(); });
  const Findings findings = crash_everywhere(*recording, 300);
  findings.print("without fsync of files");
  EXPECT_GT(findings.lost, 0);
  EXPECT_GT(findings.half, 0);
  EXPECT_EQ(findings.corrupt, 0) << "the hashes must find this";
  // And without the hashes damaged ones would be accepted.
  EXPECT_GT(crash_everywhere(*recording, 300, VerifyDepth::sizes).corrupt, 0);
}

TEST(PowerLossControl, WithoutFsyncOfTheManifestAlone) {
  const auto recording =
      record([](const DiskOp& op) { return op.kind == Kind::fsync && op.path.filename() == kManifestName; });
  EXPECT_GT(crash_everywhere(*recording, 300).lost, 0);
}

TEST(PowerLossControl, WithoutFsyncOfTheCheckpointsFolder) {
  const auto recording = record([](const DiskOp& op) {
    return op.kind == Kind::fsync && op.path.filename().string().starts_with(".tmp-");
  });
  const Findings findings = crash_everywhere(*recording, 300);
  findings.print("without fsync of the new folder");
  EXPECT_GT(findings.half, 0);
}

TEST(PowerLossControl, WithoutFsyncOfTheRunFolder) {
  const auto recording =
      record([](const DiskOp& op) { return op.kind == Kind::fsync && op.path.filename() == "one"; });
  const Findings findings = crash_everywhere(*recording, 300);
  findings.print("without fsync of the run folder");
  EXPECT_GT(findings.lost, 0);
}

TEST(PowerLossControl, WithoutFsyncAboveANewRunFolder) {
  const auto recording =
      record([](const DiskOp& op) { return op.kind == Kind::fsync && op.path.filename() == "runs"; });
  const Findings findings = crash_everywhere(*recording, 300);
  findings.print("without fsync above the run folder");
  EXPECT_GT(findings.lost, 0);
}

TEST(PowerLossControl, WithoutFsyncBetweenRenamingAndDeleting) {
  bool to_trash = false;
  const auto recording = record([&](const DiskOp& op) {
    if (op.kind == Kind::rename || op.kind == Kind::exchange)
      to_trash = op.other.filename().string().starts_with(".trash-");
    return op.kind == Kind::fsync && to_trash && op.path.filename() == "one";
  });
  const Findings findings = crash_everywhere(*recording, 600);
  findings.print("without fsync before a deletion");
  EXPECT_GT(findings.half, 0);
}

// The name before the content: written where it will be looked for.
TEST(PowerLossControl, WithTheNameBeforeTheFiles) {
  Recording recording;
  RecordingFs disk;
  const fs::path run = run_of(recording.disk.path());
  make_folders(disk, run);
  for (const std::int64_t step : {2, 4}) {
    const fs::path folder = run / checkpoint_name(step);
    disk.mkdir(folder);
    fsync_directory(disk, run);
    Manifest manifest{.program = "a control", .step = step};
    const std::string data(1000, static_cast<char>('0' + step));
    manifest.files.push_back({"weights", 1000, xxh3_hex(bytes_of(data))});
    for (const auto& [name, content] : {std::pair(std::string(kManifestName), format_manifest(manifest)),
                                        std::pair(std::string("weights"), data)}) {
      OutputFile file(disk, folder / name);
      file.write(content);
      file.finish();
    }
    fsync_directory(disk, folder);
    recording.saves.push_back({disk.log().size(), content_of(folder)});
  }
  recording.log = disk.log();
  const Findings findings = crash_everywhere(recording, 300);
  findings.print("with the name before the files");
  EXPECT_GT(findings.half, 0);
}

}  // namespace
}  // namespace qt::test
