#include "src/tokenizer/tokenizer.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "src/core/error.h"
#include "src/io/file.h"
#include "src/tokenizer/utf8.h"

namespace qt {
namespace {

constexpr std::int64_t kMaxCodePoint = 0x10FFFF;

std::string hex_of(char32_t value) { return fmt::format("U+{:04X}", static_cast<std::uint32_t>(value)); }

std::size_t window_of(const Splitter* splitter, std::string_view available, bool at_end) {
  constexpr std::size_t kWindow = Tokenizer::kWindowBytes;
  if (available.size() <= kWindow) return at_end ? available.size() : 0;
  const std::size_t cut = splitter ? splitter->last_safe_cut(available.substr(0, kWindow)) : 0;
  return cut > 0 ? cut : utf8_boundary(available, kWindow);
}

}  // namespace

const char* name_of(TokenizerKind kind) {
  switch (kind) {
    case TokenizerKind::bpe: return "bpe";
    case TokenizerKind::bytes: return "bytes";
    case TokenizerKind::chars: return "char";
    case TokenizerKind::ids: return "ids";
  }
  return "?";
}

TokenizerKind parse_tokenizer_kind(std::string_view name) {
  for (const auto kind : {TokenizerKind::bpe, TokenizerKind::bytes, TokenizerKind::chars}) {
    if (name == name_of(kind)) return kind;
  }
  throw ConfigError(fmt::format("tokenizer '{}' is not known; choose bpe, bytes or char", name));
}

const std::vector<std::string>& special_token_names() {
  static const std::vector<std::string> names = {
      "<|bos|>",          "<|user_start|>", "<|user_end|>",     "<|assistant_start|>", "<|assistant_end|>",
      "<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"};
  return names;
}

const std::vector<std::string>& gpt2_special_names() {
  static const std::vector<std::string> names = {"<|endoftext|>"};
  return names;
}

bool known_specials(const std::vector<std::string>& names) {
  return names.empty() || names == special_token_names() || names == gpt2_special_names();
}

Tokenizer Tokenizer::make_bytes() {
  Tokenizer t;
  t.kind_ = TokenizerKind::bytes;
  t.specials_ = special_token_names();
  t.vocab_size_ = 256 + static_cast<std::int32_t>(t.specials_.size());
  t.finish();
  return t;
}

Tokenizer Tokenizer::make_chars(std::vector<char32_t> sorted_unique) {
  QT_CHECK(!sorted_unique.empty(), ConfigError, "a char tokenizer needs at least one character of text");
  Tokenizer t;
  t.kind_ = TokenizerKind::chars;
  t.chars_ = std::move(sorted_unique);
  for (const char32_t c : t.chars_) utf8_append(t.char_bytes_.emplace_back(), c);
  t.vocab_size_ = static_cast<std::int32_t>(t.chars_.size());
  t.finish();
  return t;
}

Tokenizer Tokenizer::make_ids(std::int64_t vocab_size) {
  QT_CHECK(vocab_size >= 1 && vocab_size <= kMaxVocab, ConfigError,
           "a vocabulary of {} is not possible: 1 to {} are", vocab_size, kMaxVocab);
  Tokenizer t;
  t.kind_ = TokenizerKind::ids;
  t.vocab_size_ = static_cast<std::int32_t>(vocab_size);
  t.finish();
  return t;
}

Tokenizer Tokenizer::make_bpe(const std::vector<std::string>& tokens, const std::string& pattern,
                              const std::string& origin, const std::vector<std::string>& specials) {
  QT_CHECK(known_specials(specials), DataError, "{}: {} is not a known set of special tokens", origin,
           fmt::join(specials, " "));
  Tokenizer t;
  t.kind_ = TokenizerKind::bpe;
  t.specials_ = specials;
  const auto total = static_cast<std::int64_t>(tokens.size() + t.specials_.size());
  QT_CHECK(total <= kMaxVocab, DataError, "{}: a vocabulary of {} is above the limit of {}", origin, total,
           kMaxVocab);
  t.vocab_size_ = static_cast<std::int32_t>(total);
  t.splitter_ = std::make_shared<const Splitter>(pattern);
  t.bpe_ = std::make_shared<const BpeVocab>(tokens, origin);
  t.finish();
  return t;
}

std::optional<std::int32_t> Tokenizer::special_id(std::string_view name) const {
  const auto found = std::find(specials_.begin(), specials_.end(), name);
  if (found == specials_.end()) return std::nullopt;
  return bos() + static_cast<std::int32_t>(found - specials_.begin());
}

std::size_t Tokenizer::next_window(std::string_view available, bool at_end) const {
  return window_of(splitter_.get(), available, at_end);
}

void Tokenizer::encode_window(std::string_view window, std::vector<std::int32_t>& out,
                              std::int64_t offset) const {
  switch (kind_) {
    case TokenizerKind::bytes:
      for (const char c : window) out.push_back(static_cast<unsigned char>(c));
      return;
    case TokenizerKind::chars: encode_chars(window, out, offset); return;
    case TokenizerKind::ids: encode_ids(window, out, offset); return;
    case TokenizerKind::bpe: {
      PieceCursor cursor(*splitter_, window);
      BpeScratch scratch;
      std::string_view piece;
      while (cursor.next(piece)) bpe_->encode_piece(piece, out, scratch);
      return;
    }
  }
}

void Tokenizer::encode(std::string_view text, std::vector<std::int32_t>& out, std::int64_t offset) const {
  std::size_t pos = 0;
  while (pos < text.size()) {
    const std::size_t bytes = next_window(text.substr(pos), true);
    encode_window(text.substr(pos, bytes), out, offset + static_cast<std::int64_t>(pos));
    pos += bytes;
  }
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  std::vector<std::int32_t> ids;
  encode(text, ids);
  return ids;
}

void Tokenizer::encode_chars(std::string_view text, std::vector<std::int32_t>& out,
                             std::int64_t offset) const {
  for (std::size_t pos = 0; pos < text.size();) {
    const CodePoint c = utf8_at(text, pos);
    const auto where = offset + static_cast<std::int64_t>(pos);
    if (c.bytes == 0) {
      throw DataError(fmt::format("byte 0x{:02X} at offset {} is not UTF-8, which a char tokenizer needs",
                                  static_cast<unsigned char>(text[pos]), where),
                      "use a bpe or bytes tokenizer, which take any bytes");
    }
    const auto found = std::lower_bound(chars_.begin(), chars_.end(), c.value);
    if (found == chars_.end() || *found != c.value) {
      throw DataError(
          fmt::format("character '{}' ({}) at offset {} is not among the {} characters of this tokenizer",
                      text.substr(pos, static_cast<std::size_t>(c.bytes)), hex_of(c.value), where,
                      chars_.size()),
          "make the tokenizer from text that contains it, or use a bpe or bytes tokenizer");
    }
    out.push_back(static_cast<std::int32_t>(found - chars_.begin()));
    pos += static_cast<std::size_t>(c.bytes);
  }
}

void Tokenizer::encode_ids(std::string_view text, std::vector<std::int32_t>& out, std::int64_t offset) const {
  constexpr std::string_view kBlank = " \t\r\n";
  for (std::size_t pos = text.find_first_not_of(kBlank); pos < text.size();) {
    const std::size_t end = std::min(text.find_first_of(kBlank, pos), text.size());
    std::int32_t id = -1;
    const auto [stop, error] = std::from_chars(text.data() + pos, text.data() + end, id);
    if (error != std::errc{} || stop != text.data() + end || id < 0 || id >= vocab_size_) {
      throw DataError(
          fmt::format("{} at offset {} is not the number of a token below {}",
                      in_quotes(text.substr(pos, end - pos)), offset + static_cast<std::int64_t>(pos),
                      vocab_size_),
          "the data came without a vocabulary, so text can only be given as token numbers; name a "
          "tokenizer with --tokenizer to use words");
    }
    out.push_back(id);
    pos = text.find_first_not_of(kBlank, end);
  }
}

std::string_view Tokenizer::ordinary(std::int32_t id) const {
  static constexpr auto kBytes = [] {
    std::array<char, 256> all{};
    for (std::size_t i = 0; i < all.size(); ++i) all[i] = static_cast<char>(i);
    return all;
  }();
  switch (kind_) {
    case TokenizerKind::bpe: return bpe_->token(id);
    case TokenizerKind::chars: return char_bytes_[static_cast<std::size_t>(id)];
    case TokenizerKind::ids: return {};
    case TokenizerKind::bytes: break;
  }
  return {&kBytes[static_cast<std::size_t>(id)], 1};
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids, Specials specials) const {
  std::string text;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    QT_CHECK(ids[i] >= 0 && ids[i] < vocab_size_, DataError,
             "token {} at position {} is outside the vocabulary of {}", ids[i], i, vocab_size_);
    if (kind_ == TokenizerKind::ids) {
      text += fmt::format(" {}", ids[i]);
    } else if (!is_special(ids[i])) {
      text += ordinary(ids[i]);
    } else if (specials == Specials::show) {
      text += specials_[static_cast<std::size_t>(ids[i] - bos())];
    }
  }
  return text;
}

