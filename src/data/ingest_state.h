// The two JSON files of a tokenized folder: ingest.json, how far an unfinished run is, and dataset.json, what
// a finished one made. Both carry the key: everything that the content of the folder depends on.
#pragma once

#include <array>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "src/data/corpus_cut.h"
#include "src/data/dataset.h"
#include "src/io/json.h"

namespace qt {

enum Split : std::size_t { kTrain, kVal };
inline constexpr std::array<const char*, 2> kSplitNames = {"train", "val"};

std::filesystem::path tokenizer_path(const std::filesystem::path& folder);
std::filesystem::path dataset_path(const std::filesystem::path& folder);
std::filesystem::path ingest_path(const std::filesystem::path& folder);
std::filesystem::path shard_path(const std::filesystem::path& folder, Split split, std::int64_t number);

// Inputs with size and stamp, tokenizer options, cut and shard size.
Json dataset_key(const DataSpec& spec, const std::vector<CorpusFile>& files, std::int64_t train_files);

// Where the next token of a split comes from: the part that begins at `part`, after its first `skip_tokens`
// tokens.
struct SplitState {
  std::int64_t shards = 0;  // finished ones
  CorpusPosition part;
  std::int64_t skip_tokens = 0;
  bool done = false;
};

struct IngestState {
  Json key;
  CorpusCut cut;
  std::string vocab_hash;  // empty until the tokenizer is saved
  std::array<SplitState, 2> splits;
};

// Nothing when the file is absent, damaged or from another version: an unfinished run is then simply begun
// again.
std::optional<IngestState> read_ingest_state(const std::filesystem::path& folder);
void write_ingest_state(FileSystem& fs, const std::filesystem::path& folder, const IngestState& state);

struct DatasetManifest {
  Json key;
  std::string vocab_hash;
  SplitReport train, val;
  std::int64_t train_shards = 0, val_shards = 0;
  double unigram_bpb = 0;
};

// Nothing when absent; DataError when damaged.
std::optional<DatasetManifest> read_dataset_manifest(const std::filesystem::path& folder);
void write_dataset_manifest(FileSystem& fs, const std::filesystem::path& folder,
                            const DatasetManifest& manifest);

}  // namespace qt
