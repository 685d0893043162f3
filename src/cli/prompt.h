// --prompt and the vocabulary that it is spelled in.
#pragma once

#include <string>

#include "src/options/option_table.h"
#include "src/tokenizer/tokenizer.h"

namespace qt {

// --prompt; empty where it is the default and the vocabulary cannot spell it, because a run must not end over a sample.
// ConfigError where a prompt was given that it cannot spell.
std::string usable_prompt(const LoadedOptions& loaded, const Tokenizer& tokenizer);

}  // namespace qt
