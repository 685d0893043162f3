// The run folder that a verb looks at.
#pragma once

#include <string>

#include "src/options/option_table.h"
#include "src/options/verb_words.h"

namespace qt {

// The verb's word RUN, else --out. ConfigError where the command line gives both.
std::string run_argument(const LoadedOptions& loaded, const VerbValues& words);

}  // namespace qt
