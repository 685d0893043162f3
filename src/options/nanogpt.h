// The words of nanoGPT's users: its names for our options, its words that nothing here needs, and what its
// ways of saying a thing mean in ours once all sources are read. Its configuration files are read by
// nanogpt_file.h.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "src/options/option_table.h"

namespace qt {

struct NanogptMeaning {
  struct Setting {
    const OptionSpec* spec;
    std::vector<std::string> values;  // as set_option() takes them
    bool replaces = false;            // whatever else the same source says about the option
  };
  std::vector<Setting> settings;  // empty: nothing to set
  std::string note;               // why nothing is set; empty: nothing to say
};

// What `key = value` means where it is one of nanoGPT's words; nothing where our own name and value say the
// same. `from_its_file`: written by nanoGPT's rules, where device 'cuda' is a default rather than a wish.
// Throws ConfigError for what has another way here (eval_only).
std::optional<NanogptMeaning> nanogpt_meaning(std::string_view key, const std::string& value,
                                              std::string_view origin, bool from_its_file = false);

// Every such key with '-', as the command line has to know them. Names of our own options are not among them.
std::vector<std::string_view> nanogpt_words();

// The option of ours that a word of nanoGPT's sets; nullptr where it sets none, or several.
const OptionSpec* nanogpt_target(std::string_view key);

// Once all sources are read: the shape of an imported file becomes a model's name, models take their
// family's training defaults where no source says otherwise, and batch-size, gradient-accumulation-steps, eval-iters
// and min-lr become batch-tokens, eval-tokens and final-lr. Of two ways to say one thing the stronger source
// counts. Throws ConfigError where the same source says both and they differ, and for pretrained weights by
// name.
void settle_nanogpt_words(LoadedOptions& loaded);

}  // namespace qt
