// Reading options from a file, the environment and the command line, in the words of either program.
#include <unistd.h>  // environ

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <iterator>

#include <boost/program_options.hpp>

#include "src/core/error.h"
#include "src/core/log.h"
#include "src/core/suggest.h"
#include "src/options/nanogpt.h"
#include "src/options/nanogpt_file.h"
#include "src/options/option_table.h"

namespace qt {

namespace {

using K = OptionKind;

// The origin of its values in messages.
std::string_view command_line() { return option_source_name(OptionSource::command_line); }

[[noreturn]] void throw_unknown(std::string_view name, std::string_view origin) {
  std::vector<std::string_view> names;
  for (const OptionSpec& spec : option_table()) names.emplace_back(spec.name);
  const std::vector<std::string_view> theirs = nanogpt_words();
  names.insert(names.end(), theirs.begin(), theirs.end());
  const std::string wanted = option_name(name);
  const std::string_view similar = similar_name(wanted, names);
  throw ConfigError(
      fmt::format("unknown option '{}' ({})", name, origin),
      fmt::format("{}`qtrain --help` lists all options",
                  similar.empty() ? std::string() : fmt::format("did you mean --{}? ", similar)));
}

// What one source says, before it is applied: all of it has to be known to see what is said twice.
class SourceValues {
 public:
  // Words as they stand on the command line.
  void add(const OptionSpec& spec, const std::vector<std::string>& words, std::string_view origin) {
    Entry& entry = entries_[&spec];
    if (spec.kind != K::texts && origin == command_line())
      QT_CHECK(entry.values.empty(), ConfigError, "--{} is given twice on the command line", spec.name);
    entry.values.insert(entry.values.end(), words.begin(), words.end());
    entry.origin = origin;
  }
  // The last one counts: flags, which may be switched on and off.
  void replace(const OptionSpec& spec, const std::vector<std::string>& words, std::string_view origin) {
    entries_[&spec] = {words, std::string(origin)};
  }
  // `key = text` in either program's words.
  void add_text(std::string_view key, const std::string& text, std::string_view origin,
                bool from_nanogpt_file = false) {
    if (const auto meaning = nanogpt_meaning(key, text, origin, from_nanogpt_file)) {
      if (!meaning->note.empty()) notes_.push_back(meaning->note);
      for (const NanogptMeaning::Setting& s : meaning->settings) {
        if (s.replaces) {
          last_.emplace_back(s.spec, Entry{s.values, std::string(origin)});
        } else {
          add(*s.spec, s.values, origin);
        }
      }
      return;
    }
    const OptionSpec* spec = find_option(key);
    if (spec == nullptr) throw_unknown(key, origin);
    // Python's texts are not cut into words.
    add(*spec, from_nanogpt_file ? std::vector<std::string>{text} : option_values(*spec, text, origin),
        origin);
  }
  void add_note(const std::string& note) { notes_.push_back(note); }

  // A word that its table would refuse is not looked at where one of the `stronger` sources replaces it.
  void apply(OptionSource source, LoadedOptions& loaded,
             std::initializer_list<const SourceValues*> stronger) {
    for (auto& [spec, entry] : last_) entries_[spec] = std::move(entry);
    for (const auto& [spec, entry] : entries_) {
      const bool replaced = std::any_of(stronger.begin(), stronger.end(), [&](const SourceValues* other) {
        return other->entries_.contains(spec);
      });
      if (!replaced || spec->words.refuse == nullptr)
        set_option(loaded.options, *spec, entry.values, entry.origin);
      loaded.source[spec->name] = source;
    }
    for (const std::string& note : notes_) {
      if (std::find(loaded.notes.begin(), loaded.notes.end(), note) == loaded.notes.end())
        loaded.notes.push_back(note);
    }
  }

