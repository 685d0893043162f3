// The program and data that is not what it should be: text, archives, shards, tokenizers.
#include <cstring>

#include <zlib.h>
#include <zstd.h>

#include "src/io/checkpoint.h"
#include "tests/support/cli.h"

namespace qt::test {
namespace {

namespace fs = std::filesystem;

// --- data --------------------------------------------------------------------------------------------------

class CliData : public Cli {
 protected:
  Ended train_on(const std::string& data, const Words& more = {}) {
    return run(with(
        shape() + Words{"--data", data, "--tokenizer-kind", "bytes", "--steps", "1", "--out", dir / "run"},
        more));
  }
};

TEST_F(CliData, IsAskedForWhereThereIsNone) {
  expect_refusal(run(shape()), 2,
                 {"--data", "scripts/quickstart", "qtrain --data book.txt", "qtrain tokenize"});
  expect_refusal(run({"tokenize"}), 2, {"--data", "qtrain --data book.txt"});
}

TEST_F(CliData, IsRefusedWhereItIsNoText) {
  struct Text {
    std::string name, content;
    int code;
    Words words;
  };
  const std::string prose = tiny_text(2000);
  std::string gz(prose.size(), '\0'), zst(ZSTD_compressBound(prose.size()), '\0');
  {
    const std::string path = dir / "whole.gz";
    const gzFile file = gzopen(path.c_str(), "wb");
    gzwrite(file, prose.data(), static_cast<unsigned>(prose.size()));
    gzclose(file);
    gz = read_text(path);
    zst.resize(ZSTD_compress(zst.data(), zst.size(), prose.data(), prose.size(), 3));
  }
  std::string flipped = gz;
  flip_a_bit(flipped);
  const Text cases[] = {
      {"empty.txt", "", 4, {"no text to train on"}},
      {"short.txt", "Too short.", 4, {"tokens, one row needs 33", "--seq-len"}},
      {"broken.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\n", 4, {":2:", "JSON"}},
      {"other.jsonl", "{\"text\": \"one\"}\n{\"body\": \"two\"}\n", 4, {":2:", "\"text\""}},
      {"number.jsonl", "{\"text\": 7}\n", 4, {":1:", "\"text\""}},
      {"array.jsonl", "[1, 2]\n", 4, {":1:", "\"text\""}},
      {"cut.txt.gz", gz.substr(0, gz.size() / 2), 4, {"gzip data is cut off", "fetch it again"}},
      {"flipped.txt.gz", flipped, 4, {"gzip data is damaged"}},
      {"prose.txt.gz", prose, 4, {"gzip data is damaged"}},
      {"cut.txt.zst", zst.substr(0, zst.size() / 2), 4, {"zstd data is cut off"}},
      {"prose.txt.zst", prose, 4, {"near compressed byte"}},
      {"empty.txt.gz", "", 4, {"gzip data is cut off"}},
  };
  for (const Text& c : cases) {
    SCOPED_TRACE(c.name);
    write_text(dir / c.name, c.content);
    expect_refusal(train_on(dir / c.name), c.code,
                   c.words + Words{c.code == 4 && c.name == "short.txt" ? "" : c.name});
    EXPECT_TRUE(find_checkpoints(dir / "run").empty());
  }
  // The control: what was cut and flipped above is fine as it was.
  write_text(dir / "whole.txt.zst", zst);
  expect_success(train_on(dir / "whole.txt.zst"));
}

TEST_F(CliData, IsRefusedWhereItsNameLeadsNowhere) {
  expect_refusal(train_on(dir / "nowhere.txt"), 2, {"--data", dir / "nowhere.txt", "no such file"});
  fs::create_directory(dir / "hollow");
  expect_refusal(train_on(dir / "hollow"), 2, {dir / "hollow", "holds no text", ".jsonl"});
  expect_refusal(train_on("-"), 2, {"standard input", "--cache"});
  expect_refusal(train_on(dir / "text.txt", {"--cache", dir / "text.txt"}), 7, {dir / "text.txt"});
  expect_refusal(train_on(dir / "text.txt", {"--tokenizer", dir / "nowhere"}), 2,
                 {"--tokenizer", dir / "nowhere", "no such file"});
  expect_refusal(train_on(dir / "text.txt", {"--val-data", dir / "nowhere.txt"}), 2, {dir / "nowhere.txt"});
  expect_refusal(train_on(dir / "text.txt", {"--vocab-size", "100"}), 2, {"--vocab-size 100", "265"});
  expect_refusal(train_on(dir / "text.txt", {"--out", dir / "text.txt"}), 7, {dir / "text.txt", "--out"});
  expect_refusal(train_on(dir / "text.txt", {"--tokenizer-kind", "words"}), 2, {"words"});
  expect_refusal(train_on(dir / "text.txt", {"--tokenizer-kind", "bpe", "--split-pattern", "gpt9"}), 2,
                 {"gpt9"});
}

TEST_F(CliData, PromptsThatAVocabularyCannotSpellEndNoRun) {
  const Words chars{"--tokenizer-kind", "char"};
  write_text(dir / "small.txt", tiny_text(100));
  expect_success(train_on(dir / "small.txt", chars));  // the default prompt has a T, the text has none
  expect_refusal(train_on(dir / "small.txt", chars + Words{"--prompt", "Zebra"}), 2, {"--prompt", "'Z'"});
  expect_refusal(run({"sample", "--out", dir / "run", "--prompt", "Zebra"}), 2, {"--prompt", "'Z'"});
  expect_success(run({"sample", "--out", dir / "run"}));
}

class CliShards : public CliData {
 protected:
  fs::path shards;

