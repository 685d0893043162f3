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

// What can be said about the data options without reading text: ConfigError where they name nothing, or text
// and shards at once.
void check_data_options(const Options& options);

// The vocabulary that training with these options gets, before anything is tokenized: --vocab-size, else that
// of --tokenizer or of the shards, else what a new tokenizer aims at. 0: not known before the text is read,
// or no data is named.
std::int64_t expected_vocab_size(const Options& options);

// Tokenizes text into its cache, or opens the shards. Long, resumable; StopRequested.
PreparedData load_data(const Options& options);
// The same for `qtrain tokenize`, which takes text only.
PreparedData tokenize_data(const Options& options, std::filesystem::path& folder);

// The data to evaluate a trained run on: by default its own validation split.
PreparedData load_eval_data(const LoadedOptions& loaded, const RunState& state);

// nullptr when the data has no validation split.
std::unique_ptr<EvalBatches> open_validation(const PreparedData& data, const Options& options,
                                             std::int64_t seq_len);

// ConfigError when --vocab-size is smaller than the tokenizer's.
void require_vocabulary(const Tokenizer& tokenizer, const Options& options);

// Of the training tokens: another hash is another data set.
std::string data_hash(const std::vector<std::filesystem::path>& shards);

// The options a checkpoint carries. ConfigError where its text is none of ours.
Options stored_options(const RunState& state, const std::string& origin);

}  // namespace qt
