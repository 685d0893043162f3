#include "src/data/dataset.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "src/core/error.h"
#include "src/data/ingest.h"
#include "src/io/file.h"
#include "src/io/hash.h"

namespace qt {
namespace {

namespace fs = std::filesystem;

// `split`: "train" or "val"; "" takes every .bin. Ours and nanoGPT's begin with it, llm.c's have it after a
// name.
bool is_shard_name(const std::string& name, const std::string& split) {
  if (!name.ends_with(".bin")) return false;
  if (name.starts_with("train") || name.starts_with("val")) return name.starts_with(split);
  return split.empty() || name.find("_" + split) != std::string::npos;
}

// Sorted.
std::vector<fs::path> shards_in(const fs::path& folder, const char* split) {
  std::vector<fs::path> found;
  if (!fs::is_directory(folder)) return found;
  for (const std::string& name : list_dir(folder)) {
    if (is_shard_name(name, split)) found.push_back(folder / name);
  }
  return found;
}

// Held while a folder is written: a second process would interleave its shards with ours.
class FolderLock {
 public:
  explicit FolderLock(const fs::path& folder) {
    const auto path = folder / ".lock";
    fd_ = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd_ < 0) throw_disk_error(path, "create", errno);
    if (::flock(fd_, LOCK_EX | LOCK_NB) == 0) return;
    ::close(fd_);
    throw ConfigError(fmt::format("{}: another process is tokenizing into this folder", folder.string()),
                      "wait for it, or choose another folder");
  }
  ~FolderLock() { ::close(fd_); }
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

 private:
  int fd_ = -1;
};

// Copies standard input into the folder: it is needed more than once (measure, learn, tokenize).
CorpusFile spool_stdin(const fs::path& folder, const DataHooks& hooks, FileSystem& disk) {
  const auto path = folder / "stdin.spool";
  OutputFile file(disk, path, OutputFile::Existing::replace);
  DataMeter meter(hooks, "reading standard input", 0);
  std::string buffer(std::size_t{256} << 10, '\0');
  while (true) {
    const ssize_t n = ::read(STDIN_FILENO, buffer.data(), buffer.size());
    if (n < 0 && errno == EINTR) {
      meter.check_stop();
      continue;
    }
    QT_CHECK(n >= 0, DataError, "standard input: {}", std::strerror(errno));
    if (n == 0) break;
    file.write(std::string_view(buffer).substr(0, static_cast<std::size_t>(n)));
    meter.update(static_cast<std::int64_t>(file.bytes()));
  }
  file.finish();
  return {path, detect_format(path, Compression::none), Compression::none,
          static_cast<std::int64_t>(file.bytes()), file.hash_hex()};
}

std::vector<CorpusFile> collect(const std::vector<std::string>& inputs, const DataSpec& spec,
                                const DataHooks& hooks, FileSystem& disk) {
  std::vector<CorpusFile> files;
  for (const std::string& input : inputs) {
    if (input == "-") {
      files.push_back(spool_stdin(spec.out_dir, hooks, disk));
    } else {
      const auto more = expand_inputs({input});
      files.insert(files.end(), more.begin(), more.end());
    }
  }
  return files;
}

void check_spec(const DataSpec& spec) {
  if (spec.inputs.empty()) {
    throw ConfigError("no text to tokenize was named",
                      "name text or JSONL files, a folder, or - for standard input");
  }
  QT_CHECK(spec.val_fraction >= 0 && spec.val_fraction < 1, ConfigError, "--val-fraction {} is not in [0, 1)",
           spec.val_fraction);
  QT_CHECK(spec.shard_tokens >= 1 && spec.shard_tokens <= kShardMaxTokens, ConfigError,
           "shards of {} tokens are not possible: 1 to {} are", spec.shard_tokens, kShardMaxTokens);
  QT_CHECK(std::count(spec.inputs.begin(), spec.inputs.end(), "-") +
                   std::count(spec.val_inputs.begin(), spec.val_inputs.end(), "-") <=
               1,
           ConfigError, "standard input can only be read once");
  // What cannot work is refused before the folder is made and before any work.
  if (spec.tokenizer_file.empty()) {
    TokenizerTrainer{spec.tokenizer};
    QT_CHECK(spec.tokenizer.kind != TokenizerKind::bpe || spec.tokenizer.vocab_size <= kShardMaxVocab,
             ConfigError, "a vocabulary of {} does not fit the 16-bit tokens of a shard (at most {})",
             spec.tokenizer.vocab_size, kShardMaxVocab);
  }
  for (const auto* inputs : {&spec.inputs, &spec.val_inputs}) {
    for (const std::string& input : *inputs) {
      if (input != "-") expand_inputs({input});
    }
  }
}

// Removes what an earlier, different run left; refuses where shards lie that no run of ours made: those have
// side files.
void clear_folder(const fs::path& folder, FileSystem& disk) {
  const auto shards = shards_in(folder, "");
  for (const auto& shard : shards) {
    if (fs::exists(shard_side_path(shard))) continue;
    throw ConfigError(fmt::format("{}: holds a token shard that this command did not make ({})",
                                  folder.string(), shard.filename().string()),
                      "choose another folder for the tokenized data, or train on these shards as they are");
  }
  disk.unlink(dataset_path(folder));  // first: without it the rest does not count as complete
  for (const std::string& name : list_dir(folder)) {
    const bool ours = name.starts_with("train_") || name.starts_with("val_");
    if (ours && (name.ends_with(".bin") || name.ends_with(".bin.tmp"))) disk.unlink(folder / name);
  }
  for (const std::string& name : list_dir(folder)) {
    const bool ours = name.starts_with("train_") || name.starts_with("val_");
    if (ours && name.ends_with(".bin.json")) disk.unlink(folder / name);
  }
  disk.unlink(tokenizer_path(folder));
  disk.unlink(ingest_path(folder));
}

}  // namespace

