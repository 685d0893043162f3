#include "src/cli/resume.h"

#include <cmath>
#include <filesystem>
#include <optional>
#include <string_view>

#include "src/convert/init_from.h"
#include "src/io/run_folder.h"

namespace qt {

void adopt_resolved(Options& options, const RunState& stored) {
  const auto stored_text = [&](const OptionSpec& spec) -> const std::string* {
    const auto it = stored.options.find(spec.name);
    return it == stored.options.end() ? nullptr : &it->second;
  };
  const auto adopt = [&](const OptionSpec& spec) {
    const std::string now = option_text(options, spec);
    const std::string* text = stored_text(spec);
    if ((now == "auto" || now == "0") && text != nullptr) set_option(options, spec, {*text}, "checkpoint");
  };
  const auto is_stored = [&](std::string_view name) {
    const OptionSpec& spec = *find_option(name);
    const std::string* text = stored_text(spec);
    return text == nullptr || *text == option_text(options, spec);
  };
  for (const OptionSpec& spec : option_table()) {
    if (spec.has(kAdopted)) adopt(spec);
  }
  // The shape came with the weights, whatever was typed; and they may be gone by now.
  const bool from_weights = names_weights(options.init_from);
  for (const OptionSpec& spec : option_table()) {
    const std::string* text = stored_text(spec);
    if (from_weights && spec.has(kOfWeights) && text != nullptr)
      set_option(options, spec, {*text}, "checkpoint");
  }
  // The rows of another step may not divide into the old micro-batches.
  if (is_stored("batch-tokens") && is_stored("seq-len")) adopt(*find_option("micro-batch"));
}

void adopt_named_weights(Options& options) {
  if (!names_weights(options.init_from)) return;
  const std::optional<RunState> begun = newest_readable_state(options.out);
  if (!begun) return adopt_weights(options);
  adopt_resolved(options, *begun);
  // A vocabulary that came with the weights: the run has its own copy, and the weights may be gone by now.
  const auto named = begun->options.find("tokenizer");
  const std::filesystem::path own = RunFolder(options.out).tokenizer();
  if (options.tokenizer.empty() && named != begun->options.end() && !named->second.empty() &&
      std::filesystem::exists(own)) {
    options.tokenizer = own.string();
  }
}

bool is_same_work(const RunState& begun, const RunConfig& config) {
  for (const OptionSpec& spec : option_table()) {
    if (!spec.has(kSpeed)) continue;
    const auto then = begun.options.find(spec.name);
    if (then == begun.options.end() || then->second != config.options.at(spec.name)) return false;
  }
  return true;
}

RunState carry_over(RunState state, const RunState& now) {
  const auto step_tokens = [](const RunState& s) -> std::int64_t {
    const auto it = s.options.find("batch-tokens");
    if (it == s.options.end()) return 0;
    Options o;
    set_option(o, *find_option("batch-tokens"), {it->second}, "checkpoint");
    return o.batch_tokens;
  };
  const std::int64_t before = step_tokens(state), after = step_tokens(now);
  const bool resized = before > 0 && after > 0 && before != after;
  if (resized) {
    const double tokens = static_cast<double>(state.window) * static_cast<double>(before);
    state.window = static_cast<std::int64_t>(std::ceil(tokens / static_cast<double>(after)));
  }
  const auto order = [](const RunState& s) {
    const auto it = s.options.find("data-order");
    return it == s.options.end() ? option_text<&Options::data_order>(Options()) : it->second;
  };
  if (resized || order(state) != order(now) || state.seed != now.seed || state.data_hash != now.data_hash)
    state.bad_windows.clear();
  state.options = now.options;
  state.vocab_hash = now.vocab_hash;
  state.data_hash = now.data_hash;
  state.seed = now.seed;
  return state;
}

std::vector<std::string> check_resume(const RunState& stored, const RunState& now, bool allow_changes) {
  std::vector<std::string> refused, listed;
  bool overridable = true, same_tensors = true;
  for (const auto& [name, value] : now.options) {
    const auto it = stored.options.find(name);
    const OptionSpec* spec = find_option(name);
    const OnResume meaning = spec != nullptr ? spec->on_resume : OnResume::printed;
    if (it == stored.options.end() || it->second == value || meaning == OnResume::free) continue;
    const std::string change = fmt::format("{}: {} -> {}", name, it->second, value);
    if (meaning == OnResume::fixed || meaning == OnResume::stored_as) {
      refused.push_back(change);
      overridable = false;
      same_tensors = same_tensors && meaning == OnResume::stored_as;
    } else if (meaning == OnResume::identity && !allow_changes) {
      refused.push_back(change);
    } else {
      listed.push_back(change + (meaning == OnResume::bits    ? "; bits may differ"
                                 : meaning == OnResume::shown ? "; no result depends on it"
                                                              : ""));
    }
  }
  if (stored.vocab_hash != now.vocab_hash) {
    refused.push_back("tokenizer: its vocabulary is not the one this run was trained with");
    overridable = same_tensors = false;
  }
  if (stored.data_hash != now.data_hash)
    (allow_changes ? listed : refused).push_back("data: the training tokens differ from the run's");
  if (refused.empty()) return listed;
  throw ConfigError(
      fmt::format("this run cannot be continued with other values:\n  {}", fmt::join(refused, "\n  ")),
      overridable ? "give the values the run began with, add --allow-changes, or choose another --out"
      : same_tensors
          ? "give the values the run began with, or choose another --out, where --init-from with a "
            "step- folder of this run starts from its weights"
          : "give the values the run began with, or choose another --out");
}

}  // namespace qt
