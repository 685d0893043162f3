#include "src/io/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <system_error>

#include "src/core/error.h"
#include "src/core/units.h"

namespace qt {
namespace {

constexpr std::size_t kBufferBytes = 32 * 1024;
constexpr std::size_t kReadBytes = 64 * 1024;
// Linux writes at most 0x7ffff000 bytes a call; staying below keeps a call's duration bounded as well.
constexpr std::size_t kMaxWriteBytes = std::size_t{64} << 20;

std::string reason(int error) { return std::system_category().message(error); }

std::string hint_for(const std::filesystem::path& path, int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return fmt::format("free some space (df -h '{}' shows what is left), then run the same command again",
                         path.parent_path().string());
    case EROFS:
    case EACCES:
    case EPERM:
      return fmt::format("choose a folder that you may write to, or see: ls -ld '{}'",
                         path.parent_path().string());
    case EIO: return "the disk or its cable may be failing: see dmesg";
    default: return {};
  }
}

[[noreturn]] void throw_read_error(const std::filesystem::path& path, std::string_view operation, int error) {
  if (error == EIO) throw_disk_error(path, operation, error);
  throw DataError(fmt::format("cannot {} {}: {}", operation, in_quotes(path.string()), reason(error)));
}

const char* kind_of(mode_t mode) {
  if (S_ISDIR(mode)) return "a folder";
  if (S_ISLNK(mode)) return "a symbolic link";
  if (S_ISFIFO(mode)) return "a pipe";
  return "a device or socket";
}

// Closes on every path out of a function.
class Descriptor {
 public:
  Descriptor(FileSystem& fs, int fd) : fs_(fs), fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) fs_.close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

 private:
  FileSystem& fs_;
  int fd_;
};

void fsync_path(FileSystem& fs, const std::filesystem::path& path, int flags) {
  const int fd = fs.open(path, O_RDONLY | flags, 0);
  if (fd < 0) throw_disk_error(path, "open for fsync", -fd);
  const Descriptor guard(fs, fd);
  if (const int rc = fs.fsync(fd); rc < 0) throw_disk_error(path, "fsync", -rc);
}

std::filesystem::path parent_of(const std::filesystem::path& path) {
  const auto parent = path.parent_path();
  return parent.empty() ? std::filesystem::path(".") : parent;
}

}  // namespace

void throw_disk_error(const std::filesystem::path& path, std::string_view operation, int error) {
  throw DiskError(fmt::format("cannot {} {}: {}", operation, in_quotes(path.string()), reason(error)),
                  hint_for(path, error));
}

std::string in_quotes(std::string_view text) {
  // Room for a path as well as a name; a path's telling part is its end, so the middle is what goes.
  constexpr std::size_t kMaxBytes = 240, kHeadBytes = 80;
  std::size_t head = text.size(), tail = text.size();
  if (text.size() > kMaxBytes) {
    // A message may go into a JSON log, so no UTF-8 character is cut in two.
    const auto inside_character = [&](std::size_t i) {
      return (static_cast<unsigned char>(text[i]) & 0xC0) == 0x80;
    };
    head = kHeadBytes;
    tail = text.size() - (kMaxBytes - kHeadBytes);
    while (head > 0 && inside_character(head)) --head;
    while (tail < text.size() && inside_character(tail)) ++tail;
  }
  std::string out = "'";
  const auto append = [&](std::string_view part) {
    for (const char c : part) {
      const auto byte = static_cast<unsigned char>(c);
      if (byte < 0x20 || byte == 0x7F) {
        out += fmt::format("\\x{:02x}", byte);
      } else {
        out += c;
      }
    }
  };
  append(text.substr(0, head));
  if (tail != head) out += "...";
  append(text.substr(tail));
  return out + "'";
}

InputFile::InputFile(const std::filesystem::path& path, Links links) : path_(path) {
  // O_NONBLOCK: opening a pipe without a writer would otherwise wait for one.
  const int flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | (links == Links::refuse ? O_NOFOLLOW : 0);
  do {
    fd_ = ::open(path.c_str(), flags);
  } while (fd_ < 0 && errno == EINTR);
  if (fd_ < 0 && errno == ELOOP && links == Links::refuse) {
    throw DataError(fmt::format("{} is a symbolic link; expected a regular file", in_quotes(path.string())));
  }
  if (fd_ < 0) throw_read_error(path, "open", errno);
  struct stat info {};
  const int rc = ::fstat(fd_, &info);
  if (rc == 0 && S_ISREG(info.st_mode)) {
    bytes_ = static_cast<std::uint64_t>(info.st_size);
    return;
  }
  const int error = errno;
  ::close(fd_);
  if (rc != 0) throw_read_error(path, "inspect", error);
  throw DataError(
      fmt::format("{} is {}; expected a regular file", in_quotes(path.string()), kind_of(info.st_mode)));
}