bool is_shard_path(const fs::path& path) {
  if (fs::is_directory(path)) return !shards_in(path, "").empty() || fs::exists(dataset_path(path));
  return path.extension() == ".bin" && fs::is_regular_file(path);
}

std::vector<ShardReader> open_shards(const std::vector<fs::path>& shards, const Tokenizer& tokenizer,
                                     ShardVerify verify) {
  std::vector<ShardReader> readers;
  // Numbers alone name no vocabulary that a side file could be compared with.
  const std::string hash = tokenizer.has_text() ? tokenizer.hash() : std::string();
  for (const auto& shard : shards) readers.emplace_back(shard, tokenizer.vocab_size(), hash, verify);
  return readers;
}

PreparedData open_dataset(const fs::path& path) {
  PreparedData data;
  const fs::path folder = fs::is_directory(path)   ? path
                          : path.has_parent_path() ? path.parent_path()
                                                   : fs::path(".");
  if (fs::exists(tokenizer_path(folder))) data.tokenizer = Tokenizer::load(tokenizer_path(folder));
  if (fs::is_directory(path)) {
    if (fs::exists(ingest_path(folder)) && !fs::exists(dataset_path(folder))) {
      throw DataError(fmt::format("{}: its tokenizing was never finished", path.string()),
                      "run the command that began it again: it continues");
    }
    data.train_shards = shards_in(folder, "train");
    data.val_shards = shards_in(folder, "val");
  } else {
    data.train_shards = {path};
  }
  if (data.train_shards.empty()) {
    throw DataError(fmt::format("{}: no shard named train*.bin", path.string()),
                    "name a folder made by `qtrain tokenize`, or text to tokenize");
  }
  const std::int64_t vocab_size = data.tokenizer ? data.tokenizer->vocab_size() : kShardMaxVocab;
  const std::string hash = data.tokenizer ? data.tokenizer->hash() : std::string();
  bool all_sides = true;
  const auto total = [&](const std::vector<fs::path>& shards, SplitReport& report) {
    for (const auto& shard : shards) {
      const ShardReader reader(shard, vocab_size, hash, ShardVerify::header);
      report.tokens += reader.tokens();
      if (reader.side()) report.text_bytes += reader.side()->text_bytes;
      all_sides &= reader.side().has_value();
    }
  };
  total(data.train_shards, data.report.train);
  total(data.val_shards, data.report.val);
  if (!fs::is_directory(path)) return data;
  if (const auto manifest = read_dataset_manifest(folder)) {
    QT_CHECK(data.tokenizer && manifest->vocab_hash == hash, DataError,
             "{}: its tokenizer is not the one it was made with", path.string());
    QT_CHECK(
        manifest->train.tokens == data.report.train.tokens && manifest->val.tokens == data.report.val.tokens,
        DataError,
        "{}: the shards hold {} + {} tokens, dataset.json says {} + {}: a shard is missing or foreign",
        path.string(), data.report.train.tokens, data.report.val.tokens, manifest->train.tokens,
        manifest->val.tokens);
    // Where a side file is gone, nothing counts the bytes of its shard.
    const bool same_text = manifest->train.text_bytes == data.report.train.text_bytes &&
                           manifest->val.text_bytes == data.report.val.text_bytes;
    QT_CHECK(
        same_text || !all_sides, DataError,
        "{}: the side files count {} + {} bytes of text, dataset.json says {} + {}: one of them is damaged",
        path.string(), data.report.train.text_bytes, data.report.val.text_bytes, manifest->train.text_bytes,
        manifest->val.text_bytes);
    data.report.unigram_bpb = manifest->unigram_bpb;
  }
  return data;
}

