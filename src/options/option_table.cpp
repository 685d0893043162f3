#include "src/options/option_table.h"

#include <algorithm>
#include <charconv>
#include <ostream>
#include <system_error>

#include "optim/update_rule.h"
#include "src/core/error.h"
#include "src/core/units.h"
#include "src/model/family.h"

namespace qt {

namespace {

using K = OptionKind;

// The parse functions below and those of units.h name the option and where its text came from by `label`.
double parse_number(const std::string& text, std::string_view label) {
  double value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || stop != text.data() + text.size() || !(value >= 0) || value > 1e300) {
    throw ConfigError(fmt::format("{}: '{}' is not a number of zero or more", label, text),
                      "write it as 0.003 or 3e-3");
  }
  return value;
}

// All 64 bits: what a generator of seeds prints may be above the largest count.
std::uint64_t parse_seed(const std::string& text, std::string_view label) {
  std::uint64_t value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc{} && stop == text.data() + text.size()) return value;
  return static_cast<std::uint64_t>(parse_count(text, label));
}

// Words of a list as option_text() joins them: a word with blanks or quotes in it stands in double quotes.
constexpr std::string_view kBlanks = " \t";

std::string quoted(const std::string& word) {
  if (!word.empty() && word.find_first_of(" \t\"") == std::string::npos) return word;
  std::string text = "\"";
  for (const char c : word) {
    if (c == '"' || c == '\\') text += '\\';
    text += c;
  }
  return text + '"';
}

std::vector<std::string> split_words(std::string_view text, std::string_view label) {
  std::vector<std::string> words;
  for (std::size_t at = text.find_first_not_of(kBlanks); at < text.size();
       at = text.find_first_not_of(kBlanks, at)) {
    std::string word;
    if (text[at] != '"') {
      const std::size_t end = std::min(text.find_first_of(kBlanks, at), text.size());
      word = text.substr(at, end - at);
      at = end;
    } else {
      for (++at; at < text.size() && text[at] != '"'; ++at) {
        if (text[at] == '\\' && at + 1 < text.size()) ++at;
        word += text[at];
      }
      if (at == text.size())
        throw ConfigError(fmt::format("{}: a quote is not closed in {}", label, text),
                          "end the word with \"");
      ++at;
    }
    words.push_back(std::move(word));
  }
  return words;
}

std::string label_of(const OptionSpec& spec, std::string_view origin) {
  return origin == option_source_name(OptionSource::command_line)
             ? fmt::format("--{}", spec.name)
             : fmt::format("--{} ({})", spec.name, origin);
}

std::vector<std::string> words_of(const OptionSpec& spec) {
  std::vector<std::string> words = split_words(spec.words.text(), spec.name);
  std::erase(words, "|");
  return words;
}

// Our own spelling, where another program's word has one among the words.
std::string own_word(const OptionSpec& spec, const std::vector<std::string>& words, const std::string& word) {
  for (const OptionSynonym& s : spec.synonyms) {
    if (word == s.word && std::find(words.begin(), words.end(), s.ours) != words.end())
      return std::string(s.ours);
  }
  return word;
}

// As a person would write it: sizes in whole GiB or MiB where they are.
std::string value_text(const Options& options, const OptionSpec& spec) {
  std::string text = option_text(options, spec);
  if (spec.kind != OptionKind::bytes) return text;
  const std::int64_t bytes = options.*std::get<std::int64_t Options::*>(spec.member);
  if (bytes % kGiB == 0) return fmt::format("{}GiB", bytes / kGiB);
  return bytes % kMiB == 0 ? fmt::format("{}MiB", bytes / kMiB) : text;
}

}  // namespace

std::size_t ChoiceOf<const UpdateRule*>::word(const UpdateRule* rule) {
  const std::span<const UpdateRule* const> all = all_update_rules();
  return static_cast<std::size_t>(std::ranges::find(all, rule) - all.begin());
}
const UpdateRule* ChoiceOf<const UpdateRule*>::value(std::size_t word) { return all_update_rules()[word]; }

std::size_t require_choice(const OptionSpec& spec, const std::string& value, std::string_view origin) {
  const std::vector<std::string> words = words_of(spec);
  if (words.empty()) return 0;
  const auto it = std::find(words.begin(), words.end(), own_word(spec, words, value));
  if (it != words.end()) return static_cast<std::size_t>(it - words.begin());
  if (spec.words.refuse != nullptr) spec.words.refuse(value);
  const bool typed = origin == option_source_name(OptionSource::command_line), one = words.size() == 1;
  throw ConfigError(
      fmt::format("--{} {}{} is not available{}", spec.name, value,
                  typed ? std::string() : fmt::format(" ({})", origin), one ? " in this version" : ""),
      fmt::format("use --{} {}{}", spec.name, one ? "" : "with one of: ", fmt::join(words, ", ")));
}

std::string_view option_source_name(OptionSource source) {
  constexpr std::string_view kSources[] = {"default", "default of the model", "file", "environment",
                                           "command line"};
  return kSources[static_cast<std::size_t>(source)];
}

OptionSource LoadedOptions::source_of(std::string_view name) const {
  const auto it = source.find(name);
  return it == source.end() ? OptionSource::default_value : it->second;
}

