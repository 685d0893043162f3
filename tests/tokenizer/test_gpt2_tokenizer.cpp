// GPT-2's tokenizer against tiktoken and Hugging Face's tokenizers (tools/make_golden_tokenizer.py): with a
// small vocabulary that lies in tests/golden, and with GPT-2's own where its two files are at hand. Then the
// files themselves: every way to name them, there and back, and what is said about damaged ones.
//
// QTRAIN_GPT2_TOKENIZER names a folder with GPT-2's files; without it ../shared/data beside the repository.
#include <cstdlib>
#include <cstring>
#include <functional>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/io/json.h"
#include "src/io/safetensors.h"
#include "src/tokenizer/base64.h"
#include "src/tokenizer/gpt2_files.h"
#include "src/tokenizer/utf8.h"
#include "tests/support/text.h"

namespace qt {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<std::int32_t>;

const fs::path kGolden = fs::path(QTRAIN_SOURCE_DIR) / "tests/golden";

const Safetensors& golden() {
  static const Safetensors file = Safetensors::open(kGolden / "gpt2_tokenizer.safetensors");
  return file;
}

Ids golden_ints(const std::string& name) {
  const StoredTensor& tensor = golden().get(name);
  EXPECT_EQ(tensor.type, StoredType::i32);
  Ids values(static_cast<std::size_t>(tensor.elems()));
  std::memcpy(values.data(), tensor.data, tensor.bytes);
  return values;
}

// The same draws as TextMaker of the script.
class TextMaker {
 public:
  TextMaker() : state_(std::stoull(golden().metadata().at("seed"))), ranges_(golden_ints("ranges")) {
    const StoredTensor& text = golden().get("fragments");
    std::istringstream lines(std::string(reinterpret_cast<const char*>(text.data), text.bytes));
    for (std::string line; std::getline(lines, line);) {
      if (!line.empty()) fragments_.push_back(parse_json(line, "fragments").get<std::string>());
    }
  }
  std::string string() {
    std::string text;
    const std::uint64_t parts = 1 + draw(24);
    for (std::uint64_t i = 0; i < parts; ++i) text += part(40);
    return text;
  }
  std::string text(std::size_t bytes) {
    std::string text;
    while (text.size() < bytes) {
      const std::string next = part(96);
      if (draw(4) > 0) text += ' ';
      text += next;
    }
    return text;
  }

 private:
  std::uint64_t draw(std::uint64_t below) {
    std::uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return (z ^ (z >> 31)) % below;
  }
  std::string part(std::uint64_t fragment_share) {
    const std::uint64_t kind = draw(100);
    if (kind < fragment_share) return fragments_[draw(fragments_.size())];
    std::string text;
    if (kind < 97) {
      const std::size_t range = 2 * draw(ranges_.size() / 2);
      const auto low = static_cast<std::uint64_t>(ranges_[range]);
      const auto size = static_cast<std::uint64_t>(ranges_[range + 1]) - low + 1;
      const std::uint64_t count = 1 + draw(4);
      for (std::uint64_t i = 0; i < count; ++i) utf8_append(text, static_cast<char32_t>(low + draw(size)));
      return text;
    }
    const std::string fragment = fragments_[draw(fragments_.size())];
    const std::uint64_t times = 2 + draw(60);
    for (std::uint64_t i = 0; i < times; ++i) text += fragment;
    return text;
  }

