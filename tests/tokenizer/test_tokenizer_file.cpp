// The tokenizer file: there and back, and what is said about each way in which one can be damaged.
#include <filesystem>
#include <functional>
#include <random>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/tokenizer/tokenizer.h"
#include "tests/support/text.h"

namespace qt {
namespace {

const Tokenizer& small_bpe() {
  static const Tokenizer tokenizer = [] {
    std::mt19937_64 rng(5);
    TokenizerTrainer trainer({.kind = TokenizerKind::bpe, .vocab_size = 600});
    trainer.add(random_text(rng, 6000));
    return trainer.finish();
  }();
  return tokenizer;
}

TEST(TokenizerFile, ComesBackEqualForEveryKind) {
  for (const Tokenizer& t :
       {small_bpe(), Tokenizer::make_bytes(), Tokenizer::make_chars({U'a', U'\u00E9', U'\U0001F600'})}) {
    const Tokenizer again = Tokenizer::parse(t.serialise(), "file");
    EXPECT_EQ(again.serialise(), t.serialise());
    EXPECT_EQ(again.hash(), t.hash());
    EXPECT_EQ(again.vocab_size(), t.vocab_size());
    EXPECT_EQ(again.token_bytes_table(), t.token_bytes_table());
  }
  EXPECT_NE(small_bpe().hash(), Tokenizer::make_bytes().hash());
}

TEST(TokenizerFile, SavesAndLoads) {
  const auto path = std::filesystem::path(testing::TempDir()) / "qtrain_tokenizer_test.txt";
  small_bpe().save(posix_fs(), path);
  EXPECT_EQ(Tokenizer::load(path).hash(), small_bpe().hash());
  std::filesystem::remove(path);
  EXPECT_NE(thrown<DataError>([&] { Tokenizer::load(path); }).find(path.string()), std::string::npos);
}

struct Damage {
  const char* name;
  std::function<std::string(std::string)> harm;
  const char* message;
};

std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

TEST(TokenizerFile, EachKindOfDamageHasItsOwnMessage) {
  const std::string good = small_bpe().serialise();
  ASSERT_NO_THROW(Tokenizer::parse(good, "t"));
  const auto swap = [](const char* from, const char* to) {
    return [=](std::string text) { return replaced(std::move(text), from, to); };
  };
  const std::vector<Damage> cases = {
      {"empty", [](std::string) { return std::string(); }, "line 1 is missing or cut off"},
      {"another magic", swap("qtrain-tokenizer 1", "qtrain-tokenizer 2"),
       "line 1 is not 'qtrain-tokenizer 1'"},
      {"binary", [](std::string) { return std::string(1000, '\xFE'); }, "line 1 is longer than 64 bytes"},
      {"header not JSON", swap("{\"kind\"", "{kind"), "line 2: not valid JSON at byte 2"},
      {"header deep", [](std::string) { return "qtrain-tokenizer 1\n" + std::string(60000, '[') + "\n"; },
       "line 2: nested more than 4 levels deep"},
      {"header endless", [](std::string) { return "qtrain-tokenizer 1\n" + std::string(1 << 20, ' '); },
       "line 2 is longer than 65536 bytes"},
      {"unknown kind", swap("\"bpe\"", "\"wordpiece\""), "line 2 has the unknown kind"},
      {"kind missing", swap("\"kind\"", "\"king\""), "field 'kind' is missing"},
      {"unknown pattern", swap("\"nanochat\"", "\"(a+)+$\""), "line 2 has the unknown split pattern"},
      {"other specials", swap("<|bos|>", "<|sob|>"), "field \"specials\""},
      {"negative count", swap("\"tokens\":591", "\"tokens\":-1"), "whole number from 0 to 1048576, got -1"},
      {"huge count", swap("\"tokens\":591", "\"tokens\":99999999999"),
       "whole number from 0 to 1048576, got 99999999999"},
      {"count is text", swap("\"tokens\":591", "\"tokens\":\"591\""), "got the string '591'"},
      {"fewer tokens than announced", swap("\"tokens\":591", "\"tokens\":592"),
       "line 594 is missing or cut off"},
      {"more tokens than announced", swap("\"tokens\":591", "\"tokens\":590"), "follows the 590 tokens"},
      {"too few for the bytes", swap("\"tokens\":591", "\"tokens\":10"), "follows the 10 tokens"},
      {"truncated in a line", [](std::string text) { return text.substr(0, text.size() - 3); },
       "line 593 is missing or cut off"},
      {"hole in the ids", swap(" 300\n", " 301\n"), "has id 301 where 300 is next"},
      {"negative id", swap(" 300\n", " -300\n"), "has id -300 where 300 is next"},
      {"id too large for 64 bits", swap(" 300\n", " 99999999999999999999\n"), "does not end in a token id"},
      {"id with rubbish", swap(" 300\n", " 300x\n"), "does not end in a token id"},
      {"no space", swap(" 300\n", "300\n"), "is not 'base64 id'"},
      {"bad base64 letter", swap("AA== 0", "A*== 0"), "line 3 is not valid base64"},
      {"base64 without padding", swap("AA== 0", "AA 0"), "line 3 is not valid base64"},
      {"base64 with stray bits", swap("AA== 0", "AB== 0"), "line 3 is not valid base64"},
      {"empty token", swap("AA== 0", " 0"), "line 3 is not valid base64"},
      {"missing byte", swap("AA== 0", "AQ== 0"), "token 1 repeats token 0"},
      {"long token among the bytes", swap("AA== 0", "AAAA 0"), "the first 256 must be the single bytes"},
      {"duplicate token",
       [](std::string text) {
         const auto line = [&](int id) {
           const std::size_t end = text.find(fmt::format(" {}\n", id)), start = text.rfind('\n', end) + 1;
           return std::pair{start, end - start};
         };
         const std::string first = text.substr(line(256).first, line(256).second);
         return text.replace(line(400).first, line(400).second, first);
       },
       "token 400 repeats token 256"},
      {"token from nowhere",
       [](std::string text) {
         const std::size_t end = text.find(" 256\n"), start = text.rfind('\n', end) + 1;
         return text.replace(start, end - start, "cXh6dw==");
       },
       "does not come from joining two earlier tokens"},
      {"token too long",
       [](std::string text) {
         const std::size_t end = text.find(" 256\n"), start = text.rfind('\n', end) + 1;
         return text.replace(start, end - start, std::string(100000, 'A'));
       },
       "is longer than"},
  };
  for (const Damage& damage : cases) {
    const std::string bad = damage.harm(good);
    const std::string what = thrown<DataError>([&] { Tokenizer::parse(bad, "t.txt"); });
    EXPECT_NE(what.find(damage.message), std::string::npos) << damage.name << ": " << what;
    EXPECT_EQ(what.find("t.txt"), 0u) << damage.name << ": " << what;
  }
}

TEST(TokenizerFile, CharFilesMustBeSortedSingleCharacters) {
  const std::string good = Tokenizer::make_chars({U'a', U'b'}).serialise();
  const auto error = [&](const char* from, const char* to) {
    return thrown<DataError>([&] { Tokenizer::parse(replaced(good, from, to), "c"); });
  };
  EXPECT_NE(error("Yg== 1", "YQ== 1").find("must be sorted and unique"), std::string::npos);
  EXPECT_NE(error("Yg== 1", "YmI= 1").find("is not one UTF-8 character"), std::string::npos);
  EXPECT_NE(error("Yg== 1", "/w== 1").find("is not one UTF-8 character"), std::string::npos);
}

}  // namespace
}  // namespace qt
