// From text to shards: what comes out, that it is found again, that a stop or a failing disk at any moment
// changes nothing in the result, and that memory stays bounded.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <map>
#include <random>
#include <string>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <zstd.h>

#include "src/core/error.h"
#include "src/data/batches.h"
#include "src/data/dataset.h"
#include "src/data/unigram.h"
#include "tests/support/text.h"

#if defined(__SANITIZE_ADDRESS__)
#define QT_TEST_ADDRESS_SANITIZER  // g++
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define QT_TEST_ADDRESS_SANITIZER  // clang
#endif
#endif

namespace qt {
namespace {

namespace fs = std::filesystem;
using Ids = std::vector<std::int32_t>;

Ids all_ids(const std::vector<fs::path>& shards, const Tokenizer& tokenizer) {
  Ids ids;
  for (const auto& shard : open_shards(shards, tokenizer)) {
    Ids part(static_cast<std::size_t>(shard.tokens()));
    shard.copy(0, part);
    ids.insert(ids.end(), part.begin(), part.end());
  }
  return ids;
}

// Every file of a folder but the lock.
std::map<std::string, std::string> content_of(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().filename() != ".lock")
      files[entry.path().filename().string()] = read_bytes(entry.path());
  }
  return files;
}

std::string lines_of_text(std::uint64_t seed, std::size_t bytes) {
  std::mt19937_64 rng(seed);
  std::string text;
  while (text.size() < bytes) text += random_text(rng, 12) + "\n";
  return text;
}

std::string valid_utf8(std::string text) {
  std::string kept;
  for (const char c : text) {
    if (static_cast<unsigned char>(c) < 0x80 && c != '\0') kept += c;
  }
  return kept;
}

std::string jsonl(const std::vector<std::string>& documents) {
  std::string lines;
  for (const std::string& document : documents) {
    lines += "{\"text\":\"";
    for (const char c : document) {
      if (c == '"' || c == '\\') lines += '\\';
      lines += static_cast<unsigned char>(c) < 0x20 ? fmt::format("\\u{:04x}", c) : std::string(1, c);
    }
    lines += "\"}\n";
  }
  return lines;
}

std::string zstd(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 1));
  return out;
}

// What differs between two folders, in few words.
std::string difference(const std::map<std::string, std::string>& a,
                       const std::map<std::string, std::string>& b) {
  std::string names;
  for (const auto& [name, bytes] : a) {
    if (!b.count(name))
      names += fmt::format("{} only in the first; ", name);
    else if (b.at(name) != bytes)
      names += fmt::format("{} differs; ", name);
  }
  for (const auto& [name, bytes] : b) {
    if (!a.count(name)) names += fmt::format("{} only in the second; ", name);
  }
  return names;
}

// The real disk without waiting for it. Operation number `fail_at` and all after it fail, as on a full or
// vanished disk.
class TestDisk final : public FileSystem {
 public:
  explicit TestDisk(int fail_at = 1 << 30) : left_(fail_at) {}
  int operations() const { return operations_; }
  int open(const fs::path& path, int flags, unsigned mode) override {
    return fails() ? -ENOSPC : real_.open(path, flags, mode);
  }
  std::int64_t write(int fd, const std::byte* data, std::size_t bytes) override {
    return fails() ? -ENOSPC : real_.write(fd, data, bytes);
  }
  int fsync(int) override { return fails() ? -EIO : 0; }
  int close(int fd) override { return real_.close(fd); }
  int mkdir(const fs::path& path) override { return fails() ? -ENOSPC : real_.mkdir(path); }
  int rmdir(const fs::path& path) override { return fails() ? -EIO : real_.rmdir(path); }
  int unlink(const fs::path& path) override { return fails() ? -EIO : real_.unlink(path); }
  int rename(const fs::path& from, const fs::path& to) override {
    return fails() ? -EIO : real_.rename(from, to);
  }
  int exchange(const fs::path& a, const fs::path& b) override {
    return fails() ? -EIO : real_.exchange(a, b);
  }
  std::int64_t free_bytes(const fs::path& path) override { return real_.free_bytes(path); }

 private:
  bool fails() { return ++operations_, left_-- <= 0; }
  FileSystem& real_ = posix_fs();
  int left_, operations_ = 0;
};

