#include "src/train/option_table.h"

#include <unistd.h>  // environ

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <system_error>

#include <boost/program_options.hpp>

#include "src/core/error.h"
#include "src/core/suggest.h"
#include "src/core/units.h"

namespace qt {

namespace {

using K = OptionKind;

constexpr std::string_view kCommandLine = "command line";

[[noreturn]] void throw_unknown(std::string_view name, std::string_view origin) {
  std::vector<std::string_view> names;
  for (const OptionSpec& spec : option_table()) names.emplace_back(spec.name);
  const std::string wanted = option_name(name);
  const std::string_view similar = similar_name(wanted, names);
  throw ConfigError(
      fmt::format("unknown option '{}' ({})", name, origin),
      fmt::format("{}`qtrain --help` lists all options",
                  similar.empty() ? std::string() : fmt::format("did you mean --{}? ", similar)));
}

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

bool parse_flag(const std::string& text, std::string_view label) {
  for (const char* word : {"true", "1", "on", "yes"}) {
    if (text == word) return true;
  }
  for (const char* word : {"false", "0", "off", "no"}) {
    if (text == word) return false;
  }
  throw ConfigError(fmt::format("{}: '{}' is neither on nor off", label, text), "use true or false");
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

// What other programs call the same thing, where our own spelling is what everything compares with.
struct Synonym {
  std::string Options::*member;
  const char* word;
  const char* ours;
};
constexpr Synonym kSynonyms[] = {
    {&Options::dtype, "float32", "f32"},
    {&Options::dtype, "fp32", "f32"},
    {&Options::dtype, "float16", "fp16"},
    {&Options::dtype, "f16", "fp16"},
    {&Options::dtype, "half", "fp16"},
    {&Options::dtype, "bfloat16", "bf16"},
    {&Options::grad_dtype, "float32", "f32"},
    {&Options::grad_dtype, "fp32", "f32"},
    {&Options::grad_dtype, "float16", "fp16"},
    {&Options::grad_dtype, "f16", "fp16"},
    {&Options::grad_dtype, "half", "fp16"},
    {&Options::grad_dtype, "bfloat16", "bf16"},
    {&Options::paging, "true", "on"},
    {&Options::paging, "false", "off"},
    {&Options::paging, "yes", "on"},
    {&Options::paging, "no", "off"},
    {&Options::paging, "1", "on"},
    {&Options::paging, "0", "off"},
};

std::string own_word(std::string Options::*member, const std::string& word) {
  for (const Synonym& s : kSynonyms) {
    if (s.member == member && word == s.word) return s.ours;
  }
  return word;
}

std::string label_of(const OptionSpec& spec, std::string_view origin) {
  return origin == kCommandLine ? fmt::format("--{}", spec.name)
                                : fmt::format("--{} ({})", spec.name, origin);
}

void read_file(const std::string& path, LoadedOptions& loaded) {
  namespace po = boost::program_options;
  std::ifstream file(path);
  // A folder opens like a file and reads like an empty one.
  if (!file || std::filesystem::is_directory(path))
    throw ConfigError(fmt::format("cannot read the configuration file '{}'", path), "check --config");
  po::parsed_options parsed(nullptr);
  try {
    parsed = po::parse_config_file(file, po::options_description(), true);
  } catch (const po::error& e) {
    throw ConfigError(fmt::format("{}: {}", path, e.what()),
                      "a line is `name = value`, a section is `[memory]`, a comment starts with #");
  }
  std::map<const OptionSpec*, std::vector<std::string>> values;
  for (const auto& entry : parsed.options) {
    std::string key = option_name(entry.string_key);
    const OptionSpec* spec = nullptr;
    if (const std::size_t dot = key.find('.'); dot != std::string::npos) {
      spec = find_option(key.substr(dot + 1));
      if (spec != nullptr && key.substr(0, dot) != spec->section) {
        throw ConfigError(fmt::format("{}: option '{}' belongs in section [{}], not [{}]", path, spec->name,
                                      spec->section, key.substr(0, dot)),
                          "move the line, or leave sections out");
      }
    } else {
      spec = find_option(key);
    }
    if (spec == nullptr) throw_unknown(key.substr(key.find('.') + 1), path);
    std::vector<std::string>& list = values[spec];
    for (const std::string& value : entry.value) {
      const std::vector<std::string> words = option_values(*spec, value, path);
      list.insert(list.end(), words.begin(), words.end());
    }
  }
  for (const auto& [spec, list] : values) {
    set_option(loaded.options, *spec, list, path);
    loaded.source[spec->name] = OptionSource::file;
  }
  loaded.config_file = path;
}

void read_environment(LoadedOptions& loaded) {
  constexpr std::string_view kPrefix = "QTRAIN_";
  // Names that steer tests and tools rather than runs.
  constexpr std::string_view kNotOptions[] = {"QTRAIN_REQUIRE_CUDA", "QTRAIN_SYNC_LAUNCHES",
                                              "QTRAIN_TEST_PARTS"};
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    const std::string_view text(*entry);
    const std::size_t equals = text.find('=');
    if (!text.starts_with(kPrefix) || equals == std::string_view::npos) continue;
    const std::string variable(text.substr(0, equals));
    if (std::find(std::begin(kNotOptions), std::end(kNotOptions), variable) != std::end(kNotOptions))
      continue;
    std::string name = option_name(variable.substr(kPrefix.size()));
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
    const OptionSpec* spec = find_option(name);
    if (spec == nullptr) throw_unknown(name, "environment variable " + variable);
    set_option(loaded.options, *spec, option_values(*spec, text.substr(equals + 1), variable), variable);
    loaded.source[spec->name] = OptionSource::environment;
  }
}

// What the command line gives, before it is applied: the file it may name has to be read first.
struct CommandLine {
  std::string config_file;
  std::map<const OptionSpec*, std::vector<std::string>> values;
};

CommandLine read_command_line(std::span<const std::string> args) {
  namespace po = boost::program_options;
  // Collects words that belong to no option, to name the first of them. Cannot be typed: names never hold a
  // blank.
  constexpr const char* kStray = "stray word";
  // '_' and '-' are the same in names, not in values.
  std::vector<std::string> words(args.begin(), args.end());
  for (std::string& word : words) {
    if (word.starts_with("--"))
      word = option_name(word.substr(0, word.find('='))) + word.substr(std::min(word.find('='), word.size()));
  }
  po::options_description description;
  auto add = description.add_options();
  add("config", po::value<std::string>());
  add(kStray, po::value<std::vector<std::string>>());
  for (const OptionSpec& spec : option_table()) {
    if (spec.kind == K::flag) {
      add(spec.name, po::value<std::string>()->implicit_value("true")->zero_tokens());
      add(fmt::format("no-{}", spec.name).c_str(),
          po::value<std::string>()->implicit_value("true")->zero_tokens());
    } else if (spec.kind == K::texts) {
      add(spec.name, po::value<std::vector<std::string>>()->multitoken());
    } else {
      add(spec.name, po::value<std::string>());
    }
  }
  CommandLine line;
  try {
    namespace style = po::command_line_style;
    const auto parsed = po::command_line_parser(words)
                            .options(description)
                            .positional(po::positional_options_description().add(kStray, -1))
                            .style(style::allow_long | style::long_allow_adjacent | style::long_allow_next)
                            .run();
    for (const auto& entry : parsed.options) {
      if (entry.string_key == kStray) {
        throw ConfigError(fmt::format("'{}' on the command line belongs to no option", entry.value.front()),
                          "options start with --; a flag takes no value: write --quiet or --no-quiet");
      }
      if (entry.string_key == "config") {
        QT_CHECK(line.config_file.empty(), ConfigError, "--config is given twice on the command line");
        line.config_file = entry.value.front();
        QT_CHECK(!line.config_file.empty(), ConfigError, "--config needs the name of a file");
        continue;
      }
      const OptionSpec* spec = find_option(entry.string_key);
      if (spec != nullptr) {
        std::vector<std::string>& list = line.values[spec];
        if (spec->kind == K::flag) list = {"true"};
        if (spec->kind == K::texts) list.insert(list.end(), entry.value.begin(), entry.value.end());
        if (spec->kind != K::flag && spec->kind != K::texts) {
          QT_CHECK(list.empty(), ConfigError, "--{} is given twice on the command line", spec->name);
          list = entry.value;
        }
      } else {
        line.values[find_option(entry.string_key.substr(3))] = {"false"};  // --no-<flag>
      }
    }
  } catch (const po::unknown_option& e) {
    const std::string name = e.get_option_name();
    throw_unknown(name.substr(std::min(name.find_first_not_of('-'), name.size())), kCommandLine);
  } catch (const po::error& e) {
    throw ConfigError(fmt::format("command line: {}", e.what()), "`qtrain --help` lists all options");
  }
  return line;
}

}  // namespace

std::string_view option_source_name(OptionSource source) {
  constexpr std::string_view kSources[] = {"default", "file", "environment", kCommandLine};
  return kSources[static_cast<std::size_t>(source)];
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
  if (auto* member = std::get_if<std::string Options::*>(&spec.member)) {
    options.** member = own_word(*member, text);
  } else if (auto* flag = std::get_if<bool Options::*>(&spec.member)) {
    options.** flag = parse_flag(text, label);
  } else if (auto* seed = std::get_if<std::uint64_t Options::*>(&spec.member)) {
    options.** seed = parse_seed(text, label);
  } else if (auto* number = std::get_if<double Options::*>(&spec.member)) {
    options.** number = spec.kind == K::duration ? parse_duration(text, label) : parse_number(text, label);
  } else if (auto* count = std::get_if<std::int64_t Options::*>(&spec.member)) {
    options.** count = spec.kind == K::bytes ? parse_bytes(text, label) : parse_count(text, label);
  }
}

std::string option_text(const Options& options, const OptionSpec& spec) {
  return std::visit(
      [&](auto member) -> std::string {
        const auto& value = options.*member;
        using T = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<T, std::string>) return value;
        if constexpr (std::is_same_v<T, std::vector<std::string>>) {
          std::string text;
          for (const std::string& word : value) text += (text.empty() ? "" : " ") + quoted(word);
          return text;
        }
        if constexpr (std::is_same_v<T, bool>) return value ? "true" : "false";
        if constexpr (std::is_same_v<T, double>) return fmt::format("{}", value);
        if constexpr (std::is_integral_v<T> && !std::is_same_v<T, bool>) return std::to_string(value);
        return {};
      },
      spec.member);
}

