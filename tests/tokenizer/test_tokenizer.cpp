// Tokenizers: split patterns against hand-made lists, training and encoding against quadratic references that
// follow the definition, any bytes there and back, hostile files, and bounded work on hostile text.
#include <algorithm>
#include <map>
#include <random>
#include <unordered_map>

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "src/core/error.h"
#include "src/tokenizer/tokenizer.h"
#include "src/tokenizer/utf8.h"
#include "tests/support/text.h"

namespace qt {
namespace {

using Ids = std::vector<std::int32_t>;
using Pieces = std::vector<std::string>;

Pieces split(const Splitter& splitter, std::string_view text) {
  Pieces pieces;
  PieceCursor cursor(splitter, text);
  std::string_view piece;
  while (cursor.next(piece)) pieces.emplace_back(piece);
  return pieces;
}

// --- splitting
// -----------------------------------------------------------------------------------------------------

TEST(Split, NanochatPatternCutsAsExpected) {
  const Splitter s("nanochat");
  EXPECT_EQ(split(s, "Hello world"), (Pieces{"Hello", " world"}));
  EXPECT_EQ(split(s, "I'll DON'T it's"), (Pieces{"I", "'ll", " DON", "'T", " it", "'s"}));
  EXPECT_EQ(split(s, "In 2024, 12345"), (Pieces{"In", " ", "20", "24", ",", " ", "12", "34", "5"}));
  EXPECT_EQ(split(s, "a  b"), (Pieces{"a", " ", " b"}));
  EXPECT_EQ(split(s, "x = y;\n\n  z"), (Pieces{"x", " =", " y", ";\n\n", " ", " z"}));
  EXPECT_EQ(split(s, "a \n \n b"), (Pieces{"a", " \n \n", " b"}));
  EXPECT_EQ(split(s, "(hello)..."), (Pieces{"(hello", ")..."}));
  EXPECT_EQ(split(s, "end   "), (Pieces{"end", "   "}));
  EXPECT_EQ(split(s, "caf\xC3\xA9 \xE4\xBD\xA0\xE5\xA5\xBD"),
            (Pieces{"caf\xC3\xA9", " \xE4\xBD\xA0\xE5\xA5\xBD"}));
}

TEST(Split, Gpt2PatternCutsAsExpected) {
  const Splitter s("gpt2");
  EXPECT_EQ(split(s, "Hello world"), (Pieces{"Hello", " world"}));
  EXPECT_EQ(split(s, "I'll DON'T it's"), (Pieces{"I", "'ll", " DON", "'", "T", " it", "'s"}));
  EXPECT_EQ(split(s, "In 2024, 12345"), (Pieces{"In", " 2024", ",", " 12345"}));
  EXPECT_EQ(split(s, "x = y;\n\n  z"), (Pieces{"x", " =", " y", ";", "\n\n ", " z"}));
  EXPECT_EQ(split(s, "(hello)..."), (Pieces{"(", "hello", ")..."}));
}

TEST(Split, WhiteSpaceIsUnicodesPropertyAndNothingElse) {
  const Splitter s("gpt2");
  EXPECT_EQ(split(s,
                  "a\xE3\x80\x80\xE3\x80\x80"
                  "b")
                .size(),
            4u);                                     // U+3000 is white space: two pieces, as "a  b" plus one
  EXPECT_EQ(split(s, "!\xE1\xA0\x8E!").size(), 1u);  // U+180E is not, though PCRE2's \s takes it
  EXPECT_EQ(split(s, "!\xC2\x85!").size(), 3u);      // U+0085 is
}

TEST(Split, BytesThatAreNotUtf8AreAPieceOfTheirOwn) {
  const Splitter s("nanochat");
  EXPECT_EQ(split(s,
                  "ab\xFF\xFE"
                  "cd"),
            (Pieces{"ab", "\xFF\xFE", "cd"}));
  EXPECT_EQ(split(s, "\xE4\xBD"), (Pieces{"\xE4\xBD"}));
  EXPECT_EQ(split(s, "\xED\xA0\x80 x"), (Pieces{"\xED\xA0\x80", " x"}));
}

TEST(Split, AnUnknownPatternNameListsTheChoices) {
  EXPECT_NE(thrown<ConfigError>([] { Splitter("gpt5"); }).find("nanochat or gpt2"), std::string::npos);
}

TEST(Split, ReachingTheMatchLimitIsAnErrorAndNeverAWrongSplit) {
  const Splitter strict("nanochat", 1);
  const std::string what = thrown<DataError>([&] { split(strict, std::string(5000, ' ') + "x"); });
  EXPECT_NE(what.find("limit"), std::string::npos) << what;
  EXPECT_NE(what.find("byte 0"), std::string::npos) << what;
  EXPECT_NO_THROW(split(Splitter("nanochat"), std::string(5000, ' ') + "x"));
}

TEST(Split, PiecesAreNeverEmptyAndJoinToTheText) {
  std::mt19937_64 rng(1);
  for (const auto& name : Splitter::names()) {
    const Splitter s(name);
    for (int trial = 0; trial < 400; ++trial) {
      const std::string text = random_text(rng, trial % 60);
      std::string joined;
      for (const auto& piece : split(s, text)) {
        EXPECT_FALSE(piece.empty());
        joined += piece;
      }
      EXPECT_EQ(joined, text);
    }
  }
}

TEST(Split, CuttingWhereItIsCalledSafeChangesNothingWhateverFollows) {
  std::mt19937_64 rng(2);
  for (const auto& name : Splitter::names()) {
    const Splitter s(name);
    int cuts = 0;
    for (int trial = 0; trial < 2000; ++trial) {
      const std::string seen = random_text(rng, 1 + trial % 25), text = seen + random_text(rng, trial % 7);
      const std::size_t cut = s.last_safe_cut(seen);
      if (cut == 0) continue;
      ++cuts;
      Pieces parts = split(s, text.substr(0, cut));
      for (auto& piece : split(s, text.substr(cut))) parts.push_back(std::move(piece));
      ASSERT_EQ(parts, split(s, text)) << name << " cut " << cut << " in " << text;
    }
    EXPECT_GT(cuts, 400);
  }
}

TEST(Split, CuttingElsewhereDoesChangeIt) {
  const Splitter s("gpt2");
  // Safe for nanochat's pattern, not for GPT-2's: the look-ahead keeps the last white space apart.
  const std::string text = "a \nb";
  EXPECT_EQ(Splitter("nanochat").last_safe_cut("a \nb"), 3u);
  EXPECT_NE(split(s, text), (Pieces{"a", " \n", "b"}));
  EXPECT_EQ(s.last_safe_cut("a \nb"), 1u);
}

// --- training
// ------------------------------------------------------------------------------------------------------

// The definition, word by word: count all neighbours afresh, take the highest count, then the smallest ids.
std::vector<std::string> train_naive(const std::map<std::string, std::int64_t>& pieces, int merges) {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) tokens.emplace_back(1, static_cast<char>(byte));
  std::vector<std::pair<Ids, std::int64_t>> words;
  for (const auto& [piece, count] : pieces) {
    Ids ids;
    for (const char c : piece) ids.push_back(static_cast<unsigned char>(c));
    words.emplace_back(ids, count);
  }
  for (int merge = 0; merge < merges; ++merge) {
    std::map<std::pair<std::int32_t, std::int32_t>, std::int64_t> counts;
    for (const auto& [ids, count] : words) {
      for (std::size_t i = 0; i + 1 < ids.size(); ++i) counts[{ids[i], ids[i + 1]}] += count;
    }
    if (counts.empty()) break;
    auto best = counts.begin();
    for (auto it = counts.begin(); it != counts.end(); ++it) {
      if (it->second > best->second) best = it;  // the map is in ascending order of ids
    }
    const auto [left, right] = best->first;
    const auto merged = static_cast<std::int32_t>(tokens.size());
    tokens.push_back(tokens[static_cast<std::size_t>(left)] + tokens[static_cast<std::size_t>(right)]);
    for (auto& [ids, count] : words) {
      Ids joined;
      for (std::size_t i = 0; i < ids.size(); ++i) {
        if (i + 1 < ids.size() && ids[i] == left && ids[i + 1] == right) {
          joined.push_back(merged);
          ++i;
        } else {
          joined.push_back(ids[i]);
        }
      }
      ids = joined;
    }
  }
  return tokens;
}

TEST(BpeTraining, AgreesWithTheQuadraticDefinition) {
  std::mt19937_64 rng(3);
  const Splitter splitter("nanochat");
  for (int trial = 0; trial < 16; ++trial) {
    PieceCounts pieces;
    std::map<std::string, std::int64_t> reference;
    std::string text = random_text(rng, 250);
    for (int i = 0; i < 20; ++i)
      text += std::string(rng() % 12, 'a') + " " + std::string(rng() % 9, 'b') + "ab";
    for (const auto& piece : split(splitter, text)) pieces.add(piece), ++reference[piece];
    const int merges = trial % 2 ? 60 : 5000;  // both "asked for" and "until nothing is left"
    EXPECT_EQ(train_bpe(pieces, merges), train_naive(reference, merges));
  }
}

TEST(BpeTraining, TiesGoToTheSmallestPairOfIds) {
  PieceCounts pieces;
  for (const char* piece : {"zy", "ab", "ba"}) pieces.add(piece, 5);
  const auto tokens = train_bpe(pieces, 3);
  EXPECT_EQ(std::vector<std::string>(tokens.begin() + 256, tokens.end()),
            (std::vector<std::string>{"ab", "ba", "zy"}));
}

TEST(BpeTraining, DoesNotDependOnTheOrderOfThePieces) {
  std::mt19937_64 rng(4);
  std::vector<std::string> all = split(Splitter("nanochat"), random_text(rng, 3000));
  PieceCounts forward, shuffled;
  for (const auto& piece : all) forward.add(piece);
  std::shuffle(all.begin(), all.end(), rng);
  for (const auto& piece : all) shuffled.add(piece);
  EXPECT_EQ(train_bpe(forward, 300), train_bpe(shuffled, 300));
}

TEST(BpeTraining, MemoryIsCappedByDroppingTheRarestPieces) {
  PieceCounts capped(4096), whole;
  for (int i = 0; i < 20000; ++i) {
    for (auto* counts : {&capped, &whole}) {
      counts->add("rare" + std::to_string(i));
      counts->add("frequent" + std::to_string(i % 20));
    }
    ASSERT_LE(capped.total_bytes(), 4096u);
  }
  EXPECT_GT(capped.pruned_below(), 1);
  EXPECT_EQ(whole.pruned_below(), 0);
  std::int64_t frequent = 0;
  for (std::size_t i = 0; i < capped.size(); ++i) {
    if (capped.piece(i).substr(0, 8) == "frequent") frequent += capped.count(i);
  }
  EXPECT_EQ(frequent, 20000);  // nothing frequent was ever lost
}

TEST(BpeTraining, TooLittleTextNamesTheLargestPossibleVocabulary) {
  TokenizerTrainer trainer({.kind = TokenizerKind::bpe, .vocab_size = 4096});
  trainer.add("hello hello hello");
  // "hello" and " hello" allow h-e-l-l-o: four merges inside, one for the space in front.
  const std::string what = thrown<ConfigError>([&] { trainer.finish(); });
  EXPECT_NE(what.find("runs out of pairs at 270"), std::string::npos) << what;
  EXPECT_NE(what.find("--vocab-size 270"), std::string::npos) << what;
  TokenizerTrainer fits({.kind = TokenizerKind::bpe, .vocab_size = 270});
  fits.add("hello hello hello");
  EXPECT_EQ(fits.finish().vocab_size(), 270);
  EXPECT_NE(thrown<ConfigError>([] { TokenizerTrainer t({.vocab_size = 264}); }).find("265"),
            std::string::npos);
}

TEST(BpeTraining, StopsReadingAfterMaxChars) {
  TokenizerTrainer trainer({.vocab_size = 266, .max_chars = 10});
  EXPECT_TRUE(trainer.add("aa aa"));
  EXPECT_FALSE(trainer.add(" aaaaaa zz zz zz zz zz zz zz zz zz zz zz"));
  EXPECT_EQ(trainer.finish().bpe()->token(256), "aa");
}

// --- encoding
// ------------------------------------------------------------------------------------------------------

Tokenizer trained_on(const std::string& text, std::int64_t vocab_size,
                     const std::string& pattern = "nanochat") {
  TokenizerTrainer trainer({.kind = TokenizerKind::bpe, .vocab_size = vocab_size, .pattern = pattern});
  trainer.add(text);
  return trainer.finish();
}

std::string training_text() {
  std::mt19937_64 rng(5);
  return random_text(rng, 6000) + std::string(500, 'a') + " " + std::string(300, ' ');
}

const Tokenizer& small_bpe() {
  static const Tokenizer tokenizer = trained_on(training_text(), 600);
  return tokenizer;
}

// tiktoken's rule by the book: join the leftmost neighbours among those with the smallest rank of their union.
class NaiveEncoder {
 public:
  explicit NaiveEncoder(const BpeVocab& vocab) {
    for (std::int32_t id = 0; id < vocab.size(); ++id) rank_[std::string(vocab.token(id))] = id;
  }
  Ids encode(std::string_view piece) const {
    std::vector<std::string> parts;
    for (const char c : piece) parts.emplace_back(1, c);
    while (true) {
      auto best = static_cast<std::int32_t>(rank_.size());
      std::size_t at = parts.size();
      for (std::size_t i = 0; i + 1 < parts.size(); ++i) {
        const auto found = rank_.find(parts[i] + parts[i + 1]);
        if (found != rank_.end() && found->second < best) best = found->second, at = i;
      }
      if (at == parts.size()) break;
      parts[at] += parts[at + 1];
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
    Ids ids;
    for (const auto& part : parts) ids.push_back(rank_.at(part));
    return ids;
  }

 private:
  std::unordered_map<std::string, std::int32_t> rank_;
};

TEST(BpeEncoding, AgreesWithTheQuadraticDefinitionForShortAndLongPieces) {
  std::mt19937_64 rng(6);
  const BpeVocab& vocab = *small_bpe().bpe();
  const NaiveEncoder naive(vocab);
  BpeScratch scratch;
  for (int trial = 0; trial < 120; ++trial) {
    std::string piece = random_text(rng, 1 + rng() % 60);
    if (trial % 3 == 0) piece += std::string(rng() % 100, 'a');
    Ids ids;
    vocab.encode_piece(piece, ids, scratch);
    EXPECT_EQ(ids, naive.encode(piece));
  }
}

TEST(BpeEncoding, EveryTokenEncodesToItselfAndTheMergesAreThoseThatWereLearnt) {
  const BpeVocab& vocab = *small_bpe().bpe();
  const NaiveEncoder naive(vocab);
  for (std::int32_t id = 0; id < vocab.size(); ++id) {
    EXPECT_EQ(naive.encode(vocab.token(id)), Ids{id});
    if (id < 256) continue;
    const auto [left, right] = vocab.parts(id);
    EXPECT_LT(std::max(left, right), id);
    EXPECT_EQ(std::string(vocab.token(left)) + std::string(vocab.token(right)), vocab.token(id));
  }
}

TEST(BpeEncoding, WorkOnAMegabyteOfOneCharacterGrowsAsNLogN) {
  // Trained on runs of 'a', so that merging goes on for many rounds. One window is one piece.
  const Tokenizer tokenizer = trained_on(std::string(5000, 'a') + " " + std::string(4000, '='), 280);
  for (const auto& [c, bytes] : {std::pair{'a', Tokenizer::kWindowBytes},
                                 {'=', Tokenizer::kWindowBytes / 8},
                                 {'z', Tokenizer::kWindowBytes / 8}}) {
    BpeScratch scratch;
    const std::string text(bytes, c);
    Ids ids;
    tokenizer.bpe()->encode_piece(text, ids, scratch);
    EXPECT_LE(scratch.steps, 6 * static_cast<std::int64_t>(text.size()));  // pops and look-ups
    EXPECT_EQ(tokenizer.decode(ids), text);
  }
}

RC_GTEST_PROP(RoundTrip, AnyBytesComeBackFromEveryTokenizer, (const std::string& text)) {
  for (const Tokenizer* tokenizer : {&small_bpe()})
    RC_ASSERT(tokenizer->decode(tokenizer->encode(text)) == text);
  RC_ASSERT(Tokenizer::make_bytes().decode(Tokenizer::make_bytes().encode(text)) == text);
}

RC_GTEST_PROP(RoundTrip, BytesOfTokensSumToTheBytesOfTheText, (const std::vector<std::uint8_t>& bytes)) {
  const std::string text(bytes.begin(), bytes.end());
  std::int64_t sum = 0;
  for (const auto id : small_bpe().encode(text)) sum += small_bpe().token_bytes(id);
  RC_ASSERT(sum == static_cast<std::int64_t>(text.size()));
}

TEST(RoundTrip, RandomTextWithBrokenUtf8ComesBackForBothPatterns) {
  std::mt19937_64 rng(7);
  const Tokenizer gpt2 = trained_on(training_text(), 500, "gpt2");
  for (int trial = 0; trial < 500; ++trial) {
    const std::string text = random_text(rng, trial % 90);
    EXPECT_EQ(gpt2.decode(gpt2.encode(text)), text);
    EXPECT_EQ(small_bpe().decode(small_bpe().encode(text)), text);
  }
}

TEST(Windows, AStreamFedInAnyPortionsGivesTheIdsOfTheWholeText) {
  std::mt19937_64 rng(8);
  std::string text;
  while (text.size() < Tokenizer::kWindowBytes + 100'000)
    text += random_text(rng, 1000) + std::string(rng() % 4000, 'b');
  text += std::string(Tokenizer::kWindowBytes + 100, 'x');  // a stretch without any safe cut
  const Tokenizer chars = [&] {
    std::string clean;
    for (std::size_t i = 0; i < 1000; ++i)
      clean +=
          "\xE4\xBD\xA0"
          "a";
    TokenizerTrainer trainer({.kind = TokenizerKind::chars});
    trainer.add(clean);
    return trainer.finish();
  }();
  for (const Tokenizer& tokenizer : {small_bpe(), Tokenizer::make_bytes(), chars}) {
    std::string input = text;
    if (tokenizer.kind() == TokenizerKind::chars) {
      input.clear();
      while (input.size() < Tokenizer::kWindowBytes + 100'000) input += "a\xE4\xBD\xA0\xE4\xBD\xA0";
    }
    const Ids whole = tokenizer.encode(input);
    for (const std::size_t portion : {std::size_t{300'000}, Tokenizer::kWindowBytes + 1}) {
      Ids ids;
      std::string buffer;
      for (std::size_t fed = 0; fed < input.size() || !buffer.empty();) {
        const std::size_t n = std::min(portion, input.size() - fed);
        buffer.append(input, fed, n);
        fed += n;
        while (const std::size_t cut = tokenizer.next_window(buffer, fed == input.size())) {
          tokenizer.encode_window(std::string_view(buffer).substr(0, cut), ids);
          buffer.erase(0, cut);
        }
      }
      EXPECT_EQ(ids, whole) << name_of(tokenizer.kind()) << " in portions of " << portion;
    }
    EXPECT_EQ(tokenizer.decode(whole), input);
  }
}

TEST(Windows, WindowsCutAtASafePlaceGiveTheIdsOfOnePiece) {
  // A text just above one window, encoded as windows, against the same text split at once.
  std::mt19937_64 rng(9);
  std::string text;
  while (text.size() < Tokenizer::kWindowBytes + 50000) text += random_text(rng, 500);
  Ids at_once;
  small_bpe().encode_window(text, at_once);
  EXPECT_EQ(small_bpe().encode(text), at_once);
}

// --- kinds, specials
// --------------------------------------------------------------------------------------

TEST(TokenizerKinds, BytesAre256AndTheNineSpecialTokens) {
  const Tokenizer t = Tokenizer::make_bytes();
  EXPECT_EQ(t.vocab_size(), 265);
  EXPECT_EQ(t.bos(), 256);
  EXPECT_EQ(t.encode("A\xFF"), (Ids{65, 255}));
  EXPECT_EQ(t.token_bytes(255), 1);
  EXPECT_EQ(t.token_bytes(256), 0);
}

TEST(TokenizerKinds, TextThatSpellsASpecialTokenStaysText) {
  for (const Tokenizer& t : {small_bpe(), Tokenizer::make_bytes()}) {
    const Ids ids = t.encode("<|bos|>");
    EXPECT_TRUE(std::none_of(ids.begin(), ids.end(), [&](auto id) { return t.is_special(id); }));
    EXPECT_EQ(t.special_id("<|bos|>"), t.bos());
    EXPECT_EQ(t.special_id("<|output_end|>"), t.vocab_size() - 1);
    EXPECT_FALSE(t.special_id("<|nope|>").has_value());
    const Ids with_bos = {t.bos(), ids[0]};
    EXPECT_EQ(t.decode(with_bos), "<");
    EXPECT_EQ(t.decode(with_bos, Tokenizer::Specials::show), "<|bos|><");
  }
}

TEST(TokenizerKinds, DecodingAnIdOutsideTheVocabularyNamesItAndItsPosition) {
  const Ids bad = {65, 265}, negative = {-1};
  EXPECT_NE(thrown<DataError>([&] { Tokenizer::make_bytes().decode(bad); }).find("token 265 at position 1"),
            std::string::npos);
  EXPECT_NE(thrown<DataError>([&] { Tokenizer::make_bytes().decode(negative); }).find("token -1"),
            std::string::npos);
}

TEST(TokenizerKinds, CharsAreTheSortedCodePointsOfTheText) {
  TokenizerTrainer trainer({.kind = TokenizerKind::chars});
  trainer.add(
      "b\xC3\xA9"
      "a\nab");
  const Tokenizer t = trainer.finish();
  EXPECT_EQ(t.vocab_size(), 4);
  EXPECT_EQ(t.bos(), -1);
  EXPECT_EQ(t.encode("\nab\xC3\xA9"), (Ids{0, 1, 2, 3}));
  EXPECT_EQ(t.token_bytes(3), 2);
  const std::string what = thrown<DataError>([&] { t.encode("ab\xE2\x82\xAC"); });
  EXPECT_NE(what.find("U+20AC"), std::string::npos) << what;
  EXPECT_NE(what.find("offset 2"), std::string::npos) << what;
  EXPECT_NE(thrown<DataError>([&] { t.encode("a\xFF"); }).find("0xFF at offset 1 is not UTF-8"),
            std::string::npos);
  EXPECT_NE(thrown<DataError>([&] { trainer.add("a\xFF", 100); }).find("offset 101"), std::string::npos);
  EXPECT_THROW(TokenizerTrainer({.kind = TokenizerKind::chars}).finish(), ConfigError);
}

// nanoGPT: chars = sorted(list(set(data))), stoi = {c: i}. Python compares strings by code point.
TEST(TokenizerKinds, CharsHaveTheIdsOfNanoGptsSortedList) {
  const std::string sorted = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
  std::string text = sorted + sorted;
  std::mt19937_64 shuffler(10);
  std::shuffle(text.begin(), text.end(), shuffler);
  TokenizerTrainer trainer({.kind = TokenizerKind::chars});
  trainer.add(text);
  const Tokenizer t = trainer.finish();
  ASSERT_EQ(t.vocab_size(), 65);
  for (std::size_t i = 0; i < sorted.size(); ++i)
    EXPECT_EQ(t.encode(sorted.substr(i, 1)), Ids{static_cast<std::int32_t>(i)});
  // The first ids of nanoGPT's data/shakespeare_char/train.bin.
  EXPECT_EQ(t.encode("First Citizen:\n"), (Ids{18, 47, 56, 57, 58, 1, 15, 47, 58, 47, 64, 43, 52, 10, 0}));

  TokenizerTrainer beyond({.kind = TokenizerKind::chars});
  beyond.add("\xF0\x9F\x98\x80\xEF\xBF\xBD\xC3\xA9z");  // UTF-16 would sort U+1F600 before U+FFFD
  EXPECT_EQ(beyond.finish().encode("z\xC3\xA9\xEF\xBF\xBD\xF0\x9F\x98\x80"), (Ids{0, 1, 2, 3}));
}

TEST(TokenizerKinds, TinyShakespeareHas65Characters) {
  const std::string text = shared_file("tinyshakespeare.txt");
  if (text.empty()) GTEST_SKIP() << "../shared/data/tinyshakespeare.txt is absent";
  TokenizerTrainer trainer({.kind = TokenizerKind::chars});
  trainer.add(text);
  const Tokenizer t = trainer.finish();
  EXPECT_EQ(t.vocab_size(), 65);
  EXPECT_EQ(t.encode(text).size(), 1115394u);
  EXPECT_EQ(t.encode("First Citizen:\n"), (Ids{18, 47, 56, 57, 58, 1, 15, 47, 58, 47, 64, 43, 52, 10, 0}));
}

}  // namespace
}  // namespace qt
