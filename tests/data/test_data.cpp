// Token shards, reading of corpora, and the unigram figure.
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include "src/core/error.h"
#include "src/data/corpus.h"
#include "src/data/corpus_cut.h"
#include "src/data/shard.h"
#include "src/data/unigram.h"
#include "tests/support/text.h"

namespace qt {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<std::int32_t>;

const std::string kVocabHash(32, 'a');

Ids counting(std::int64_t tokens, std::int64_t vocab_size) {
  Ids ids(static_cast<std::size_t>(tokens));
  for (std::size_t i = 0; i < ids.size(); ++i)
    ids[i] = static_cast<std::int32_t>((i * 7 + 3) % static_cast<std::size_t>(vocab_size));
  return ids;
}

fs::path write_shard(const fs::path& path, const Ids& ids, std::int64_t vocab_size) {
  ShardWriter writer(path, vocab_size, kVocabHash);
  writer.append(ids);
  writer.finish(posix_fs(), 123);
  return path;
}

// --- shards
// --------------------------------------------------------------------------------------------------------

TEST(Shards, ComeBackWithTheLlmcHeader) {
  const Folder folder;
  const Ids ids = counting(1000, 65536);
  const auto path = write_shard(folder / "s.bin", ids, 65536);
  const std::string bytes = read_bytes(path);
  ASSERT_EQ(bytes.size(), 1024u + 2000u);
  std::int32_t header[3];
  std::memcpy(header, bytes.data(), sizeof header);
  EXPECT_EQ(header[0], 20240520);
  EXPECT_EQ(header[1], 1);
  EXPECT_EQ(header[2], 1000);

  const ShardReader reader(path, 65536, kVocabHash);
  EXPECT_EQ(reader.tokens(), 1000);
  Ids back(1000);
  reader.copy(0, back);
  EXPECT_EQ(back, ids);
  EXPECT_EQ(reader.side()->text_bytes, 123);
  std::vector<std::int64_t> counts(65536);
  reader.count(counts);
  EXPECT_EQ(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}), 1000);
  EXPECT_EQ(counts[3], 1);
}

TEST(Shards, ReadWithoutASideFileAsAnotherProgramWritesThem) {
  const Folder folder;
  const auto path = write_shard(folder / "s.bin", counting(10, 50257), 50257);
  fs::remove(shard_side_path(path));
  EXPECT_EQ(ShardReader(path, 50257, kVocabHash).tokens(), 10);
}

TEST(Shards, WriterRefusesIdsOutsideTheVocabulary) {
  ShardWriter writer("s.bin", 100, kVocabHash);
  const Ids bad = {5, 100}, negative = {-1};
  EXPECT_NE(thrown<DataError>([&] { writer.append(bad); }).find("token 100 at position 1"),
            std::string::npos);
  EXPECT_NE(thrown<DataError>([&] { writer.append(negative); }).find("token -1"), std::string::npos);
  EXPECT_THROW(ShardWriter("s.bin", 65537, kVocabHash), ConfigError);
}

TEST(Shards, NothingExistsUnderTheFinalNameBeforeFinish) {
  const Folder folder;
  {
    ShardWriter writer(folder / "s.bin", 100, kVocabHash);
    writer.append(counting(50, 100));
  }
  EXPECT_FALSE(fs::exists(folder / "s.bin"));
}

struct Damage {
  const char* name;
  std::function<void(std::string& bin, std::string& side)> harm;
  const char* message;
};