std::int64_t Tokenizer::token_bytes(std::int32_t id) const {
  return is_special(id) ? 0 : static_cast<std::int64_t>(ordinary(id).size());
}

std::vector<std::int32_t> Tokenizer::token_bytes_table() const {
  std::vector<std::int32_t> table;
  for (std::int32_t id = 0; id < vocab_size_; ++id)
    table.push_back(static_cast<std::int32_t>(token_bytes(id)));
  return table;
}

TokenizerTrainer::TokenizerTrainer(const TokenizerSpec& spec) : spec_(spec) {
  if (spec_.kind == TokenizerKind::chars) seen_.resize(kMaxCodePoint + 1);
  if (spec_.kind != TokenizerKind::bpe) return;
  const auto smallest = 256 + static_cast<std::int64_t>(special_token_names().size());
  QT_CHECK(spec_.vocab_size >= smallest && spec_.vocab_size <= Tokenizer::kMaxVocab, ConfigError,
           "a bpe vocabulary of {} is not possible: {} (bytes and special tokens) to {} are",
           spec_.vocab_size, smallest, Tokenizer::kMaxVocab);
  splitter_.emplace(spec_.pattern);
}

std::size_t TokenizerTrainer::next_window(std::string_view available, bool at_end) const {
  return window_of(splitter_ ? &*splitter_ : nullptr, available, at_end);
}

