#include "src/plan/run_config.h"

#include <algorithm>
#include <cmath>

#include "src/options/option_table.h"

namespace qt {

namespace {

constexpr std::int64_t kTokensPerParam = 20;  // the default horizon, nanochat's

double width_scale(const ModelConfig& model) {
  return 1.0 / std::sqrt(static_cast<double>(model.n_embd) / 768.0);
}

OptimizerOptions optimizer_options(const Options& o, const ModelConfig& model) {
  OptimizerOptions optim;
  optim.rule = o.optim;
  optim.master = o.master;
  optim.seed = o.seed;
  const auto rate = [&](ParamGroup g) -> double& { return optim.peak_lr[static_cast<std::size_t>(g)]; };
  rate(ParamGroup::matrix) = o.matrix_lr;
  rate(ParamGroup::embedding) = o.embedding_lr * width_scale(model);
  rate(ParamGroup::head) = o.head_lr * width_scale(model);
  rate(ParamGroup::norm) = o.matrix_lr;
  if (o.learning_rate > 0) optim.peak_lr.fill(o.learning_rate);
  optim.beta1 = o.beta1;
  optim.beta2 = o.beta2;
  optim.eps = o.eps;
  optim.weight_decay = o.weight_decay;
  optim.max_norm = o.clip;
  return optim;
}

std::int64_t run_tokens(const Options& o, const ModelConfig& model) {
  if (o.steps > 0) return o.steps * o.batch_tokens;
  return o.tokens > 0 ? o.tokens : kTokensPerParam * model.param_count();
}

TrainerOptions trainer_options(const Options& o, std::int64_t steps) {
  TrainerOptions t;
  t.run_dir = o.out;
  t.schedule = Schedule{.kind = o.schedule,
                        .steps = steps,
                        .decay_steps = o.decay_steps,
                        .warmup_steps = o.warmup_steps,
                        .warmdown_fraction = o.warmdown,
                        .final_fraction = o.final_lr};
  t.eval_every = o.eval_every;
  t.save.every = o.save_every;
  t.sample_every = o.sample_every;
  t.keep = o.keep;
  t.stop_after_s = o.stop_after_s;
  t.sample = SampleOptions{
      .new_tokens = o.sample_tokens, .temperature = o.temperature, .top_k = o.top_k, .seed = o.seed};
  t.prompt = o.prompt;
  return t;
}

}  // namespace

EngineOptions engine_of(const Options& o, const ModelConfig& model, const Target& target) {
  EngineOptions engine;
  engine.model = model;
  engine.layout.compute = o.dtype.value_or(target.native_bf16 ? DType::bf16 : DType::f32);
  engine.layout.weights = o.quant;
  return engine;
}

RunConfig config_of(const Options& o, const ModelConfig& model, const Target& target) {
  RunConfig c;
  c.engine = engine_of(o, model, target);
  c.engine.layout.checkpoint_activations = o.ckpt_activations;
  c.engine.layout.loss_chunk_tokens = o.loss_chunk;
  c.engine.layout.seed = o.seed;
  c.engine.sample_tokens = o.sample_tokens > 0 ? model.seq_len : 0;
  c.tokens = run_tokens(o, model);
  c.steps = std::max<std::int64_t>(1, c.tokens / o.batch_tokens);
  c.trainer = trainer_options(o, c.steps);
  c.seed = o.seed;
  if (names_weights(o.init_from)) c.weights_from = o.init_from;
  c.allow_changes = o.allow_changes;
  c.data_order = o.data_order;
  c.eval_tokens = o.eval_tokens;
  c.log_every = o.log_every;
  c.tensorboard = o.tensorboard;
  c.quiet = o.quiet;
  c.watts = o.watts;
  c.price = o.price;
  c.engine.optim = optimizer_options(o, model);
  return c;
}

Options with_choices(const Options& options, const RunConfig& config) {
  const ModelOptions& layout = config.engine.layout;
  Options chosen = options;
  chosen.micro_batch = layout.micro_batch_rows;
  chosen.grad_dtype = layout.gradient;
  if (config.target.kind == DeviceKind::cuda && config.target.gemm == GemmRoute::fused)
    chosen.gemm = GemmRoute::fused;
  if (layout.compute == DType::f16) chosen.paging = config.engine.optim.paged ? Paging::on : Paging::off;
  return chosen;
}

std::map<std::string, std::string> resolved_options(Options chosen, const RunConfig& config) {
  chosen.dtype = config.engine.layout.compute;
  chosen.device = config.target.kind;
  const bool on_card = config.target.kind == DeviceKind::cuda;
  chosen.arch = on_card ? config.target.name : Options().arch;
  if (!on_card) chosen.gemm = GemmRoute::automatic;  // there is one route
  chosen.resolve(config.engine.model);  // naming the shape that the model has anyway is no change
  std::map<std::string, std::string> text;
  for (const OptionSpec& spec : option_table()) text[spec.name] = option_text(chosen, spec);
  return text;
}

}  // namespace qt
