// The checkpoint folder protocol: what verifies, what is chosen, what is deleted, and what a failure or a
// kill at any operation of a save leaves behind.
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <functional>

#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/io/checkpoint.h"
#include "src/io/safetensors_writer.h"
#include "tests/support/fault_fs.h"
#include "tests/support/temp_dir.h"

namespace qt {
namespace {

namespace stdfs = std::filesystem;
using test::Fault;
using test::FaultFs;
using test::message_of;
using test::TempDir;

std::string weights_of(std::int64_t step, std::size_t bytes) {
  std::string text(bytes, '\0');
  for (std::size_t i = 0; i < bytes; ++i)
    text[i] = static_cast<char>(i * 131 + static_cast<std::size_t>(step) * 17);
  return text;
}

// Large enough that streaming needs several writes.
constexpr std::size_t kWeightBytes = 100'000;

Checkpoint save(FileSystem& fs, const stdfs::path& run, std::int64_t step, std::size_t bytes = kWeightBytes,
                const SaveOptions& options = {}) {
  CheckpointWriter writer(fs, run, step, options);
  OutputFile& file = writer.add_file("weights.safetensors");
  SafetensorsWriter tensors(file, {{"w", StoredType::u8, {static_cast<std::int64_t>(bytes)}}});
  const std::string data = weights_of(step, bytes);
  for (std::size_t i = 0; i < bytes; i += 40'000) {
    tensors.write("w", bytes_of(std::string_view(data).substr(i, 40'000)));
  }
  tensors.finish();
  writer.add_file("state.json").write("{\"step\": " + std::to_string(step) + "}\n");
  return writer.finish();
}

std::vector<std::string> side_folders(const stdfs::path& run) {
  auto names = list_dir(run);
  std::erase_if(names, [](const std::string& name) { return name.front() != '.'; });
  return names;
}

std::vector<std::int64_t> steps_of(const stdfs::path& run) {
  std::vector<std::int64_t> steps;
  for (const auto& checkpoint : find_checkpoints(run)) steps.push_back(checkpoint.step);
  return steps;
}

void flip_bit(const stdfs::path& path, std::size_t bit) {
  std::string bytes = test::get(path);
  bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
  test::put(path, bytes);
}

TEST(Checkpoint, ASavedFolderVerifiesAndIsChosen) {
  const TempDir run;
  EXPECT_FALSE(choose_checkpoint(run.path()).checkpoint);
  EXPECT_TRUE(choose_checkpoint(run / "absent").rejected.empty());
  save(posix_fs(), run.path(), 100, kWeightBytes, {.expected_bytes = 1000, .program = "qtrain 9.9"});
  const auto latest = save(posix_fs(), run.path(), 1'234'567'890'123);
  EXPECT_EQ(latest.path.filename(), "step-1234567890123");
  const auto choice = choose_checkpoint(run.path());
  ASSERT_TRUE(choice.checkpoint);
  EXPECT_EQ(choice.checkpoint->step, 1'234'567'890'123);
  EXPECT_EQ(choice.explain(), "");
  EXPECT_TRUE(side_folders(run.path()).empty());

  const Manifest manifest = verify_checkpoint(run / "step-000000100");
  EXPECT_EQ(manifest.program, "qtrain 9.9");
  EXPECT_EQ(manifest.step, 100);
  ASSERT_EQ(manifest.files.size(), 2u);
  EXPECT_EQ(manifest.files[1].name, "state.json");
  EXPECT_EQ(manifest.files[1].xxh3_128, xxh3_hex(bytes_of(test::get(run / "step-000000100" / "state.json"))));
  EXPECT_EQ(manifest.created.size(), 20u);
}

// The order is the protocol: every file durable, then the names in the folder, then the final name.
TEST(Checkpoint, FilesAreSyncedBeforeTheFolderAndTheFolderBeforeTheName) {
  const TempDir run;
  FaultFs fs;
  save(fs, run.path(), 7, 10);
  const std::string tmp = ".tmp-step-000000007-" + std::to_string(::getpid());
  const std::vector<std::string> want = {"mkdir " + tmp,
                                         "create weights.safetensors",
                                         "write",
                                         "fsync",
                                         "close",
                                         "create state.json",
                                         "write",
                                         "fsync",
                                         "close",
                                         "create manifest.json",
                                         "write",
                                         "fsync",
                                         "close",
                                         "open " + tmp,
                                         "fsync",
                                         "close",
                                         "rename " + tmp + " step-000000007",
                                         "open " + run.path().filename().string(),
                                         "fsync",
                                         "close"};
  EXPECT_EQ(fs.log(), want);
}

TEST(Checkpoint, EveryFlippedBitOfASmallCheckpointIsDetected) {
  const TempDir run;
  const auto path = save(posix_fs(), run.path(), 3, 16).path;
  verify_checkpoint(path);
  for (const char* name : {"weights.safetensors", "state.json", "manifest.json"}) {
    const std::size_t bits = test::get(path / name).size() * 8;
    for (std::size_t bit = 0; bit < bits; ++bit) {
      flip_bit(path / name, bit);
      ASSERT_FALSE(message_of<DataError>([&] { verify_checkpoint(path); }).empty()) << name << " bit " << bit;
      flip_bit(path / name, bit);
    }
  }
  verify_checkpoint(path);
}

TEST(Checkpoint, EveryTruncationOfEveryFileIsDetected) {
  const TempDir run;
  const auto path = save(posix_fs(), run.path(), 3, 16).path;
  for (const char* name : {"weights.safetensors", "state.json", "manifest.json"}) {
    const std::string whole = test::get(path / name);
    for (std::size_t n = 0; n < whole.size(); ++n) {
      test::put(path / name, std::string_view(whole).substr(0, n));
      ASSERT_FALSE(message_of<DataError>([&] { verify_checkpoint(path, VerifyDepth::sizes); }).empty())
          << name << n;
    }
    test::put(path / name, whole);
  }
  verify_checkpoint(path);
}

TEST(Checkpoint, TheNewestThatVerifiesIsChosenAndEveryOtherExplained) {
  const TempDir run;
  for (const std::int64_t step : {80, 100, 120, 140, 160}) save(posix_fs(), run.path(), step, 100);
  flip_bit(run / "step-000000120" / "weights.safetensors", 1000);
  stdfs::remove(run / "step-000000140" / "state.json");
  stdfs::resize_file(run / "step-000000160" / "weights.safetensors", 99);
  const auto choice = choose_checkpoint(run.path());
  ASSERT_TRUE(choice.checkpoint);
  EXPECT_EQ(choice.checkpoint->step, 100);
  EXPECT_EQ(choice.explain(),
            "step-000000160: weights.safetensors: has 99 bytes, the manifest says 172\n"
            "step-000000140: state.json: is missing\n"
            "step-000000120: weights.safetensors: hash differs from the manifest (file damaged)\n"
            "using step-000000100");
  // Sizes alone cannot see a flipped bit: the negative control of the line above.
  EXPECT_EQ(choose_checkpoint(run.path(), VerifyDepth::sizes).checkpoint->step, 120);
}

TEST(Checkpoint, WhenNothingVerifiesTheChoiceSaysSo) {
  const TempDir run;
  stdfs::create_directory(run / "step-000000005");
  test::put(run / "step-000000006", "a file, not a folder");
  stdfs::create_directory(run / "step-7");
  const auto choice = choose_checkpoint(run.path());
  EXPECT_FALSE(choice.checkpoint);
  EXPECT_EQ(choice.explain(), "step-000000005: manifest.json: is missing\nno checkpoint can be used");
}

TEST(Checkpoint, ACheckpointUnderAnotherStepsNameIsRefused) {
  const TempDir run;
  save(posix_fs(), run.path(), 5, 10);
  stdfs::rename(run / "step-000000005", run / "step-000000009");
  EXPECT_NE(choose_checkpoint(run.path()).explain().find("manifest.json: is for step 5, not for this folder"),
            std::string::npos);
}

// What a failure at each operation of a save must not do: harm the checkpoint before, stay quiet, or litter.
void expect_failures_are_harmless(const std::function<void(FileSystem&, const stdfs::path&)>& second_save,
                                  Fault fault, int error, bool exchange) {
  std::int64_t operations = 0;
  std::vector<std::string> log;  // of a save without faults
  std::size_t durable = 0;       // the last fsync in it: of the run folder
  for (std::int64_t at = -1; at < operations; ++at) {
    const TempDir run;
    save(posix_fs(), run.path(), 100, 50);
    FaultFs fs(at < 0 ? Fault::none : fault, at, error);
    fs.set_exchange_supported(exchange);
    const auto text = message_of<DiskError>([&] { second_save(fs, run.path()); });
    if (at < 0) {
      ASSERT_EQ(text, "");
      operations = fs.operations();
      log = fs.log();
      durable = log.size() - 1;
      while (log[durable] != "fsync") --durable;
      continue;
    }
    SCOPED_TRACE(fs.log()[static_cast<std::size_t>(at)] + " is operation " + std::to_string(at));
    const auto choice = choose_checkpoint(run.path());
    ASSERT_TRUE(choice.checkpoint);
    EXPECT_TRUE(choice.rejected.empty()) << choice.explain();
    verify_checkpoint(run / "step-000000100");
    if (fault == Fault::crash || fault == Fault::crash_torn) {
      // Dead: litter is allowed, and the next start removes it.
      EXPECT_TRUE(choice.checkpoint->step == 100 || choice.checkpoint->step == 120);
      remove_stale_folders(posix_fs(), run.path());
    } else if (!text.empty()) {
      EXPECT_NE(text.find(error == EIO && fault != Fault::disk_full ? "Input/output error" : "No space left"),
                std::string::npos)
          << text;
      EXPECT_EQ(choice.checkpoint->step, 100);
    } else {
      // Unnoticed may fail: closing a folder that was opened and synced, and deleting after the save is
      // durable.
      const auto index = static_cast<std::size_t>(at);
      const bool folder_closed = log[index] == "close" && log[index - 2].starts_with("open ");
      EXPECT_TRUE(!fs.injected() || folder_closed || index > durable);
    }
    const auto left = side_folders(run.path());
    EXPECT_TRUE(left.empty() || text.empty()) << left.front();
    verify_checkpoint(choose_checkpoint(run.path()).checkpoint->path);
    // And the run goes on: the next save works.
    save(posix_fs(), run.path(), 140, 50);
    EXPECT_EQ(choose_checkpoint(run.path()).checkpoint->step, 140);
  }
}

void save_120(FileSystem& fs, const stdfs::path& run) { save(fs, run, 120); }
void save_100_again(FileSystem& fs, const stdfs::path& run) { save(fs, run, 100); }

TEST(CheckpointFaults, AFullDiskAtAnyOperationKeepsThePreviousCheckpoint) {
  expect_failures_are_harmless(save_120, Fault::disk_full, ENOSPC, true);
}

TEST(CheckpointFaults, ASingleFailureOfAnyOperationKeepsThePreviousCheckpoint) {
  expect_failures_are_harmless(save_120, Fault::fail_once, EIO, true);
  expect_failures_are_harmless(save_120, Fault::fail_once, ENOSPC, true);
}

TEST(CheckpointFaults, AStopAfterAnyOperationLeavesThePreviousOrTheNewCheckpoint) {
  expect_failures_are_harmless(save_120, Fault::crash, EIO, true);
  expect_failures_are_harmless(save_120, Fault::crash_torn, EIO, true);
}

TEST(CheckpointFaults, ReplacingACheckpointOfTheSameStepIsAsSafe) {
  expect_failures_are_harmless(save_100_again, Fault::fail_once, EIO, true);
  expect_failures_are_harmless(save_100_again, Fault::disk_full, ENOSPC, true);
  expect_failures_are_harmless(save_100_again, Fault::crash, EIO, true);
  expect_failures_are_harmless(save_100_again, Fault::disk_full, ENOSPC, false);
}

// The control: files rewritten in place, without the protocol, do not survive the same faults.
TEST(CheckpointFaults, AWriterInPlaceIsCaughtByTheseFaults) {
  std::int64_t lost = 0;
  for (std::int64_t at = 0; at < 6; ++at) {
    const TempDir run;
    const auto path = save(posix_fs(), run.path(), 100, 50).path;
    FaultFs fs(Fault::crash, at);
    message_of<DiskError>([&] {
      OutputFile weights(fs, path / "weights.safetensors", OutputFile::Existing::replace);
      weights.write(test::get(path / "state.json"));
      weights.finish();
    });
    lost += choose_checkpoint(run.path()).checkpoint ? 0 : 1;
  }
  EXPECT_GE(lost, 3);
}

// Where names cannot be swapped there is a moment without the folder; what was there before still counts.
TEST(CheckpointFaults, WithoutSwappingAKillWhileReplacingFallsBackToTheOneBefore) {
  std::int64_t operations = 0;
  for (std::int64_t at = -1; at < operations; ++at) {
    const TempDir run;
    save(posix_fs(), run.path(), 90, 50);
    save(posix_fs(), run.path(), 100, 50);
    FaultFs fs(at < 0 ? Fault::none : Fault::crash, at);
    fs.set_exchange_supported(false);
    message_of<DiskError>([&] { save(fs, run.path(), 100); });
    if (at < 0) operations = fs.operations();
    const auto choice = choose_checkpoint(run.path());
    ASSERT_TRUE(choice.checkpoint) << at;
    EXPECT_TRUE(choice.rejected.empty());
    EXPECT_GE(choice.checkpoint->step, 90);
  }
}

TEST(CheckpointFaults, ShortAndInterruptedWritesStillMakeAGoodCheckpoint) {
  const TempDir run;
  FaultFs fs(Fault::short_write);
  save(fs, run.path(), 5, 2000);
  verify_checkpoint(run / "step-000000005");
}

TEST(CheckpointFaults, TooLittleFreeSpaceIsSeenBeforeAnythingIsWritten) {
  const TempDir run;
  FaultFs fs;
  fs.set_free_bytes(1'099);
  EXPECT_NE(message_of<DiskError>([&] {
              save(fs, run.path(), 5, 10, {.expected_bytes = 1'000});
            }).find("1100 bytes"),
            std::string::npos);
  EXPECT_TRUE(fs.log().empty());
  fs.set_free_bytes(1'100);
  save(fs, run.path(), 5, 10, {.expected_bytes = 1'000});
}

TEST(CheckpointFaults, AnAbandonedWriterLeavesNothing) {
  const TempDir run;
  {
    CheckpointWriter writer(posix_fs(), run.path(), 5);
    writer.add_file("a").write("x");
  }
  EXPECT_TRUE(list_dir(run.path()).empty());
}

TEST(CheckpointFaults, NamesThatLeadOutOfTheFolderAreRefused) {
  const TempDir run;
  CheckpointWriter writer(posix_fs(), run.path(), 5);
  for (const char* name : {"", ".", "..", "../x", "/x", "a/b", ".hidden", "manifest.json", "a\nb"}) {
    EXPECT_NE(message_of<ConfigError>([&] { writer.add_file(name); }).find("cannot name a file"),
              std::string::npos)
        << name;
  }
}

TEST(CheckpointFaults, ARealFullFilesystemKeepsThePreviousCheckpoint) {
  const TempDir dir;
  if (::mount("tmpfs", dir.path().c_str(), "tmpfs", 0, "size=1m") != 0) {
    GTEST_SKIP() << "mounting a tmpfs needs root: " << std::strerror(errno);
  }
  const struct Unmount {
    const TempDir& at;
    ~Unmount() { ::umount2(at.path().c_str(), MNT_DETACH); }
  } unmount{dir};
  save(posix_fs(), dir.path(), 100);
  const auto text = message_of<DiskError>([&] { save(posix_fs(), dir.path(), 120, 2'000'000); });
  EXPECT_NE(text.find("No space left on device"), std::string::npos) << text;
  EXPECT_EQ(steps_of(dir.path()), std::vector<std::int64_t>{100});
  EXPECT_TRUE(side_folders(dir.path()).empty());
  verify_checkpoint(dir / "step-000000100");
  EXPECT_NE(message_of<DiskError>([&] {
              save(posix_fs(), dir.path(), 120, 10, {.expected_bytes = 2'000'000});
            }).find("are free"),
            std::string::npos);
  save(posix_fs(), dir.path(), 120);
  EXPECT_EQ(choose_checkpoint(dir.path()).checkpoint->step, 120);
}

TEST(CheckpointPrune, KeepsTheNewestThatVerifyAndCountsNoDamagedOne) {
  const TempDir run;
  for (const std::int64_t step : {1, 2, 3, 4, 5, 6}) save(posix_fs(), run.path(), step, 50);
  flip_bit(run / "step-000000005" / "weights.safetensors", 900);
  const auto result = prune_checkpoints(posix_fs(), run.path(), 2);
  EXPECT_EQ(steps_of(run.path()), (std::vector<std::int64_t>{4, 5, 6}));
  EXPECT_EQ(result.removed_steps, (std::vector<std::int64_t>{3, 2, 1}));
  ASSERT_EQ(result.warnings.size(), 1u);
  EXPECT_NE(result.warnings[0].find("step-000000005: weights.safetensors: hash differs"), std::string::npos);
  EXPECT_TRUE(side_folders(run.path()).empty());
  EXPECT_TRUE(prune_checkpoints(posix_fs(), run.path(), 2).removed_steps.empty());
}

TEST(CheckpointPrune, RefusesToKeepFewerThanTwo) {
  const TempDir run;
  for (const std::int64_t step : {1, 2, 3}) save(posix_fs(), run.path(), step, 50);
  for (const int keep : {1, 0, -1}) {
    EXPECT_NE(message_of<ConfigError>([&] {
                prune_checkpoints(posix_fs(), run.path(), keep);
              }).find("fewer than two"),
              std::string::npos);
  }
  EXPECT_EQ(steps_of(run.path()).size(), 3u);
}

TEST(CheckpointPrune, WithTooFewThatVerifyNothingIsDeleted) {
  const TempDir run;
  for (const std::int64_t step : {1, 2, 3, 4}) save(posix_fs(), run.path(), step, 50);
  for (const char* name : {"step-000000001", "step-000000003", "step-000000004"})
    flip_bit(run / name / "state.json", 3);
  EXPECT_TRUE(prune_checkpoints(posix_fs(), run.path(), 2).removed_steps.empty());
  EXPECT_EQ(steps_of(run.path()).size(), 4u);
}

TEST(CheckpointPrune, AKillOrFailureWhileDeletingNeverLeavesAHalfDeletedCheckpoint) {
  std::int64_t operations = 0;
  for (const Fault fault : {Fault::crash, Fault::fail_once}) {
    for (std::int64_t at = -1; at < operations; ++at) {
      const TempDir run;
      for (const std::int64_t step : {1, 2, 3, 4}) save(posix_fs(), run.path(), step, 50);
      FaultFs fs(at < 0 ? Fault::none : fault, at, EIO);
      prune_checkpoints(fs, run.path(), 2);
      if (at < 0) operations = fs.operations();
      // Whatever still has a checkpoint's name is whole.
      for (const auto& checkpoint : find_checkpoints(run.path())) verify_checkpoint(checkpoint.path);
      EXPECT_GE(find_checkpoints(run.path()).size(), 2u);
      // In what is left of a deletion the manifest goes first: it never verifies after its first file is
      // gone.
      for (const auto& name : side_folders(run.path())) {
        const bool has_manifest = stdfs::exists(run / name / kManifestName);
        EXPECT_TRUE(!has_manifest || list_dir(run / name).size() == 3) << name;
      }
      remove_stale_folders(posix_fs(), run.path());
      EXPECT_TRUE(side_folders(run.path()).empty());
    }
  }
}

TEST(CheckpointStale, OnlyFoldersOfKilledSavesAndDeletionsAreRemoved) {
  const TempDir run;
  save(posix_fs(), run.path(), 1, 50);
  const std::vector<std::string> stale = {".tmp-step-000000002-99", ".trash-step-000000001-7"};
  const std::vector<std::string> kept = {".tmp-mine", ".tmp-step-2-99", ".tmp-step-000000002-",
                                         "tmp-step-000000002-9"};
  for (const auto& list : {stale, kept}) {
    for (const auto& name : list) {
      stdfs::create_directories(run / name / "sub");
      test::put(run / name / "f", "x");
      stdfs::create_symlink(run / "step-000000001", run / name / "link");
    }
  }
  EXPECT_EQ(remove_stale_folders(posix_fs(), run.path()), stale);
  for (const auto& name : stale) EXPECT_FALSE(stdfs::exists(run / name));
  for (const auto& name : kept) EXPECT_TRUE(stdfs::exists(run / name / "f"));
  verify_checkpoint(run / "step-000000001");  // the links to it were removed, not followed
}

// 0: the child got the lock. 1: refused, naming this process.
int lock_in_child(const stdfs::path& run) {
  const pid_t parent = ::getpid();
  const pid_t child = ::fork();
  if (child == 0) {
    const auto text = message_of<ConfigError>([&] { const RunLock lock(run); });
    const bool named = text.find("is in use by process " + std::to_string(parent)) != std::string::npos;
    ::_exit(text.empty() ? 0 : named ? 1 : 2);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 99;
}

TEST(RunFolderLock, ASecondProcessIsRefusedAndToldWhoHoldsIt) {
  const TempDir run;
  {
    const RunLock lock(run.path());
    EXPECT_EQ(lock_in_child(run.path()), 1);
    try {
      const RunLock again(run.path());
      FAIL() << "locked twice";
    } catch (const ConfigError& e) {
      EXPECT_EQ(e.code(), ExitCode::usage);
      EXPECT_NE(e.hint().find("kill " + std::to_string(::getpid())), std::string::npos);
    }
  }
  EXPECT_EQ(lock_in_child(run.path()), 0);
}

TEST(RunFolderLock, DiesWithItsProcess) {
  const TempDir run;
  int ready[2];
  ASSERT_EQ(::pipe(ready), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    const RunLock lock(run.path());
    const char byte = 'x';
    if (::write(ready[1], &byte, 1) != 1) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  char byte = 0;
  ASSERT_EQ(::read(ready[0], &byte, 1), 1);
  EXPECT_NE(message_of<ConfigError>([&] { const RunLock lock(run.path()); }).find(std::to_string(child)),
            std::string::npos);
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  EXPECT_NO_THROW(RunLock(run.path()));
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST(RunFolderLock, AMissingFolderIsADiskError) {
  const TempDir run;
  EXPECT_NE(message_of<DiskError>([&] { const RunLock lock(run / "none"); }).find("No such file"),
            std::string::npos);
}

}  // namespace
}  // namespace qt
