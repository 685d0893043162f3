// The command line that repeats a plan: what was asked for, and what the planner chose for it.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "src/options/option_table.h"

namespace qt {

// What turns the command line of `before` into that of `after`, in the order of the table: "--quant nf4 --steps 0".
std::string change_words(const Options& before, const Options& after);

// Some options as a person types them: "--micro-batch 4 --grad-dtype bf16".
std::string words_of(const Options& options, std::initializer_list<const OptionSpec*> specs);
template <auto... kMembers>
std::string words_of(const Options& options) {
  return words_of(options, {&option_of<kMembers>()...});
}

// The words after "qtrain" that say these options, with_choices() of a run: each that reading the others would not give. For a
// process that reads no file and no QTRAIN_* variable.
std::vector<std::string> command_words(Options chosen);

// command_words() as a person types them: "qtrain --model d32 --quant nf4 --ckpt-activations --grad-dtype
// bf16 --micro-batch 4", each word quoted for a POSIX shell where it needs it.
std::string command_of(Options chosen);

}  // namespace qt