  std::uint64_t state_;
  Ids ranges_;
  std::vector<std::string> fragments_;
};

struct Texts {
  std::vector<std::string> strings;
  std::string mixed;
};

const Texts& texts() {
  static const Texts all = [] {
    Texts t;
    TextMaker maker;
    std::size_t bytes = 0;
    for (int i = 0; i < 10'000; ++i) bytes += t.strings.emplace_back(maker.string()).size();
    t.mixed = maker.text(1'200'000);
    // Texts that differ from the script's would make every digest below meaningless.
    EXPECT_EQ(static_cast<std::int32_t>(bytes), golden_ints("strings.bytes").front());
    EXPECT_EQ(static_cast<std::int32_t>(t.mixed.size()), golden_ints("mixed.bytes").front());
    return t;
  }();
  return all;
}

std::int32_t digest(std::span<const std::int32_t> ids) {
  std::uint32_t h = 0x811C9DC5u;
  for (const std::int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8)
      h = (h ^ ((static_cast<std::uint32_t>(id) >> shift) & 255u)) * 0x01000193u;
  }
  return static_cast<std::int32_t>(h);
}

Ids block_digests(const Ids& ids) {
  constexpr std::size_t kBlock = 4096;
  Ids digests;
  for (std::size_t i = 0; i < ids.size(); i += kBlock)
    digests.push_back(digest(std::span(ids).subspan(i, std::min(kBlock, ids.size() - i))));
  return digests;
}

const Tokenizer& small() {
  static const Tokenizer tokenizer = Tokenizer::load(kGolden / "gpt2_small");
  return tokenizer;
}

// GPT-2's own, if the machine has it.
const Tokenizer* gpt2() {
  static const std::optional<Tokenizer> tokenizer = []() -> std::optional<Tokenizer> {
    const char* named = std::getenv("QTRAIN_GPT2_TOKENIZER");
    const fs::path folder = named ? fs::path(named) : fs::path(QTRAIN_SOURCE_DIR) / "../shared/data";
    if (!named && !fs::exists(folder / "gpt2_merges.txt")) return std::nullopt;
    return Tokenizer::load(folder);
  }();
  return tokenizer ? &*tokenizer : nullptr;
}

constexpr const char* kNoGpt2 =
    "GPT-2's vocab.json and merges.txt are not here (QTRAIN_GPT2_TOKENIZER or ../shared/data)";

int strings_that_differ(const Tokenizer& tokenizer, const std::string& name) {
  const Ids expected = golden_ints(name + ".strings");
  EXPECT_EQ(expected.size(), texts().strings.size());
  int differ = 0;
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const Ids ids = tokenizer.encode(texts().strings[i]);
    if (digest(ids) == expected[i]) continue;
    if (++differ == 1 && name == "gpt2")
      ADD_FAILURE() << "string " << i << ": " << in_quotes(texts().strings[i]);
  }
  return differ;
}

void expect_mixed(const Tokenizer& tokenizer, const std::string& name) {
  const Ids ids = tokenizer.encode(texts().mixed);
  const Ids first = golden_ints(name + ".mixed.first");
  EXPECT_EQ(Ids(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(first.size())), first);
  EXPECT_EQ(static_cast<std::int32_t>(ids.size()), golden_ints(name + ".mixed.count").front());
  EXPECT_EQ(block_digests(ids), golden_ints(name + ".mixed"));
  EXPECT_TRUE(tokenizer.decode(ids) == texts().mixed);
}

// --- ids
// --------------------------------------------------------------------------------------------------------------

TEST(Gpt2Ids, SmallVocabularyGivesTiktokensIdsForTenThousandRandomStrings) {
  EXPECT_EQ(strings_that_differ(small(), "small"), 0);
  for (const std::string& text : texts().strings) ASSERT_EQ(small().decode(small().encode(text)), text);
}

TEST(Gpt2Ids, SmallVocabularyGivesTiktokensIdsForAMegabyteOfMixedText) { expect_mixed(small(), "small"); }

