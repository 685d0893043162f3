// The tokenizer file. Text, one token a line as in tiktoken's own vocabulary files, so that it can be read
// and compared with ordinary tools:
//
//   qtrain-tokenizer 1
//   {"kind":"bpe","pattern":"nanochat","specials":["<|bos|>",...],"tokens":4087}
//   AA== 0                     base64 of the token's bytes, space, its id
//   ...
//
// The ids run from 0 without a hole; special tokens follow them. `char` lists its characters; `bytes` lists
// nothing, nor does `ids`, where the header has "vocab_size". serialise() is canonical (one file per vocabulary),
// so its hash names the vocabulary.
#include <algorithm>
#include <charconv>

#include "src/core/error.h"
#include "src/io/file.h"
#include "src/io/json.h"
#include "src/tokenizer/base64.h"
#include "src/tokenizer/tokenizer.h"
#include "src/tokenizer/utf8.h"

namespace qt {
namespace {

constexpr std::string_view kMagic = "qtrain-tokenizer 1";
constexpr std::size_t kMaxFileBytes = std::size_t{256} << 20;
constexpr std::size_t kMaxHeaderBytes = 64 << 10;

class Lines {
 public:
  Lines(std::string_view text, const std::string& origin) : rest_(text), origin_(origin) {}
  std::size_t number() const { return number_; }
  bool done() const { return rest_.empty(); }
  std::string_view next(std::size_t max_bytes) {
    ++number_;
    const std::size_t end = rest_.substr(0, max_bytes + 1).find('\n');
    if (end == std::string_view::npos) {
      fail(rest_.size() > max_bytes ? fmt::format("is longer than {} bytes", max_bytes)
                                    : std::string("is missing or cut off: the file is truncated"));
    }
    const std::string_view line = rest_.substr(0, end);
    rest_.remove_prefix(end + 1);
    return line;
  }
  [[noreturn]] void fail(const std::string& what) const {
    throw DataError(fmt::format("{}: line {} {}", origin_, number_, what),
                    "the tokenizer file is damaged or not one of ours: make it again with `qtrain tokenize`");
  }

 private:
  std::string_view rest_;
  const std::string& origin_;
  std::size_t number_ = 0;
};

struct Header {
  TokenizerKind kind = TokenizerKind::bytes;
  std::string pattern;
  std::vector<std::string> specials;
  std::int64_t tokens = 0;
  std::int64_t vocab_size = 0;  // ids
};

Header parse_header(Lines& lines, const std::string& origin) {
  const std::string where = fmt::format("{}: line 2", origin);
  const Json json = parse_json(lines.next(kMaxHeaderBytes), where,
                               {.max_bytes = kMaxHeaderBytes, .max_depth = 4, .max_values = 1000});
  Header header;
  const std::string& kind = json_string(json, "kind", where);
  try {
    header.kind = kind == name_of(TokenizerKind::ids) ? TokenizerKind::ids : parse_tokenizer_kind(kind);
  } catch (const ConfigError&) {
    lines.fail(fmt::format("has the unknown kind {}", in_quotes(kind)));
  }
  if (header.kind == TokenizerKind::bpe) {
    header.pattern = json_string(json, "pattern", where);
    const auto names = Splitter::names();
    if (std::find(names.begin(), names.end(), header.pattern) == names.end()) {
      lines.fail(fmt::format("has the unknown split pattern {}", in_quotes(header.pattern)));
    }
  }
  header.tokens = json_int(json, "tokens", where, 0, Tokenizer::kMaxVocab);
  if (header.kind == TokenizerKind::ids)
    header.vocab_size = json_int(json, "vocab_size", where, 1, Tokenizer::kMaxVocab);
  for (const Json& name : json_array(json, "specials", where))
    header.specials.push_back(name.is_string() ? name.get<std::string>() : std::string());
  const bool known = header.kind == TokenizerKind::bpe     ? known_specials(header.specials)
                     : header.kind == TokenizerKind::bytes ? header.specials == special_token_names()
                                                           : header.specials.empty();
  if (!known) {
    lines.fail("has a field \"specials\" that is not the list of special tokens of this version");
  }
  return header;
}

std::vector<std::string> parse_tokens(Lines& lines, std::int64_t count) {
  std::vector<std::string> tokens;
  for (std::int64_t id = 0; id < count; ++id) {
    const auto line = lines.next(4 * BpeVocab::kMaxTokenBytes / 3 + 64);
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos) lines.fail("is not 'base64 id'");
    std::int64_t written = -1;
    const char* end = line.data() + line.size();
    const auto [stop, error] = std::from_chars(line.data() + space + 1, end, written);
    if (error != std::errc{} || stop != end) lines.fail("does not end in a token id");
    if (written != id) lines.fail(fmt::format("has id {} where {} is next", written, id));
    std::string bytes;
    if (!from_base64(line.substr(0, space), bytes)) lines.fail("is not valid base64");
    tokens.push_back(std::move(bytes));
  }
  return tokens;
}

}  // namespace