TEST(Shards, EachKindOfDamageHasItsOwnMessage) {
  const Folder folder;
  const auto path = write_shard(folder / "s.bin", counting(5000, 300), 300);
  const auto side_path = shard_side_path(path);
  const std::string good_bin = read_bytes(path), good_side = read_bytes(side_path);
  const auto word = [](int index, std::int32_t value) {
    return [=](std::string& bin, std::string&) { std::memcpy(bin.data() + 4 * index, &value, 4); };
  };
  const auto token = [](std::size_t position, std::uint16_t id) {
    return [=](std::string& bin, std::string& side) {
      std::memcpy(bin.data() + 1024 + 2 * position, &id, 2);
      side.clear();  // no checksum: the ids themselves must be found
    };
  };
  const auto side_swap = [](const char* from, const char* to) {
    return [=](std::string&, std::string& side) {
      const std::size_t at = side.find(from);
      ASSERT_NE(at, std::string::npos) << from;
      side.replace(at, std::strlen(from), to);
    };
  };
  const auto resize = [](std::size_t bytes) {
    return [=](std::string& bin, std::string&) { bin.resize(bytes); };
  };
  const std::vector<Damage> cases = {
      {"empty", resize(0), "0 bytes, but the header alone has 1024"},
      {"header cut", resize(1000), "1000 bytes, but the header alone has 1024"},
      {"header alone", resize(1024), "5000 tokens need 11024 bytes, the file has 1024: truncated"},
      {"cut by one byte", resize(11023), "the file has 11023: truncated"},
      {"one byte too long", resize(11025), "the file has 11025: too long"},
      {"magic of llama shards", word(0, 20240801), "magic number 20240801 at offset 0"},
      {"magic zero", word(0, 0), "magic number 0 at offset 0"},
      {"version", word(1, 7), "version 7 at offset 4 is not 1"},
      {"no tokens", word(2, 0), "token count 0 at offset 8 is not positive"},
      {"negative count", word(2, -5000), "token count -5000 at offset 8 is not positive"},
      {"largest count", word(2, 0x7FFFFFFF), "2147483647 tokens need 4294968318 bytes"},
      {"count too small", word(2, 4999), "the file has 11024: too long"},
      {"bit flip in a token", [](std::string& bin, std::string&) { bin[5000] ^= 1; }, "checksum "},
      {"bit flip in a reserved word", [](std::string& bin, std::string&) { bin[900] ^= 64; }, "checksum "},
      {"first id too large", token(0, 300), "token 300 at position 0 is outside the vocabulary of 300"},
      {"middle id too large", token(4097, 65535), "token 65535 at position 4097 is outside"},
      {"last id too large", token(4999, 301), "token 301 at position 4999 is outside"},
      {"another vocabulary", side_swap(kVocabHash.c_str(), "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"),
       "was made with vocabulary bbbb"},
      {"larger vocabulary", side_swap("\"vocab_size\": 300", "\"vocab_size\": 301"),
       "was made for a vocabulary of 301"},
      {"another count", side_swap("\"tokens\": 5000", "\"tokens\": 5001"), "but its side file says 5001"},
      {"side not JSON", side_swap("{", "["), "not valid JSON"},
      {"side version", side_swap("\"format_version\": 1", "\"format_version\": 2"),
       "format version 2 is not 1"},
      {"side count negative", side_swap("\"tokens\": 5000", "\"tokens\": -1"), "field 'tokens'"},
      {"side count a fraction", side_swap("\"tokens\": 5000", "\"tokens\": 5000.5"), "field 'tokens'"},
      {"side hash short", side_swap(kVocabHash.c_str(), "aaaa"), "field 'vocab_hash' is not a hash"},
      {"side field missing", side_swap("\"xxh3_128\"", "\"xxh3_129\""), "field 'xxh3_128' is missing"},
  };
  ASSERT_NO_THROW(ShardReader(path, 300, kVocabHash));
  for (const Damage& damage : cases) {
    std::string bin = good_bin, side = good_side;
    damage.harm(bin, side);
    write_bytes(path, bin);
    fs::remove(side_path);
    if (!side.empty()) write_bytes(side_path, side);
    const std::string what = thrown<DataError>([&] { ShardReader(path, 300, kVocabHash); });
    EXPECT_NE(what.find(damage.message), std::string::npos) << damage.name << ": " << what;
    EXPECT_NE(what.find("s.bin"), std::string::npos) << damage.name << ": " << what;
  }
  fs::remove(path);
  EXPECT_NE(thrown<DataError>([&] { ShardReader(path, 300, kVocabHash); }).find("s.bin"), std::string::npos);
}

