// Token shards: llm.c's .bin layout with a side file that names the vocabulary and guards the bytes.
//
//   name.bin       256 int32: [0] 20240520, [1] 1, [2] token count, rest 0; then the tokens, uint16,
//   little-endian name.bin.json  {"format_version", "tokens", "text_bytes", "vocab_size", "vocab_hash",
//   "xxh3_128"}
//
// xxh3_128 covers the whole .bin file, as `xxh128sum` prints it. A shard without side file (made by another
// program) is read too; then only its header and its ids can be checked. Without a header as well it is
// nanoGPT's train.bin: uint16 tokens from the first byte to the last, of which a missing end cannot be
// noticed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "src/io/file.h"

namespace qt {

inline constexpr std::int32_t kShardMagic = 20240520;
inline constexpr std::size_t kShardHeaderBytes = 1024;
inline constexpr std::int64_t kShardMaxVocab = 65536;         // what uint16 can name
inline constexpr std::int64_t kShardMaxTokens = 100'000'000;  // of those we write: 200 MB in memory

struct ShardInfo {
  std::int64_t tokens = 0;
  std::int64_t text_bytes = 0;  // bytes of text the tokens stand for; special tokens stand for none
  std::int64_t vocab_size = 0;
  std::string vocab_hash;  // Tokenizer::hash()
  std::string xxh3_128;
};

std::filesystem::path shard_side_path(const std::filesystem::path& shard);

// Collects the tokens of one shard in memory (2 bytes each) and writes it in finish(): both files appear
// under their names when they are whole and on disk, the side file first, so that a .bin that exists is
// complete.
class ShardWriter {
 public:
  ShardWriter(std::filesystem::path path, std::int64_t vocab_size, std::string vocab_hash);
  // Ids below vocab_size (checked: DataError); at most kShardMaxTokens in all.
  void append(std::span<const std::int32_t> ids);
  std::int64_t tokens() const { return tokens_; }
  ShardInfo finish(FileSystem& fs, std::int64_t text_bytes);  // DiskError when a write fails

 private:
  std::filesystem::path path_;
  std::int64_t vocab_size_;
  std::string vocab_hash_;
  std::int64_t tokens_ = 0;
  std::vector<std::vector<std::uint16_t>>
      blocks_;  // of fixed size: growing one vector would hold it twice for a moment
};

enum class ShardVerify {
  header,  // header, sizes and side file: instant
  full,    // also the checksum and every id: reads the file once, at memory speed when it is cached
};

class ShardReader {
 public:
  // `vocab_size`: ids must be below it. `vocab_hash`: when not empty, the side file must name the same
  // vocabulary. Every complaint is a DataError that names the shard and, for an id, its position and value.
  ShardReader(const std::filesystem::path& path, std::int64_t vocab_size, const std::string& vocab_hash = {},
              ShardVerify verify = ShardVerify::full);

  const std::filesystem::path& path() const { return path_; }
  std::int64_t tokens() const { return tokens_; }
  const std::optional<ShardInfo>& side() const { return side_; }
  bool headerless() const { return first_byte_ == 0; }  // nanoGPT's

  // out[i] = token at position begin + i; begin + out.size() <= tokens(). DataError for an id outside the
  // vocabulary, so that a shard opened with ShardVerify::header is still never trusted.
  void copy(std::int64_t begin, std::span<std::int32_t> out) const;

  // counts[id] += occurrences; counts.size() >= vocab_size.
  void count(std::span<std::int64_t> counts) const;

 private:
  void read_header();
  void check_ids() const;
  [[noreturn]] void fail_id(std::int64_t position) const;
  std::uint16_t at(std::int64_t position) const;

  std::filesystem::path path_;
  MappedFile file_;
  std::int64_t vocab_size_;
  std::int64_t tokens_ = 0;
  std::size_t first_byte_ = kShardHeaderBytes;
  std::optional<ShardInfo> side_;
};

// Reads and checks a side file alone; nothing when it does not exist.
std::optional<ShardInfo> read_shard_side(const std::filesystem::path& shard);

}  // namespace qt