  void SetUp() override {
    Cli::SetUp();
    shards = dir.path() / "shards";
    const Ended made = run(
        {"tokenize", "--data", dir / "text.txt", "--cache", shards.string(), "--tokenizer-kind", "bytes"});
    ASSERT_EQ(made.code, 0) << made.err;
  }
  static void put_u16(std::string& content, std::size_t position, std::uint16_t id) {
    std::memcpy(content.data() + 1024 + 2 * position, &id, 2);
  }
};

TEST_F(CliShards, AreRefusedWhenDamaged) {
  struct Damage {
    const char* file;
    std::function<void(std::string&)> change;
    Words words;
    bool without_side = false;
  };
  const auto first_word = [](std::uint32_t value) {
    return [value](std::string& s) { std::memcpy(s.data(), &value, 4); };
  };
  const Damage cases[] = {
      {"train_000000.bin", cut_in_half, {"truncated"}},
      {"train_000000.bin", [](std::string& s) { s.resize(100); }, {"truncated"}},
      {"train_000000.bin", [](std::string& s) { s += "more"; }, {"too long"}},
      {"train_000000.bin", flip_a_bit, {"checksum"}},
      {"val_000000.bin", flip_a_bit, {"checksum"}},
      {"train_000000.bin", first_word(7), {"magic number 7", "offset 0"}},
      {"train_000000.bin",
       [](std::string& s) { s[8] = s[9] = s[10] = '\xff', s[11] = '\x7f'; },
       {"truncated"}},
      {"train_000000.bin", [](std::string& s) { s[11] = '\xff'; }, {"token count", "offset 8"}},
      {"train_000000.bin",
       [](std::string& s) { put_u16(s, 5, 60000); },
       {"token 60000 at position 5", "265"},
       true},
      {"val_000000.bin",
       [](std::string& s) { put_u16(s, 0, 265); },
       {"token 265 at position 0", "265"},
       true},
      {"train_000000.bin.json", cut_in_half, {}},
      {"train_000000.bin.json",
       [](std::string& s) { s.replace(s.find("\"tokens\""), 8, "\"tokenz\""); },
       {"tokens"}},
      {"train_000000.bin.json",
       [](std::string& s) { s.replace(s.find("vocab_hash") + 14, 4, "0000"); },
       {"vocabulary"}},
      {"dataset.json", cut_in_half, {}},
      {"tokenizer.txt", [](std::string& s) { s.resize(10); }, {"line 1"}},
      {"tokenizer.txt",
       [](std::string& s) { s = "qtrain-tokenizer 1\n" + std::string(5000, '[') + "\n"; },
       {"line 2"}},
      {"tokenizer.txt",
       [](std::string& s) { s.replace(s.find("\"tokens\":0"), 10, "\"tokens\":999999999999"); },
       {"tokens"}},
      {"tokenizer.txt",
       [](std::string& s) { s.replace(s.find("\"bytes\""), 7, "\"magic\""); },
       {"line 2", "magic"}},
      {"tokenizer.txt", [](std::string& s) { s += "QQ== 0\n"; }, {"line 3"}},
  };
  for (std::size_t i = 0; i < std::size(cases); ++i) {
    const Damage& c = cases[i];
    SCOPED_TRACE(std::string(c.file) + ", case " + std::to_string(i));
    const fs::path folder = dir.path() / ("case" + std::to_string(i));
    fs::copy(shards, folder);
    edit(folder / c.file, c.change);
    if (c.without_side) fs::remove(folder / (std::string(c.file) + ".json"));
    const bool shard_side = std::string(c.file).ends_with(".bin.json");
    expect_refusal(train_on(folder.string()), 4,
                   c.words + Words{shard_side ? "train_000000.bin" : (folder / c.file).string()});
  }
  expect_success(train_on(shards.string()));
}

TEST_F(CliShards, AreRefusedWhenTheyBelongElsewhere) {
  const Ended chars =
      run({"tokenize", "--data", dir / "text.txt", "--cache", dir / "chars", "--tokenizer-kind", "char"});
  expect_success(chars);
  expect_refusal(train_on(shards.string(), {"--tokenizer", dir / "chars/tokenizer.txt"}), 2,
                 {"--tokenizer", shards.string()});
  expect_refusal(run(shape() + Words{"--data", shards.string(), dir / "text.txt"}), 2, {"--data", "shard"});
  expect_refusal(run(shape() + Words{"--data", dir / "text.txt", shards.string()}), 2,
                 {"--data", dir / "text.txt"});
  expect_refusal(train_on(shards.string(), {"--val-data", dir / "text.txt"}), 2, {"--val-data", ".bin"});
  expect_refusal(train_on(dir / "text.txt", {"--val-data", (shards / "val_000000.bin").string()}), 2,
                 {"--val-data", "text"});
  fs::copy_file(dir / "chars/tokenizer.txt", shards / "tokenizer.txt", fs::copy_options::overwrite_existing);
  expect_refusal(train_on(shards.string()), 4, {"train_000000.bin", "vocabulary"});
  fs::remove(shards / "train_000000.bin");
  expect_refusal(train_on(shards.string()), 4, {shards.string(), "train*.bin"});
}

}  // namespace
}  // namespace qt::test
