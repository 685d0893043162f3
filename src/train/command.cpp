#include "src/train/command.h"

#include <fmt/format.h>

#include "src/core/units.h"
#include "src/train/option_table.h"

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
  const std::string text = option_text(options, spec);
  if (spec.kind != OptionKind::bytes) return text;
  const std::int64_t bytes = options.*std::get<std::int64_t Options::*>(spec.member);
  if (bytes % kGiB == 0) return fmt::format("{}GiB", bytes / kGiB);
  return bytes % kMiB == 0 ? fmt::format("{}MiB", bytes / kMiB) : text;
}

}  // namespace

std::string command_of(const Options& options, const PlannedRun& run) {
  Options chosen = options;
  chosen.micro_batch = run.engine.memory.micro_batch_rows;
  chosen.grad_dtype = dtype_name(run.engine.memory.gradient);
  const Options defaults;
  std::string command = "qtrain";
  for (const OptionSpec& spec : option_table()) {
    if (option_text(chosen, spec) == option_text(defaults, spec)) continue;
    const bool off = spec.kind == OptionKind::flag && option_text(chosen, spec) == "false";
    command += fmt::format(" --{}{}", off ? "no-" : "", spec.name);
    if (const auto* list = std::get_if<std::vector<std::string> Options::*>(&spec.member)) {
      for (const std::string& word : chosen.**list) command += " " + shell_word(word);
      continue;
    }
    if (spec.kind != OptionKind::flag) command += " " + shell_word(value_text(chosen, spec));
  }
  return command;
}

}  // namespace qt
