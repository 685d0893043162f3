// The one table of options, and reading it from defaults, a file, the environment and the command line.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
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

// A member of an enumeration, by the number of its word among the words of the row.
struct ChoiceMember {
  std::size_t (*word)(const Options&);
  void (*set)(Options&, std::size_t word);
  bool operator==(const ChoiceMember&) const = default;
};

// An enumeration's words stand in the order of its enumerators. Those of an optional one follow the word for none.
template <class E>
struct ChoiceOf {
  static std::size_t word(E value) { return static_cast<std::size_t>(value); }
  static E value(std::size_t word) { return static_cast<E>(word); }
};
template <class E>
struct ChoiceOf<std::optional<E>> {
  static std::size_t word(std::optional<E> value) { return value ? static_cast<std::size_t>(*value) + 1 : 0; }
  static std::optional<E> value(std::size_t word) {
    return word == 0 ? std::nullopt : std::optional<E>(static_cast<E>(word - 1));
  }
};
// A rule's word is its name, in the order of all_update_rules().
template <>
struct ChoiceOf<const UpdateRule*> {
  static std::size_t word(const UpdateRule* rule);
  static const UpdateRule* value(std::size_t word);
};
template <class T>
inline constexpr bool kIsChoice = std::is_enum_v<T>;
template <class E>
inline constexpr bool kIsChoice<std::optional<E>> = true;
template <>
inline constexpr bool kIsChoice<const UpdateRule*> = true;

template <auto kMember>
constexpr ChoiceMember choice() {
  using Of = ChoiceOf<std::decay_t<decltype(std::declval<Options>().*kMember)>>;
  return {.word = [](const Options& o) { return Of::word(o.*kMember); },
          .set = [](Options& o, std::size_t word) { o.*kMember = Of::value(word); }};
}

// The only words of an option, with " | " between them: of an enumeration, or of a table that has a list of its own.
struct OptionWords {
  const char* fixed = nullptr;                        // "auto | on | off"
  std::string (*of_table)() = nullptr;                // "none | nf4"
  void (*refuse)(const std::string& word) = nullptr;  // the table's ConfigError for another word

  std::string text() const { return fixed != nullptr ? fixed : of_table != nullptr ? of_table() : ""; }
};

// What other programs call one of the words.
struct OptionSynonym {
  std::string_view word, ours;
};

struct OptionSpec {
  using Member =
      std::variant<std::string Options::*, std::vector<std::string> Options::*, bool Options::*,
                   std::int64_t Options::*, std::uint64_t Options::*, double Options::*, ChoiceMember>;
  const char* section;  // of --help and of INI files
  const char* name;     // "vocab-size"; QTRAIN_VOCAB_SIZE in the environment
  OptionKind kind;
  Member member;
  OnResume on_resume;
  std::uint8_t traits;  // kSpeed | kAdopted | kOfWeights
  const char* help;
  OptionWords words = {};  // none: any value
  std::span<const OptionSynonym> synonyms = {};

  bool has(std::uint8_t trait) const { return (traits & trait) != 0; }
};

// src/options/option_list.cpp
std::span<const OptionSpec> option_table();
// The row of a member.
const OptionSpec& option_of(const OptionSpec::Member& member);
template <auto kMember>
const OptionSpec& option_of() {
  using T = std::decay_t<decltype(std::declval<Options>().*kMember)>;
  if constexpr (kIsChoice<T>)
    return option_of(choice<kMember>());
  else
    return option_of(kMember);
}
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
template <auto kMember>
std::string option_text(const Options& options) {
  return option_text(options, option_of<kMember>());
}
// The number of `value` among the option's words, 0 where it has none. ConfigError for a value that is no word of it: that of
// the words' table, or one that names the option and, unless it is the command line, `origin`.
std::size_t require_choice(const OptionSpec& spec, const std::string& value, std::string_view origin);
// Sets one option from text; `origin` names the source in messages.
void set_option(Options& options, const OptionSpec& spec, const std::vector<std::string>& values,
                std::string_view origin);
// Adds what a person types to set the option: "--vram", "12GiB"; "--no-bias".
void append_option_words(std::vector<std::string>& words, const Options& options, const OptionSpec& spec);
// The options in which two differ, in the order of the table.
std::vector<const OptionSpec*> different_options(const Options& a, const Options& b);
void copy_option(const Options& from, Options& to, const OptionSpec& spec);
// One line per option: name = value, and its source.
void print_config(std::ostream& out, const LoadedOptions& loaded);
void print_option_help(std::ostream& out);

}  // namespace qt
