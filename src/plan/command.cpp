#include "src/plan/command.h"

#include <set>

#include <fmt/format.h>

#include "src/options/nanogpt.h"

namespace qt {

namespace {

std::string shell_word(const std::string& word) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+./:,=@%^";
  if (!word.empty() && word.find_first_not_of(kPlain) == std::string::npos) return word;
  std::string quoted = "'";
  for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

std::string shell_text(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + shell_word(word);
  return text;
}

// What a command line with these options leads to: some come with others (the defaults of gpt models), some
// are computed from others.
Options reading(const Options& options, const std::set<const OptionSpec*>& said) {
  LoadedOptions loaded;
  for (const OptionSpec* spec : said) {
    set_option(loaded.options, *spec, option_values(*spec, option_text(options, *spec), "plan"), "plan");
    loaded.source[spec->name] = OptionSource::command_line;
  }
  settle_nanogpt_words(loaded);
  return loaded.options;
}

}  // namespace

std::string words_of(const Options& options, std::initializer_list<const OptionSpec*> specs) {
  std::vector<std::string> words;
  for (const OptionSpec* spec : specs) append_option_words(words, options, *spec);
  return shell_text(words);
}

std::string change_words(const Options& before, const Options& after) {
  std::vector<std::string> words;
  for (const OptionSpec* spec : different_options(before, after)) append_option_words(words, after, *spec);
  return shell_text(words);
}

std::vector<std::string> command_words(Options chosen) {
  const Options defaults;
  if (chosen.learning_rate > 0) {  // the others have no effect, and to say them beside it is an error
    chosen.matrix_lr = defaults.matrix_lr;
    chosen.embedding_lr = defaults.embedding_lr;
    chosen.head_lr = defaults.head_lr;
  }
  std::set<const OptionSpec*> said{find_option("model")};
  const auto say_what_is_missing = [&] {
    bool more = false;
    // What has been said and is read otherwise was said in vain: again would not help.
    const Options read = reading(chosen, said);
    for (const OptionSpec* spec : different_options(chosen, read)) more |= said.insert(spec).second;
    return more;
  };
  try {
    while (say_what_is_missing()) {
    }
  } catch (const ConfigError&) {
    // Options that contradict each other, as those of a run that is continued with others: who checks them
    // says so, and a plan is none the worse.
  }
  std::vector<std::string> words;
  for (const OptionSpec& spec : option_table()) {
    const bool needed =
        option_text(chosen, spec) != option_text(defaults, spec) || spec.name != std::string_view("model");
    if (said.contains(&spec) && needed) append_option_words(words, chosen, spec);
  }
  return words;
}

std::string command_of(Options chosen) {
  const std::string words = shell_text(command_words(std::move(chosen)));
  return words.empty() ? "qtrain" : "qtrain " + words;
}

}  // namespace qt
