// The bytes of a file from its beginning, decompressed on the way where its name ends in .gz or .zst. Memory
// does not grow with the file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

namespace qt {

enum class Compression { none, gzip, zstd };
Compression compression_of(const std::filesystem::path& path);

class ByteSource {
 public:
  // DataError when the file cannot be opened.
  static std::unique_ptr<ByteSource> open(const std::filesystem::path& path, Compression compression);
  virtual ~ByteSource() = default;

  // Fills up to out.size() bytes and returns how many; 0 only at the end. DataError names the file and the
  // offset where compressed data is damaged or cut off.
  virtual std::size_t read(std::span<char> out) = 0;

  // Drops the next `bytes` bytes (seeks where it can). DataError when the file ends before that.
  virtual void skip(std::int64_t bytes) = 0;
};

}  // namespace qt
