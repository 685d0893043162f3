// A model that somebody has trained, found by --out or --init-from, for the verbs that use one: sample, eval,
// export.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "kernels/backend.h"
#include "src/convert/param_source.h"
#include "src/options/option_table.h"
#include "src/tokenizer/tokenizer.h"
#include "src/train/engine.h"
#include "src/train/run_state.h"

namespace qt {

// What a model is and where its weights lie. No tensor has been read.
struct TrainedModel {
  EngineOptions engine;             // engine_of() the options that it was trained with
  RunState state;                   // empty for a Hugging Face folder
  std::string checkpoint;           // folder of a checkpoint, else
  std::string hf_folder;            // the folder named by --init-from
  std::filesystem::path tokenizer;  // file or folder
};

// Whether the model is the folder of --init-from: where --out holds no run, and where --init-from was typed
// but not --out. So a file of options that began a run still names the run.
bool uses_folder(const LoadedOptions& loaded);

// check_options() for a verb that uses a model: the shape comes with a folder, whatever the options name.
void check_use_options(const LoadedOptions& loaded);

// Finds the weights: the Hugging Face folder of --init-from where uses_folder(); --out's
// newest checkpoint that verifies; the checkpoint itself where --out names a step- folder. ConfigError where
// there is none, DataError where it is damaged.
TrainedModel find_trained(const LoadedOptions& loaded, const Target& target);

// Numbers where there is no vocabulary.
Tokenizer tokenizer_of(const TrainedModel& model);

// Its weights as f32. `params` must be those of its config and outlive the source.
std::unique_ptr<ParamSource> open_params(const TrainedModel& model, const ModelParams& params,
                                         WeightsOf which);

// An engine with the weights and nothing else.
struct LoadedModel {
  std::unique_ptr<Engine> engine;
  RunState state;
  Tokenizer tokenizer;
};
LoadedModel load_model(const LoadedOptions& loaded, BackendFactory make_backend,
                       std::int64_t micro_batch_rows, bool with_logits = false);

// For verbs that keep nothing: throws StopRequested after a signal; stopping them loses nothing and leaves nothing to
// continue.
void poll_read_only();

}  // namespace qt