 private:
  struct Entry {
    std::vector<std::string> values;
    std::string origin;
  };
  std::map<const OptionSpec*, Entry> entries_;
  std::vector<std::pair<const OptionSpec*, Entry>> last_;
  std::vector<std::string> notes_;
};

void read_ini(const std::string& path, SourceValues& values) {
  namespace po = boost::program_options;
  std::ifstream file(path);
  // A folder opens like a file and reads like an empty one.
  if (!file || std::filesystem::is_directory(path))
    throw ConfigError(fmt::format("cannot read the configuration file '{}'", path),
                      "--config names an INI file, as those in configs/, or one of nanoGPT's .py");
  po::parsed_options parsed(nullptr);
  try {
    parsed = po::parse_config_file(file, po::options_description(), true);
  } catch (const po::error& e) {
    throw ConfigError(fmt::format("{}: {}", path, e.what()),
                      "a line is `name = value`, a section is `[memory]`, a comment starts with #");
  }
  for (const auto& entry : parsed.options) {
    std::string key = option_name(entry.string_key);
    if (const std::size_t dot = key.find('.'); dot != std::string::npos) {
      const std::string section = key.substr(0, dot);
      key = key.substr(dot + 1);
      const OptionSpec* spec = find_option(key);
      if (spec == nullptr) spec = nanogpt_target(key);
      if (spec != nullptr && section != spec->section) {
        throw ConfigError(fmt::format("{}: option '{}' belongs in section [{}], not [{}]", path, key,
                                      spec->section, section),
                          "move the line, or leave sections out");
      }
    }
    for (const std::string& value : entry.value) values.add_text(key, value, path);
  }
}

// Its values. What nanoGPT itself would take where its file says nothing is applied at once.
SourceValues read_file(const std::string& path, LoadedOptions& loaded) {
  loaded.config_file = path;
  SourceValues values;
  if (is_nanogpt_file(path)) {
    const NanogptFile file = read_nanogpt_file(path);
    SourceValues defaults;
    for (const NanogptLine& line : nanogpt_train_defaults())
      defaults.add_text(line.key, line.value, line.origin, true);
    defaults.apply(OptionSource::file, loaded, {});
    for (const NanogptLine& line : file.lines) values.add_text(line.key, line.value, line.origin, true);
    for (const std::string& note : file.notes) values.add_note(note);
  } else {
    read_ini(path, values);
  }
  return values;
}

SourceValues read_environment() {
  constexpr std::string_view kPrefix = "QTRAIN_";
  // Names that steer tests and tools rather than runs.
  constexpr std::string_view kNotOptions[] = {"QTRAIN_REQUIRE_CUDA", "QTRAIN_SYNC_LAUNCHES",
                                              "QTRAIN_TEST_PARTS", "QTRAIN_NVML", "QTRAIN_POWERCAP"};
  SourceValues values;
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
    values.add_text(name, std::string(text.substr(equals + 1)), variable);
  }
  return values;
}

struct CommandLine {
  std::string config_file;
  SourceValues values;
};

// The words with '-' in names, and a flag's value (--bias=False, --bias False) as --bias or --no-bias, which
// is all that the parser knows of flags. '_' and '-' are the same in names, not in values.
std::vector<std::string> plain_words(std::span<const std::string> args) {
  std::vector<std::string> words;
  for (std::size_t i = 0; i < args.size(); ++i) {
    const std::string& word = args[i];
    if (!word.starts_with("--")) {
      words.push_back(word);
      continue;
    }
    const std::size_t equals = std::min(word.find('='), word.size());
    const std::string name = option_name(word.substr(0, equals));
    const OptionSpec* spec = find_option(name.substr(2));
    if (spec == nullptr || spec->kind != K::flag) {
      words.push_back(name + word.substr(equals));
      continue;
    }
    constexpr std::string_view kTruths[] = {"True", "False", "true", "false"};
    std::string value = "true";
    if (equals < word.size()) {
      value = word.substr(equals + 1);
    } else if (i + 1 < args.size() &&
               std::find(std::begin(kTruths), std::end(kTruths), args[i + 1]) != std::end(kTruths)) {
      value = args[++i];
    }
    words.push_back(option_flag(value, name) ? name : "--no-" + name.substr(2));
  }
  return words;
}

CommandLine read_command_line(std::span<const std::string> args) {
  namespace po = boost::program_options;
  // Collects words that belong to no option, to name the first of them. Cannot be typed: names never hold a
  // blank.
  constexpr const char* kStray = "stray word";
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
  for (const std::string_view word : nanogpt_words())
    add(std::string(word).c_str(), po::value<std::string>());
  CommandLine line;
  try {
    namespace style = po::command_line_style;
    const auto parsed = po::command_line_parser(plain_words(args))
                            .options(description)
                            .positional(po::positional_options_description().add(kStray, -1))
                            .style(style::allow_long | style::long_allow_adjacent | style::long_allow_next)
                            .run();
    for (const auto& entry : parsed.options) {
      if (entry.string_key == kStray) {
        throw ConfigError(fmt::format("'{}' on the command line belongs to no option", entry.value.front()),
                          "options start with --; a flag stands alone: --quiet or --no-quiet");
      }
      if (entry.string_key == "config") {
        QT_CHECK(line.config_file.empty(), ConfigError, "--config is given twice on the command line");
        line.config_file = entry.value.front();
        QT_CHECK(!line.config_file.empty(), ConfigError, "--config needs the name of a file");
        continue;
      }
      const OptionSpec* spec = find_option(entry.string_key);
      if (spec != nullptr && spec->kind == K::flag) {
        line.values.replace(*spec, {"true"}, command_line());
      } else if (spec != nullptr && spec->kind == K::texts) {
        line.values.add(*spec, entry.value, command_line());
      } else if (spec != nullptr || !entry.string_key.starts_with("no-")) {
        // The parser gives a word its next neighbour whatever that is.
        if (spec == nullptr && entry.value.front().starts_with("--"))
          throw ConfigError(fmt::format("--{} needs a value", entry.string_key),
                            "write it as --compile=False, or leave it out");
        line.values.add_text(entry.string_key, entry.value.front(), command_line());
      } else {
        line.values.replace(*find_option(entry.string_key.substr(3)), {"false"}, command_line());
      }
    }
  } catch (const po::unknown_option& e) {
    const std::string word = e.get_option_name();
    const std::string name = word.substr(0, word.find('='));
    throw_unknown(name.substr(std::min(name.find_first_not_of('-'), name.size())), command_line());
  } catch (const po::error& e) {
    throw ConfigError(fmt::format("command line: {}", e.what()), "`qtrain --help` lists all options");
  }
  return line;
}

}  // namespace

LoadedOptions load_options(std::span<const std::string> args) {
  CommandLine line = read_command_line(args);
  LoadedOptions loaded;
  SourceValues file;
  if (!line.config_file.empty()) file = read_file(line.config_file, loaded);
  SourceValues environment = read_environment();
  file.apply(OptionSource::file, loaded, {&environment, &line.values});
  environment.apply(OptionSource::environment, loaded, {&line.values});
  line.values.apply(OptionSource::command_line, loaded, {});
  settle_nanogpt_words(loaded);
  if (!loaded.options.quiet) {
    for (const std::string& note : loaded.notes) log_info("{}", note);
  }
  return loaded;
}

}  // namespace qt
