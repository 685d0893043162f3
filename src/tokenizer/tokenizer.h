// Text to token ids and back. Three kinds: byte-level BPE, plain bytes, and the characters of one corpus; and
// one for shards with an unknown vocabulary. Reading corpora is src/data/ingest.h; the file format is
// described in tokenizer_file.cpp, those of others in gpt2_files.h.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/io/file_system.h"
#include "src/tokenizer/bpe.h"
#include "src/tokenizer/bpe_train.h"
#include "src/tokenizer/split.h"

namespace qt {

enum class TokenizerKind { bpe, bytes, chars, ids };
const char* name_of(TokenizerKind kind);  // "bpe", "bytes", "char", "ids"
// Of the kinds that can be made from text; ConfigError naming them.
TokenizerKind parse_tokenizer_kind(std::string_view name);

// nanochat's nine, in its order; they take the last ids of bpe and bytes. `char` has none, as in nanoGPT.
const std::vector<std::string>& special_token_names();
// GPT-2's only one: <|endoftext|>.
const std::vector<std::string>& gpt2_special_names();
// Whether a bpe tokenizer can have just these: nanochat's, GPT-2's or none.
bool known_specials(const std::vector<std::string>& names);

// What to learn. For `bytes` and `char` the vocabulary size follows from the data and vocab_size is not read.
struct TokenizerSpec {
  TokenizerKind kind = TokenizerKind::bpe;
  std::int64_t vocab_size = 4096;          // bpe: 256 bytes + merges + 9 special tokens
  std::string pattern = "nanochat";        // bpe: or "gpt2"
  std::int64_t max_chars = 2'000'000'000;  // bpe: learn from the first so many code points
};

class Tokenizer {
 public:
  // Text is encoded in windows of at most this many bytes, cut where no piece crosses; text without such a
  // place for 1 MiB is cut at a code point. The ids are a function of the text alone, however it is fed.
  static constexpr std::size_t kWindowBytes = std::size_t{1} << 20;
  static constexpr std::int64_t kMaxVocab = std::int64_t{1} << 20;

  static Tokenizer make_bytes();
  static Tokenizer make_chars(std::vector<char32_t> sorted_unique);  // ConfigError when empty
  // tokens as BpeVocab takes them; special tokens (a known set) are added. DataError names `origin`.
  static Tokenizer make_bpe(const std::vector<std::string>& tokens, const std::string& pattern,
                            const std::string& origin,
                            const std::vector<std::string>& specials = special_token_names());
  // For token shards that come without a vocabulary: a token is a number below vocab_size and its text is
  // that number, so that samples can be printed and prompts typed ("464 2068"). No token stands for bytes.
  // ConfigError unless vocab_size is 1 to kMaxVocab.
  static Tokenizer make_ids(std::int64_t vocab_size);

  // parse() is strict: DataError names `origin` and the line. save() is atomic.
  static Tokenizer parse(std::string_view file, const std::string& origin);
  // One of our files; a tiktoken file; vocab.json or merges.txt, each with the other beside it; or a folder
  // with one of these: see gpt2_files.h. DataError names what is missing or wrong.
  static Tokenizer load(const std::filesystem::path& path);
  std::string serialise() const;
  void save(FileSystem& fs, const std::filesystem::path& path) const;

  TokenizerKind kind() const { return kind_; }
  std::int32_t vocab_size() const { return vocab_size_; }
  // The token that opens every document; -1 for `char`.
  std::int32_t bos() const {
    return specials_.empty() ? -1 : vocab_size_ - static_cast<std::int32_t>(specials_.size());
  }
  std::optional<std::int32_t> special_id(std::string_view name) const;
  bool is_special(std::int32_t id) const {
    return id >= vocab_size_ - static_cast<std::int32_t>(specials_.size());
  }
  const std::vector<std::string>& specials() const { return specials_; }
  std::string pattern() const { return splitter_ ? splitter_->name() : std::string(); }  // bpe alone has one
  // Whether tokens stand for bytes of text, so that bits per byte exist: not for `ids`.
  bool has_text() const { return kind_ != TokenizerKind::ids; }

  // 32 hexadecimal digits of XXH3-128 over serialise(): equal hashes mean equal ids for every text.
  const std::string& hash() const { return hash_; }

  // "Ordinary" encoding: text never yields a special token, even when it spells one. Appends to `out`. Only
  // `char` and `ids` can fail: DataError names the character or word and its byte offset (plus `offset`,
  // where the text starts in its file).
  void encode(std::string_view text, std::vector<std::int32_t>& out, std::int64_t offset = 0) const;
  std::vector<std::int32_t> encode(std::string_view text) const;

  // For streams: how many bytes at the front of `available` make the next window; 0 when more bytes are
  // needed. encode() is a loop of these two. `at_end` says that nothing follows `available`.
  std::size_t next_window(std::string_view available, bool at_end) const;
  void encode_window(std::string_view window, std::vector<std::int32_t>& out, std::int64_t offset = 0) const;

  // Any sequence of ids to bytes (not necessarily UTF-8). Special tokens vanish, or appear by name.
  // DataError names an id outside the vocabulary and its position.
  enum class Specials { skip, show };
  std::string decode(std::span<const std::int32_t> ids, Specials specials = Specials::skip) const;

  // Bytes of text that token id stands for; 0 for special tokens and for all of `ids`. 0 <= id <
  // vocab_size().
  std::int64_t token_bytes(std::int32_t id) const;
  std::vector<std::int32_t> token_bytes_table() const;

  // null unless kind() is bpe.
  const BpeVocab* bpe() const { return bpe_.get(); }

 private:
  Tokenizer() = default;
  void finish();
  std::string_view ordinary(std::int32_t id) const;
  void encode_chars(std::string_view text, std::vector<std::int32_t>& out, std::int64_t offset) const;
  void encode_ids(std::string_view text, std::vector<std::int32_t>& out, std::int64_t offset) const;

  TokenizerKind kind_ = TokenizerKind::bytes;
  std::int32_t vocab_size_ = 0;
  std::vector<std::string> specials_;
  std::shared_ptr<const BpeVocab> bpe_;       // immutable, so copies of a tokenizer may share it
  std::shared_ptr<const Splitter> splitter_;  // the same
  std::vector<char32_t> chars_;
  std::vector<std::string> char_bytes_;
  std::string hash_;
};

// Learns a tokenizer from text given in any number of parts (windows: pieces do not reach from one into the
// next).
class TokenizerTrainer {
 public:
  explicit TokenizerTrainer(const TokenizerSpec& spec);  // ConfigError for an impossible vocabulary size

  // As Tokenizer::next_window, for the pieces of this spec.
  std::size_t next_window(std::string_view available, bool at_end) const;

  // One window or document. Returns false once spec.max_chars is reached: what follows makes no difference.
  // `char` needs valid UTF-8: DataError with the offset.
  bool add(std::string_view text, std::int64_t offset = 0);

  // ConfigError when the text has too few pairs for the vocabulary, with the largest size it does support.
  Tokenizer finish(const std::function<void()>& poll = {});

 private:
  TokenizerSpec spec_;
  std::optional<Splitter> splitter_;
  PieceCounts pieces_;
  std::int64_t chars_seen_ = 0;
  std::vector<bool> seen_;
};

}  // namespace qt