std::string LoadedOptions::origin_of(std::string_view name) const {
  const OptionSource from = source_of(name);
  if (from == OptionSource::file) return config_file;
  const Family* const family = find_family(options.model);
  if (from != OptionSource::model_default || family == nullptr) return std::string(option_source_name(from));
  return fmt::format("default of {} models", family->name);
}

bool option_flag(const std::string& text, std::string_view label) {
  for (const char* word : {"true", "True", "1", "on", "yes"}) {
    if (text == word) return true;
  }
  for (const char* word : {"false", "False", "0", "off", "no"}) {
    if (text == word) return false;
  }
  throw ConfigError(fmt::format("{}: '{}' is neither on nor off", label, text), "use true or false");
}

std::vector<std::string> option_values(const OptionSpec& spec, std::string_view text,
                                       std::string_view origin) {
  if (spec.kind != K::texts) return {std::string(text)};
  return split_words(text, label_of(spec, origin));
}

void set_option(Options& options, const OptionSpec& spec, const std::vector<std::string>& values,
                std::string_view origin) {
  if (auto* list = std::get_if<std::vector<std::string> Options::*>(&spec.member)) {
    options.** list = values;
    return;
  }
  QT_CHECK(values.size() == 1, ConfigError, "option '{}' is given {} times ({})", spec.name, values.size(),
           origin);
  const std::string& text = values.front();
  const std::string label = label_of(spec, origin);
  if (auto* choice = std::get_if<ChoiceMember>(&spec.member)) {
    choice->set(options, require_choice(spec, text, origin));
  } else if (auto* member = std::get_if<std::string Options::*>(&spec.member)) {
    require_choice(spec, text, origin);
    options.** member = text;
  } else if (auto* flag = std::get_if<bool Options::*>(&spec.member)) {
    options.** flag = option_flag(text, label);
  } else if (auto* seed = std::get_if<std::uint64_t Options::*>(&spec.member)) {
    options.** seed = parse_seed(text, label);
  } else if (auto* number = std::get_if<double Options::*>(&spec.member)) {
    options.** number = spec.kind == K::duration ? parse_duration(text, label) : parse_number(text, label);
  } else if (auto* count = std::get_if<std::int64_t Options::*>(&spec.member)) {
    options.** count = spec.kind == K::bytes ? parse_bytes(text, label) : parse_count(text, label);
  }
}

std::string option_text(const Options& options, const OptionSpec& spec) {
  if (const auto* choice = std::get_if<ChoiceMember>(&spec.member))
    return words_of(spec).at(choice->word(options));
  if (const auto* text = std::get_if<std::string Options::*>(&spec.member)) return options.**text;
  if (const auto* list = std::get_if<std::vector<std::string> Options::*>(&spec.member)) {
    std::string text;
    for (const std::string& word : options.**list) text += (text.empty() ? "" : " ") + quoted(word);
    return text;
  }
  return std::visit(
      [&](auto member) -> std::string {
        if constexpr (std::is_member_pointer_v<decltype(member)>) {
          using T = std::decay_t<decltype(options.*member)>;
          if constexpr (std::is_arithmetic_v<T>) return fmt::format("{}", options.*member);
        }
        return {};
      },
      spec.member);
}

void append_option_words(std::vector<std::string>& words, const Options& options, const OptionSpec& spec) {
  const bool off = spec.kind == OptionKind::flag && option_text(options, spec) == "false";
  words.push_back(fmt::format("--{}{}", off ? "no-" : "", spec.name));
  if (const auto* list = std::get_if<std::vector<std::string> Options::*>(&spec.member)) {
    words.insert(words.end(), (options.**list).begin(), (options.**list).end());
  } else if (spec.kind != OptionKind::flag) {
    words.push_back(value_text(options, spec));
  }
}

std::vector<const OptionSpec*> different_options(const Options& a, const Options& b) {
  std::vector<const OptionSpec*> specs;
  for (const OptionSpec& spec : option_table()) {
    if (option_text(a, spec) != option_text(b, spec)) specs.push_back(&spec);
  }
  return specs;
}

void copy_option(const Options& from, Options& to, const OptionSpec& spec) {
  std::visit(
      [&](auto member) {
        if constexpr (std::is_member_pointer_v<decltype(member)>)
          to.*member = from.*member;
        else
          member.set(to, member.word(from));
      },
      spec.member);
}

void print_config(std::ostream& out, const LoadedOptions& loaded) {
  for (const OptionSpec& spec : option_table()) {
    out << fmt::format("{:<27} = {:<28} # {}\n", spec.name, option_text(loaded.options, spec),
                       loaded.origin_of(spec.name));
  }
}

void print_option_help(std::ostream& out) {
  const Options defaults;
  std::string_view section;
  for (const OptionSpec& spec : option_table()) {
    if (section != spec.section) out << fmt::format("\n[{}]\n", section = spec.section);
    const std::string words = spec.words.text();
    out << fmt::format("  --{:<27} {}{}{} [{}]\n", spec.name, spec.help,
                       words.empty() || *spec.help == '\0' ? "" : ": ", words, option_text(defaults, spec));
  }
}

}  // namespace qt
