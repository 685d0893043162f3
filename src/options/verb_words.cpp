#include "src/options/verb_words.h"

#include <algorithm>

#include "src/core/error.h"
#include "src/core/suggest.h"
#include "src/options/nanogpt.h"
#include "src/options/option_table.h"

namespace qt {

namespace {

// A letter or two wrong.
constexpr std::size_t kMostWrongLetters = 2;

const VerbWords& words_of(std::span<const VerbWords> all, std::string_view verb) {
  const auto it = std::find_if(all.begin(), all.end(), [&](const VerbWords& w) { return verb == w.verb; });
  if (it == all.end())
    throw Error(ExitCode::internal, fmt::format("no words are declared for the verb '{}'", verb));
  return *it;
}

const VerbWord* find_word(const VerbWords& own, std::string_view name) {
  const auto it = std::find_if(own.words.begin(), own.words.end(),
                               [&](const VerbWord& w) { return name == w.name && !w.stands_alone; });
  return it == own.words.end() ? nullptr : &*it;
}

const VerbWord* word_without_name(const VerbWords& own) {
  const auto it =
      std::find_if(own.words.begin(), own.words.end(), [](const VerbWord& w) { return w.stands_alone; });
  return it == own.words.end() ? nullptr : &*it;
}

// Whether the word before, an option of a run, takes the next one as its value.
bool awaits_value(const std::vector<std::string>& words) {
  if (words.empty() || !words.back().starts_with("--") || words.back().find('=') != std::string::npos)
    return false;
  const std::string name = option_name(words.back().substr(2));
  const OptionSpec* spec = find_option(name);
  if (spec != nullptr) return spec->kind != OptionKind::flag;
  return !name.starts_with("no-");
}

bool is_known_elsewhere(const std::string& name) {
  const std::vector<std::string_view> theirs = nanogpt_words();
  return name == "config" || find_option(name) != nullptr ||
         (name.starts_with("no-") && find_option(name.substr(3)) != nullptr) ||
         std::find(theirs.begin(), theirs.end(), name) != theirs.end();
}

void refuse_foreign(std::span<const VerbWords> all, const VerbWords& own, const std::string& name) {
  if (name.empty() || is_known_elsewhere(name)) return;
  std::vector<std::string> others;
  for (const VerbWords& other : all) {
    if (find_word(other, name) != nullptr) others.push_back(fmt::format("`qtrain {}`", other.verb));
  }
  if (!others.empty()) {
    throw ConfigError(fmt::format("--{} is not for `qtrain {}`", name, own.verb),
                      fmt::format("it belongs to {}", fmt::join(others, ", ")));
  }
  std::vector<std::string_view> names;
  for (const VerbWord& w : own.words) {
    if (!w.stands_alone) names.emplace_back(w.name);
  }
  const std::string_view similar = similar_name(name, names);
  if (similar.empty() || edit_distance(name, similar) > kMostWrongLetters) return;
  throw ConfigError(fmt::format("unknown option '{}' (command line)", name),
                    fmt::format("did you mean --{}? `qtrain --help` lists all options", similar));
}

}  // namespace

VerbValues take_verb_words(std::span<const VerbWords> all, std::string_view verb,
                           std::vector<std::string>& args) {
  const VerbWords& own = words_of(all, verb);
  VerbValues values;
  std::vector<std::string> rest;
  for (std::size_t i = 0; i < args.size(); ++i) {
    if (!args[i].starts_with("--")) {
      const VerbWord* alone = word_without_name(own);
      if (alone == nullptr || awaits_value(rest)) {
        rest.push_back(args[i]);
        continue;
      }
      if (values.has(alone->name)) {
        throw ConfigError(fmt::format("'{}' is one word too many", args[i]),
                          fmt::format("`qtrain {} {}` takes one {}", verb, alone->value, alone->value));
      }
      QT_CHECK(!args[i].empty(), ConfigError, "the name of the {} is empty", alone->value);
      values.set(alone->name, args[i]);
      continue;
    }
    const std::size_t equals = std::min(args[i].find('='), args[i].size());
    const std::string name = option_name(args[i].substr(2, equals - 2));
    const VerbWord* word = find_word(own, name);
    if (word == nullptr) {
      refuse_foreign(all, own, name);
      rest.push_back(args[i]);
      continue;
    }
    QT_CHECK(!values.has(name), ConfigError, "--{} is given twice on the command line", name);
    if (word->value == nullptr) {
      if (equals < args[i].size())
        throw ConfigError(fmt::format("--{} takes no value", name), "it stands alone");
      values.set(name, "");
      continue;
    }
    std::string value;
    if (equals < args[i].size()) {
      value = args[i].substr(equals + 1);
    } else if (i + 1 < args.size() && !args[i + 1].starts_with("--")) {
      value = args[++i];
    }
    if (value.empty())
      throw ConfigError(fmt::format("--{} needs a value", name),
                        fmt::format("--{} {}: {}", name, word->value, word->help));
    values.set(name, value);
  }
  args = std::move(rest);
  return values;
}

}  // namespace qt