class Ingestion : public testing::Test {
 protected:
  std::string file(const std::string& name, const std::string& content) {
    write_bytes(folder_ / name, content);
    return (folder_ / name).string();
  }
  DataSpec spec(std::vector<std::string> inputs, const std::string& out = "out") {
    DataSpec s;
    s.inputs = std::move(inputs);
    s.tokenizer.vocab_size = 400;
    s.out_dir = folder_ / out;
    return s;
  }
  Folder folder_;
  TestDisk disk_;
};

TEST_F(Ingestion, TokensOfATextFileDecodeToTheFileAndTheCutIsAtALineEnd) {
  const std::string text = lines_of_text(1, 60'000);
  const DataSpec s = spec({file("a.txt", text)});
  const PreparedData data = prepare_data(s, {}, disk_);
  ASSERT_TRUE(data.tokenizer);
  EXPECT_EQ(data.tokenizer->vocab_size(), 400);
  const Ids train = all_ids(data.train_shards, *data.tokenizer),
            val = all_ids(data.val_shards, *data.tokenizer);
  const std::string head = data.tokenizer->decode(train), tail = data.tokenizer->decode(val);
  EXPECT_EQ(head + tail, text);
  EXPECT_EQ(head.back(), '\n');
  EXPECT_NEAR(static_cast<double>(tail.size()), 0.1 * static_cast<double>(text.size()), 200);
  EXPECT_EQ(train[0], data.tokenizer->bos());
  EXPECT_EQ(val[0], data.tokenizer->bos());
  EXPECT_EQ(std::count(train.begin(), train.end(), data.tokenizer->bos()), 1);
  EXPECT_EQ(data.report.train.tokens, static_cast<std::int64_t>(train.size()));
  EXPECT_EQ(data.report.train.text_bytes + data.report.val.text_bytes,
            static_cast<std::int64_t>(text.size()));
  EXPECT_FALSE(data.report.reused);
  EXPECT_FALSE(fs::exists(s.out_dir / "ingest.json"));

  // The merges come from the training part alone.
  TokenizerTrainer trainer(s.tokenizer);
  trainer.add(head);
  EXPECT_EQ(trainer.finish().hash(), data.tokenizer->hash());

  // Evaluation sees every byte of the validation text, so its bits per byte and the unigram's have the same
  // divisor.
  const EvalBatches eval(TokenStream(open_shards(data.val_shards, *data.tokenizer)), 64,
                         data.tokenizer->token_bytes_table());
  EXPECT_EQ(eval.total_bytes(), static_cast<std::int64_t>(tail.size()));
  std::vector<std::int64_t> train_counts(400), val_counts(400);
  for (const auto id : train) ++train_counts[static_cast<std::size_t>(id)];
  for (const auto id : val) ++val_counts[static_cast<std::size_t>(id)];
  EXPECT_EQ(data.report.unigram_bpb,
            unigram_bpb(train_counts, val_counts, data.tokenizer->token_bytes_table()));
  EXPECT_GT(data.report.unigram_bpb, 0.5);
}

TEST_F(Ingestion, EachDocumentOpensWithBosAndCountsAsItsText) {
  std::vector<std::string> documents;
  for (int i = 0; i < 200; ++i)
    documents.push_back(valid_utf8(lines_of_text(static_cast<std::uint64_t>(i), 300)));
  DataSpec s = spec({file("a.jsonl.zst", zstd(jsonl(documents))), file("b.txt", lines_of_text(5, 3000))});
  s.val_inputs = {file("v.txt", lines_of_text(6, 2000))};
  const PreparedData data = prepare_data(s, {}, disk_);
  const Ids train = all_ids(data.train_shards, *data.tokenizer);
  std::vector<std::string> decoded;
  Ids document;
  for (std::size_t i = 0; i <= train.size(); ++i) {
    if (i == train.size() || train[i] == data.tokenizer->bos()) {
      if (!document.empty()) decoded.push_back(data.tokenizer->decode(document));
      document.clear();
    } else {
      document.push_back(train[i]);
    }
  }
  ASSERT_EQ(decoded.size(), 201u);
  EXPECT_TRUE(std::equal(documents.begin(), documents.end(), decoded.begin()));
  EXPECT_EQ(decoded.back(), lines_of_text(5, 3000));
  EXPECT_EQ(data.tokenizer->decode(all_ids(data.val_shards, *data.tokenizer)), lines_of_text(6, 2000));
}

TEST_F(Ingestion, TheSameCallAgainReusesTheFolderAndAnotherOneReplacesIt) {
  const std::string path = file("a.txt", lines_of_text(1, 60'000));
  DataSpec s = spec({path});
  prepare_data(s, {}, disk_);
  const auto first = content_of(s.out_dir);
  EXPECT_TRUE(prepare_data(s, {}, disk_).report.reused);
  EXPECT_EQ(difference(content_of(s.out_dir), first), "");
  s.shard_tokens = 4000;
  const PreparedData cut = prepare_data(s, {}, disk_);
  EXPECT_FALSE(cut.report.reused);
  EXPECT_GT(cut.train_shards.size(), 3u);
  s.tokenizer.vocab_size = 300;
  EXPECT_EQ(prepare_data(s, {}, disk_).tokenizer->vocab_size(), 300);
  s.shard_tokens = kShardMaxTokens;
  s.tokenizer.vocab_size = 400;
  prepare_data(s, {}, disk_);
  EXPECT_EQ(difference(content_of(s.out_dir), first), "");  // nothing of the others remained
  write_bytes(path, lines_of_text(2, 60'000));
  EXPECT_FALSE(prepare_data(s, {}, disk_).report.reused);
}

TEST_F(Ingestion, StoppedAnywhereAndContinuedGivesTheSameBytesAsWithoutStop) {
  std::vector<std::string> documents;
  for (int i = 0; i < 60; ++i)
    documents.push_back(valid_utf8(lines_of_text(static_cast<std::uint64_t>(i), 400)));
  const std::vector<std::string> inputs = {file("a.txt", lines_of_text(1, 30'000)),
                                           file("b.jsonl", jsonl(documents)),
                                           file("c.txt.zst", zstd(lines_of_text(2, 30'000)))};
  DataSpec s = spec(inputs, "straight");
  s.shard_tokens = 3000;
  std::int64_t polls = 0;
  prepare_data(s, {.progress = {}, .stop = [&] { return ++polls, false; }}, disk_);
  const auto expected = content_of(s.out_dir);
  ASSERT_GT(expected.size(), 10u);

  int resumed = 0;
  for (std::int64_t stop_at = 1; stop_at <= polls; stop_at += 1 + polls / 40) {
    s.out_dir = folder_ / fmt::format("stopped{}", stop_at);
    std::int64_t asked = 0;
    const DataHooks stopping = {.progress = {}, .stop = [&] { return ++asked == stop_at; }};
    EXPECT_THROW(prepare_data(s, stopping, disk_), StopRequested) << stop_at;
    EXPECT_FALSE(fs::exists(s.out_dir / "dataset.json"));
    const PreparedData data = prepare_data(s, {}, disk_);
    resumed += data.report.resumed;
    EXPECT_EQ(difference(content_of(s.out_dir), expected), "") << stop_at << " of " << polls;
    fs::remove_all(s.out_dir);
  }
  EXPECT_GT(resumed, 20);
}

TEST_F(Ingestion, ADiskThatFailsAtAnyOperationLeavesWhatTheNextCallCompletes) {
  DataSpec s = spec({file("a.txt", lines_of_text(1, 20'000))}, "straight");
  s.shard_tokens = 3000;
  TestDisk counting;
  prepare_data(s, {}, counting);
  const auto expected = content_of(s.out_dir);
  ASSERT_GT(counting.operations(), 50);
  for (int fail_at = 0; fail_at < counting.operations(); fail_at += 2) {
    s.out_dir = folder_ / fmt::format("failed{}", fail_at);
    TestDisk disk(fail_at);
    const bool failed = !thrown<DiskError>([&] { prepare_data(s, {}, disk); }).empty();
    // Only tidying up behind the manifest may fail without being an error.
    EXPECT_TRUE(failed || fs::exists(s.out_dir / "dataset.json")) << fail_at;
    prepare_data(s, {}, disk_);
    EXPECT_EQ(difference(content_of(s.out_dir), expected), "") << fail_at;
    fs::remove_all(s.out_dir);
  }
}

TEST_F(Ingestion, ADamagedShardOfAnUnfinishedRunIsNoticedBeforeContinuing) {
  DataSpec s = spec({file("a.txt", lines_of_text(1, 60'000))});
  s.shard_tokens = 3000;
  const DataHooks stopping = {.progress = {},
                              .stop = [&] { return fs::exists(s.out_dir / "train_000002.bin"); }};
  // One part is the whole file here, so stop is asked again only after it: the first call ends in the
  // validation split.
  EXPECT_THROW(prepare_data(s, stopping, disk_), StopRequested);
  std::string bytes = read_bytes(s.out_dir / "train_000001.bin");
  bytes[2000] ^= 4;
  write_bytes(s.out_dir / "train_000001.bin", bytes);
  const std::string what = thrown<DataError>([&] { prepare_data(s, {}, disk_); });
  EXPECT_NE(what.find("cannot continue"), std::string::npos) << what;
  EXPECT_NE(what.find("train_000001.bin: checksum"), std::string::npos) << what;
}

TEST_F(Ingestion, AnInputThatChangesWhileItIsReadIsAnError) {
  const std::string path = file("a.txt", lines_of_text(1, 3'000'000));
  DataSpec s = spec({path});
  bool changed = false;
  const DataHooks hooks = {.progress =
                               [&](const DataProgress& p) {
                                 if (std::string(p.phase) != "tokenizing" || std::exchange(changed, true))
                                   return;
                                 fs::resize_file(path, 2'800'000);
                               },
                           .stop = {}};
  const std::string what = thrown<DataError>([&] { prepare_data(s, hooks, disk_); });
  EXPECT_NE(what.find("an input changed"), std::string::npos) << what;
  EXPECT_FALSE(fs::exists(s.out_dir / "dataset.json"));
}

TEST_F(Ingestion, CharAndBytesTokenizersAndAGivenOne) {
  const std::string text =
      valid_utf8(lines_of_text(1, 20'000)) + "\xE2\x82\xAC\n";  // the euro is in the validation part alone
  DataSpec s = spec({file("a.txt", text)});
  s.tokenizer.kind = TokenizerKind::chars;
  PreparedData data = prepare_data(s, {}, disk_);
  EXPECT_EQ(data.tokenizer->bos(), -1);
  EXPECT_EQ(data.tokenizer->decode(all_ids(data.train_shards, *data.tokenizer)) +
                data.tokenizer->decode(all_ids(data.val_shards, *data.tokenizer)),
            text);
  s.tokenizer.kind = TokenizerKind::bytes;
  data = prepare_data(s, {}, disk_);
  EXPECT_EQ(data.tokenizer->vocab_size(), 265);
  EXPECT_EQ(data.report.train.tokens, data.report.train.text_bytes + 1);

  TokenizerTrainer trainer({.kind = TokenizerKind::chars});
  trainer.add("abc");
  trainer.finish().save(posix_fs(), folder_ / "abc.txt");
  s.tokenizer_file = folder_ / "abc.txt";
  const std::string what = thrown<DataError>([&] { prepare_data(s, {}, disk_); });
  EXPECT_NE(what.find("a.txt: character"), std::string::npos) << what;
}

TEST_F(Ingestion, TinyShakespeareSplitsAsInNanoGpt) {
  const std::string text = shared_file("tinyshakespeare.txt");
  if (text.empty()) GTEST_SKIP() << "../shared/data/tinyshakespeare.txt is absent";
  DataSpec s = spec({file("input.txt", text)});
  s.tokenizer.kind = TokenizerKind::chars;
  const PreparedData data = prepare_data(s, {}, disk_);
  EXPECT_EQ(data.tokenizer->vocab_size(), 65);
  // nanoGPT cuts at character 1,003,854; here the line is finished first.
  EXPECT_GE(data.report.train.tokens, 1003854);
  EXPECT_LT(data.report.train.tokens, 1003854 + 100);
}

TEST_F(Ingestion, StandardInputIsReadLikeAFile) {
  const std::string text = lines_of_text(1, 50'000);
  const int saved = ::dup(STDIN_FILENO);
  const auto with_stdin = [&](const std::string& content) {
    const std::string path = file("piped", content);
    const int fd = ::open(path.c_str(), O_RDONLY);
    ::dup2(fd, STDIN_FILENO);
    ::close(fd);
    return prepare_data(spec({"-"}), {}, disk_);
  };
  const PreparedData data = with_stdin(text);
  EXPECT_EQ(data.tokenizer->decode(all_ids(data.train_shards, *data.tokenizer)) +
                data.tokenizer->decode(all_ids(data.val_shards, *data.tokenizer)),
            text);
  EXPECT_TRUE(with_stdin(text).report.reused);
  EXPECT_FALSE(fs::exists(folder_ / "out/stdin.spool"));
  std::vector<std::string> documents(50, valid_utf8(lines_of_text(3, 5000)));
  const PreparedData lines = with_stdin(jsonl(documents));
  EXPECT_FALSE(lines.report.reused);
  EXPECT_EQ(lines.report.train.text_bytes + lines.report.val.text_bytes,
            50 * static_cast<std::int64_t>(documents[0].size()));
  ::dup2(saved, STDIN_FILENO);
  ::close(saved);
}

TEST_F(Ingestion, RefusesASecondProcessForeignShardsAndImpossibleRequests) {
  const std::string path = file("a.txt", lines_of_text(1, 60'000));
  const DataSpec s = spec({path});
  std::string inner;
  const DataHooks hooks = {
      .progress =
          [&](const DataProgress&) { inner = thrown<ConfigError>([&] { prepare_data(s, {}, disk_); }); },
      .stop = {}};
  prepare_data(s, hooks, disk_);
  EXPECT_NE(inner.find("another process"), std::string::npos) << inner;

  const DataSpec foreign = spec({path}, "foreign");
  fs::create_directories(foreign.out_dir);
  write_bytes(foreign.out_dir / "train_000000.bin", "precious");
  EXPECT_NE(
      thrown<ConfigError>([&] { prepare_data(foreign, {}, disk_); }).find("did not make (train_000000.bin)"),
      std::string::npos);
  EXPECT_EQ(read_bytes(foreign.out_dir / "train_000000.bin"), "precious");

  const auto refused = [&](auto change) {
    DataSpec bad = spec({path}, "bad");
    change(bad);
    const std::string what = thrown<ConfigError>([&] { prepare_data(bad); });
    EXPECT_FALSE(fs::exists(bad.out_dir)) << what;
    return what;
  };
  EXPECT_NE(refused([](DataSpec& d) { d.inputs.clear(); }).find("no text"), std::string::npos);
  EXPECT_NE(refused([](DataSpec& d) { d.inputs = {"/nonexistent"}; }).find("no such file"),
            std::string::npos);
  EXPECT_NE(refused([](DataSpec& d) { d.val_fraction = 1; }).find("--val-fraction 1"), std::string::npos);
  EXPECT_NE(refused([](DataSpec& d) { d.shard_tokens = 0; }).find("shards of 0"), std::string::npos);
  EXPECT_NE(refused([](DataSpec& d) { d.tokenizer.vocab_size = 100; }).find("vocabulary of 100"),
            std::string::npos);
  EXPECT_NE(refused([](DataSpec& d) { d.tokenizer.vocab_size = 65'537; }).find("vocabulary of 65537"),
            std::string::npos);
  EXPECT_NE(refused([](DataSpec& d) { d.tokenizer.pattern = "x"; }).find("split pattern"), std::string::npos);
  EXPECT_NE(refused([](DataSpec& d) { d.inputs = {"-", "-"}; }).find("only be read once"), std::string::npos);
  DataSpec greedy = spec({path}, "greedy");
  greedy.tokenizer.vocab_size = 60'000;
  EXPECT_NE(thrown<ConfigError>([&] { prepare_data(greedy, {}, disk_); }).find("runs out of pairs"),
            std::string::npos);
  const DataSpec empty = spec({file("empty.txt", "")}, "empty_out");
  EXPECT_NE(thrown<DataError>([&] { prepare_data(empty); }).find("no text to train on"), std::string::npos);
}

TEST_F(Ingestion, AFolderThatHoldsItsOwnTokenizedDataIsFoundUnchanged) {
  fs::create_directories(folder_ / "texts");
  file("texts/a.txt", lines_of_text(1, 60'000));
  const DataSpec s = spec({(folder_ / "texts").string()}, "texts/tokens");
  prepare_data(s, {}, disk_);
  EXPECT_TRUE(prepare_data(s, {}, disk_).report.reused);  // tokenizer.txt was not taken for a new text
}

TEST_F(Ingestion, ShardsAreUsedAsTheyAre) {
  DataSpec s = spec({file("a.txt", lines_of_text(1, 60'000))});
  s.shard_tokens = 5000;
  const PreparedData made = prepare_data(s, {}, disk_);
  const PreparedData opened = prepare_data(spec({s.out_dir.string()}, "unused"));
  EXPECT_FALSE(fs::exists(folder_ / "unused"));
  EXPECT_EQ(opened.train_shards, made.train_shards);
  EXPECT_EQ(opened.report.train.tokens, made.report.train.tokens);
  EXPECT_EQ(opened.report.unigram_bpb, made.report.unigram_bpb);
  const PreparedData one = open_dataset(made.train_shards[1]);
  EXPECT_EQ(one.report.train.tokens, 5000);
  EXPECT_TRUE(one.val_shards.empty());
  EXPECT_TRUE(one.tokenizer);

  fs::remove(made.train_shards[1]);
  EXPECT_NE(thrown<DataError>([&] { open_dataset(s.out_dir); }).find("a shard is missing"),
            std::string::npos);
  Tokenizer::make_bytes().save(posix_fs(), s.out_dir / "tokenizer.txt");
  EXPECT_NE(thrown<DataError>([&] { open_dataset(s.out_dir); }).find("was made with vocabulary"),
            std::string::npos);
  fs::create_directories(folder_ / "nothing");
  EXPECT_NE(thrown<DataError>([&] { open_dataset(folder_ / "nothing"); }).find("no shard named train*.bin"),
            std::string::npos);
}

TEST_F(Ingestion, ProgressRisesToTheWholeInEveryPhase) {
  std::map<std::string, std::int64_t> last, total;
  const DataHooks hooks = {.progress =
                               [&](const DataProgress& p) {
                                 EXPECT_GE(p.done_bytes, last[p.phase]);
                                 last[p.phase] = p.done_bytes;
                                 total[p.phase] = p.total_bytes;
                               },
                           .stop = {}};
  const std::string text = lines_of_text(1, 3'000'000);
  prepare_data(spec({file("a.txt", text)}), hooks, disk_);
  EXPECT_EQ(last["tokenizing"], static_cast<std::int64_t>(text.size()));
  EXPECT_EQ(total["tokenizing"], static_cast<std::int64_t>(text.size()));
  EXPECT_EQ(last["learning the tokenizer"], total["learning the tokenizer"]);
}

std::int64_t peak_rss_kib() {
  std::ifstream status("/proc/self/status");
  std::string line;
  while (std::getline(status, line)) {
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6));
  }
  return -1;
}

TEST_F(Ingestion, MemoryStaysBelowHalfAGibibyteForAStreamOf200Megabytes) {
#if defined(QT_TEST_ADDRESS_SANITIZER)
  GTEST_SKIP() << "the address sanitizer's own memory would be measured";
#endif
  // One compressed frame many times over: 200 MB to read, little on disk.
  std::mt19937_64 rng(1);
  std::vector<std::string> words, documents;
  for (int i = 0; i < 20'000; ++i) {
    words.emplace_back(" ");
    for (std::size_t n = 2 + rng() % 8; n > 0; --n) words.back() += static_cast<char>('a' + rng() % 26);
  }
  std::string text, many_texts, many_lines;
  while (text.size() < 5'000'000) {
    std::string line;
    while (line.size() < 2500) line += words[rng() % (1 + rng() % words.size())];
    documents.push_back(line);
    text += line + "\n";
  }
  for (int i = 0; i < 21; ++i) many_texts += zstd(text), many_lines += zstd(jsonl(documents));
  DataSpec s = spec({file("a.txt.zst", many_texts), file("b.jsonl.zst", many_lines)});
  s.tokenizer.max_chars = 10'000'000;
  std::ofstream("/proc/self/clear_refs") << "5";  // the peak starts anew
  const std::int64_t before = peak_rss_kib();
  if (before < 0) GTEST_SKIP() << "/proc/self/status is absent";
  const PreparedData data = prepare_data(s, {}, disk_);
  EXPECT_GT(data.report.train.text_bytes + data.report.val.text_bytes, 200'000'000);
  EXPECT_LT(peak_rss_kib(), 512 * 1024);
  fmt::print("peak {} MiB ({} before), {:.1f} MB/s\n", peak_rss_kib() / 1024, before / 1024,
             data.report.mb_per_s);
}

}  // namespace
}  // namespace qt