InputFile::~InputFile() {
  if (fd_ >= 0) ::close(fd_);
}

InputFile::InputFile(InputFile&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)), bytes_(other.bytes_) {}

InputFile& InputFile::operator=(InputFile&& other) noexcept {
  path_.swap(other.path_);
  std::swap(fd_, other.fd_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void InputFile::read_at(std::uint64_t offset, std::span<std::byte> out) const {
  std::size_t done = 0;
  while (done < out.size()) {
    const ssize_t n = ::pread(fd_, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw_read_error(path_, "read", errno);
    if (n == 0) {
      throw DataError(
          fmt::format("{} ends at byte {}, but {} bytes from {} on are needed: the file is cut short",
                      in_quotes(path_.string()), offset + done, out.size(), offset));
    }
    done += static_cast<std::size_t>(n);
  }
}

std::string InputFile::hash_hex() const {
  ::posix_fadvise(fd_, 0, 0, POSIX_FADV_SEQUENTIAL);
  const auto buffer = std::make_unique<std::byte[]>(kReadBytes);
  Xxh3 hash;
  for (std::uint64_t offset = 0; offset < bytes_;) {
    const std::span<std::byte> piece(buffer.get(), std::min<std::uint64_t>(kReadBytes, bytes_ - offset));
    read_at(offset, piece);
    hash.update(piece);
    offset += piece.size();
  }
  return hash.hex();
}

MappedFile::MappedFile(const std::filesystem::path& path) {
  const InputFile file(path);
  if (file.bytes() == 0) return;  // mmap refuses an empty range
  void* at = ::mmap(nullptr, file.bytes(), PROT_READ, MAP_PRIVATE, file.fd_, 0);
  if (at == MAP_FAILED) throw_read_error(path, "map", errno);
  data_ = static_cast<std::byte*>(at);
  size_ = file.bytes();
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

OutputFile::OutputFile(FileSystem& fs, const std::filesystem::path& path, Existing existing)
    : fs_(&fs), path_(path) {
  buffer_.reserve(kBufferBytes);
  fd_ = fs.open(path, O_WRONLY | O_CREAT | (existing == Existing::refuse ? O_EXCL : O_TRUNC), 0666);
  if (fd_ < 0) throw_disk_error(path, "create", -fd_);
}

OutputFile::~OutputFile() {
  if (fd_ >= 0) fs_->close(fd_);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : fs_(other.fs_),
      path_(std::move(other.path_)),
      fd_(std::exchange(other.fd_, -1)),
      state_(std::exchange(other.state_, State::failed)),
      bytes_(other.bytes_),
      hash_(std::move(other.hash_)),
      buffer_(std::move(other.buffer_)) {}

void OutputFile::fail(std::string_view operation, int error) {
  state_ = State::failed;
  throw_disk_error(path_, operation, error);
}

void OutputFile::require_open() const {
  if (state_ == State::open) return;
  throw DiskError(
      fmt::format("cannot write {}: {}", in_quotes(path_.string()),
                  state_ == State::finished ? "it is finished" : "an earlier operation on it failed"));
}

void OutputFile::write_all(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const std::int64_t n = fs_->write(fd_, bytes.data(), std::min(bytes.size(), kMaxWriteBytes));
    if (n == -EINTR) continue;
    if (n < 0) fail("write", static_cast<int>(-n));
    // A write that makes no progress and gives no reason would loop for ever.
    if (n == 0) fail("write", EIO);
    bytes = bytes.subspan(static_cast<std::size_t>(n));
  }
}

void OutputFile::flush() {
  write_all(buffer_);
  buffer_.clear();
}

void OutputFile::write(std::span<const std::byte> bytes) {
  require_open();
  hash_.update(bytes);
  bytes_ += bytes.size();
  if (buffer_.size() + bytes.size() <= kBufferBytes) {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
    return;
  }
  flush();
  if (bytes.size() < kBufferBytes) {
    buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  } else {
    write_all(bytes);
  }
}

void OutputFile::finish() {
  require_open();
  flush();
  if (const int rc = fs_->fsync(fd_); rc < 0) fail("fsync", -rc);
  // Network filesystems report a late write error here.
  if (const int rc = fs_->close(std::exchange(fd_, -1)); rc < 0) fail("close", -rc);
  state_ = State::finished;
}

std::string read_file(const std::filesystem::path& path, std::uint64_t max_bytes) {
  const InputFile file(path);
  if (file.bytes() > max_bytes) {
    throw DataError(fmt::format("{} has {} bytes; at most {} are read", in_quotes(path.string()),
                                file.bytes(), max_bytes));
  }
  std::string text(file.bytes(), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text)));
  return text;
}

std::vector<std::string> list_dir(const std::filesystem::path& path) {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(path.c_str()), ::closedir);
  if (!dir) throw_read_error(path, "list", errno);
  std::vector<std::string> names;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(dir.get());
    if (entry == nullptr && errno != 0) throw_read_error(path, "list", errno);
    if (entry == nullptr) break;
    const std::string_view name = entry->d_name;
    if (name != "." && name != "..") names.emplace_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

void make_folders(FileSystem& fs, const std::filesystem::path& path) {
  constexpr std::string_view kOperation = "create the folder";
  struct stat info {};
  const auto is_folder = [&] { return ::stat(path.c_str(), &info) == 0 && S_ISDIR(info.st_mode); };
  if (is_folder()) return;
  const auto parent = parent_of(path);
  if (parent != path) make_folders(fs, parent);
  // Another process may have been faster. Whatever else has the name is in the way.
  const int rc = fs.mkdir(path);
  if (rc < 0 && (rc != -EEXIST || !is_folder())) throw_disk_error(path, kOperation, -rc);
  fsync_directory(fs, parent);
}

void fsync_directory(FileSystem& fs, const std::filesystem::path& path) { fsync_path(fs, path, O_DIRECTORY); }

void rename_durably(FileSystem& fs, const std::filesystem::path& from, const std::filesystem::path& to) {
  fsync_path(fs, from, 0);
  if (const int rc = fs.rename(from, to); rc < 0) throw_disk_error(to, "rename a file to", -rc);
  fsync_directory(fs, parent_of(to));
}

void write_file_atomically(FileSystem& fs, const std::filesystem::path& path,
                           std::span<const std::byte> content) {
  auto temporary = path;
  temporary += fmt::format(".tmp-{}", ::getpid());
  try {
    OutputFile file(fs, temporary, OutputFile::Existing::replace);
    file.write(content);
    file.finish();
    if (const int rc = fs.rename(temporary, path); rc < 0) throw_disk_error(path, "rename a file to", -rc);
  } catch (const Error&) {
    fs.unlink(temporary);  // as far as that goes; the first error is the one to report
    throw;
  }
  fsync_directory(fs, parent_of(path));
}

void remove_tree(FileSystem& fs, const std::filesystem::path& path, std::string_view first) {
  struct stat info {};
  if (::lstat(path.c_str(), &info) != 0) {
    if (errno == ENOENT) return;
    throw_disk_error(path, "inspect", errno);
  }
  if (!S_ISDIR(info.st_mode)) {
    if (const int rc = fs.unlink(path); rc < 0) throw_disk_error(path, "delete", -rc);
    return;
  }
  auto names = list_dir(path);
  std::stable_partition(names.begin(), names.end(), [&](const std::string& name) { return name == first; });
  for (const auto& name : names) remove_tree(fs, path / name);
  if (const int rc = fs.rmdir(path); rc < 0) throw_disk_error(path, "delete the folder", -rc);
}

void require_free(FileSystem& fs, const std::filesystem::path& path, std::int64_t bytes,
                  std::string_view purpose) {
  const std::int64_t available = fs.free_bytes(path);
  if (available < 0) throw_disk_error(path, "measure the free space of", static_cast<int>(-available));
  if (available >= bytes) return;
  throw DiskError(
      fmt::format("{} needs {} ({} bytes) in {}, but only {} ({} bytes) are free", purpose,
                  format_bytes(bytes), bytes, in_quotes(path.string()), format_bytes(available), available),
      fmt::format("free {} or choose a folder on another disk", format_bytes(bytes - available)));
}

}  // namespace qt
