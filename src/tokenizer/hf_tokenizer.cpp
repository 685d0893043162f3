#include "src/tokenizer/hf_tokenizer.h"

#include <algorithm>
#include <optional>
#include <vector>

#include "src/core/error.h"
#include "src/io/file.h"
#include "src/io/json.h"
#include "src/tokenizer/byte_symbols.h"
#include "src/tokenizer/utf8.h"

namespace qt {

namespace {

constexpr std::uint64_t kMaxFileBytes = std::uint64_t{64} << 20;
constexpr const char* kHint =
    "byte-level BPE with the split pattern of nanochat or GPT-2 is read; for another vocabulary train anew";

// As nanochat writes it. Oniguruma, which reads it there, knows possessive quantifiers and takes \s for
// White_Space.
constexpr const char* kNanochatRegex =
    R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+)";
constexpr const char* kGpt2Regex =
    R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr const char* kGpt2RegexLong =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// One piece is the whole text: the bytes and char tokenizers cut nowhere.
constexpr const char* kNoPattern = "";

using Ordered = nlohmann::ordered_json;

Ordered byte_level(bool use_regex) {
  return Ordered{
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", use_regex}};
}

Ordered pre_tokenizer(const Tokenizer& tokenizer) {
  if (tokenizer.kind() == TokenizerKind::chars) return nullptr;
  // GPT-2's pattern is ByteLevel's own.
  if (tokenizer.pattern() == "gpt2") return byte_level(true);
  if (tokenizer.kind() == TokenizerKind::bytes) return byte_level(false);
  Ordered split{{"type", "Split"},
                {"pattern", {{"Regex", kNanochatRegex}}},
                {"behavior", "Isolated"},
                {"invert", false}};
  return Ordered{{"type", "Sequence"}, {"pretokenizers", Ordered::array({split, byte_level(false)})}};
}

// The word of an ordinary token in the file's vocabulary.
std::string word_of(const Tokenizer& tokenizer, std::int32_t id) {
  if (tokenizer.kind() == TokenizerKind::bpe) return to_symbols(tokenizer.bpe()->token(id));
  const std::string bytes = tokenizer.decode(std::span(&id, 1));
  return tokenizer.kind() == TokenizerKind::chars ? bytes : to_symbols(bytes);
}

[[noreturn]] void fail(const std::string& what) { throw DataError(what, kHint); }

const std::string& text_field(const Json& object, std::string_view field, const std::string& where) {
  try {
    return json_string(object, field, where);
  } catch (const DataError& e) {
    fail(e.what());
  }
}

// Where a field may be absent: transformers leaves defaults out.
bool flag_or(const Json& object, const char* field, bool otherwise) {
  const auto it = object.find(field);
  return it == object.end() || !it->is_boolean() ? otherwise : it->get<bool>();
}
bool is_of_type(const Json& json, const char* type) {
  return json.is_object() && json_has(json, "type") && json["type"] == type;
}
bool is_byte_level(const Json& step) {
  return is_of_type(step, "ByteLevel") && !flag_or(step, "add_prefix_space", true);
}

// The name of our split pattern, or kNoPattern; what is none of ours is refused.
std::string pattern_of(const Json& file, const std::string& origin) {
  const std::string where = origin + ": pre_tokenizer";
  const auto unknown = [&](const Json& what) {
    fail(fmt::format("{}: {} is no split pattern that this program has", where, in_quotes(what.dump())));
  };
  const Json& json = json_field(file, "pre_tokenizer", origin);
  if (is_byte_level(json)) return flag_or(json, "use_regex", true) ? "gpt2" : kNoPattern;
  if (!is_of_type(json, "Sequence")) unknown(json);
  const Json& steps = json_array(json, "pretokenizers", where);
  if (steps.size() != 2 || !is_of_type(steps[0], "Split") || !is_byte_level(steps[1]) ||
      flag_or(steps[1], "use_regex", true))
    unknown(json);
  if (text_field(steps[0], "behavior", where) != "Isolated" || flag_or(steps[0], "invert", false))
    unknown(steps[0]);
  const std::string& regex =
      text_field(json_object(steps[0], "pattern", where), "Regex", where + ": pattern");
  if (regex == kNanochatRegex) return "nanochat";
  if (regex == kGpt2Regex || regex == kGpt2RegexLong) return "gpt2";
  unknown(regex);
  return {};
}

// Words in the order of their ids, which have to run from 0 without a hole.
std::vector<std::string> words_of(const Json& file, const Json& model, const std::string& origin) {
  const Json& vocab = json_object(model, "vocab", origin + ": model");
  std::vector<std::pair<std::int64_t, std::string>> words;
  const auto add = [&](const std::string& word, const Json& id) {
    if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= std::uint64_t{Tokenizer::kMaxVocab})
      fail(fmt::format("{}: {} has the id {}", origin, in_quotes(word), id.dump()));
    words.emplace_back(id.get<std::int64_t>(), word);
  };
  for (auto it = vocab.begin(); it != vocab.end(); ++it) add(it.key(), it.value());
  for (const Json& token : json_array(file, "added_tokens", origin)) {
    const std::string where = origin + ": added_tokens";
    if (!token.is_object()) fail(where + ": not an object");
    const std::string& word = text_field(token, "content", where);
    const Json& id = json_field(token, "id", where);
    // GPT-2's own is in both lists.
    if (const auto known = vocab.find(word); known != vocab.end()) {
      if (*known != id) fail(fmt::format("{}: {} has two ids", where, in_quotes(word)));
      continue;
    }
    add(word, id);
  }
  std::sort(words.begin(), words.end());
  std::vector<std::string> in_order;
  for (const auto& [id, word] : words) {
    if (id != static_cast<std::int64_t>(in_order.size())) {
      fail(fmt::format("{}: {} has id {} where {} is next", origin, in_quotes(word), id, in_order.size()));
    }
    in_order.push_back(word);
  }
  return in_order;
}

std::pair<std::string, std::string> merge_of(const Json& entry, const std::string& where) {
  std::string left, right;
  if (entry.is_string()) {
    const std::string text = entry.get<std::string>();
    const std::size_t space = text.find(' ');
    if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos)
      fail(fmt::format("{}: {} is not two tokens with a space between them", where, in_quotes(text)));
    left = text.substr(0, space);
    right = text.substr(space + 1);
  } else if (entry.is_array() && entry.size() == 2 && entry[0].is_string() && entry[1].is_string()) {
    left = entry[0].get<std::string>();
    right = entry[1].get<std::string>();
  } else {
    fail(fmt::format("{}: {} is no merge", where, in_quotes(entry.dump())));
  }
  return {left, right};
}