TEST(Shards, IdsAreCheckedAgainWhenReadingWithoutFullVerification) {
  const Folder folder;
  const auto path = write_shard(folder / "s.bin", counting(100, 300), 300);
  fs::remove(shard_side_path(path));
  const ShardReader reader(path, 200, {}, ShardVerify::header);
  Ids out(100);
  EXPECT_NE(thrown<DataError>([&] { reader.copy(0, out); }).find("outside the vocabulary of 200"),
            std::string::npos);
  EXPECT_THROW(reader.copy(1, out), DataError);
  EXPECT_THROW(reader.copy(-1, out), DataError);
}

// --- unigram
// ---------------------------------------------------------------------------------------------------------

TEST(Unigram, EqualsAComputationByHand) {
  // V = 4, token 3 special. Training counts 3, 1, 0, 2: N + V = 10, so p = 4/10, 2/10, 1/10. Validation has
  // 2, 1, 1, 5 of them with 1, 2, 3 bytes: bits = 2 log2(10/4) + log2(10/2) + log2(10/1), bytes = 2 + 2 + 3.
  const std::vector<std::int64_t> train = {3, 1, 0, 2}, val = {2, 1, 1, 5};
  const std::vector<std::int32_t> bytes = {1, 2, 3, 0};
  EXPECT_NEAR(unigram_bpb(train, val, bytes), (2 * std::log2(2.5) + std::log2(5.0) + std::log2(10.0)) / 7,
              1e-14);
  EXPECT_EQ(unigram_bpb(train, std::vector<std::int64_t>(4), bytes), 0);
}

// --- reading corpora
// ---------------------------------------------------------------------------------------------------

