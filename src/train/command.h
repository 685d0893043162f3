// The command line that repeats a plan: what was asked for, and what the planner chose for it.
#pragma once

#include <string>

#include "src/train/options.h"
#include "src/train/planner.h"

namespace qt {

// The options with the planner's choices in the place of `auto`: micro-batch, gradient dtype, and route and
// paging where there was a choice. They lead to the same plan on a machine with more room too.
Options with_choices(const Options& options, const PlannedRun& run);

// "qtrain --model d32 --quant nf4 --ckpt-activations --grad-dtype bf16 --micro-batch 4": with_choices(), each
// option that reading the others would not give. Words are quoted for a POSIX shell where they need it.
std::string command_of(const Options& options, const PlannedRun& run);

}  // namespace qt
