// The command line that repeats a plan: what was asked for, and what the planner chose for it.
#pragma once

#include <string>
#include <vector>

#include "src/options/option_table.h"
#include "src/plan/planner.h"

namespace qt {

// The options with the planner's choices in the place of `auto`: micro-batch, gradient dtype, and route and
// paging where there was a choice. They lead to the same plan on a machine with more room too.
Options with_choices(const Options& options, const PlannedRun& run);

// The options in which two differ, in the order of the table.
std::vector<const OptionSpec*> different_options(const Options& a, const Options& b);

// What turns the command line of `before` into that of `after`, in the order of the table: "--quant nf4 --steps 0".
std::string change_words(const Options& before, const Options& after);

// The words after "qtrain" that say with_choices(), each option that reading the others would not give: for
// a process that reads no file and no QTRAIN_* variable.
std::vector<std::string> command_words(const Options& options, const PlannedRun& run);

// command_words() as a person types them: "qtrain --model d32 --quant nf4 --ckpt-activations --grad-dtype
// bf16 --micro-batch 4", each word quoted for a POSIX shell where it needs it.
std::string command_of(const Options& options, const PlannedRun& run);

}  // namespace qt
