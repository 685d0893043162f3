// `qtrain eval`: validation loss and bits per byte of the newest checkpoint in --out; on --val-data when given.
#include <ostream>

#include "src/cli/run_data.h"
#include "src/cli/trained_model.h"
#include "src/cli/verb.h"
#include "src/core/units.h"
#include "src/train/stop.h"
#include "src/train/trainer.h"

namespace qt {

namespace {

void run_eval(const VerbCall& call) {
  const Options& o = call.loaded.options;
  install_stop_handlers();
  check_use_options(call.loaded);
  if (uses_folder(call.loaded)) {
    throw ConfigError(
        "--init-from names weights; eval takes those of a run",
        "start a run from them with `qtrain --init-from FOLDER --data ... --out RUN`, then name it "
        "with --out");
  }
  LoadedModel model = load_model(call.loaded, call.make_backend, o.micro_batch > 0 ? o.micro_batch : 4);
  const PreparedData data = load_eval_data(call.loaded, model.state);
  const std::unique_ptr<EvalBatches> validation =
      open_validation(data, o.eval_tokens, model.engine->options().model.seq_len);
  if (!validation)
    throw ConfigError("there is no validation data",
                      "name some with --val-data, or give --val-fraction above 0");
  if (data.tokenizer->hash() != model.state.vocab_hash) {
    throw ConfigError("the data was tokenized with another vocabulary than this run's",
                      "name the text itself with --data, not its shards");
  }
  const EvalResult result = evaluate(*model.engine, *validation, [] { poll_read_only(); });
  call.out << fmt::format(
      "step {}: {}{}\n", model.state.step, eval_text(result),
      result.bpb ? fmt::format(", {} bytes", format_thousands(result.bytes)) : std::string());
}

}  // namespace

const Verb verbs::eval{
    .name = "eval",
    .help = "validation loss and bits per byte of the newest checkpoint in --out",
    .words = {},
    .run = run_eval,
};

}  // namespace qt