LoadedOptions load_options(std::span<const std::string> args) {
  const CommandLine line = read_command_line(args);
  LoadedOptions loaded;
  if (!line.config_file.empty()) read_file(line.config_file, loaded);
  read_environment(loaded);
  for (const auto& [spec, values] : line.values) {
    set_option(loaded.options, *spec, values, kCommandLine);
    loaded.source[spec->name] = OptionSource::command_line;
  }
  return loaded;
}

void print_config(std::ostream& out, const LoadedOptions& loaded) {
  for (const OptionSpec& spec : option_table()) {
    const auto it = loaded.source.find(spec.name);
    const OptionSource source = it == loaded.source.end() ? OptionSource::default_value : it->second;
    out << fmt::format(
        "{:<27} = {:<28} # {}\n", spec.name, option_text(loaded.options, spec),
        source == OptionSource::file ? loaded.config_file : std::string(option_source_name(source)));
  }
}

void print_option_help(std::ostream& out) {
  const Options defaults;
  std::string_view section;
  for (const OptionSpec& spec : option_table()) {
    if (section != spec.section) out << fmt::format("\n[{}]\n", section = spec.section);
    out << fmt::format("  --{:<27} {} [{}]\n", spec.name, spec.help, option_text(defaults, spec));
  }
}

}  // namespace qt