void Tokenizer::finish() { hash_ = xxh3_hex(bytes_of(serialise())); }

std::string Tokenizer::serialise() const {
  const bool lists = kind_ == TokenizerKind::bpe || kind_ == TokenizerKind::chars;
  const std::int32_t listed = lists ? vocab_size_ - static_cast<std::int32_t>(specials_.size()) : 0;
  Json header = {{"kind", name_of(kind_)}, {"specials", specials_}, {"tokens", listed}};
  if (kind_ == TokenizerKind::ids) header["vocab_size"] = vocab_size_;
  if (kind_ == TokenizerKind::bpe) header["pattern"] = splitter_->name();
  std::string out = fmt::format("{}\n{}\n", kMagic, header.dump());
  for (std::int32_t id = 0; id < listed; ++id) out += fmt::format("{} {}\n", to_base64(ordinary(id)), id);
  return out;
}

Tokenizer Tokenizer::parse(std::string_view file, const std::string& origin) {
  QT_CHECK(file.size() <= kMaxFileBytes, DataError, "{}: {} bytes are too many for a tokenizer (limit {})",
           origin, file.size(), kMaxFileBytes);
  Lines lines(file, origin);
  if (lines.next(64) != kMagic) lines.fail(fmt::format("is not '{}'", kMagic));
  const Header header = parse_header(lines, origin);
  const auto tokens = parse_tokens(lines, header.tokens);
  if (!lines.done()) {
    lines.next(kMaxFileBytes);
    lines.fail(fmt::format("follows the {} tokens that the header announces", header.tokens));
  }
  switch (header.kind) {
    case TokenizerKind::bytes:
    case TokenizerKind::ids:
      QT_CHECK(tokens.empty(), DataError, "{}: {} tokenizers list no tokens, this one lists {}", origin,
               name_of(header.kind), tokens.size());
      return header.kind == TokenizerKind::ids ? make_ids(header.vocab_size) : make_bytes();
    case TokenizerKind::bpe: return make_bpe(tokens, header.pattern, origin, header.specials);
    case TokenizerKind::chars: break;
  }
  std::vector<char32_t> chars;
  for (std::size_t id = 0; id < tokens.size(); ++id) {
    const CodePoint c = utf8_at(tokens[id], 0);
    QT_CHECK(c.bytes > 0 && static_cast<std::size_t>(c.bytes) == tokens[id].size(), DataError,
             "{}: token {} is not one UTF-8 character", origin, id);
    QT_CHECK(chars.empty() || chars.back() < c.value, DataError,
             "{}: token {} is not above the one before it: characters must be sorted and unique", origin, id);
    chars.push_back(c.value);
  }
  QT_CHECK(!chars.empty(), DataError, "{}: a char tokenizer without characters", origin);
  return make_chars(std::move(chars));
}

void Tokenizer::save(FileSystem& fs, const std::filesystem::path& path) const {
  const std::string text = serialise();
  write_file_atomically(fs, path, bytes_of(text));
}

}  // namespace qt
