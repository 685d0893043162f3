#include "src/plan/command.h"

#include <set>

#include <fmt/format.h>

#include "src/core/units.h"
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

// As a person would write it: sizes in whole GiB or MiB where they are.
std::string value_text(const Options& options, const OptionSpec& spec) {
  std::string text = option_text(options, spec);
  if (spec.kind != OptionKind::bytes) return text;
  const std::int64_t bytes = options.*std::get<std::int64_t Options::*>(spec.member);
  if (bytes % kGiB == 0) return fmt::format("{}GiB", bytes / kGiB);
  return bytes % kMiB == 0 ? fmt::format("{}MiB", bytes / kMiB) : text;
}

void append_words(std::vector<std::string>& words, const Options& options, const OptionSpec& spec) {
  const bool off = spec.kind == OptionKind::flag && option_text(options, spec) == "false";
  words.push_back(fmt::format("--{}{}", off ? "no-" : "", spec.name));
  if (const auto* list = std::get_if<std::vector<std::string> Options::*>(&spec.member)) {
    words.insert(words.end(), (options.**list).begin(), (options.**list).end());
  } else if (spec.kind != OptionKind::flag) {
    words.push_back(value_text(options, spec));
  }
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

Options with_choices(const Options& options, const PlannedRun& run) {
  Options chosen = options;
  chosen.micro_batch = run.engine.memory.micro_batch_rows;
  chosen.grad_dtype = run.engine.memory.gradient;
  if (run.target.kind == DeviceKind::cuda && run.target.gemm == GemmRoute::fused)
    chosen.gemm = GemmRoute::fused;
  if (run.engine.memory.compute == DType::f16)
    chosen.paging = run.engine.optim.paged ? Paging::on : Paging::off;
  return chosen;
}

std::vector<const OptionSpec*> different_options(const Options& a, const Options& b) {
  std::vector<const OptionSpec*> specs;
  for (const OptionSpec& spec : option_table()) {
    if (option_text(a, spec) != option_text(b, spec)) specs.push_back(&spec);
  }
  return specs;
}

std::string change_words(const Options& before, const Options& after) {
  std::vector<std::string> words;
  for (const OptionSpec* spec : different_options(before, after)) append_words(words, after, *spec);
  return shell_text(words);
}

std::vector<std::string> command_words(const Options& options, const PlannedRun& run) {
  Options chosen = with_choices(options, run);
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
    for (const OptionSpec* spec : different_options(chosen, reading(chosen, said)))
      more |= said.insert(spec).second;
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
    if (said.contains(&spec) && needed) append_words(words, chosen, spec);
  }
  return words;
}

std::string command_of(const Options& options, const PlannedRun& run) {
  const std::string words = shell_text(command_words(options, run));
  return words.empty() ? "qtrain" : "qtrain " + words;
}

}  // namespace qt