std::string gzip(const std::string& text) {
  z_stream stream = {};
  deflateInit2(&stream, 6, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY);
  std::string out(text.size() + 1000, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  out.resize(out.size() - stream.avail_out);
  deflateEnd(&stream);
  return out;
}

std::string zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

CorpusReader::Window windows_of(std::size_t bytes) {
  return [=](std::string_view available, bool at_end) {
    return available.size() > bytes ? bytes : at_end ? available.size() : 0;
  };
}

struct Part {
  std::string text;
  CorpusPosition begin;
  bool opens;
  bool operator==(const Part&) const = default;
};

std::vector<Part> read_all(const std::vector<CorpusFile>& files, CorpusPosition begin, CorpusPosition end,
                           CorpusPosition resume = {}) {
  CorpusReader reader(files, begin, end, windows_of(1000), resume);
  std::vector<Part> parts;
  CorpusPart part;
  while (reader.next(part)) parts.push_back({std::string(part.text), part.begin, part.opens_document});
  return parts;
}

std::string join(const std::vector<Part>& parts) {
  std::string text;
  for (const Part& part : parts) text += part.text;
  return text;
}

class Corpus : public testing::Test {
 protected:
  std::vector<CorpusFile> files(const std::vector<std::pair<std::string, std::string>>& named) {
    std::vector<std::string> paths;
    for (const auto& [name, content] : named) {
      write_bytes(folder_ / name, content);
      paths.push_back((folder_ / name).string());
    }
    return expand_inputs(paths);
  }
  std::string error(const std::string& name, const std::string& content) {
    const auto all = files({{name, content}});
    return thrown<DataError>([&] { read_all(all, {}, {1, 0, 0}); });
  }
  Folder folder_;
};

std::string long_text() {
  std::mt19937_64 rng(11);
  std::string text;
  while (text.size() < 700'000) text += random_text(rng, 100);
  return text;
}

TEST_F(Corpus, TextComesBackFromEveryCompression) {
  const std::string text = long_text();
  // Two members or frames one after the other are one text.
  const std::string half = text.substr(0, 300'000), rest = text.substr(300'000);
  for (const auto& [name, content] : std::vector<std::pair<std::string, std::string>>{
           {"a.txt", text}, {"a.txt.gz", gzip(half) + gzip(rest)}, {"a.txt.zst", zstd(half) + zstd(rest)}}) {
    const auto parts = read_all(files({{name, content}}), {}, {1, 0, 0});
    EXPECT_EQ(join(parts), text) << name;
    EXPECT_TRUE(parts[0].opens);
    EXPECT_TRUE(std::none_of(parts.begin() + 1, parts.end(), [](const Part& p) { return p.opens; }));
    EXPECT_EQ(scan_corpus(files({{name, content}}), [](auto) {}),
              (std::vector<std::int64_t>{static_cast<std::int64_t>(text.size())}));
  }
}

TEST_F(Corpus, DamagedCompressionIsAnErrorWhereverItIsCutOff) {
  const std::string text = long_text();
  for (const auto& [name, whole] : std::vector<std::pair<std::string, std::string>>{
           {"a.txt.gz", gzip(text)}, {"a.txt.zst", zstd(text)}}) {
    for (const std::size_t keep : {std::size_t{0}, std::size_t{5}, whole.size() / 2, whole.size() - 1}) {
      const std::string what = error(name, whole.substr(0, keep));
      EXPECT_NE(what.find("cut off"), std::string::npos) << name << " " << keep << ": " << what;
    }
    std::string flipped = whole;
    for (std::size_t i = whole.size() / 2; i < whole.size() / 2 + 64; ++i)
      flipped[i] = static_cast<char>(~flipped[i]);
    EXPECT_NE(error(name, flipped).find(name), std::string::npos);
    EXPECT_NE(error(name, whole + "rubbish").find(name), std::string::npos);
    EXPECT_NE(error(name, "not compressed at all").find(name), std::string::npos);
  }
}

TEST_F(Corpus, JsonlGivesOneDocumentPerLine) {
  const auto all =
      files({{"a.jsonl",
              "{\"text\":\"one\"}\n\n  "
              "\r\n{\"id\":1,\"text\":\"t\\u00e9\\nw\"}\r\n{\"text\":\"\"}\n{\"text\":\"last\"}"}});
  const auto parts = read_all(all, {}, {1, 0, 0});
  ASSERT_EQ(parts.size(), 4u);
  EXPECT_EQ(parts[1].text, "t\xC3\xA9\nw");
  EXPECT_EQ(parts[2].text, "");
  EXPECT_EQ(parts[3].text, "last");
  EXPECT_EQ(parts[1].begin.line, 3);
  EXPECT_TRUE(std::all_of(parts.begin(), parts.end(), [](const Part& p) { return p.opens; }));
  EXPECT_EQ(scan_corpus(all, [](auto) {})[0], 12);
}

TEST_F(Corpus, JsonlErrorsNameFileAndLine) {
  const std::string good = "{\"text\":\"x\"}\n";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {good + "{\"text\":", "a.jsonl:2: not a JSON document"},
      {good + good + "{\"text\":\"x\"} tail\n", "a.jsonl:3: not a JSON document"},
      {good + "{\"text\":\"\xFF\"}\n", "a.jsonl:2: not a JSON document"},
      {good + "{\"text\":\"\\ud800\"}\n", "a.jsonl:2: not a JSON document"},
      {"{\"content\":\"x\"}\n", "a.jsonl:1: field \"text\""},
      {"{\"text\":5}\n", "a.jsonl:1: field \"text\""},
      {"{\"text\":null}\n", "a.jsonl:1: field \"text\""},
      {"[\"text\"]\n", "a.jsonl:1: field \"text\""},
      {"\n\n" + std::string(5000, '[') + "\n", "a.jsonl:3: not a JSON document"},
      {good + "{\"text\":\"" + std::string(CorpusReader::kMaxLineBytes, 'x') + "\"}\n",
       "a.jsonl:2: the line is longer than"},
      {good + std::string(CorpusReader::kMaxLineBytes + 10, ' '), "a.jsonl:2: the line is longer than"},
  };
  for (const auto& [content, message] : cases) {
    const std::string what = error("a.jsonl", content);
    EXPECT_NE(what.find(message), std::string::npos) << what;
  }
}

TEST_F(Corpus, ReadingContinuesAtAnyPartAsIfNeverInterrupted) {
  std::string lines;
  for (int i = 0; i < 50; ++i) lines += fmt::format("{{\"text\":\"document {}\"}}\n", i);
  const std::string text = long_text().substr(0, 20'000);
  const auto all = files({{"a.txt", text}, {"b.jsonl.zst", zstd(lines)}, {"c.txt.gz", gzip(text)}});
  const CorpusPosition begin = {0, 3000, 0}, end = {2, 9000, 0};
  const auto whole = read_all(all, begin, end);
  EXPECT_EQ(whole.size(), 17u + 50u + 9u);
  EXPECT_EQ(whole.front().text, text.substr(3000, 1000));
  EXPECT_TRUE(whole.front().opens);
  EXPECT_EQ(whole.back().text, text.substr(8000, 1000));
  for (std::size_t from = 0; from < whole.size(); ++from) {
    const auto rest = read_all(all, begin, end, whole[from].begin);
    EXPECT_EQ(rest, std::vector<Part>(whole.begin() + static_cast<std::ptrdiff_t>(from), whole.end()))
        << from;
  }
}

TEST_F(Corpus, FoldersGiveTheirTextFilesInOrder) {
  fs::create_directories(folder_ / "d/sub");
  for (const char* name : {"d/b.txt", "d/a.jsonl.gz", "d/sub/c.md", "d/.hidden", "d/x.bin", "d/photo.jpg"})
    write_bytes(folder_ / name, "x");
  const auto all = expand_inputs({(folder_ / "d").string()});
  ASSERT_EQ(all.size(), 3u);
  EXPECT_EQ(all[0].path.filename(), "a.jsonl.gz");
  EXPECT_EQ(all[0].format, TextFormat::jsonl);
  EXPECT_EQ(all[0].compression, Compression::gzip);
  EXPECT_EQ(all[1].path.filename(), "b.txt");
  EXPECT_EQ(all[2].path.filename(), "c.md");
  fs::create_directories(folder_ / "e");
  EXPECT_THROW(expand_inputs({(folder_ / "e").string()}), ConfigError);
  EXPECT_NE(thrown<ConfigError>([&] { expand_inputs({(folder_ / "nope").string()}); }).find("no such file"),
            std::string::npos);
}

TEST_F(Corpus, ATextFileIsCutBehindALineEndAndJsonlBetweenDocuments) {
  const auto none = [](auto) {};
  std::string text;
  for (int i = 0; i < 100; ++i) text += fmt::format("line {:4}\n", i);  // 10 bytes each
  {
    const auto all = files({{"a.txt", text}});
    const auto cut = cut_corpus(all, scan_corpus(all, none), 0.105, none);
    EXPECT_EQ(cut.at, (CorpusPosition{0, 900, 0}));  // 895 lies inside a line
    EXPECT_EQ(cut.train_bytes, 900);
    EXPECT_EQ(cut.val_bytes, 100);
    EXPECT_EQ(join(read_all(all, {}, cut.at)) + join(read_all(all, cut.at, {1, 0, 0})), text);
  }
  {
    std::string lines;
    for (int i = 0; i < 10; ++i) lines += "{\"text\":\"" + std::string(10, 'x') + "\"}\n";
    const auto all = files({{"a.txt", text}, {"b.jsonl", lines}});
    const auto cut = cut_corpus(all, scan_corpus(all, none), 0.05,
                                none);  // 55 of 1100 bytes: the last five documents of ten
    EXPECT_EQ(cut.at.file, 1);
    EXPECT_EQ(cut.val_bytes, 50);
    EXPECT_EQ(join(read_all(all, cut.at, {2, 0, 0})), std::string(50, 'x'));
  }
  {
    const auto all = files({{"a.txt", std::string(500, 'x')}});  // no line end: at a character
    EXPECT_EQ(cut_corpus(all, scan_corpus(all, none), 0.1, none).at.offset, 450);
    const auto one = files({{"a.jsonl", "{\"text\":\"only\"}\n"}});
    EXPECT_THROW(cut_corpus(one, scan_corpus(one, none), 0.1, none), ConfigError);
    const auto two =
        files({{"a.jsonl", "{\"text\":\"one\"}\n{\"text\":\"" + std::string(900, 'y') + "\"}\n"}});
    EXPECT_EQ(cut_corpus(two, scan_corpus(two, none), 0.1, none).val_bytes, 900);
  }
}

}  // namespace
}  // namespace qt