TEST(Gpt2Ids, AnotherPatternOrAnotherOrderOfMergesWouldBeNoticed) {
  std::vector<std::string> tokens;
  for (std::int32_t id = 0; id < small().bpe()->size(); ++id) tokens.emplace_back(small().bpe()->token(id));
  const auto with = [&](const std::vector<std::string>& list, const char* pattern) {
    return Tokenizer::make_bpe(list, pattern, "control", gpt2_special_names());
  };
  EXPECT_EQ(strings_that_differ(with(tokens, "gpt2"), "small"), 0);
  EXPECT_GT(strings_that_differ(with(tokens, "nanochat"), "small"), 1000);
  std::vector<std::string> fewer(tokens.begin(), tokens.end() - 1);
  EXPECT_GT(strings_that_differ(with(fewer, "gpt2"), "small"), 0);
  std::swap(tokens[256], tokens[259]);
  EXPECT_GT(strings_that_differ(with(tokens, "gpt2"), "small"), 100);
}

TEST(Gpt2Ids, Gpt2GivesTiktokensIdsForTenThousandRandomStrings) {
  if (!gpt2()) GTEST_SKIP() << kNoGpt2;
  EXPECT_EQ(strings_that_differ(*gpt2(), "gpt2"), 0);
  for (const std::string& text : texts().strings) ASSERT_EQ(gpt2()->decode(gpt2()->encode(text)), text);
}

TEST(Gpt2Ids, Gpt2GivesTiktokensIdsForAMegabyteOfMixedText) {
  if (!gpt2()) GTEST_SKIP() << kNoGpt2;
  EXPECT_EQ(gpt2()->vocab_size(), 50257);
  EXPECT_EQ(gpt2()->bos(), 50256);
  expect_mixed(*gpt2(), "gpt2");
}

TEST(Gpt2Ids, Gpt2GivesTiktokensIdsForAMegabyteOfRealText) {
  if (!gpt2()) GTEST_SKIP() << kNoGpt2;
  std::size_t bytes = 0;
  for (const char* name : {"tinyshakespeare.txt", "wikitext2_valid.txt", "c4_sample.jsonl"}) {
    const auto length = static_cast<std::size_t>(golden_ints(fmt::format("gpt2.{}.bytes", name)).front());
    const std::string text = shared_file(name).substr(0, length);
    if (text.empty()) GTEST_SKIP() << "../shared/data/" << name << " is absent";
    EXPECT_EQ(block_digests(gpt2()->encode(text)), golden_ints(fmt::format("gpt2.{}", name))) << name;
    bytes += text.size();
  }
  EXPECT_GE(bytes, 1'000'000u);
}

TEST(Gpt2Ids, Gpt2GivesTheIdsThatEverybodyKnows) {
  if (!gpt2()) GTEST_SKIP() << kNoGpt2;
  EXPECT_EQ(gpt2()->encode("Hello world"), (Ids{15496, 995}));
  EXPECT_EQ(gpt2()->encode("The quick brown fox jumps over the lazy dog."),
            (Ids{464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290, 13}));
}

TEST(Gpt2Ids, TextThatSpellsEndOfTextStaysText) {
  const Ids ids = small().encode("<|endoftext|>");
  EXPECT_GT(ids.size(), 1u);
  for (const std::int32_t id : ids) EXPECT_FALSE(small().is_special(id));
  EXPECT_EQ(small().bos(), small().vocab_size() - 1);
  EXPECT_EQ(small().special_id("<|endoftext|>"), small().bos());
  EXPECT_EQ(small().decode(Ids{small().bos()}, Tokenizer::Specials::show), "<|endoftext|>");
  EXPECT_EQ(small().token_bytes(small().bos()), 0);
}

