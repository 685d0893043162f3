// Files as qtrain uses them: regular files read at offsets or mapped, and files written once from front to
// back, hashed on the way and made durable. Errors become exceptions here and nowhere below.
//
// Writing throws DiskError naming path, operation and the system's reason. Reading throws DataError where the
// file is missing, of the wrong kind or too short, and DiskError where the disk itself fails.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "src/io/file_system.h"
#include "src/io/hash.h"

namespace qt {

// "cannot <operation> '<path>': <reason>" with a hint for the common reasons. `error` is a positive errno.
[[noreturn]] void throw_disk_error(const std::filesystem::path& path, std::string_view operation, int error);

inline std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

// A file name or a field's value as it may go into a message or onto a terminal: quoted, control bytes
// escaped, the middle of a long one cut out. Hostile files choose these strings.
std::string in_quotes(std::string_view text);

// A regular file open for reading. A folder, a device or a pipe is refused (and never waited for).
class InputFile {
 public:
  enum class Links { follow, refuse };

  explicit InputFile(const std::filesystem::path& path, Links links = Links::follow);
  ~InputFile();
  InputFile(InputFile&& other) noexcept;
  InputFile& operator=(InputFile&& other) noexcept;

  const std::filesystem::path& path() const { return path_; }
  std::uint64_t bytes() const { return bytes_; }  // when it was opened
  // Fills `out` from byte `offset` on; DataError where the file ends before.
  void read_at(std::uint64_t offset, std::span<std::byte> out) const;
  // XXH3-128 of the whole file, read in pieces of 64 KiB.
  std::string hash_hex() const;

 private:
  friend class MappedFile;
  std::filesystem::path path_;
  int fd_ = -1;
  std::uint64_t bytes_ = 0;
};

// A whole regular file, mapped read-only. Valid as long as the file is not truncated: qtrain itself never rewrites
// a file in place, it writes a new one and renames. Pages are read when touched.
class MappedFile {
 public:
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

// A new file, written from front to back. Small pieces are gathered in 32 KiB (no allocation above that);
// larger ones go to the system as they are, so streaming a tensor makes no second copy of it.
// After an error the file is of no more use: every later call throws too. In particular fsync is never tried
// a second time, because the system may report success for pages that it has already dropped.
class OutputFile {
 public:
  enum class Existing { refuse, replace };

  OutputFile(FileSystem& fs, const std::filesystem::path& path, Existing existing = Existing::refuse);
  ~OutputFile();  // closes; what finish() has not made durable may be lost
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(bytes_of(text)); }
  // Everything to the system, to the disk (fsync), then closed. Once.
  void finish();

  const std::filesystem::path& path() const { return path_; }
  std::uint64_t bytes() const { return bytes_; }        // written so far
  std::string hash_hex() const { return hash_.hex(); }  // of the bytes written so far
  bool finished() const { return state_ == State::finished; }

 private:
  enum class State { open, failed, finished };
  void require_open() const;
  void write_all(std::span<const std::byte> bytes);
  void flush();
  [[noreturn]] void fail(std::string_view operation, int error);

  FileSystem* fs_;
  std::filesystem::path path_;
  int fd_ = -1;
  State state_ = State::open;
  std::uint64_t bytes_ = 0;
  Xxh3 hash_;
  std::vector<std::byte> buffer_;
};

// The whole file. DataError when it is larger than max_bytes (checked before anything is allocated).
std::string read_file(const std::filesystem::path& path, std::uint64_t max_bytes);

// Names in a folder, sorted, without "." and "..". DataError when it cannot be read.
std::vector<std::string> list_dir(const std::filesystem::path& path);

// Creates a folder and the folders above it that are missing, each durably: its name is fsynced in the folder
// that holds it. No error if the folder exists.
void make_folders(FileSystem& fs, const std::filesystem::path& path);

// Makes the names in a folder durable: what was created, renamed or deleted in it.
void fsync_directory(FileSystem& fs, const std::filesystem::path& path);

// Moves a file with content that may not be on disk yet: fsync of the file, rename over `to`, fsync of the
// folder.
void rename_durably(FileSystem& fs, const std::filesystem::path& from, const std::filesystem::path& to);

// Replaces `path` with `content`: after a crash there is the old file or the new one, whole.
void write_file_atomically(FileSystem& fs, const std::filesystem::path& path,
                           std::span<const std::byte> content);

// A folder and everything in it; links are removed, not followed. `first` (a name in it) goes before the
// rest, so that a folder that was deleted in part can be told from a whole one. A missing folder is no
// error.
void remove_tree(FileSystem& fs, const std::filesystem::path& path, std::string_view first = {});

// DiskError with both numbers unless `bytes` are free where `path` (an existing folder) lies.
void require_free(FileSystem& fs, const std::filesystem::path& path, std::int64_t bytes,
                  std::string_view purpose);

}  // namespace qt
