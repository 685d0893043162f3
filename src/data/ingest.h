// The work behind prepare_data: measure and cut the corpus, learn the tokenizer, write the shards, each step
// recorded so that the next call continues behind it.
#pragma once

#include <chrono>
#include <vector>

#include "src/data/dataset.h"
#include "src/data/ingest_state.h"

namespace qt {

// Reports and asks for stops within one phase.
class DataMeter {
 public:
  DataMeter(const DataHooks& hooks, const char* phase, std::int64_t total_bytes, std::int64_t done_bytes = 0);
  void update(std::int64_t done_bytes);  // throws StopRequested
  void check_stop() const;
  double seconds() const;
  double mb_per_s() const;

 private:
  const DataHooks& hooks_;
  const char* phase_;
  std::int64_t total_bytes_, first_bytes_, done_bytes_, reported_bytes_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

class Ingest {
 public:
  // nanochat learns its merges from the first so many characters of each document, so that no single one
  // dominates. A text file is not cropped: it is often a whole corpus.
  static constexpr std::int64_t kLearnDocumentChars = 10'000;

  // files[0, train_files) are training; when that is all of them, the cut is spec.val_fraction. `state` is
  // empty or what an earlier call with the same key left behind.
  Ingest(const DataSpec& spec, const std::vector<CorpusFile>& files, std::int64_t train_files,
         IngestState state, bool resumed, const DataHooks& hooks, FileSystem& fs);

  // To the end; the folder is complete afterwards.
  DataReport run();

 private:
  void measure(std::int64_t train_files);
  Tokenizer learn();
  Tokenizer obtain_tokenizer();
  void tokenize(const Tokenizer& tokenizer, Split split, DataMeter& meter);
  std::int64_t recount(const Tokenizer& tokenizer, Split split);
  void record() { write_ingest_state(fs_, spec_.out_dir, state_); }

  const DataSpec& spec_;
  const std::vector<CorpusFile>& files_;
  std::int64_t train_files_;
  IngestState state_;
  bool measured_;
  const DataHooks& hooks_;
  FileSystem& fs_;
  std::vector<std::int64_t> counts_[2];  // tokens of each id, per split
  std::int64_t text_bytes_[2] = {0, 0};
};

}  // namespace qt