Tokenizer char_tokenizer(const std::vector<std::string>& words, const std::string& origin) {
  std::vector<char32_t> chars;
  for (const std::string& word : words) {
    const CodePoint c = utf8_at(word, 0);
    if (c.bytes == 0 || static_cast<std::size_t>(c.bytes) != word.size() ||
        (!chars.empty() && chars.back() >= c.value))
      fail(
          fmt::format("{}: {} is not the next character of a character vocabulary", origin, in_quotes(word)));
    chars.push_back(c.value);
  }
  if (chars.empty()) fail(fmt::format("{}: an empty vocabulary", origin));
  return Tokenizer::make_chars(std::move(chars));
}

}  // namespace

HfSpecialIds hf_special_ids(const Tokenizer& tokenizer) {
  HfSpecialIds ids;
  ids.bos = tokenizer.bos();
  ids.eos = ids.pad = tokenizer.special_id("<|assistant_end|>").value_or(ids.bos);
  return ids;
}

std::string hf_tokenizer_json(const Tokenizer& tokenizer) {
  QT_CHECK(tokenizer.has_text(), ConfigError, "a vocabulary of numbers cannot be written as tokenizer.json");
  const auto ordinary = tokenizer.vocab_size() - static_cast<std::int32_t>(tokenizer.specials().size());
  Ordered vocab = Ordered::object(), merges = Ordered::array(), added = Ordered::array();
  // push_back and not operator[], which would search an ordered object from its front.
  auto& entries = vocab.get_ref<Ordered::object_t&>();
  for (std::int32_t id = 0; id < ordinary; ++id) {
    entries.push_back({word_of(tokenizer, id), id});
    if (tokenizer.kind() != TokenizerKind::bpe || id < 256) continue;
    const auto [left, right] = tokenizer.bpe()->parts(id);
    merges.push_back(word_of(tokenizer, left) + " " + word_of(tokenizer, right));
  }
  for (std::int32_t id = ordinary; id < tokenizer.vocab_size(); ++id) {
    const std::string& name = tokenizer.specials()[static_cast<std::size_t>(id - ordinary)];
    added.push_back(Ordered{{"id", id},
                            {"content", name},
                            {"single_word", false},
                            {"lstrip", false},
                            {"rstrip", false},
                            {"normalized", false},
                            {"special", true}});
    entries.push_back({name, id});
  }
  const bool chars = tokenizer.kind() == TokenizerKind::chars;
  Ordered model{{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", nullptr},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", false},
                {"byte_fallback", false},
                {"ignore_merges", false}};
  model["vocab"] = std::move(vocab);
  model["merges"] = std::move(merges);
  Ordered file{{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
  file["added_tokens"] = std::move(added);
  file["normalizer"] = nullptr;
  file["pre_tokenizer"] = pre_tokenizer(tokenizer);
  file["post_processor"] = nullptr;
  file["decoder"] = chars ? Ordered{{"type", "Fuse"}} : byte_level(true);
  file["model"] = std::move(model);
  return file.dump(1) + "\n";
}

std::string hf_tokenizer_config_json(const Tokenizer& tokenizer, std::int64_t max_tokens) {
  Ordered file{{"tokenizer_class", "PreTrainedTokenizerFast"},
               {"model_max_length", max_tokens},
               {"clean_up_tokenization_spaces", false}};
  const HfSpecialIds ids = hf_special_ids(tokenizer);
  const auto name = [&](const char* field, std::int32_t id) {
    if (id >= 0) file[field] = tokenizer.decode(std::span(&id, 1), Tokenizer::Specials::show);
  };
  name("bos_token", ids.bos);
  name("eos_token", ids.eos);
  name("pad_token", ids.pad);
  return file.dump(1) + "\n";
}

Tokenizer parse_hf_tokenizer(std::string_view text, const std::string& origin) {
  const Json file = parse_json(
      text, origin, {.max_bytes = kMaxFileBytes, .max_depth = 16, .max_values = 5 * Tokenizer::kMaxVocab});
  if (!file.is_object()) fail(fmt::format("{}: not a JSON object", origin));
  const Json& model = json_object(file, "model", origin);
  if (text_field(model, "type", origin + ": model") != "BPE")
    fail(fmt::format("{}: the model is {}, not BPE", origin, in_quotes(text_field(model, "type", origin))));
  if (json_has(file, "normalizer") && !file["normalizer"].is_null())
    fail(fmt::format("{}: it has a normalizer, which would change the text", origin));
  std::vector<std::string> words = words_of(file, model, origin);
  const Json& merges = json_array(model, "merges", origin + ": model");
  if (json_field(file, "pre_tokenizer", origin).is_null() && merges.empty())
    return char_tokenizer(words, origin);
  const std::string pattern = pattern_of(file, origin);
  const std::size_t ordinary = 256 + merges.size();
  if (words.size() < ordinary)
    fail(fmt::format("{}: {} tokens, but 256 bytes and {} merges make {}", origin, words.size(),
                     merges.size(), ordinary));
  std::vector<std::string> tokens;
  for (std::size_t id = 0; id < ordinary; ++id) {
    const std::optional<std::string> bytes = from_symbols(words[id]);
    if (!bytes) fail(fmt::format("{}: token {} ({}) is not byte-level", origin, id, in_quotes(words[id])));
    tokens.push_back(*bytes);
  }
  words.erase(words.begin(), words.begin() + static_cast<std::ptrdiff_t>(ordinary));
  if (!known_specials(words)) {
    fail(fmt::format("{}: the tokens from {} on are neither made by merges nor a known set of special tokens",
                     origin, ordinary));
  }
  if (pattern == kNoPattern) {
    Tokenizer bytes = Tokenizer::make_bytes();
    if (!merges.empty() || bytes.specials() != words) fail(fmt::format("{}: no split pattern", origin));
    for (std::int32_t id = 0; id < 256; ++id) {
      if (bytes.decode(std::span(&id, 1)) != tokens[static_cast<std::size_t>(id)])
        fail(fmt::format("{}: the bytes are not in their order", origin));
    }
    return bytes;
  }
  Tokenizer tokenizer = Tokenizer::make_bpe(tokens, pattern, origin, words);
  for (std::size_t i = 0; i < merges.size(); ++i) {
    const std::string where = fmt::format("{}: merge {}", origin, i + 1);
    const auto [left, right] = merge_of(merges[i], where);
    const auto [l, r] = tokenizer.bpe()->parts(static_cast<std::int32_t>(256 + i));
    if (to_symbols(tokenizer.bpe()->token(l)) == left && to_symbols(tokenizer.bpe()->token(r)) == right)
      continue;
    fail(fmt::format("{} joins {} and {}, which is not what makes token {}", where, in_quotes(left),
                     in_quotes(right), 256 + i));
  }
  return tokenizer;
}

}  // namespace qt
