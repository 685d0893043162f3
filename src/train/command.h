// The command line that repeats a plan: what was asked for, and what the planner chose for it.
#pragma once

#include <string>

#include "src/train/options.h"
#include "src/train/planner.h"

namespace qt {

// "qtrain --model d32 --quant nf4 --ckpt-activations --grad-dtype bf16 --micro-batch 4": every option that
// differs from its default, and the choices that the plan stands on. Words are quoted for a POSIX shell where
// they need it.
std::string command_of(const Options& options, const PlannedRun& run);

}  // namespace qt
