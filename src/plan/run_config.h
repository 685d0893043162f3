// A run as it will be. Every value is settled: nothing says `auto`, and no 0 leaves a choice open. The planner makes it
// (src/plan/planner.h) of what was asked for, which ends there: what comes after the plan takes this.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "kernels/target.h"
#include "src/options/options.h"
#include "src/train/engine.h"
#include "src/train/trainer.h"

namespace qt {

struct RunConfig {
  EngineOptions engine;
  Target target;            // with the route that was chosen
  TrainerOptions trainer;   // without meters and listeners
  std::int64_t tokens = 0;  // to train on, before they are rounded to whole steps
  std::int64_t steps = 0;
  std::uint64_t seed = 0;
  std::string weights_from;  // what --init-from names; empty: they are drawn from the seed
  bool allow_changes = false;
  RowOrder data_order = RowOrder::shuffled;
  std::int64_t eval_tokens = 0;  // 0: the whole validation split
  std::int64_t log_every = 1;    // steps
  bool tensorboard = true;
  bool quiet = false;
  std::string watts, price;  // assumed to be drawn, of a kWh: as typed, and checked; empty: not known
  std::map<std::string, std::string> options;  // all, as text by name: what a checkpoint stores
};

// What a run and the verbs that use its weights (sample, eval, export) settle alike: model, and how weights are held.
EngineOptions engine_of(const Options& options, const ModelConfig& model, const Target& target);

// All that options and target settle by themselves. The gradients' dtype, micro-batch and paging are the planner's to
// choose, as is the route among the target's; `options` is filled after that.
RunConfig config_of(const Options& options, const ModelConfig& model, const Target& target);

// The options with the planner's choices in the place of `auto`: micro-batch, gradient dtype, and route and
// paging where there was a choice. They lead to the same plan on a machine with more room too.
Options with_choices(const Options& options, const RunConfig& config);

// What RunConfig::options holds: `chosen`, of with_choices(), and what the run has where the options leave it to the machine,
// the tokenizer or the model.
std::map<std::string, std::string> resolved_options(Options chosen, const RunConfig& config);

}  // namespace qt
