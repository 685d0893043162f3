// A FileSystem that counts its operations, keeps a log of them, and fails or stops at a chosen one.
#pragma once

#include <fcntl.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <vector>

#include "src/io/file_system.h"

namespace qt::test {

enum class Fault {
  none,
  fail_once,    // operation `at` fails; everything after works
  disk_full,    // from `at` on nothing that needs space works; deleting and renaming do
  crash,        // `at` and everything after never happens, as if the process were dead
  crash_torn,   // the same, but a write at `at` leaves half of its bytes
  short_write,  // every write takes at most 7 bytes, every other one is interrupted first
};

class FaultFs final : public FileSystem {
 public:
  explicit FaultFs(Fault fault = Fault::none, std::int64_t at = 0, int error = ENOSPC)
      : fault_(fault), at_(at), error_(error) {}

  const std::vector<std::string>& log() const { return log_; }
  std::int64_t operations() const { return static_cast<std::int64_t>(log_.size()); }
  bool injected() const { return injected_; }  // whether any operation was made to fail
  void set_exchange_supported(bool supported) { exchange_supported_ = supported; }
  void set_free_bytes(std::int64_t bytes) { free_bytes_ = bytes; }

  int open(const std::filesystem::path& path, int flags, unsigned mode) override {
    const bool creates = (flags & O_CREAT) != 0;
    if (const int rc = judge((creates ? "create " : "open ") + path.filename().string(), creates)) return rc;
    return posix_fs().open(path, flags, mode);
  }
  std::int64_t write(int fd, const std::byte* data, std::size_t bytes) override {
    const int rc = judge("write", true);
    if (rc != 0 && fault_ == Fault::crash_torn && operations() == at_ + 1)
      posix_fs().write(fd, data, bytes / 2);
    if (rc != 0) return rc;
    if (fault_ != Fault::short_write) return posix_fs().write(fd, data, bytes);
    interrupt_ = !interrupt_;
    return interrupt_ ? -EINTR : posix_fs().write(fd, data, bytes < 7 ? bytes : 7);
  }
  int fsync(int fd) override {
    if (const int rc = judge("fsync", false)) return rc;
    return posix_fs().fsync(fd);
  }
  int close(int fd) override {
    const int rc = judge("close", false);
    const int closed = posix_fs().close(fd);  // in any case, or the test itself would run out of descriptors
    return rc != 0 ? rc : closed;
  }
  int mkdir(const std::filesystem::path& path) override {
    if (const int rc = judge("mkdir " + path.filename().string(), true)) return rc;
    return posix_fs().mkdir(path);
  }
  int rmdir(const std::filesystem::path& path) override {
    if (const int rc = judge("rmdir " + path.filename().string(), false)) return rc;
    return posix_fs().rmdir(path);
  }
  int unlink(const std::filesystem::path& path) override {
    if (const int rc = judge("unlink " + path.filename().string(), false)) return rc;
    return posix_fs().unlink(path);
  }
  int rename(const std::filesystem::path& from, const std::filesystem::path& to) override {
    if (const int rc = judge("rename " + from.filename().string() + " " + to.filename().string(), false))
      return rc;
    return posix_fs().rename(from, to);
  }
  int exchange(const std::filesystem::path& a, const std::filesystem::path& b) override {
    if (!exchange_supported_) return -EINVAL;
    if (const int rc = judge("exchange " + a.filename().string() + " " + b.filename().string(), false))
      return rc;
    return posix_fs().exchange(a, b);
  }
  std::int64_t free_bytes(const std::filesystem::path& path) override {
    return free_bytes_ >= 0 ? free_bytes_ : posix_fs().free_bytes(path);
  }

 private:
  // 0: go on. Otherwise what the operation returns instead of happening.
  int judge(std::string operation, bool needs_space) {
    log_.push_back(std::move(operation));
    const std::int64_t number = operations() - 1;
    const bool dead = fault_ == Fault::crash || fault_ == Fault::crash_torn;
    int rc = 0;
    if (fault_ == Fault::fail_once && number == at_) rc = -error_;
    if (fault_ == Fault::disk_full && number >= at_ && needs_space) rc = -ENOSPC;
    if (dead && number >= at_) rc = -EIO;
    injected_ = injected_ || rc != 0;
    return rc;
  }

  Fault fault_;
  std::int64_t at_;
  int error_;
  std::vector<std::string> log_;
  bool injected_ = false;
  bool interrupt_ = false;
  bool exchange_supported_ = true;
  std::int64_t free_bytes_ = -1;
};

}  // namespace qt::test
