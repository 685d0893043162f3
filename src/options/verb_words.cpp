#include "src/options/verb_words.h"

#include <algorithm>
#include <iterator>

#include "src/core/error.h"
#include "src/core/suggest.h"
#include "src/options/nanogpt.h"
#include "src/options/option_table.h"

namespace qt {

namespace {

constexpr VerbWord kWords[] = {
    {"train", "halt-in-step", "N",
     "for rehearsals: the process halts itself (SIGSTOP) inside this step, to be killed there"},
    {"plan", "json", nullptr, "one line for programs"},
    {"plan", "rehearse", nullptr,
     "before months: five steps, evaluation, sample and save for real, a kill -9, the same again from the "
     "checkpoint"},
    {"estimate", "card", "NAME",
     "card to estimate for, as 4070 or 'RTX 3060'; absent: the one that is there"},
    {"estimate", "efficiency", "SHARE",
     "of the card's peak that is reached: 70%, 60-80% or a rate, 45TFLOP/s; absent: measured in --out, or "
     "assumed"},
    {"estimate", "calibrate", "TIME",
     "measures this machine for so long, as 20s, with fewer layers of the same model"},
    {"estimate", "compare", nullptr, "other weights, smaller models, fewer tokens and less power beside it"},
    {"estimate", "claim-tflops", "T", "a published rate, in TFLOP/s ..."},
    {"estimate", "claim-days", "D", "... and the days published with it: do they agree?"},
    {"estimate", "claim-kwh", "E", "the energy published with them"},
    {"estimate", "json", nullptr, "one line for programs"},
    {"doctor", "json", nullptr, "one line for programs"},
    {"status", "run", "RUN", "run folder; absent: --out", true},
    {"status", "json", nullptr, "one line for programs"},
    {"report", "run", "RUN", "run folder; absent: --out", true},
    {"report", "to", "FILE", "HTML file to write; absent: report.html in the run folder"},
};

// A letter or two wrong.
constexpr std::size_t kMostWrongLetters = 2;

const VerbWord* find_word(std::string_view verb, std::string_view name) {
  const auto* const it = std::find_if(std::begin(kWords), std::end(kWords), [&](const VerbWord& w) {
    return verb == w.verb && name == w.name && !w.stands_alone;
  });
  return it == std::end(kWords) ? nullptr : it;
}

const VerbWord* word_without_name(std::string_view verb) {
  const auto* const it = std::find_if(std::begin(kWords), std::end(kWords),
                                      [&](const VerbWord& w) { return verb == w.verb && w.stands_alone; });
  return it == std::end(kWords) ? nullptr : it;
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

void refuse_foreign(std::string_view verb, const std::string& name) {
  if (name.empty() || is_known_elsewhere(name)) return;
  std::vector<std::string> others;
  for (const VerbWord& w : kWords) {
    if (name == w.name && !w.stands_alone) others.push_back(fmt::format("`qtrain {}`", w.verb));
  }
  if (!others.empty()) {
    throw ConfigError(fmt::format("--{} is not for `qtrain {}`", name, verb),
                      fmt::format("it belongs to {}", fmt::join(others, ", ")));
  }
  std::vector<std::string_view> names;
  for (const VerbWord& w : kWords) {
    if (verb == w.verb && !w.stands_alone) names.emplace_back(w.name);
  }
  const std::string_view similar = similar_name(name, names);
  if (similar.empty() || edit_distance(name, similar) > kMostWrongLetters) return;
  throw ConfigError(fmt::format("unknown option '{}' (command line)", name),
                    fmt::format("did you mean --{}? `qtrain --help` lists all options", similar));
}

}  // namespace

std::span<const VerbWord> verb_words() { return kWords; }

VerbValues take_verb_words(std::string_view verb, std::vector<std::string>& args) {
  VerbValues values;
  std::vector<std::string> rest;
  for (std::size_t i = 0; i < args.size(); ++i) {
    if (!args[i].starts_with("--")) {
      const VerbWord* alone = word_without_name(verb);
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
    const VerbWord* word = find_word(verb, name);
    if (word == nullptr) {
      refuse_foreign(verb, name);
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
