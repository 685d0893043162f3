// `qtrain sample`: continues --prompt with the model of --out or --init-from (src/cli/trained_model.h).
#include <algorithm>
#include <ostream>

#include "src/cli/prompt.h"
#include "src/cli/trained_model.h"
#include "src/cli/verb.h"
#include "src/train/stop.h"

namespace qt {

namespace {

void run_sample(const VerbCall& call) {
  const Options& o = call.loaded.options;
  install_stop_handlers();
  check_use_options(call.loaded);
  LoadedModel model = load_model(call.loaded, call.make_backend, 1);
  std::vector<std::int32_t> prompt;
  if (model.tokenizer.bos() >= 0) prompt.push_back(model.tokenizer.bos());
  const std::string text_before = usable_prompt(call.loaded, model.tokenizer);
  model.tokenizer.encode(text_before, prompt);
  if (prompt.empty()) prompt.push_back(0);
  const std::int64_t room = model.engine->options().sample_tokens;
  const std::int64_t left = room - static_cast<std::int64_t>(prompt.size());
  // A default length is clamped to the model's; an explicit one that is too long is refused.
  const std::int64_t wanted = call.loaded.given("sample-tokens")
                                  ? o.sample_tokens
                                  : std::min(o.sample_tokens, std::max<std::int64_t>(left, 1));
  if (wanted > left) {
    throw ConfigError(fmt::format("--prompt ({} tokens) and its continuation (--sample-tokens {}) are longer "
                                  "than the model's {} tokens",
                                  prompt.size(), wanted, room),
                      "shorten one of the two");
  }
  SampleOptions how{.new_tokens = wanted,
                    .temperature = o.temperature,
                    .top_k = o.top_k,
                    .seed = o.seed,
                    .stream = static_cast<std::uint64_t>(model.state.step)};
  how.ids = model.tokenizer.vocab_size();
  const std::vector<std::int32_t> text =
      model.engine->sample(prompt, how, [](std::int64_t) { poll_read_only(); });
  call.out << text_before << model.tokenizer.decode(text) << "\n";
}

}  // namespace

const Verb verbs::sample{
    .name = "sample",
    .help = "continue --prompt with the newest checkpoint in --out, or the folder of --init-from",
    .words = {},
    .run = run_sample,
};

}  // namespace qt
