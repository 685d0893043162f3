// What a run is, as opposed to how it happens to be executed: which options must stay when a run is
// continued.
#pragma once

#include <string>
#include <vector>

#include "src/options/option_table.h"
#include "src/plan/run_config.h"
#include "src/train/run_state.h"

namespace qt {

// Values that `auto` got when the run began stay: fills options that are still auto from the stored ones.
void adopt_resolved(Options& options, const RunState& stored);

// With --init-from, before any work: the shape and the vocabulary that the weights have; or, where the run
// folder holds a run that has begun with them, what that run has, because it needs the weights no more.
// Throws as adopt_weights().
void adopt_named_weights(Options& options);

// Whether a run that has begun is what this one would be, as far as its speed goes: what it measured holds
// here too, on the same machine.
bool is_same_work(const RunState& begun, const RunConfig& config);

// Compares the stored run with this one. Returns one line per difference that is allowed ("micro-batch: 4 -> 8; bits may
// differ"). Throws ConfigError listing what may not change: shapes and formats of tensors never; data, tokenizer, tokens per
// step and seed only with --allow-changes.
std::vector<std::string> check_resume(const RunState& stored, const RunState& now, bool allow_changes);

// The state to go on from: `loaded` with the options, seed and hashes of `now`. If the tokens per step have changed, the data
// window becomes the first one that holds no token trained on yet. If the order or the size of windows has changed, the list
// of windows left out is emptied, because its numbers name other windows.
RunState carry_over(RunState loaded, const RunState& now);

}  // namespace qt