void choose_tokenizer(PreparedData& data, const fs::path& tokenizer_file, std::int64_t vocab_size) {
  const fs::path folder = data.train_shards.empty() ? fs::path() : data.train_shards.front().parent_path();
  if (!tokenizer_file.empty()) {
    Tokenizer named = Tokenizer::load(tokenizer_file);
    if (data.tokenizer && data.tokenizer->hash() != named.hash()) {
      throw ConfigError(
          fmt::format("the tokenizer '{}' is not the one that the shards in '{}' were made with",
                      tokenizer_file.string(), folder.string()),
          "leave --tokenizer out, or tokenize the text again");
    }
    data.tokenizer = std::move(named);
  }
  if (data.tokenizer) return;
  if (vocab_size > 0) {
    data.tokenizer = Tokenizer::make_ids(vocab_size);
    return;
  }
  const bool pickle = fs::exists(folder / "meta.pkl");
  throw ConfigError(
      fmt::format("the shards in '{}' come without a tokenizer{}", folder.string(),
                  pickle ? "; the meta.pkl beside them is a Python pickle, which is never read" : ""),
      pickle
          ? "make the same characters with `qtrain tokenize --tokenizer-kind char --data input.txt` and name "
            "its tokenizer.txt with --tokenizer; or give --vocab-size N (65 for tiny shakespeare) to train "
            "on numbers alone"
          : "put its tokenizer.txt beside them, or name it with --tokenizer (GPT-2's: the folder with "
            "vocab.json and merges.txt); or give --vocab-size N to train on numbers alone");
}

PreparedData prepare_data(const DataSpec& spec, const DataHooks& hooks, FileSystem& disk) {
  const auto start = std::chrono::steady_clock::now();
  if (spec.inputs.size() == 1 && is_shard_path(spec.inputs.front())) return open_dataset(spec.inputs.front());
  check_spec(spec);
  std::error_code failed;
  fs::create_directories(spec.out_dir, failed);
  if (failed) throw_disk_error(spec.out_dir, "create the folder", failed.value());
  const FolderLock lock(spec.out_dir);

  std::vector<CorpusFile> files = collect(spec.inputs, spec, hooks, disk);
  const auto train_files = static_cast<std::int64_t>(files.size());
  const auto val_files = collect(spec.val_inputs, spec, hooks, disk);
  files.insert(files.end(), val_files.begin(), val_files.end());
  const Json key = dataset_key(spec, files, train_files);

  DataReport report;
  std::optional<DatasetManifest> manifest;
  try {
    manifest = read_dataset_manifest(spec.out_dir);
  } catch (const DataError&) {
    // A damaged manifest describes nothing: the folder is made again.
  }
  if (manifest && manifest->key == key) {
    report.reused = true;
  } else {
    auto state = read_ingest_state(spec.out_dir);
    const bool resumed = state && state->key == key;
    if (!resumed) {
      clear_folder(spec.out_dir, disk);
      state = IngestState{.key = key};
    }
    report = Ingest(spec, files, train_files, std::move(*state), resumed, hooks, disk).run();
    report.resumed = resumed;
  }
  // dataset.json exists: what is left over is not needed, and failing to remove it is no failure.
  disk.unlink(ingest_path(spec.out_dir));
  disk.unlink(spec.out_dir / "stdin.spool");
  PreparedData data = open_dataset(spec.out_dir);
  data.report.reused = report.reused;
  data.report.resumed = report.resumed;
  data.report.mb_per_s = report.mb_per_s;
  data.report.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return data;
}

}  // namespace qt
