// A disk that fails while a run saves: every operation of CheckpointStore::save, with pruning, fails once
// with each reason a disk has, or writes short, or fails for good. The checkpoint before stays whole, the
// error names what and why, nothing is left that the next start trips over, and once the fault is gone the
// same store saves again. Every operation is met in every run, with the reasons in turn; EVERY_ERROR=1 in the
// environment (`scripts/prove io-errors`) meets each operation with each reason.
#include <cstdio>

#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/core/log.h"
#include "src/io/checkpoint.h"
#include "tests/support/mini_engine.h"
#include "tests/support/temp_dir.h"

namespace qt::test {
namespace {

namespace fs = std::filesystem;

// One fault in front of the real disk. `lasting`: from operation `at` on nothing that changes the disk works.
class BadDisk final : public FileSystem {
 public:
  enum class Kind { once, lasting, short_once, short_then_fails };

  void arm(Kind kind, std::int64_t at, int error) {
    kind_ = kind;
    at_ = at;
    error_ = error;
    count_ = 0;
    hit_.clear();
    armed_ = true;
  }
  void heal() { armed_ = false; }
  std::int64_t count() const { return count_; }
  const std::string& hit() const { return hit_; }  // the operation that failed; empty: none did

  int open(const fs::path& path, int flags, unsigned mode) override {
    const int rc = judge("open " + path.filename().string());
    return rc != 0 ? rc : posix_fs().open(path, flags, mode);
  }
  std::int64_t write(int fd, const std::byte* data, std::size_t bytes) override {
    const bool cuts = armed_ && (kind_ == Kind::short_once || kind_ == Kind::short_then_fails);
    if (cuts && count_ == at_) {
      ++count_;
      hit_ = "write";
      return posix_fs().write(fd, data, (bytes + 1) / 2);
    }
    const int rc = judge("write");
    return rc != 0 ? rc : posix_fs().write(fd, data, bytes);
  }
  int fsync(int fd) override {
    (void)fd;  // no power loss in this test
    return judge("fsync");
  }
  int close(int fd) override {
    const int rc = judge("close");
    const int closed = posix_fs().close(fd);
    return rc != 0 ? rc : closed;
  }
  int mkdir(const fs::path& path) override {
    const int rc = judge("mkdir");
    return rc != 0 ? rc : posix_fs().mkdir(path);
  }
  int rmdir(const fs::path& path) override {
    const int rc = judge("rmdir");
    return rc != 0 ? rc : posix_fs().rmdir(path);
  }
  int unlink(const fs::path& path) override {
    const int rc = judge("unlink");
    return rc != 0 ? rc : posix_fs().unlink(path);
  }
  int rename(const fs::path& from, const fs::path& to) override {
    const int rc = judge("rename");
    return rc != 0 ? rc : posix_fs().rename(from, to);
  }
  int exchange(const fs::path& a, const fs::path& b) override {
    const int rc = judge("exchange");
    return rc != 0 ? rc : posix_fs().exchange(a, b);
  }
  std::int64_t free_bytes(const fs::path& path) override {
    const int rc = judge("free_bytes");
    return rc != 0 ? rc : posix_fs().free_bytes(path);
  }

 private:
  int judge(const std::string& operation) {
    const std::int64_t number = count_++;
    if (!armed_ || kind_ == Kind::short_once) return 0;
    const std::int64_t first = kind_ == Kind::short_then_fails ? at_ + 1 : at_;
    if (kind_ == Kind::once ? number != first : number < first) return 0;
    if (hit_.empty()) hit_ = operation;
    return -error_;
  }

  Kind kind_ = Kind::once;
  std::int64_t at_ = 0, count_ = 0;
  int error_ = EIO;
  bool armed_ = false;
  std::string hit_;
};

struct Failure {
  std::string message, hint;
  ExitCode code = ExitCode::ok;
};

class IoErrors : public ::testing::Test {
 protected:
  std::unique_ptr<Engine> engine = mini_engine();
  int sites = 0, failed_saves = 0, lost = 0;

  void SetUp() override { set_log_level(LogLevel::error); }  // each failed deletion is a warning
  void TearDown() override { set_log_level(LogLevel::info); }

  static std::int64_t newest(const fs::path& run) {
    const CheckpointChoice choice = choose_checkpoint(run);
    EXPECT_EQ(choice.explain(), "");
    return choice.checkpoint ? choice.checkpoint->step : -1;
  }

