// From what a user names (text, JSONL, folders, standard input, shards) to a tokenizer and token shards:
// tokenized once into a folder, found again later, continued after a stop.
//
//   <out>/tokenizer.txt              src/tokenizer/tokenizer_file.cpp
//   <out>/train_000000.bin, ...      src/data/shard.h, each with its side file
//   <out>/val_000000.bin, ...
//   <out>/dataset.json               what it was made from; written last, so its presence means complete
//   <out>/ingest.json                only while unfinished: how far it is
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "src/data/shard.h"
#include "src/io/file_system.h"
#include "src/tokenizer/tokenizer.h"

namespace qt {

struct DataSpec {
  std::vector<std::string>
      inputs;  // text, JSONL, .gz and .zst of both, folders, "-"; or shards, used as they are
  std::vector<std::string> val_inputs;  // when empty, val_fraction of the inputs
  double val_fraction = 0.1;            // the last part of the text: see corpus_cut.h; 0: no validation split
  TokenizerSpec tokenizer;
  std::filesystem::path tokenizer_file;  // when not empty, this tokenizer instead of a new one
  std::filesystem::path out_dir;
  std::int64_t shard_tokens = kShardMaxTokens;
};

struct DataProgress {
  const char* phase = "";  // "reading standard input", "measuring", "learning the tokenizer", "tokenizing"
  std::int64_t done_bytes = 0;   // of text, in this phase
  std::int64_t total_bytes = 0;  // 0 when not known yet
  double mb_per_s = 0;           // 10^6 bytes of text per second, in this phase and call
};

struct DataHooks {
  std::function<void(const DataProgress&)> progress;  // at most once per 256 KiB of text
  std::function<bool()> stop;  // asked about once per MiB of text; true: StopRequested is thrown
};

struct SplitReport {
  std::int64_t tokens = 0;
  std::int64_t text_bytes = 0;
};

struct DataReport {
  SplitReport train, val;
  double unigram_bpb = 0;  // see unigram.h; 0 without validation split
  bool reused = false;     // the folder already held exactly this
  bool resumed = false;    // an earlier, stopped call was continued
  double seconds = 0;      // of this call
  double mb_per_s = 0;     // text bytes tokenized in this call, per second of tokenizing
};

struct PreparedData {
  // Absent only for shards of another program that lie without a tokenizer.txt.
  std::optional<Tokenizer> tokenizer;
  std::vector<std::filesystem::path> train_shards, val_shards;
  DataReport report;
};

// Makes spec.out_dir hold exactly what `spec` asks for and opens it. What it already holds is reused when
// inputs (path, size, time of change), tokenizer and cut are the same, and is replaced when they differ. A
// call that was stopped or killed is continued by the same call again, and the files come out byte for byte
// as without the interruption. Memory stays below 512 MiB whatever the size of the inputs. Checked before
// success is reported: the bytes that all tokens stand for are the bytes of the text. ConfigError: paths,
// sizes, another process at work in out_dir, or a folder with shards that are not ours to replace. DataError:
// what cannot be read, with file and line or offset. DiskError: what cannot be written. StopRequested.
PreparedData prepare_data(const DataSpec& spec, const DataHooks& hooks = {}, FileSystem& fs = posix_fs());

// A folder made by prepare_data, any folder with train*.bin and val*.bin (or *_train*.bin and *_val*.bin, as
// llm.c names them), or one .bin file (training alone). Only headers are checked here; ShardReader verifies
// the rest. Without dataset.json the report counts tokens only.
PreparedData open_dataset(const std::filesystem::path& path);

// Whether open_dataset() is what a --data argument asks for.
bool is_shard_path(const std::filesystem::path& path);

// Gives shards of another program their tokenizer: the one in `tokenizer_file` (see Tokenizer::load), else
// the one beside them, else `ids` where vocab_size > 0. nanoGPT's meta.pkl is never read: a pickle is a
// program. ConfigError when nothing is named, or when `tokenizer_file` is not the vocabulary that the shards
// were made with.
void choose_tokenizer(PreparedData& data, const std::filesystem::path& tokenizer_file,
                      std::int64_t vocab_size);

// The readers of one split, verified as `verify` says, for TokenStream. DataError names the shard.
std::vector<ShardReader> open_shards(const std::vector<std::filesystem::path>& shards,
                                     const Tokenizer& tokenizer, ShardVerify verify = ShardVerify::full);

}  // namespace qt
