#include "src/io/file_system.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <limits>

namespace qt {
namespace {

int result(int rc) { return rc < 0 ? -errno : rc; }

class PosixFileSystem final : public FileSystem {
 public:
  int open(const std::filesystem::path& path, int flags, unsigned mode) override {
    int fd = -1;
    do {
      fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
    } while (fd < 0 && errno == EINTR);
    return result(fd);
  }

  std::int64_t write(int fd, const std::byte* data, std::size_t bytes) override {
    const ssize_t n = ::write(fd, data, bytes);
    return n < 0 ? -errno : n;
  }

  int fsync(int fd) override { return result(::fsync(fd)); }

  // Linux frees the descriptor before it reports EINTR, so this is success, and a second close could hit a
  // descriptor that another thread has just been given.
  int close(int fd) override { return ::close(fd) < 0 && errno != EINTR ? -errno : 0; }

  int mkdir(const std::filesystem::path& path) override { return result(::mkdir(path.c_str(), 0777)); }
  int rmdir(const std::filesystem::path& path) override { return result(::rmdir(path.c_str())); }
  int unlink(const std::filesystem::path& path) override { return result(::unlink(path.c_str())); }

  int rename(const std::filesystem::path& from, const std::filesystem::path& to) override {
    return result(::rename(from.c_str(), to.c_str()));
  }

  int exchange(const std::filesystem::path& a, const std::filesystem::path& b) override {
    return result(::renameat2(AT_FDCWD, a.c_str(), AT_FDCWD, b.c_str(), RENAME_EXCHANGE));
  }

  std::int64_t free_bytes(const std::filesystem::path& path) override {
    struct statvfs info {};
    if (::statvfs(path.c_str(), &info) != 0) return -errno;
    std::int64_t bytes = 0;
    if (__builtin_mul_overflow(info.f_bavail, info.f_frsize, &bytes))
      bytes = std::numeric_limits<std::int64_t>::max();
    return bytes;
  }
};

}  // namespace

FileSystem& posix_fs() {
  static PosixFileSystem fs;
  return fs;
}

}  // namespace qt
