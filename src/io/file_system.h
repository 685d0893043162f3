// The write side of the operating system, as an interface: everything that changes a disk goes through it,
// so that tests can record the operations of a save, fail any one of them, or stop after any one of them.
//
// It has no policy. Retrying short writes, turning errors into exceptions and the order of operations live
// in file.h and checkpoint.h. Reading is not part of it: what was written is read back from the real disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>

namespace qt {

// Every call returns what the system call returned (0, a descriptor, a byte count), or -errno.
class FileSystem {
 public:
  virtual ~FileSystem() = default;

  virtual int open(const std::filesystem::path& path, int flags, unsigned mode) = 0;
  // May write fewer bytes than asked for, as write(2) may.
  virtual std::int64_t write(int fd, const std::byte* data, std::size_t bytes) = 0;
  virtual int fsync(int fd) = 0;
  // The descriptor is gone whatever is returned.
  virtual int close(int fd) = 0;
  virtual int mkdir(const std::filesystem::path& path) = 0;
  virtual int rmdir(const std::filesystem::path& path) = 0;
  virtual int unlink(const std::filesystem::path& path) = 0;
  virtual int rename(const std::filesystem::path& from, const std::filesystem::path& to) = 0;
  // Swaps two existing names atomically. -ENOSYS or -EINVAL where the filesystem cannot.
  virtual int exchange(const std::filesystem::path& a, const std::filesystem::path& b) = 0;
  // Bytes an unprivileged process may still write to the filesystem that holds `path`.
  virtual std::int64_t free_bytes(const std::filesystem::path& path) = 0;
};

// The real one. Stateless, so every thread may use it.
FileSystem& posix_fs();

}  // namespace qt
