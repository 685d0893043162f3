// The data of a run: from --data and its companions to tokens and a tokenizer.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "src/data/batches.h"
#include "src/data/dataset.h"
#include "src/options/option_table.h"
#include "src/train/run_state.h"

namespace qt {

// The data that options name, or that a folder `data` holds where they name none. Nothing is looked at before a function asks.
class RunData {
 public:
  explicit RunData(const Options& options);

  // What can be said without reading text: ConfigError where nothing is named, or text and shards at once.
  void check() const;

  // The vocabulary that training on it gets, before anything is tokenized: --vocab-size, else that of --tokenizer
  // or of the shards, else what a new tokenizer aims at. 0: not known before the text is read, or no data is named.
  std::int64_t expected_vocab_size() const;

  // check(), then tokenizes text into its cache, or opens the shards. Long, resumable; StopRequested.
  PreparedData load() const;
  // The same for `qtrain tokenize`, which takes text only.
  PreparedData tokenize() const;

  // ConfigError when --vocab-size is smaller than the vocabulary of the tokenizer that load() has returned.
  void require_vocabulary(const Tokenizer& tokenizer) const;

  bool is_shards() const;
  // Where the tokens of text lie. ConfigError for text from standard input without --cache.
  std::filesystem::path cache() const;

 private:
  const std::string& first_input() const;  // ConfigError where nothing is named

  DataSpec spec_;  // without out_dir
  std::string cache_;
  std::int64_t vocab_size_;  // --vocab-size; 0: not given
  bool quiet_;
};

// The data to evaluate a trained run on: by default its own validation split.
PreparedData load_eval_data(const LoadedOptions& loaded, const RunState& state);

// eval_tokens: of one evaluation, 0: all. nullptr when the data has no validation split.
std::unique_ptr<EvalBatches> open_validation(const PreparedData& data, std::int64_t eval_tokens,
                                             std::int64_t seq_len);

// Of the training tokens: another hash is another data set.
std::string data_hash(const std::vector<std::filesystem::path>& shards);

// The options a checkpoint carries. ConfigError where its text is none of ours.
Options stored_options(const RunState& state, const std::string& origin);

}  // namespace qt
