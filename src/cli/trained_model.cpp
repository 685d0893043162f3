#include "src/cli/trained_model.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "src/cli/run_data.h"
#include "src/convert/hf_config.h"
#include "src/convert/init_from.h"
#include "src/core/log.h"
#include "src/io/checkpoint.h"
#include "src/io/run_folder.h"
#include "src/plan/machine.h"
#include "src/plan/planner.h"
#include "src/train/stop.h"

namespace qt {

namespace {

namespace fs = std::filesystem;

constexpr const char* kHint =
    "name the run folder with --out; a checkpoint is there once training has saved one";
constexpr std::int64_t kPieceElems = 256 * 1024;

TrainedModel from_checkpoint(const std::string& checkpoint, const fs::path& run_folder) {
  TrainedModel model;
  model.checkpoint = checkpoint;
  model.state = CheckpointStore::read_state(checkpoint);
  try {
    const Options trained = stored_options(model.state, checkpoint);
    model.engine = engine_of(trained, model_from_options(trained, 0), Target{});
    dtype_from_name(option_text<&Options::dtype>(trained));  // `auto` is refused: a run has settled it
  } catch (const ConfigError& e) {
    // Not typed by anybody: advice about options would mislead.
    throw DataError(fmt::format("{}/run.json: field 'options': {}", checkpoint, e.what()));
  }
  model.tokenizer = RunFolder(run_folder).tokenizer();
  return model;
}

TrainedModel from_hf_folder(Options o, const Target& target) {
  if (!is_hf_folder(o.init_from)) {
    throw ConfigError(
        fmt::format("--init-from '{}' is no folder with a config.json of {}", o.init_from, hf_model_types()),
        "train from it first, then name the run with --out");
  }
  adopt_weights_shape(o);
  TrainedModel model;
  model.hf_folder = o.init_from;
  model.engine = engine_of(o, model_from_options(o, 0), target);
  if (has_tokenizer(o.init_from)) model.tokenizer = o.init_from;
  return model;
}

// A whole packed matrix, from its values in f32.
void write_packed(Engine& engine, const NamedView& codes, const NamedView& scales, FormatId format,
                  std::span<const float> values) {
  std::vector<std::uint8_t> packed(static_cast<std::size_t>(codes.view.bytes()));
  dispatch_format(format, [&]<class F>() {
    std::vector<typename F::Scale> packed_scales(static_cast<std::size_t>(scales.view.elems()));
    F::quantize(values, packed.data(), packed_scales.data());
    engine.stored_form().write(scales, std::as_bytes(std::span(packed_scales)));
  });
  engine.stored_form().write(codes, std::as_bytes(std::span(packed)));
}

void fill(Engine& engine, ParamSource& source) {
  const std::vector<NamedView> views = engine.weights();
  std::size_t view = 0;
  std::vector<float> values;
  const ParamList& params = engine.model().params();
  for (std::size_t i = 0; i < params.size(); ++i) {
    const Param& p = params[i];
    if (p.weight.is_packed()) {
      values.resize(static_cast<std::size_t>(p.elems()));
      source.read(i, 0, values);
      write_packed(engine, views[view], views[view + 1], p.weight.format(), values);
      view += 2;
      continue;
    }
    for (std::int64_t first = 0; first < p.elems(); first += kPieceElems) {
      const std::int64_t count = std::min(kPieceElems, p.elems() - first);
      values.resize(static_cast<std::size_t>(count));
      source.read(i, first, values);
      upload_floats(engine.backend(), values, p.weight.dense.flat(first, count));
    }
    ++view;
  }
}

}  // namespace

bool uses_folder(const LoadedOptions& loaded) {
  const Options& o = loaded.options;
  if (!names_weights(o.init_from)) return false;
  const bool run_is_there = fs::exists(fs::path(o.out) / kRunStateFile) || !find_checkpoints(o.out).empty();
  const bool folder_was_typed = loaded.source_of("init-from") == OptionSource::command_line;
  return !run_is_there || (folder_was_typed && !loaded.given("out"));
}

void check_use_options(const LoadedOptions& loaded) {
  Options o = loaded.options;
  const Options defaults;
  if (uses_folder(loaded)) {
    o.model = defaults.model;
    o.clear_dimensions();
    o.bias = defaults.bias;
    o.dropout = defaults.dropout;
  }
  check_options(o);
}

TrainedModel find_trained(const LoadedOptions& loaded, const Target& target) {
  const Options& o = loaded.options;
  if (uses_folder(loaded)) return from_hf_folder(o, target);
  if (!fs::is_directory(o.out)) throw ConfigError(fmt::format("there is no run folder '{}'", o.out), kHint);
  const fs::path out = fs::path(o.out) / "";  // with or without a '/' at its end
  if (fs::exists(out / kRunStateFile)) {
    const fs::path checkpoint = out.parent_path();
    verify_checkpoint(checkpoint);
    return from_checkpoint(checkpoint.string(),
                           checkpoint.has_parent_path() ? checkpoint.parent_path() : ".");
  }
  std::string explanation;
  const std::string checkpoint = CheckpointStore(o.out, o.keep).newest(explanation);
  if (!explanation.empty()) log_warning("{}", explanation);
  if (checkpoint.empty()) throw ConfigError(fmt::format("'{}' holds no checkpoint", o.out), kHint);
  return from_checkpoint(checkpoint, o.out);
}

Tokenizer tokenizer_of(const TrainedModel& model) {
  if (model.tokenizer.empty()) return Tokenizer::make_ids(model.engine.model.vocab_size);
  return Tokenizer::load(model.tokenizer);
}

std::unique_ptr<ParamSource> open_params(const TrainedModel& model, const ModelParams& params,
                                         WeightsOf which) {
  if (!model.hf_folder.empty())
    return std::make_unique<HfParams>(model.hf_folder, model.engine.model, params);
  return std::make_unique<CheckpointParams>(model.checkpoint, params, which, model.engine.layout);
}

LoadedModel load_model(const LoadedOptions& loaded, BackendFactory make_backend,
                       std::int64_t micro_batch_rows, bool with_logits) {
  const Options& o = loaded.options;
  const Target target = target_from_options(o);
  std::unique_ptr<Backend> backend = open_backend(make_backend, target);
  const TrainedModel trained = find_trained(loaded, target);
  EngineOptions engine = trained.engine;
  engine.layout.micro_batch_rows = micro_batch_rows;
  engine.sample_tokens = engine.model.seq_len;
  engine.with_logits = with_logits;
  engine.inference = true;
  const Rehearsed plan = Engine::rehearse(engine, target);
  LoadedModel model{std::make_unique<Engine>(std::move(backend), engine, plan), trained.state,
                    tokenizer_of(trained)};
  if (trained.hf_folder.empty()) {
    CheckpointStore(o.out, o.keep).load(trained.checkpoint, *model.engine);
  } else {
    const ModelParams params = make_params(engine.model);
    fill(*model.engine, *open_params(trained, params, WeightsOf::master));
  }
  return model;
}

void poll_read_only() {
  if (stop_requested())
    throw StopRequested("stopped on request", "nothing was changed; the same command starts over");
}

}  // namespace qt