  // Two checkpoints there, the third save meets the fault at operation `at`. Returns false when the save has
  // fewer operations.
  bool meet(BadDisk::Kind kind, std::int64_t at, int error, std::int64_t third_step) {
    const TempDir dir;
    const fs::path run = dir / "run";
    BadDisk disk;
    CheckpointStore store(run.string(), 2, disk);
    for (const std::int64_t step : {2, 4}) store.save(*engine, state_at(step));
    disk.arm(kind, at, error);
    Failure failure;
    try {
      store.save(*engine, state_at(third_step));
    } catch (const DiskError& e) {
      failure = {e.what(), e.hint(), e.code()};
    }
    disk.heal();
    if (disk.count() <= at) return false;
    if (disk.hit().empty()) return true;  // a short write was asked for where no write is
    ++sites;
    SCOPED_TRACE(disk.hit() + " is operation " + std::to_string(at));

    if (!failure.message.empty()) {
      ++failed_saves;
      EXPECT_EQ(failure.code, ExitCode::disk);
      EXPECT_NE(failure.message.find(run.string()), std::string::npos) << failure.message;
      EXPECT_NE(failure.message.find(std::generic_category().message(error)), std::string::npos)
          << failure.message;
      EXPECT_FALSE(failure.hint.empty()) << failure.message;
      // The one before is untouched, whatever happened to the new one.
      const fs::path before = run / checkpoint_name(third_step == 4 ? 2 : 4);
      lost += message_of<Error>([&] { verify_checkpoint(before); }).empty() ? 0 : 1;
      if (kind != BadDisk::Kind::lasting && kind != BadDisk::Kind::short_then_fails) {
        EXPECT_EQ(newest(run), 4);
        EXPECT_EQ(list_dir(run).size(), 2u) << "litter although deleting works";
      }
    } else {
      EXPECT_EQ(newest(run), third_step);
    }
    // Every folder with a checkpoint's name is whole, at any time.
    for (const Checkpoint& checkpoint : find_checkpoints(run)) verify_checkpoint(checkpoint.path);

    // The same process tries again; and another start finds nothing odd.
    store.save(*engine, state_at(8));
    EXPECT_EQ(newest(run), 8);
    CheckpointStore next(run.string(), 2);
    next.remove_leftovers();
    next.save(*engine, state_at(10));
    EXPECT_EQ(newest(run), 10);
    EXPECT_EQ(list_dir(run).size(), 2u) << "only the two that are kept";
    return true;
  }

  void meet_everywhere(const char* what, BadDisk::Kind kind, const std::vector<int>& errors) {
    sites = failed_saves = lost = 0;
    for (const std::int64_t third_step : {6, 4}) {  // a new step, and one with a checkpoint already
      const std::size_t all = errors.size(), each = repeats("EVERY_ERROR", 0) != 0 ? all : 1;
      for (std::size_t turn = 0; turn < each; ++turn) {
        for (std::size_t at = 0;; ++at) {
          if (!meet(kind, static_cast<std::int64_t>(at), errors[(at + turn) % all], third_step)) break;
        }
      }
    }
    std::printf("%-28s %4d sites, %d saves failed, %d checkpoints lost\n", what, sites, failed_saves, lost);
    EXPECT_EQ(lost, 0);
    EXPECT_GT(sites, 10);
  }
};

TEST_F(IoErrors, OnceAtAnyOperationOfASave) {
  meet_everywhere("fails once", BadDisk::Kind::once, {ENOSPC, EIO, EDQUOT});
  EXPECT_GT(failed_saves, 0);
}

TEST_F(IoErrors, FromAnyOperationOfASaveOnwards) {
  meet_everywhere("fails from there on", BadDisk::Kind::lasting, {ENOSPC, EIO, EDQUOT, EROFS});
  EXPECT_GT(failed_saves, 0);
}

TEST_F(IoErrors, AShortWriteIsContinued) {
  meet_everywhere("writes short", BadDisk::Kind::short_once, {EIO});
  EXPECT_EQ(failed_saves, 0);
}

TEST_F(IoErrors, AShortWriteAndThenNoMoreSpace) {
  meet_everywhere("writes short, then fails", BadDisk::Kind::short_then_fails, {ENOSPC, EDQUOT});
  EXPECT_GT(failed_saves, 0);
}

TEST_F(IoErrors, TheFirstSaveOfARunCanFailAnywhereToo) {
  std::int64_t at = 0;
  for (;; ++at) {
    const TempDir dir;
    const fs::path run = dir / "runs" / "one";
    BadDisk disk;
    disk.arm(BadDisk::Kind::once, at, ENOSPC);
    const auto text = message_of<DiskError>([&] {
      CheckpointStore store(run.string(), 2, disk);
      store.save(*engine, state_at(2));
    });
    if (disk.count() <= at) break;
    disk.heal();
    EXPECT_TRUE(text.empty() || find_checkpoints(run).empty()) << at;
    CheckpointStore store(run.string(), 2, disk);
    store.save(*engine, state_at(2));
    EXPECT_EQ(newest(run), 2) << at;
  }
  EXPECT_GT(at, 20);
}

// The control: the same faults against a writer that rewrites its files in place.
TEST_F(IoErrors, AWriterInPlaceLosesCheckpoints) {
  lost = 0;
  for (std::int64_t at = 0; at < 6; ++at) {
    const TempDir dir;
    const fs::path run = dir / "run";
    BadDisk disk;
    CheckpointStore store(run.string(), 2, disk);
    store.save(*engine, state_at(2));
    disk.arm(BadDisk::Kind::once, at, ENOSPC);
    message_of<DiskError>([&] {
      OutputFile file(disk, run / checkpoint_name(2) / "run.json", OutputFile::Existing::replace);
      file.write(run_state_json(state_at(3)));
      file.finish();
    });
    lost += choose_checkpoint(run).checkpoint ? 0 : 1;
  }
  EXPECT_GE(lost, 3);
}

}  // namespace
}  // namespace qt::test
