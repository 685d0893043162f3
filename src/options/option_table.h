// The one table of options, and reading it from defaults, a file, the environment and the command line.
#pragma once

#include <cstdint>
#include <iosfwd>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "src/options/options.h"

namespace qt {

// How a value is written by a person.
enum class OptionKind : std::uint8_t { text, texts, flag, count, bytes, duration, number };

// What another value means for a run that is continued.
enum class OnResume : std::uint8_t {
  fixed,      // decides which tensors a checkpoint holds: another value cannot read it
  stored_as,  // decides how it holds them: likewise, but a new run can start from its master weights
  identity,   // decides which run it is: another value is another experiment, and needs --allow-changes
  bits,       // changes rounding, not meaning; the change is printed
  shown,      // what the run is executed on: no result depends on it; the change is printed
  printed,    // decides results, and may change; the change is printed
  free,       // how long, how often, where: no result depends on it; the change is not printed
};

// Further properties of an option, any number of them.
inline constexpr std::uint8_t kSpeed =
    1;  // decides how long a step takes: steps of runs that differ in it do not compare
inline constexpr std::uint8_t kAdopted =
    2;  // `auto` and 0 are replaced by what they became when the run began
inline constexpr std::uint8_t kOfWeights =
    4;  // part of the shape that weights named by --init-from bring along

struct OptionSpec {
  using Member = std::variant<std::string Options::*, std::vector<std::string> Options::*, bool Options::*,
                              std::int64_t Options::*, std::uint64_t Options::*, double Options::*>;
  const char* section;  // of --help and of INI files
  const char* name;     // "vocab-size"; QTRAIN_VOCAB_SIZE in the environment
  OptionKind kind;
  Member member;
  OnResume on_resume;
  std::uint8_t traits;  // kSpeed | kAdopted | kOfWeights
  const char* help;
  const char* choices = nullptr;  // "auto | on | off": the only values; nullptr: any

  bool has(std::uint8_t trait) const { return (traits & trait) != 0; }
};

// src/options/option_list.cpp
std::span<const OptionSpec> option_table();
// nullptr when unknown. '_' and '-' are the same.
const OptionSpec* find_option(std::string_view name);
// The spelling of the table: with '-'.
std::string option_name(std::string_view name);

// Where a value came from, the weakest first.
enum class OptionSource : std::uint8_t { default_value, model_default, file, environment, command_line };
std::string_view option_source_name(OptionSource source);

struct LoadedOptions {
  Options options;
  std::map<std::string, OptionSource, std::less<>> source;  // by option name; absent: default
  std::string config_file;                                  // empty: none
  std::vector<std::string> notes;                           // words that were understood but not needed

  OptionSource source_of(std::string_view name) const;
  std::string origin_of(std::string_view name) const;  // as printed: "command line", the file's path
  // By somebody, not by a default.
  bool given(std::string_view name) const { return source_of(name) > OptionSource::model_default; }
};

// Defaults < --config FILE < QTRAIN_* < command line. `args` are the words after the verb. Each source may
// use nanoGPT's names (src/options/nanogpt.h), and a FILE.py is read by its rules. Notes are logged unless
// --quiet. Throws ConfigError naming the option and its source, with the nearest known name for an unknown
// one. --help and --print-config must have been taken out.
LoadedOptions load_options(std::span<const std::string> args);

// The value as it would be typed; lists as words between blanks, in double quotes where a word needs them.
std::string option_text(const Options& options, const OptionSpec& spec);
// What set_option() takes, from the text of a file, a variable or option_text(): lists are cut into words.
std::vector<std::string> option_values(const OptionSpec& spec, std::string_view text,
                                       std::string_view origin);
// true, on, yes, 1 and Python's True, or their opposites; ConfigError naming `label` for anything else.
bool option_flag(const std::string& text, std::string_view label);
// ConfigError naming the option and, unless it is the command line, `origin`, for a value that is none of its
// choices.
void require_choice(const OptionSpec& spec, const std::string& value, std::string_view origin);
// Sets one option from text; `origin` names the source in messages.
void set_option(Options& options, const OptionSpec& spec, const std::vector<std::string>& values,
                std::string_view origin);
// One line per option: name = value, and its source.
void print_config(std::ostream& out, const LoadedOptions& loaded);
void print_option_help(std::ostream& out);

}  // namespace qt
