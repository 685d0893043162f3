#include "src/tokenizer/gpt2_files.h"

#include <algorithm>
#include <charconv>
#include <vector>

#include "src/core/error.h"
#include "src/io/file.h"
#include "src/io/json.h"
#include "src/io/run_folder.h"
#include "src/tokenizer/base64.h"
#include "src/tokenizer/byte_symbols.h"
#include "src/tokenizer/hf_tokenizer.h"
#include "src/tokenizer/utf8.h"

namespace qt {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t kMaxFileBytes = std::size_t{64} << 20;
constexpr const char* kPattern = "gpt2";
constexpr const char* kHuggingFace = "tokenizer.json";
constexpr const char* kPairHint =
    "vocab.json and merges.txt must come from one byte-level BPE tokenizer, as GPT-2's do";

struct PairNames {
  const char* vocab;
  const char* merges;
};
constexpr PairNames kPairs[] = {
    {"vocab.json", "merges.txt"}, {"gpt2_vocab.json", "gpt2_merges.txt"}, {"encoder.json", "vocab.bpe"}};

[[noreturn]] void fail_pair(const std::string& what) { throw DataError(what, kPairHint); }

struct Merge {
  std::string left, right;
};

std::vector<Merge> parse_merges(std::string_view file, const std::string& origin) {
  std::vector<Merge> merges;
  std::size_t number = 0;
  while (!file.empty()) {
    ++number;
    const std::size_t end = std::min(file.find('\n'), file.size());
    std::string_view line = file.substr(0, end);
    file.remove_prefix(std::min(end + 1, file.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (number == 1 && line.starts_with("#version")) continue;
    const auto fail = [&](const std::string& what) {
      fail_pair(fmt::format("{}: line {} {}", origin, number, what));
    };
    if (line.empty() && file.empty()) break;
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos || space == 0 || space + 1 == line.size() ||
        line.find(' ', space + 1) != std::string_view::npos)
      fail(fmt::format("is not two tokens with a space between them: {}", in_quotes(line)));
    if (line.size() > 4 * BpeVocab::kMaxTokenBytes) fail("is too long for a merge");
    const auto left = from_symbols(line.substr(0, space)), right = from_symbols(line.substr(space + 1));
    if (!left || !right)
      fail(fmt::format("has a character that stands for no byte: {} is not byte-level", in_quotes(line)));
    merges.push_back({*left, *right});
    if (static_cast<std::int64_t>(merges.size()) > Tokenizer::kMaxVocab)
      fail(fmt::format("is one merge too many (limit {})", Tokenizer::kMaxVocab));
  }
  return merges;
}

// A vocabulary in the order of its ids, each of which must be there exactly once.
std::vector<std::string> tokens_by_id(const Json& json, const std::string& origin) {
  const auto size = static_cast<std::int64_t>(json.size());
  std::vector<const std::string*> by_id(json.size());
  for (auto it = json.begin(); it != json.end(); ++it) {
    const std::string name = in_quotes(it.key());
    if (!it.value().is_number_integer())
      fail_pair(fmt::format("{}: the id of {} is not a whole number", origin, name));
    const auto id = it.value().get<std::int64_t>();
    // With as many ids as there are tokens, one that is too large means a hole below it.
    if (it.value().is_number_unsigned() ? it.value().get<std::uint64_t>() >= json.size()
                                        : id < 0 || id >= size)
      fail_pair(fmt::format("{}: {} has id {}, but the ids of {} tokens must run from 0 to {}", origin, name,
                            it.value().dump(), size, size - 1));
    const std::string*& place = by_id[static_cast<std::size_t>(id)];
    if (place)
      fail_pair(fmt::format("{}: {} and {} have the same id {}", origin, in_quotes(*place), name, id));
    place = &it.key();
  }
  std::vector<std::string> tokens;
  for (const std::string* token : by_id) tokens.push_back(*token);
  return tokens;
}

// What a split pattern lets through as one token is one piece of it or the part of one: under GPT-2's pattern
// a part of a piece is a piece itself, but for the contractions ('ll, 've, 're) and for parts of characters.
// So a token that comes apart was learnt under another pattern, and its texts would get other ids here.
void require_gpt2_pattern(const Tokenizer& tokenizer, const std::string& origin) {
  const Splitter splitter(kPattern);
  for (std::int32_t id = 0; id < tokenizer.bpe()->size(); ++id) {
    const std::string_view token = tokenizer.bpe()->token(id);
    if (utf8_valid_end(token, 0) != token.size() || token == "'l" || token == "'v" || token == "'r") continue;
    PieceCursor cursor(splitter, token);
    std::string_view piece;
    cursor.next(piece);
    if (piece.size() == token.size()) continue;
    throw DataError(
        fmt::format("{}: token {} ({}) can never arise under GPT-2's split pattern", origin, id,
                    in_quotes(token)),
        "the vocabulary belongs to another pattern (cl100k, o200k, Llama ...), which cannot be read");
  }
}

Tokenizer made_of(const std::vector<std::string>& tokens, const std::vector<std::string>& specials,
                  const std::string& origin) {
  Tokenizer tokenizer = Tokenizer::make_bpe(tokens, kPattern, origin, specials);
  require_gpt2_pattern(tokenizer, origin);
  return tokenizer;
}

}  // namespace

Tokenizer parse_gpt2(std::string_view vocab_json, const std::string& vocab_origin, std::string_view merges,
                     const std::string& merges_origin) {
  const Json json =
      parse_json(vocab_json, vocab_origin,
                 {.max_bytes = kMaxFileBytes, .max_depth = 2, .max_values = Tokenizer::kMaxVocab + 1});
  if (!json.is_object()) fail_pair(fmt::format("{}: not an object of tokens and ids", vocab_origin));
  const std::vector<std::string> words = tokens_by_id(json, vocab_origin);
  const std::vector<Merge> rules = parse_merges(merges, merges_origin);
  const std::size_t ordinary = 256 + rules.size();
  if (words.size() < ordinary) {
    fail_pair(fmt::format("{}: {} tokens, but 256 bytes and the {} merges of {} make {}", vocab_origin,
                          words.size(), rules.size(), merges_origin, ordinary));
  }
  std::vector<std::string> tokens;
  for (std::size_t id = 0; id < ordinary; ++id) {
    const auto bytes = from_symbols(words[id]);
    const std::string named = fmt::format("{}: token {} ({})", vocab_origin, id, in_quotes(words[id]));
    if (!bytes) fail_pair(named + " has a character that stands for no byte: not a byte-level vocabulary");
    if (id >= 256) {
      const Merge& rule = rules[id - 256];
      if (*bytes != rule.left + rule.right) {
        fail_pair(
            fmt::format("{} is not what merge {} of {} makes ({}): a merge is missing or too many, or "
                        "the ids are in another order",
                        named, id - 255, merges_origin, in_quotes(to_symbols(rule.left + rule.right))));
      }
    }
    tokens.push_back(*bytes);
  }
  const std::vector<std::string> specials(words.begin() + static_cast<std::ptrdiff_t>(ordinary), words.end());
  if (!known_specials(specials)) {
    fail_pair(
        fmt::format("{}: token {} ({}) is neither a byte nor made by a merge of {}, and the last {} "
                    "tokens are not a known set of special tokens",
                    vocab_origin, ordinary, in_quotes(specials.front()), merges_origin, specials.size()));
  }
  Tokenizer tokenizer = made_of(tokens, specials, vocab_origin);
  for (std::size_t i = 0; i < rules.size(); ++i) {
    const auto [left, right] = tokenizer.bpe()->parts(static_cast<std::int32_t>(256 + i));
    if (tokenizer.bpe()->token(left) == rules[i].left && tokenizer.bpe()->token(right) == rules[i].right)
      continue;
    fail_pair(fmt::format(
        "{}: merge {} joins {} and {}, but the merges before it never leave these two side "
        "by side",
        merges_origin, i + 1, in_quotes(to_symbols(rules[i].left)), in_quotes(to_symbols(rules[i].right))));
  }
  return tokenizer;
}

bool looks_like_tiktoken(std::string_view file) {
  const std::string_view line = file.substr(0, std::min(file.find('\n'), file.size()));
  const std::size_t space = line.find(' ');
  std::string bytes;
  return space != std::string_view::npos && line.size() < 64 && from_base64(line.substr(0, space), bytes) &&
         line.find_first_not_of("0123456789\r", space + 1) == std::string_view::npos &&
         space + 1 < line.size();
}

Tokenizer parse_tiktoken(std::string_view file, const std::string& origin) {
  constexpr const char* kHint = "a tiktoken file has 'base64 rank' on every line, with ranks from 0 on";
  QT_CHECK(file.size() <= kMaxFileBytes, DataError, "{}: {} bytes are too many for a tokenizer (limit {})",
           origin, file.size(), kMaxFileBytes);
  std::vector<std::pair<std::int64_t, std::string>> ranked;
  std::size_t number = 0;
  while (!file.empty()) {
    ++number;
    const std::size_t end = std::min(file.find('\n'), file.size());
    std::string_view line = file.substr(0, end);
    file.remove_prefix(std::min(end + 1, file.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() && file.empty()) break;
    const auto fail = [&](const char* what) {
      throw DataError(fmt::format("{}: line {} {}", origin, number, what), kHint);
    };
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos) fail("is not 'base64 rank'");
    std::int64_t rank = -1;
    const char* stop_at = line.data() + line.size();
    const auto [stop, error] = std::from_chars(line.data() + space + 1, stop_at, rank);
    if (error != std::errc{} || stop != stop_at || rank < 0) fail("does not end in a rank");
    if (rank >= Tokenizer::kMaxVocab) fail("has a rank above every possible vocabulary");
    std::string bytes;
    if (space > 4 * BpeVocab::kMaxTokenBytes || !from_base64(line.substr(0, space), bytes))
      fail("is not valid base64");
    ranked.emplace_back(rank, std::move(bytes));
  }
  // The files of tiktoken are sorted by rank, but nothing promises it.
  std::stable_sort(ranked.begin(), ranked.end(),
                   [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<std::string> tokens;
  for (std::size_t i = 0; i < ranked.size(); ++i) {
    const auto rank = ranked[i].first;
    if (rank != static_cast<std::int64_t>(i)) {
      throw DataError(i > 0 && rank == ranked[i - 1].first
                          ? fmt::format("{}: rank {} is given twice", origin, rank)
                          : fmt::format("{}: rank {} is missing, but there is {}", origin, i, rank),
                      kHint);
    }
    tokens.push_back(std::move(ranked[i].second));
  }
  return made_of(tokens, gpt2_special_names(), origin);
}

namespace {

Tokenizer load_pair(const fs::path& vocab, const fs::path& merges) {
  return parse_gpt2(read_file(vocab, kMaxFileBytes), vocab.string(), read_file(merges, kMaxFileBytes),
                    merges.string());
}

Tokenizer load_folder(const fs::path& folder) {
  if (fs::exists(folder / kTokenizerFile)) return Tokenizer::load(folder / kTokenizerFile);
  for (const PairNames& pair : kPairs) {
    if (fs::exists(folder / pair.vocab) && fs::exists(folder / pair.merges))
      return load_pair(folder / pair.vocab, folder / pair.merges);
  }
  if (fs::exists(folder / kHuggingFace)) return Tokenizer::load(folder / kHuggingFace);
  std::vector<std::string> found;
  for (const std::string& name : list_dir(folder)) {
    if (name.ends_with(".tiktoken")) found.push_back(name);
  }
  if (found.size() == 1) return Tokenizer::load(folder / found.front());
  throw DataError(found.empty()
                      ? fmt::format("{}: no tokenizer in this folder", folder.string())
                      : fmt::format("{}: several tokenizers: {}", folder.string(), fmt::join(found, ", ")),
                  found.empty() ? "it should hold tokenizer.txt, vocab.json and merges.txt, encoder.json and "
                                  "vocab.bpe, tokenizer.json, or one *.tiktoken"
                                : "name the file itself");
}

}  // namespace

Tokenizer Tokenizer::load(const fs::path& path) {
  if (fs::is_directory(path)) return load_folder(path);
  const std::string name = path.filename().string();
  for (const PairNames& pair : kPairs) {
    if (name != pair.vocab && name != pair.merges) continue;
    const auto vocab = path.parent_path() / pair.vocab, merges = path.parent_path() / pair.merges;
    for (const auto& [here, other] : {std::pair{vocab, merges}, {merges, vocab}}) {
      if (fs::exists(here) && !fs::exists(other)) {
        throw DataError(fmt::format("{}: is missing beside {}", other.string(), here.string()),
                        "a GPT-2 tokenizer is two files: put both into one folder");
      }
    }
    return load_pair(vocab, merges);
  }
  const std::string file = read_file(path, std::uint64_t{256} << 20);
  if (name == kHuggingFace) return parse_hf_tokenizer(file, path.string());
  if (looks_like_tiktoken(file)) return parse_tiktoken(file, path.string());
  if (file.starts_with("{") || file.starts_with("#version")) {
    throw DataError(
        fmt::format("{}: half of a tokenizer, or one in a format that is not read", path.string()),
        "name the folder that holds vocab.json and merges.txt under these names");
  }
  return parse(file, path.string());
}

void save_gpt2(const Tokenizer& tokenizer, FileSystem& fs, const fs::path& folder) {
  if (tokenizer.kind() != TokenizerKind::bpe || tokenizer.pattern() != kPattern) {
    throw ConfigError(
        fmt::format("a {} tokenizer{} cannot be written as vocab.json and merges.txt",
                    name_of(tokenizer.kind()),
                    tokenizer.kind() == TokenizerKind::bpe ? " with the split pattern nanochat" : ""),
        "make it with --tokenizer-kind bpe --split-pattern gpt2");
  }
  const BpeVocab& bpe = *tokenizer.bpe();
  nlohmann::ordered_json vocab = nlohmann::ordered_json::object();
  std::string merges = "#version: 0.2\n";
  const auto word = [&](std::int32_t id) { return to_symbols(bpe.token(id)); };
  // push_back and not operator[], which would search an ordered object from its front.
  for (std::int32_t id = 0; id < bpe.size(); ++id) {
    vocab.get_ref<nlohmann::ordered_json::object_t&>().push_back({word(id), id});
    if (id < 256) continue;
    const auto [left, right] = bpe.parts(id);
    merges += fmt::format("{} {}\n", word(left), word(right));
  }
  for (std::int32_t id = bpe.size(); id < tokenizer.vocab_size(); ++id)
    vocab[tokenizer.specials()[static_cast<std::size_t>(id - bpe.size())]] = id;
  const std::string text = vocab.dump() + "\n";
  write_file_atomically(fs, folder / "vocab.json", bytes_of(text));
  write_file_atomically(fs, folder / "merges.txt", bytes_of(merges));
}

}  // namespace qt
