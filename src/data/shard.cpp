#include "src/data/shard.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "src/core/error.h"
#include "src/io/hash.h"
#include "src/io/json.h"

namespace qt {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are little-endian and read in place");

constexpr int kSideVersion = 1;
constexpr std::size_t kMaxSideBytes = 64 << 10;
constexpr std::int64_t kBlockTokens = std::int64_t{1} << 20;
constexpr const char* kRemake = "the shard is damaged: delete it and run `qtrain tokenize` again";

bool is_hash(const std::string& text) {
  return text.size() == 32 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

using Header = std::array<std::int32_t, kShardHeaderBytes / 4>;

// What a file without llm.c's magic number, a side file or a length of whole tokens is known not to be.
std::string not_tokens(std::span<const std::byte> bytes) {
  if (bytes.empty()) return "an empty file: no tokens";
  std::array<unsigned char, 8> start{};
  std::memcpy(start.data(), bytes.data(), std::min(start.size(), bytes.size()));
  std::int32_t magic = 0;
  std::memcpy(&magic, start.data(), 4);
  if (magic == 20240801) return "llm.c's 32-bit tokens (magic number 20240801), which are not read";
  if (magic == 20240522) return "an evaluation file of llm.c (magic number 20240522), not a token shard";
  if (start[0] == 0x93 && start[1] == 'N' && start[2] == 'U')
    return "a NumPy array (.npy), not a token shard";
  if (bytes.size() >= kShardHeaderBytes) {
    Header header{};
    std::memcpy(header.data(), bytes.data(), kShardHeaderBytes);
    if (std::all_of(header.begin() + 3, header.end(), [](std::int32_t word) { return word == 0; })) {
      return fmt::format("magic number {} at offset 0 is not {}, though the rest is like llm.c's header",
                         magic, kShardMagic);
    }
  }
  if (bytes.size() % 2 != 0) {
    return fmt::format(
        "magic number {} at offset 0 is not {}, and {} bytes are no whole number of 16-bit tokens", magic,
        kShardMagic, bytes.size());
  }
  return {};
}

}  // namespace

std::filesystem::path shard_side_path(const std::filesystem::path& shard) {
  auto side = shard;
  side += ".json";
  return side;
}

ShardWriter::ShardWriter(std::filesystem::path path, std::int64_t vocab_size, std::string vocab_hash)
    : path_(std::move(path)), vocab_size_(vocab_size), vocab_hash_(std::move(vocab_hash)) {
  QT_CHECK(vocab_size > 0 && vocab_size <= kShardMaxVocab, ConfigError,
           "a vocabulary of {} does not fit the 16-bit tokens of a shard (at most {})", vocab_size,
           kShardMaxVocab);
}

void ShardWriter::append(std::span<const std::int32_t> ids) {
  for (const std::int32_t id : ids) {
    QT_CHECK(id >= 0 && id < vocab_size_, DataError,
             "{}: token {} at position {} is outside the vocabulary of {}", path_.string(), id, tokens_,
             vocab_size_);
    QT_CHECK(tokens_ < kShardMaxTokens, DataError, "{}: more than {} tokens", path_.string(),
             kShardMaxTokens);
    if (tokens_ % kBlockTokens == 0) blocks_.emplace_back().reserve(kBlockTokens);
    blocks_.back().push_back(static_cast<std::uint16_t>(id));
    ++tokens_;
  }
}

ShardInfo ShardWriter::finish(FileSystem& fs, std::int64_t text_bytes) {
  std::array<std::int32_t, kShardHeaderBytes / 4> header{};
  header[0] = kShardMagic;
  header[1] = 1;
  header[2] = static_cast<std::int32_t>(tokens_);
  auto temporary = path_;
  temporary += ".tmp";
  OutputFile file(fs, temporary, OutputFile::Existing::replace);
  file.write(std::as_bytes(std::span(header)));
  for (const auto& block : blocks_) file.write(std::as_bytes(std::span(block)));
  file.finish();
  const ShardInfo info{tokens_, text_bytes, vocab_size_, vocab_hash_, file.hash_hex()};
  const Json side = {{"format_version", kSideVersion}, {"tokens", info.tokens},
                     {"text_bytes", info.text_bytes},  {"vocab_size", info.vocab_size},
                     {"vocab_hash", info.vocab_hash},  {"xxh3_128", info.xxh3_128}};
  const std::string text = side.dump(1) + "\n";
  write_file_atomically(fs, shard_side_path(path_), bytes_of(text));
  rename_durably(fs, temporary, path_);
  return info;
}

std::optional<ShardInfo> read_shard_side(const std::filesystem::path& shard) {
  const auto path = shard_side_path(shard);
  if (!std::filesystem::exists(path)) return std::nullopt;
  const std::string where = path.string();
  const Json json = read_json_file(path, {.max_bytes = kMaxSideBytes, .max_depth = 4, .max_values = 100});
  constexpr std::int64_t kMax = std::int64_t{1} << 62;
  const auto hash = [&](const char* key) {
    const std::string& text = json_string(json, key, where);
    QT_CHECK(is_hash(text), DataError, "{}: field '{}' is not a hash of 32 hexadecimal digits", where, key);
    return text;
  };
  if (const auto version = json_int(json, "format_version", where); version != kSideVersion) {
    throw DataError(fmt::format("{}: format version {} is not {}", where, version, kSideVersion),
                    "the shard comes from another version of qtrain: tokenize the text again");
  }
  return ShardInfo{json_int(json, "tokens", where, 0, kMax), json_int(json, "text_bytes", where, 0, kMax),
                   json_int(json, "vocab_size", where, 1, kShardMaxVocab), hash("vocab_hash"),
                   hash("xxh3_128")};
}

ShardReader::ShardReader(const std::filesystem::path& path, std::int64_t vocab_size,
                         const std::string& vocab_hash, ShardVerify verify)
    : path_(path), file_(path), vocab_size_(vocab_size), side_(read_shard_side(path)) {
  const std::string name = path.string();
  const std::span<const std::byte> bytes = file_.bytes();
  read_header();
  if (side_) {
    QT_CHECK(side_->tokens == tokens_, DataError, "{}: {} tokens, but its side file says {}", name, tokens_,
             side_->tokens);
    if (!vocab_hash.empty() && side_->vocab_hash != vocab_hash) {
      throw DataError(fmt::format("{}: was made with vocabulary {}, the tokenizer here is {}", name,
                                  side_->vocab_hash, vocab_hash),
                      "use the tokenizer that made the shard, or tokenize the text again");
    }
    QT_CHECK(side_->vocab_size <= vocab_size, DataError,
             "{}: was made for a vocabulary of {}, larger than the {} here", name, side_->vocab_size,
             vocab_size);
  }
  if (verify == ShardVerify::header) return;
  if (side_) {
    const std::string actual = xxh3_hex(bytes);
    if (actual != side_->xxh3_128) {
      throw DataError(
          fmt::format("{}: checksum {} is not the {} of its side file", name, actual, side_->xxh3_128),
          kRemake);
    }
  }
  check_ids();
}

void ShardReader::read_header() {
  const std::string name = path_.string();
  const std::span<const std::byte> bytes = file_.bytes();
  std::int32_t magic = 0;
  if (bytes.size() >= 4) std::memcpy(&magic, bytes.data(), 4);  // an empty file is mapped nowhere
  // Only a file that came without our side file can be nanoGPT's: ours always have the header.
  if (!side_ && magic != kShardMagic) {
    if (const std::string what = not_tokens(bytes); !what.empty()) {
      throw DataError(
          fmt::format("{}: {}", name, what),
          "token shards are llm.c's .bin of 16-bit tokens, or nanoGPT's train.bin (uint16, no header)");
    }
    first_byte_ = 0;
    tokens_ = static_cast<std::int64_t>(bytes.size() / 2);
    return;
  }
  QT_CHECK(bytes.size() >= kShardHeaderBytes, DataError,
           "{}: {} bytes, but the header alone has {}: truncated", name, bytes.size(), kShardHeaderBytes);
  Header header{};
  std::memcpy(header.data(), bytes.data(), kShardHeaderBytes);
  QT_CHECK(header[0] == kShardMagic, DataError,
           "{}: magic number {} at offset 0 is not {}: not a token shard", name, header[0], kShardMagic);
  QT_CHECK(header[1] == 1, DataError, "{}: version {} at offset 4 is not 1", name, header[1]);
  QT_CHECK(header[2] > 0, DataError, "{}: token count {} at offset 8 is not positive", name, header[2]);
  tokens_ = header[2];
  const auto expected = kShardHeaderBytes + 2 * static_cast<std::size_t>(tokens_);
  QT_CHECK(bytes.size() == expected, DataError, "{}: {} tokens need {} bytes, the file has {}: {}", name,
           tokens_, expected, bytes.size(), bytes.size() < expected ? "truncated" : "too long");
}

std::uint16_t ShardReader::at(std::int64_t position) const {
  std::uint16_t id = 0;
  std::memcpy(&id, file_.bytes().data() + first_byte_ + 2 * static_cast<std::size_t>(position), 2);
  return id;
}

void ShardReader::fail_id(std::int64_t position) const {
  throw DataError(fmt::format("{}: token {} at position {} is outside the vocabulary of {}", path_.string(),
                              at(position), position, vocab_size_),
                  "the shard belongs to another tokenizer, or is damaged");
}

void ShardReader::check_ids() const {
  if (vocab_size_ >= kShardMaxVocab) return;
  // The maximum of a chunk first: a loop without exits is vectorised.
  constexpr std::int64_t kChunk = 4096;
  for (std::int64_t begin = 0; begin < tokens_; begin += kChunk) {
    const std::int64_t end = std::min(begin + kChunk, tokens_);
    std::uint16_t largest = 0;
    for (std::int64_t i = begin; i < end; ++i) largest = std::max(largest, at(i));
    if (largest < vocab_size_) continue;
    for (std::int64_t i = begin; i < end; ++i) {
      if (at(i) >= vocab_size_) fail_id(i);
    }
  }
}

void ShardReader::copy(std::int64_t begin, std::span<std::int32_t> out) const {
  const auto n = static_cast<std::int64_t>(out.size());
  QT_CHECK(begin >= 0 && n <= tokens_ - begin, DataError, "{}: tokens {} to {} lie beyond its {}",
           path_.string(), begin, begin + n, tokens_);
  for (std::int64_t i = 0; i < n; ++i) {
    const std::int32_t id = at(begin + i);
    if (id >= vocab_size_) fail_id(begin + i);
    out[static_cast<std::size_t>(i)] = id;
  }
}

void ShardReader::count(std::span<std::int64_t> counts) const {
  QT_CHECK(static_cast<std::int64_t>(counts.size()) >= vocab_size_, DataError,
           "{}: {} counters for a vocabulary of {}", path_.string(), counts.size(), vocab_size_);
  for (std::int64_t i = 0; i < tokens_; ++i) {
    const std::uint16_t id = at(i);
    if (id >= vocab_size_) fail_id(i);
    ++counts[id];
  }
}

}  // namespace qt