bool TokenizerTrainer::add(std::string_view text, std::int64_t offset) {
  if (spec_.kind == TokenizerKind::bytes) return false;
  if (spec_.kind == TokenizerKind::chars) {
    for (std::size_t pos = 0; pos < text.size();) {
      const CodePoint c = utf8_at(text, pos);
      QT_CHECK(c.bytes > 0, DataError,
               "byte 0x{:02X} at offset {} is not UTF-8, which a char tokenizer needs",
               static_cast<unsigned char>(text[pos]), offset + static_cast<std::int64_t>(pos));
      seen_[c.value] = true;
      pos += static_cast<std::size_t>(c.bytes);
    }
    return true;
  }
  PieceCursor cursor(*splitter_, text);
  std::string_view piece;
  while (chars_seen_ < spec_.max_chars && cursor.next(piece)) {
    pieces_.add(piece);
    chars_seen_ += std::count_if(piece.begin(), piece.end(), [](char c) { return (c & 0xC0) != 0x80; });
  }
  return chars_seen_ < spec_.max_chars;
}

Tokenizer TokenizerTrainer::finish(const std::function<void()>& poll) {
  if (spec_.kind == TokenizerKind::bytes) return Tokenizer::make_bytes();
  if (spec_.kind == TokenizerKind::chars) {
    std::vector<char32_t> chars;
    for (std::size_t c = 0; c < seen_.size(); ++c) {
      if (seen_[c]) chars.push_back(static_cast<char32_t>(c));
    }
    return Tokenizer::make_chars(std::move(chars));
  }
  const auto specials = static_cast<std::int64_t>(special_token_names().size());
  const auto tokens = train_bpe(pieces_, spec_.vocab_size - 256 - specials, poll);
  const auto largest = static_cast<std::int64_t>(tokens.size()) + specials;
  if (largest < spec_.vocab_size) {
    throw ConfigError(
        fmt::format("the training text is too small for a vocabulary of {}: it runs out of pairs at {}",
                    spec_.vocab_size, largest),
        fmt::format("use --vocab-size {} or less, or more text", largest));
  }
  return Tokenizer::make_bpe(tokens, spec_.pattern, "the trained tokenizer");
}

}  // namespace qt