TEST(Gpt2Work, OneRepeatedCharacterOfAMegabyteIsLinear) {
  for (const Tokenizer* tokenizer : {&small(), gpt2()}) {
    if (!tokenizer) continue;
    for (const char* unit : {"a", " ", "=", "\n", "\xC3\xA9", "\xFF"}) {
      const auto run = [&](std::size_t bytes) {
        std::string text;
        while (text.size() + std::strlen(unit) <= bytes) text += unit;
        return text;
      };
      // Merging: work is counted, not timed.
      const auto steps = [&](std::size_t bytes) {
        BpeScratch scratch;
        Ids ids;
        tokenizer->bpe()->encode_piece(run(bytes), ids, scratch);
        return scratch.steps;
      };
      const std::int64_t one = steps(1 << 18), two = steps(1 << 19);
      EXPECT_LT(two, 3 * one) << unit;
      EXPECT_LE(two, 6 << 19) << unit;
      EXPECT_GT(two, one) << unit;
      // Splitting: PCRE2 gives up when one match takes more than so many steps.
      const std::string text = run(1'000'000);
      const Splitter strict("gpt2", 4'000'000);
      PieceCursor cursor(strict, text);
      std::string_view piece;
      std::size_t pieces = 0;
      while (cursor.next(piece)) ++pieces;
      EXPECT_LE(pieces, 2u) << unit;
      EXPECT_EQ(tokenizer->decode(tokenizer->encode(text)), text);
    }
  }
}

// --- files
// -----------------------------------------------------------------------------------------------------------

std::string tiktoken_file(const Tokenizer& tokenizer) {
  std::string text;
  for (std::int32_t id = 0; id < tokenizer.bpe()->size(); ++id)
    text += fmt::format("{} {}\n", to_base64(tokenizer.bpe()->token(id)), id);
  return text;
}

class Gpt2Files : public testing::Test {
 protected:
  const std::string vocab_ = read_bytes(kGolden / "gpt2_small/vocab.json");
  const std::string merges_ = read_bytes(kGolden / "gpt2_small/merges.txt");
  Folder folder_;
};

TEST_F(Gpt2Files, EveryNameFindsTheSameTokenizer) {
  const auto expect_loads = [&](const fs::path& path) {
    EXPECT_EQ(Tokenizer::load(path).hash(), small().hash());
  };
  for (const auto& [vocab, merges] : {std::pair{"vocab.json", "merges.txt"},
                                      {"gpt2_vocab.json", "gpt2_merges.txt"},
                                      {"encoder.json", "vocab.bpe"}}) {
    const Folder pair;
    write_bytes(pair / vocab, vocab_);
    write_bytes(pair / merges, merges_);
    expect_loads(pair.path());
    expect_loads(pair / vocab);
    expect_loads(pair / merges);
    fs::remove(pair / vocab);
    const fs::path left = pair / merges;
    const std::string what = thrown<DataError>([&] { Tokenizer::load(left); });
    EXPECT_EQ(what.find((pair / vocab).string() + ": is missing beside"), 0u) << what;
  }
  write_bytes(folder_ / "r50k_base.tiktoken", tiktoken_file(small()));
  expect_loads(folder_ / "r50k_base.tiktoken");
  expect_loads(folder_.path());
  write_bytes(folder_ / "another.tiktoken", tiktoken_file(small()));
  EXPECT_NE(thrown<DataError>([&] { Tokenizer::load(folder_.path()); }).find("several tokenizers"),
            std::string::npos);
  // Our own file comes first: it is what a run folder holds.
  small().save(posix_fs(), folder_ / "tokenizer.txt");
  expect_loads(folder_.path());
  expect_loads(folder_ / "tokenizer.txt");
}

TEST_F(Gpt2Files, WhatIsNoTokenizerSaysWhatWouldBe) {
  EXPECT_NE(thrown<DataError>([&] { Tokenizer::load(folder_.path()); }).find("vocab.json and merges.txt"),
            std::string::npos);
  EXPECT_NE(thrown<DataError>([&] { Tokenizer::load(folder_ / "none"); }).find("none"), std::string::npos);
  write_bytes(folder_ / "other.json", R"({"model": {"type": "BPE"}})");
  EXPECT_NE(thrown<DataError>([&] {
              Tokenizer::load(folder_ / "other.json");
            }).find("holds vocab.json and merges.txt"),
            std::string::npos);
  write_bytes(folder_ / "renamed", merges_);
  EXPECT_NE(thrown<DataError>([&] { Tokenizer::load(folder_ / "renamed"); }).find("half of a tokenizer"),
            std::string::npos);
}

