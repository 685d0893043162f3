// Token shards of other programs: nanoGPT's without a header, llm.c's with one, what lies beside them and
// what does not; and how surely damage to a shard of our own is noticed.
#include <algorithm>
#include <cstring>
#include <random>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/data/batches.h"
#include "src/data/dataset.h"
#include "tests/support/text.h"

namespace qt {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<std::int32_t>;

// numpy's ids.astype(uint16).tofile(): what nanoGPT's prepare.py writes.
std::string uint16s(const Ids& ids) {
  std::string bytes;
  for (const std::int32_t id : ids) {
    bytes.push_back(static_cast<char>(id & 255));
    bytes.push_back(static_cast<char>(id >> 8));
  }
  return bytes;
}

std::string words(const std::vector<std::int32_t>& values) {
  std::string bytes(4 * values.size(), '\0');
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

// llm.c's write_datafile(): a header of 256 words, then the tokens.
std::string llmc(const Ids& ids, std::int32_t magic = 20240520, std::int32_t version = 1) {
  std::vector<std::int32_t> header(256);
  header[0] = magic;
  header[1] = version;
  header[2] = static_cast<std::int32_t>(ids.size());
  return words(header) + uint16s(ids);
}

Ids some_ids(std::size_t count, std::int32_t vocab_size, std::uint64_t seed = 1) {
  std::mt19937_64 rng(seed);
  Ids ids(count);
  for (auto& id : ids) id = static_cast<std::int32_t>(rng() % static_cast<std::uint64_t>(vocab_size));
  return ids;
}

Ids read_all(const ShardReader& reader) {
  Ids ids(static_cast<std::size_t>(reader.tokens()));
  reader.copy(0, ids);
  return ids;
}

TEST(Headerless, AnEvenFileWithoutAnythingElseIsItsTokens) {
  const Folder folder;
  for (const std::size_t count : {1, 3, 511, 512, 600, 5000}) {  // below, at and above the size of a header
    const Ids ids = some_ids(count, 50257);
    write_bytes(folder / "train.bin", uint16s(ids));
    const ShardReader reader(folder / "train.bin", 50257);
    EXPECT_TRUE(reader.headerless());
    EXPECT_EQ(read_all(reader), ids);
    Ids tail(1);
    reader.copy(reader.tokens() - 1, tail);
    EXPECT_EQ(tail[0], ids.back());
    EXPECT_THROW(reader.copy(reader.tokens(), tail), DataError);
  }
}

TEST(Headerless, TheLargestIdIsUnsigned) {
  const Folder folder;
  write_bytes(folder / "t.bin", uint16s({65535, 32768, 0}));
  EXPECT_EQ(read_all(ShardReader(folder / "t.bin", 65536)), (Ids{65535, 32768, 0}));
  EXPECT_NE(thrown<DataError>([&] {
              ShardReader(folder / "t.bin", 50257);
            }).find("token 65535 at position 0 is outside the vocabulary of 50257"),
            std::string::npos);
}

TEST(Headerless, LlmcFilesAreStillTakenByTheirHeader) {
  const Folder folder;
  const Ids ids = some_ids(700, 50257);
  write_bytes(folder / "a.bin", llmc(ids));
  const ShardReader reader(folder / "a.bin", 50257);
  EXPECT_FALSE(reader.headerless());
  EXPECT_EQ(read_all(reader), ids);
}

TEST(Headerless, WhatIsNoTokenFileIsRefusedForItsOwnReason) {
  const Folder folder;
  const Ids ids = some_ids(700, 50257);
  struct Case {
    const char* name;
    std::string bytes;
    const char* message;
  };
  std::string flipped = llmc(ids);
  flipped[1] ^= 1;
  const std::vector<Case> cases = {
      {"empty", "", "an empty file"},
      {"one byte", "x", "1 bytes are no whole number of 16-bit tokens"},
      {"cut in a token", uint16s(ids).substr(0, 1399), "1399 bytes are no whole number of 16-bit tokens"},
      {"one byte too long", uint16s(ids) + "x", "1401 bytes are no whole number of 16-bit tokens"},
      {"llama tokens", llmc(ids, 20240801, 7), "32-bit tokens (magic number 20240801)"},
      {"hellaswag", llmc(ids, 20240522), "an evaluation file of llm.c"},
      {"numpy", "\x93NUMPY" + std::string(122, 'x') + uint16s(ids), "a NumPy array"},
      {"llm.c with a flipped magic", flipped, "though the rest is like llm.c's header"},
      {"llm.c of another version", llmc(ids, 20240520, 2), "version 2 at offset 4 is not 1"},
      {"llm.c cut", llmc(ids).substr(0, 2000), "700 tokens need 2424 bytes, the file has 2000: truncated"},
      {"llm.c header cut", llmc(ids).substr(0, 600), "600 bytes, but the header alone has 1024: truncated"},
      {"llm.c too long", llmc(ids) + "xx", "the file has 2426: too long"},
      {"llm.c without tokens", llmc({}), "token count 0 at offset 8"},
      {"llm.c id", llmc({1, 60000}), "token 60000 at position 1 is outside the vocabulary of 50257"},
      {"headerless id", uint16s({1, 60000}), "token 60000 at position 1 is outside the vocabulary of 50257"},
  };
  for (const Case& c : cases) {
    write_bytes(folder / "x.bin", c.bytes);
    const std::string what = thrown<DataError>([&] { ShardReader(folder / "x.bin", 50257); });
    EXPECT_NE(what.find(c.message), std::string::npos) << c.name << ": " << what;
    EXPECT_EQ(what.find((folder / "x.bin").string()), 0u) << c.name << ": " << what;
  }
}

TEST(ForeignFolders, NanoGptsTrainAndValAreBothTaken) {
  const Folder folder;
  const Ids train = some_ids(900, 65), val = some_ids(100, 65, 2);
  write_bytes(folder / "train.bin", uint16s(train));
  write_bytes(folder / "val.bin", uint16s(val));
  write_bytes(folder / "meta.pkl", "cos\nsystem\n(S'exit 1'\ntR.");
  ASSERT_TRUE(is_shard_path(folder.path()));
  PreparedData data = open_dataset(folder.path());
  EXPECT_FALSE(data.tokenizer.has_value());
  EXPECT_EQ(data.train_shards, std::vector<fs::path>{folder / "train.bin"});
  EXPECT_EQ(data.val_shards, std::vector<fs::path>{folder / "val.bin"});
  EXPECT_EQ(data.report.train.tokens, 900);
  EXPECT_EQ(data.report.val.tokens, 100);

  // Without a vocabulary: refused, saying why the pickle does not help.
  const std::string what = thrown<ConfigError>([&] { choose_tokenizer(data, {}, 0); });
  EXPECT_NE(what.find("meta.pkl"), std::string::npos) << what;
  EXPECT_NE(what.find("never read"), std::string::npos) << what;
  EXPECT_NE(what.find("--tokenizer"), std::string::npos) << what;
  EXPECT_NE(what.find("--vocab-size"), std::string::npos) << what;
  fs::remove(folder / "meta.pkl");
  EXPECT_EQ(thrown<ConfigError>([&] { choose_tokenizer(data, {}, 0); }).find("meta.pkl"), std::string::npos);

  // Numbers alone.
  choose_tokenizer(data, {}, 65);
  ASSERT_TRUE(data.tokenizer.has_value());
  EXPECT_EQ(data.tokenizer->kind(), TokenizerKind::ids);
  TokenStream stream(open_shards(data.train_shards, *data.tokenizer));
  Ids back(900);
  stream.copy(0, back);
  EXPECT_EQ(back, train);
  const EvalBatches eval(TokenStream(open_shards(data.val_shards, *data.tokenizer)), 16,
                         data.tokenizer->token_bytes_table());
  EXPECT_FALSE(eval.bytes_known());
  EXPECT_THROW(open_shards(data.train_shards, Tokenizer::make_ids(60)), DataError);

  // A named vocabulary comes first.
  std::vector<char32_t> letters;
  for (char32_t c = U'0'; c < U'0' + 65; ++c) letters.push_back(c);
  const Tokenizer chars = Tokenizer::make_chars(letters);
  chars.save(posix_fs(), folder / "chars.txt");
  PreparedData named = open_dataset(folder.path());
  choose_tokenizer(named, folder / "chars.txt", 65);
  EXPECT_EQ(named.tokenizer->hash(), chars.hash());
}

TEST(ForeignFolders, LlmcNamesSplitByTheWordInTheMiddle) {
  const Folder folder;
  for (const char* name : {"fineweb_train_000001.bin", "fineweb_train_000002.bin", "fineweb_val_000000.bin"})
    write_bytes(folder / name, llmc(some_ids(50, 100)));
  write_bytes(folder / "hellaswag.bin", llmc(some_ids(50, 100), 20240522));
  const PreparedData data = open_dataset(folder.path());
  EXPECT_EQ(data.train_shards.size(), 2u);
  EXPECT_EQ(data.val_shards, std::vector<fs::path>{folder / "fineweb_val_000000.bin"});
}

TEST(ForeignFolders, AnotherTokenizerThanTheOneBesideIsRefused) {
  const Folder folder;
  write_bytes(folder / "train.bin", uint16s(some_ids(50, 100)));
  Tokenizer::make_bytes().save(posix_fs(), folder / "tokenizer.txt");
  Tokenizer::make_chars({U'a'}).save(posix_fs(), folder / "other.txt");
  PreparedData data = open_dataset(folder.path());
  EXPECT_NE(thrown<ConfigError>([&] {
              choose_tokenizer(data, folder / "other.txt", 0);
            }).find("is not the one that the shards"),
            std::string::npos);
  EXPECT_NO_THROW(choose_tokenizer(data, folder / "tokenizer.txt", 0));
  EXPECT_NO_THROW(choose_tokenizer(data, {}, 0));
}

TEST(IdsTokenizer, ItsTextIsTheNumbers) {
  const Tokenizer t = Tokenizer::make_ids(50257);
  EXPECT_EQ(t.vocab_size(), 50257);
  EXPECT_EQ(t.bos(), -1);
  EXPECT_FALSE(t.has_text());
  EXPECT_EQ(t.encode(" 464\n2068  50256 "), (Ids{464, 2068, 50256}));
  EXPECT_EQ(t.encode(""), Ids{});
  EXPECT_EQ(t.decode(Ids{464, 0}), " 464 0");
  EXPECT_EQ(t.encode(t.decode(Ids{5, 6, 7})), (Ids{5, 6, 7}));
  EXPECT_EQ(t.token_bytes(464), 0);
  for (const char* bad : {"hello", "50257", "-1", "1.5", "0x10", "99999999999999999999"}) {
    const std::string what = thrown<DataError>([&] { t.encode(std::string("1 ") + bad); });
    EXPECT_NE(what.find("at offset 2 is not the number of a token below 50257"), std::string::npos) << what;
    EXPECT_NE(what.find("--tokenizer"), std::string::npos) << what;
  }
  EXPECT_THROW(t.decode(Ids{50257}), DataError);
  EXPECT_THROW(Tokenizer::make_ids(0), ConfigError);
  EXPECT_THROW(Tokenizer::make_ids(Tokenizer::kMaxVocab + 1), ConfigError);
  const Tokenizer again = Tokenizer::parse(t.serialise(), "t.txt");
  EXPECT_EQ(again.kind(), TokenizerKind::ids);
  EXPECT_EQ(again.hash(), t.hash());
  EXPECT_NE(Tokenizer::make_ids(50304).hash(), t.hash());
  EXPECT_THROW(parse_tokenizer_kind("ids"), ConfigError);  // nothing that could be made from text
  EXPECT_NE(thrown<DataError>([] {
              Tokenizer::parse("qtrain-tokenizer 1\n{\"kind\":\"ids\",\"specials\":[],\"tokens\":0}\n", "t");
            }).find("field 'vocab_size' is missing"),
            std::string::npos);
}

TEST(Gpt2Text, IsTokenizedWithTheNamedFolderWhoseVocabularyTravelsWithTheShards) {
  const Folder folder;
  const fs::path gpt2 = fs::path(QTRAIN_SOURCE_DIR) / "tests/golden/gpt2_small";
  const Tokenizer tokenizer = Tokenizer::load(gpt2);
  std::string text;
  for (int i = 0; i < 500; ++i) text += fmt::format("It's line {}, the others' too.\n", i);
  write_bytes(folder / "text.txt", text);
  DataSpec spec;
  spec.inputs = {(folder / "text.txt").string()};
  spec.val_fraction = 0;
  spec.tokenizer_file = gpt2;
  spec.out_dir = folder / "tokens";
  const PreparedData data = prepare_data(spec);
  EXPECT_EQ(data.tokenizer->hash(), tokenizer.hash());
  Ids expected = {tokenizer.bos()};  // <|endoftext|> opens the document
  tokenizer.encode(text, expected);
  EXPECT_EQ(read_all(open_shards(data.train_shards, *data.tokenizer).front()), expected);
  EXPECT_TRUE(prepare_data(spec).report.reused);

  Tokenizer::make_ids(1001).save(posix_fs(), folder / "numbers.txt");
  spec.tokenizer_file = folder / "numbers.txt";
  spec.out_dir = folder / "other";
  EXPECT_NE(thrown<ConfigError>([&] { prepare_data(spec); }).find("numbers alone cannot tokenize text"),
            std::string::npos);
}

// --- damage to shards that we made
// -----------------------------------------------------------------------------------------------------------

class Damaged : public testing::Test {
 protected:
  void SetUp() override {
    std::mt19937_64 rng(3);
    std::string text;
    while (text.size() < 60'000) text += random_text(rng, 40) + "\n";
    write_bytes(folder_ / "text.txt", text);
    DataSpec spec;
    spec.inputs = {(folder_ / "text.txt").string()};
    spec.tokenizer = {.kind = TokenizerKind::bytes};
    spec.out_dir = folder_ / "tokens";
    spec.shard_tokens = 20'000;
    data_ = prepare_data(spec);
    ASSERT_GE(data_.train_shards.size(), 2u);
  }
  // Everything that training on the folder looks at; empty when nothing is wrong.
  std::string complaint() const {
    return thrown<DataError>([&] {
      PreparedData again = open_dataset(folder_ / "tokens");
      open_shards(again.train_shards, *again.tokenizer);
      open_shards(again.val_shards, *again.tokenizer);
    });
  }
  Folder folder_;
  PreparedData data_;
};

TEST_F(Damaged, EveryFlippedBitAnywhereInTheTokensIsNoticed) {
  ASSERT_EQ(complaint(), "");
  const fs::path shard = data_.train_shards[1];
  const std::string good = read_bytes(shard);
  std::mt19937_64 rng(4);
  for (int trial = 0; trial < 2000; ++trial) {
    std::string bad = good;
    const std::size_t bit = trial < 96 ? static_cast<std::size_t>(trial) : rng() % (8 * good.size());
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    write_bytes(shard, bad);
    ASSERT_THROW(ShardReader(shard, data_.tokenizer->vocab_size(), data_.tokenizer->hash()), DataError)
        << "bit " << bit;
  }
  write_bytes(shard, good);
  EXPECT_EQ(complaint(), "");
}

TEST_F(Damaged, EveryFlippedBitOfASideFileIsNoticedOrChangesNothing) {
  const fs::path side = shard_side_path(data_.train_shards[1]);
  const std::string good = read_bytes(side);
  const ShardInfo before = *read_shard_side(data_.train_shards[1]);
  int noticed = 0;
  for (std::size_t bit = 0; bit < 8 * good.size(); ++bit) {
    std::string bad = good;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    write_bytes(side, bad);
    if (!complaint().empty()) {
      ++noticed;
      continue;
    }
    // White space, or a vocabulary size that is smaller than the one the hash stands for: nobody relies on
    // it.
    const ShardInfo after = *read_shard_side(data_.train_shards[1]);
    EXPECT_EQ(after.tokens, before.tokens) << bit;
    EXPECT_EQ(after.text_bytes, before.text_bytes) << bit;
    EXPECT_EQ(after.vocab_hash, before.vocab_hash) << bit;
    EXPECT_EQ(after.xxh3_128, before.xxh3_128) << bit;
  }
  EXPECT_GT(noticed, static_cast<int>(8 * good.size()) * 9 / 10);
}

TEST_F(Damaged, TruncationAtAnyLengthAndSwapsAreNoticed) {
  const fs::path a = data_.train_shards[0], b = data_.train_shards[1];
  const std::string good_a = read_bytes(a), good_b = read_bytes(b);
  std::mt19937_64 rng(5);
  for (int trial = 0; trial < 300; ++trial) {
    write_bytes(a, good_a.substr(0, trial < 4 ? static_cast<std::size_t>(trial) : rng() % good_a.size()));
    ASSERT_NE(complaint(), "") << trial;
  }
  // Two blocks of one file in each other's place, and two files.
  std::string swapped = good_a;
  std::swap_ranges(swapped.begin() + 2048, swapped.begin() + 4096, swapped.begin() + 8192);
  ASSERT_NE(swapped, good_a);
  write_bytes(a, swapped);
  EXPECT_NE(complaint().find("checksum"), std::string::npos);
  write_bytes(a, good_b);
  write_bytes(b, good_a);
  EXPECT_NE(complaint().find("checksum"), std::string::npos);
  write_bytes(a, good_a);
  write_bytes(b, good_b);
  EXPECT_EQ(complaint(), "");
  // With its side file as well, a shard that stands in another's place counts other tokens or bytes, or it is
  // the same data in another order, which the run's data hash holds.
  fs::remove(b);
  EXPECT_NE(complaint().find("dataset.json says"), std::string::npos);
}

TEST_F(Damaged, WithoutTheChecksumTheSameFlipWouldPass) {
  const fs::path shard = data_.train_shards[1];
  std::string bad = read_bytes(shard);
  bad[5000] = static_cast<char>(bad[5000] ^ 1);
  write_bytes(shard, bad);
  EXPECT_NE(complaint(), "");
  fs::remove(shard_side_path(shard));
  EXPECT_NO_THROW(ShardReader(shard, data_.tokenizer->vocab_size(), data_.tokenizer->hash()));
}

}  // namespace
}  // namespace qt
