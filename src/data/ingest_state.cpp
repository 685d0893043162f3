#include "src/data/ingest_state.h"

#include "src/core/error.h"
#include "src/io/file.h"
#include "src/io/run_folder.h"

namespace qt {
namespace {

constexpr int kVersion = 1;
constexpr std::int64_t kMaxCount = std::int64_t{1} << 62;
// A corpus of many files has one key entry each.
constexpr JsonLimits kLimits = {
    .max_bytes = std::uint64_t{256} << 20, .max_depth = 8, .max_values = 4'000'000};

Json position_json(const CorpusPosition& p) {
  return {{"file", p.file}, {"offset", p.offset}, {"line", p.line}};
}

std::int64_t count(const Json& object, const char* field, const std::string& where) {
  return json_int(object, field, where, 0, kMaxCount);
}

CorpusPosition position_of(const Json& object, const char* field, const std::string& where) {
  const Json& p = json_object(object, field, where);
  return {count(p, "file", where), count(p, "offset", where), count(p, "line", where)};
}

void write_json(FileSystem& fs, const std::filesystem::path& path, const Json& json) {
  const std::string text = json.dump(1) + "\n";
  write_file_atomically(fs, path, bytes_of(text));
}

}  // namespace

std::filesystem::path tokenizer_path(const std::filesystem::path& folder) { return folder / kTokenizerFile; }
std::filesystem::path dataset_path(const std::filesystem::path& folder) { return folder / "dataset.json"; }
std::filesystem::path ingest_path(const std::filesystem::path& folder) { return folder / "ingest.json"; }

std::filesystem::path shard_path(const std::filesystem::path& folder, Split split, std::int64_t number) {
  return folder / fmt::format("{}_{:06}.bin", kSplitNames[split], number);
}

Json dataset_key(const DataSpec& spec, const std::vector<CorpusFile>& files, std::int64_t train_files) {
  Json inputs = Json::array();
  for (const CorpusFile& file : files) {
    inputs.push_back({{"path", file.path.string()}, {"bytes", file.stored_bytes}, {"stamp", file.stamp}});
  }
  Json tokenizer = {{"kind", name_of(spec.tokenizer.kind)}};
  if (!spec.tokenizer_file.empty()) {
    tokenizer = {{"hash", Tokenizer::load(spec.tokenizer_file).hash()}};
  } else if (spec.tokenizer.kind == TokenizerKind::bpe) {
    tokenizer["vocab_size"] = spec.tokenizer.vocab_size;
    tokenizer["pattern"] = spec.tokenizer.pattern;
    tokenizer["max_chars"] = spec.tokenizer.max_chars;
  }
  const bool has_val_files = train_files < static_cast<std::int64_t>(files.size());
  return {{"inputs", inputs},
          {"train_files", train_files},
          {"val_fraction", has_val_files ? 0.0 : spec.val_fraction},
          {"tokenizer", tokenizer},
          {"shard_tokens", spec.shard_tokens}};
}

std::optional<IngestState> read_ingest_state(const std::filesystem::path& folder) {
  const auto path = ingest_path(folder);
  const std::string where = path.string();
  if (!std::filesystem::exists(path)) return std::nullopt;
  try {
    const Json json = read_json_file(path, kLimits);
    if (json_int(json, "format_version", where) != kVersion) return std::nullopt;
    IngestState state;
    state.key = json_object(json, "key", where);
    state.cut = {position_of(json, "cut", where), count(json, "train_bytes", where),
                 count(json, "val_bytes", where)};
    state.vocab_hash = json_string(json, "vocab_hash", where);
    for (const Split split : {kTrain, kVal}) {
      const Json& s = json_object(json, kSplitNames[split], where);
      state.splits[split] = {count(s, "shards", where), position_of(s, "part", where),
                             count(s, "skip_tokens", where), json_bool(s, "done", where)};
    }
    return state;
  } catch (const DataError&) {
    return std::nullopt;
  }
}

void write_ingest_state(FileSystem& fs, const std::filesystem::path& folder, const IngestState& state) {
  Json json = {{"format_version", kVersion},         {"key", state.key},
               {"cut", position_json(state.cut.at)}, {"train_bytes", state.cut.train_bytes},
               {"val_bytes", state.cut.val_bytes},   {"vocab_hash", state.vocab_hash}};
  for (const Split split : {kTrain, kVal}) {
    const SplitState& s = state.splits[split];
    json[kSplitNames[split]] = {{"shards", s.shards},
                                {"part", position_json(s.part)},
                                {"skip_tokens", s.skip_tokens},
                                {"done", s.done}};
  }
  write_json(fs, ingest_path(folder), json);
}

std::optional<DatasetManifest> read_dataset_manifest(const std::filesystem::path& folder) {
  const auto path = dataset_path(folder);
  const std::string where = path.string();
  if (!std::filesystem::exists(path)) return std::nullopt;
  const Json json = read_json_file(path, kLimits);
  const auto version = json_int(json, "format_version", where);
  QT_CHECK(version == kVersion, DataError, "{}: format version {} is not {}", where, version, kVersion);
  DatasetManifest m;
  m.key = json_object(json, "key", where);
  m.vocab_hash = json_string(json, "vocab_hash", where);
  m.unigram_bpb = json_number(json, "unigram_bpb", where);
  const auto read_split = [&](Split split, SplitReport& report, std::int64_t& shards) {
    const Json& s = json_object(json, kSplitNames[split], where);
    report = {count(s, "tokens", where), count(s, "text_bytes", where)};
    shards = json_int(s, "shards", where, 0, 999'999);
  };
  read_split(kTrain, m.train, m.train_shards);
  read_split(kVal, m.val, m.val_shards);
  return m;
}

void write_dataset_manifest(FileSystem& fs, const std::filesystem::path& folder, const DatasetManifest& m) {
  const auto split = [](const SplitReport& report, std::int64_t shards) -> Json {
    return {{"tokens", report.tokens}, {"text_bytes", report.text_bytes}, {"shards", shards}};
  };
  write_json(fs, dataset_path(folder),
             {{"format_version", kVersion},
              {"key", m.key},
              {"vocab_hash", m.vocab_hash},
              {"unigram_bpb", m.unigram_bpb},
              {"train", split(m.train, m.train_shards)},
              {"val", split(m.val, m.val_shards)}});
}

}  // namespace qt