TEST_F(Gpt2Files, OurFileKeepsItsIdsAndItsSpecialToken) {
  const Tokenizer again = Tokenizer::parse(small().serialise(), "tokenizer.txt");
  EXPECT_EQ(again.hash(), small().hash());
  EXPECT_EQ(again.specials(), gpt2_special_names());
  EXPECT_EQ(again.pattern(), "gpt2");
  EXPECT_EQ(again.encode(texts().strings[7]), small().encode(texts().strings[7]));
}

TEST_F(Gpt2Files, WhatWeWriteIsReadAgainAsTheSame) {
  save_gpt2(small(), posix_fs(), folder_.path());
  EXPECT_EQ(Tokenizer::load(folder_.path()).hash(), small().hash());
  EXPECT_EQ(read_bytes(folder_ / "merges.txt"), merges_);  // byte for byte what `tokenizers` wrote
  EXPECT_EQ(parse_json(read_bytes(folder_ / "vocab.json"), "ours"), parse_json(vocab_, "theirs"));

  TokenizerTrainer trainer({.kind = TokenizerKind::bpe, .vocab_size = 400, .pattern = "gpt2"});
  trainer.add(texts().mixed.substr(0, 50'000));
  const Tokenizer ours = trainer.finish();  // with nanochat's special tokens
  save_gpt2(ours, posix_fs(), folder_.path());
  EXPECT_EQ(Tokenizer::load(folder_.path()).hash(), ours.hash());

  EXPECT_NE(thrown<ConfigError>([&] {
              save_gpt2(Tokenizer::make_bytes(), posix_fs(), folder_.path());
            }).find("a bytes tokenizer cannot be written"),
            std::string::npos);
  TokenizerTrainer other({.kind = TokenizerKind::bpe, .vocab_size = 300});
  other.add(texts().mixed.substr(0, 50'000));
  EXPECT_NE(thrown<ConfigError>([&] {
              save_gpt2(other.finish(), posix_fs(), folder_.path());
            }).find("with the split pattern nanochat cannot be written"),
            std::string::npos);
}

TEST_F(Gpt2Files, LineEndsOfWindowsAndAMissingVersionLineAreTaken) {
  std::string crlf, tiktoken;
  for (const char c : merges_) crlf += c == '\n' ? std::string("\r\n") : std::string(1, c);
  for (const char c : tiktoken_file(small())) tiktoken += c == '\n' ? std::string("\r\n") : std::string(1, c);
  EXPECT_EQ(parse_gpt2(vocab_, "v", crlf, "m").hash(), small().hash());
  EXPECT_EQ(parse_tiktoken(tiktoken, "t").hash(), small().hash());
  EXPECT_EQ(parse_gpt2(vocab_, "v", merges_.substr(merges_.find('\n') + 1), "m").hash(), small().hash());
}

struct Damage {
  const char* name;
  std::function<void(std::string& vocab, std::string& merges)> harm;
  const char* message;
};

void swap_in(std::string& text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  ASSERT_NE(at, std::string::npos) << from;
  text.replace(at, from.size(), to);
}

std::string line_of(const std::string& text, int number) {
  std::size_t begin = 0;
  for (int i = 1; i < number; ++i) begin = text.find('\n', begin) + 1;
  return text.substr(begin, text.find('\n', begin) + 1 - begin);
}

TEST_F(Gpt2Files, EachKindOfDamageToThePairHasItsOwnMessage) {
  ASSERT_NO_THROW(parse_gpt2(vocab_, "v.json", merges_, "m.txt"));
  const auto vocab = [](const char* from, const char* to) {
    return [=](std::string& v, std::string&) { swap_in(v, from, to); };
  };
  const std::string second = line_of(merges_, 2), third = line_of(merges_, 3);
  const std::string last = merges_.substr(merges_.rfind('\n', merges_.size() - 2) + 1);
  const auto merges = [](const std::string& from, const std::string& to) {
    return [=](std::string&, std::string& m) { swap_in(m, from, to); };
  };
  const std::vector<Damage> cases = {
      {"vocabulary empty", [](std::string& v, std::string&) { v.clear(); }, "v.json: not valid JSON"},
      {"vocabulary cut", [](std::string& v, std::string&) { v.resize(v.size() / 2); },
       "v.json: not valid JSON"},
      {"vocabulary an array", [](std::string& v, std::string&) { v = "[1, 2]"; },
       "v.json: not an object of tokens and ids"},
      {"vocabulary nested", [](std::string& v, std::string&) { v = "{\"a\": {\"b\": {}}}"; },
       "v.json: nested more than 2 levels"},
      {"id a string", vocab("\"!\": 0", "\"!\": \"0\""), "v.json: the id of '!' is not a whole number"},
      {"id a fraction", vocab("\"!\": 0", "\"!\": 0.5"), "v.json: the id of '!' is not a whole number"},
      {"id negative", vocab("\"!\": 0", "\"!\": -1"), "v.json: '!' has id -1, but the ids of 1001 tokens"},
      {"id huge", vocab("\"!\": 0", "\"!\": 18446744073709551615"),
       "v.json: '!' has id 18446744073709551615"},
      {"hole", vocab("\"!\": 0", "\"!\": 1001"),
       "v.json: '!' has id 1001, but the ids of 1001 tokens must run"},
      {"id twice", vocab("\"!\": 0", "\"!\": 1"), "v.json: '!' and '\"' have the same id 1"},
      {"token twice", vocab("\"\\\"\": 1", "\"!\": 1"), "v.json: the key '!' appears twice"},
      {"too few tokens", [](std::string& v, std::string& m) { v = "{\"!\": 0}", m = "#version: 0.2\n"; },
       "v.json: 1 tokens, but 256 bytes and the 0 merges of m.txt make 256"},
      {"a byte is missing", vocab("\"!\": 0", "\"\xE2\x82\xAC\": 0"),
       "v.json: token 0 ('\xE2\x82\xAC') has a character that stands for no byte: not a byte-level "
       "vocabulary"},
      {"a blank in a token", vocab("\"!\": 0", "\" \": 0"), "has a character that stands for no byte"},
      {"a byte twice", vocab("\"!\": 0", "\"!a\": 0"),
       "token 0 has 2 bytes; the first 256 must be the single bytes"},
      {"ids in another order", vocab("\"th\": 256", "\"th\": 257"), "have the same id 257"},
      {"two ids swapped",
       [](std::string& v, std::string&) {
         swap_in(v, "\"th\": 256", "\"th\": 9999"), swap_in(v, "\"er\": 257", "\"er\": 256");
         swap_in(v, "\"th\": 9999", "\"th\": 257");
       },
       "v.json: token 256 ('er') is not what merge 1 of m.txt makes ('th')"},
      {"unknown special token", vocab("<|endoftext|>", "<pad>"),
       "v.json: token 1000 ('<pad>') is neither a byte nor made by a merge of m.txt"},
      {"merges empty", [](std::string&, std::string& m) { m.clear(); },
       "token 256 ('th') is neither a byte nor made by a merge"},
      {"last merge missing", merges(last, ""), "is neither a byte nor made by a merge of m.txt"},
      {"merge missing", merges(second, ""), "is not what merge 1 of m.txt makes"},
      {"merge twice", merges(third, second), "is not what merge 2 of m.txt makes ('th')"},
      {"merge too many", [&](std::string&, std::string& m) { m += "t h\n"; },
       "token 1000 ('<|endoftext|>') is not what merge 745 of m.txt makes ('th')"},
      {"merges swapped", merges(second + third, third + second), "is not what merge 1 of m.txt makes"},
      {"merge of three", merges(second, "t h x\n"), "m.txt: line 2 is not two tokens with a space between"},
      {"merge of one", merges(second, "th\n"), "m.txt: line 2 is not two tokens with a space between"},
      {"merge without left", merges(second, " th\n"), "m.txt: line 2 is not two tokens"},
      {"merge without right", merges(second, "th \n"), "m.txt: line 2 is not two tokens"},
      {"blank line", merges(second, "\n" + second), "m.txt: line 2 is not two tokens"},
      {"merge not byte-level", merges(second, "t \xE2\x96\x81\n"),
       "m.txt: line 2 has a character that stands for no"},
      {"merge not UTF-8", merges(second, "t \xFF\n"),
       "m.txt: line 2 has a character that stands for no byte"},
      {"merge endless", merges(second, std::string(400'000, 't') + " h\n"), "m.txt: line 2 is too long"},
      {"files exchanged", [](std::string& v, std::string& m) { std::swap(v, m); }, "v.json: not valid JSON"},
  };
  for (const Damage& damage : cases) {
    std::string v = vocab_, m = merges_;
    damage.harm(v, m);
    const std::string what = thrown<DataError>([&] { parse_gpt2(v, "v.json", m, "m.txt"); });
    EXPECT_NE(what.find(damage.message), std::string::npos) << damage.name << ": " << what;
    EXPECT_LT(what.size(), 700u) << damage.name;
  }
}

TEST_F(Gpt2Files, AMergeThatNeverCanHappenIsRefused) {
  // "abc" from "a" + "bc", though "ab" is merged before "bc": the rules never leave "a" beside "bc".
  std::string merges = "a b\nb c\na bc\n";
  const Json whole = parse_json(vocab_, "v");
  Json vocab;
  for (const auto& [word, id] : whole.items()) {
    if (id.get<int>() < 256) vocab[word] = id;
  }
  vocab["ab"] = 256, vocab["bc"] = 257, vocab["abc"] = 258, vocab["<|endoftext|>"] = 259;
  EXPECT_NE(
      thrown<DataError>([&] {
        parse_gpt2(vocab.dump(), "v", merges, "m");
      }).find("m: merge 3 joins 'a' and 'bc', but the merges before it never leave these two side by side"),
      std::string::npos);
  EXPECT_EQ(parse_gpt2(vocab.dump(), "v", "a b\nb c\nab c\n", "m").encode("abc"), Ids{258});
  vocab.erase("<|endoftext|>");
  const Tokenizer without = parse_gpt2(vocab.dump(), "v", "a b\nb c\nab c\n", "m");
  EXPECT_EQ(without.vocab_size(), 259);
  EXPECT_EQ(without.bos(), -1);
  EXPECT_EQ(Tokenizer::parse(without.serialise(), "again").hash(), without.hash());
}

TEST_F(Gpt2Files, EachKindOfDamageToATiktokenFileHasItsOwnMessage) {
  const std::string good = tiktoken_file(small());
  const std::vector<Damage> cases = {
      {"empty", [](std::string& t, std::string&) { t.clear(); }, "0 tokens, but the 256 single bytes"},
      {"cut in a line", [](std::string& t, std::string&) { t.resize(t.find("\n", 4000) - 4); }, "line "},
      {"no rank", [](std::string& t, std::string&) { swap_in(t, " 300\n", "\n"); },
       "line 301 is not 'base64 rank'"},
      {"rank negative", [](std::string& t, std::string&) { swap_in(t, " 300\n", " -1\n"); },
       "line 301 does not end in a rank"},
      {"rank rubbish", [](std::string& t, std::string&) { swap_in(t, " 300\n", " 300x\n"); },
       "line 301 does not end in a rank"},
      {"rank huge", [](std::string& t, std::string&) { swap_in(t, " 300\n", " 99999999999999999999\n"); },
       "line 301 does not end in a rank"},
      {"rank too large", [](std::string& t, std::string&) { swap_in(t, " 300\n", " 9999999\n"); },
       "line 301 has a rank above every possible vocabulary"},
      {"gap", [](std::string& t, std::string&) { swap_in(t, " 300\n", " 3000\n"); },
       "rank 300 is missing, but there is 301"},
      {"line missing", [](std::string& t, std::string&) { swap_in(t, line_of(t, 301), ""); },
       "rank 300 is missing, but there is 301"},
      {"rank twice", [](std::string& t, std::string&) { swap_in(t, " 300\n", " 299\n"); },
       "rank 299 is given twice"},
      {"blank line", [](std::string& t, std::string&) { swap_in(t, " 300\n", " 300\n\n"); },
       "line 302 is not 'base64 rank'"},
      {"not base64", [](std::string& t, std::string&) { swap_in(t, "IQ== 0", "I!== 0"); },
       "line 1 is not valid base64"},
      {"byte twice", [](std::string& t, std::string&) { swap_in(t, "IQ== 0", "Ig== 0"); },
       "token 1 repeats token 0"},
      {"token twice",
       [](std::string& t, std::string&) {
         const std::string a = line_of(t, 301), b = line_of(t, 401);
         swap_in(t, b, a.substr(0, a.find(' ')) + " 400\n");
       },
       "token 400 repeats token 300"},
      {"token from nowhere",
       [](std::string& t, std::string&) { swap_in(t, line_of(t, 301), "cXh6dw== 300\n"); },
       "token 300 does not come from joining two earlier tokens"},
  };
  ASSERT_NO_THROW(parse_tiktoken(good, "t.tiktoken"));
  for (const Damage& damage : cases) {
    std::string bad = good, unused;
    damage.harm(bad, unused);
    const std::string what = thrown<DataError>([&] { parse_tiktoken(bad, "t.tiktoken"); });
    EXPECT_NE(what.find(damage.message), std::string::npos) << damage.name << ": " << what;
    EXPECT_EQ(what.find("t.tiktoken: "), 0u) << damage.name << ": " << what;
  }
  // Lines in another order are the same ranks.
  EXPECT_EQ(
      parse_tiktoken(line_of(good, 1000) + good.substr(0, good.size() - line_of(good, 1000).size()), "t")
          .hash(),
      small().hash());
}

TEST_F(Gpt2Files, AVocabularyOfAnotherPatternIsRefused) {
  // cl100k and its like join a bracket with the word behind it, which GPT-2's pattern cuts apart.
  std::string text = tiktoken_file(small()).substr(0, tiktoken_file(small()).find(" 256\n"));
  text.resize(text.rfind('\n') + 1);
  EXPECT_NO_THROW(parse_tiktoken(text + to_base64("((") + " 256\n", "t"));
  EXPECT_NO_THROW(parse_tiktoken(text + to_base64("'l") + " 256\n", "t"));
  EXPECT_NO_THROW(
      parse_tiktoken(text + to_base64("\xA9(") + " 256\n", "t"));  // may be the end of a character
  for (const char* token : {"(a", ".\n", "a1", "a "}) {
    const std::string what =
        thrown<DataError>([&] { parse_tiktoken(text + to_base64(token) + " 256\n", "t.tiktoken"); });
    EXPECT_NE(what.find("token 256"), std::string::npos) << what;
    EXPECT_NE(what.find("can never arise under GPT-2's split pattern"), std::string::npos) << what;
  }
}

TEST(Base64, HasOneSpellingForEachByteString) {
  std::string back;
  for (const std::string& bytes :
       {std::string("a"), std::string("ab"), std::string("abc"), std::string("\0\xFF", 2)}) {
    ASSERT_TRUE(from_base64(to_base64(bytes), back));
    EXPECT_EQ(back, bytes);
  }
  for (const char* bad : {"", "YQ", "YQ=", "YR==", "Y===", "YWJ=A", "Y Q==", "YQ==\n", "====", "YQ==YQ=="})
    EXPECT_FALSE(from_base64(bad, back)) << bad;
}

}  // namespace
}  // namespace qt
