#include "src/train/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <utility>

namespace qt {

namespace {

void add(BackendTotals& sum, const BackendTotals& part, double times) {
  sum.model_flops += part.model_flops * times;
  sum.executed_flops += part.executed_flops * times;
  sum.read_bytes += part.read_bytes * times;
  sum.written_bytes += part.written_bytes * times;
  sum.host_to_device_bytes += part.host_to_device_bytes * times;
  sum.device_to_host_bytes += part.device_to_host_bytes * times;
  sum.ops += static_cast<std::int64_t>(static_cast<double>(part.ops) * times);
}

// The likeliest token, or a draw from softmax(logits / temperature) over the top k. Double throughout; ties
// and order are by token id, so that the result is a pure function of the logits and the uniform draw.
std::int32_t pick_token(std::span<const float> logits, const SampleOptions& how, double uniform,
                        std::vector<std::int32_t>& order) {
  const auto best = std::max_element(logits.begin(), logits.end());
  if (how.temperature <= 0) return static_cast<std::int32_t>(best - logits.begin());
  order.resize(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::size_t kept = logits.size();
  if (how.top_k > 0 && static_cast<std::size_t>(how.top_k) < kept) {
    kept = static_cast<std::size_t>(how.top_k);
    const auto likelier = [&](std::int32_t a, std::int32_t b) {
      const float la = logits[static_cast<std::size_t>(a)], lb = logits[static_cast<std::size_t>(b)];
      return la != lb ? la > lb : a < b;
    };
    std::nth_element(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept), order.end(), likelier);
    std::sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(kept));
  }
  const auto weight = [&](std::size_t i) {
    return std::exp(
        (static_cast<double>(logits[static_cast<std::size_t>(order[i])]) - static_cast<double>(*best)) /
        how.temperature);
  };
  double total = 0;
  for (std::size_t i = 0; i < kept; ++i) total += weight(i);
  double left = uniform * total;
  for (std::size_t i = 0; i + 1 < kept; ++i) {
    left -= weight(i);
    if (left < 0) return order[i];
  }
  return order[kept - 1];
}

// A phase of the step arena that profilers show as well.
struct StepPhase {
  StepPhase(Arena& step, Backend& backend, const char* name) : range(backend, name), phase(step, name) {}

  Backend::Range range;
  PhaseScope phase;
};

}  // namespace

BackendTotals Rehearsed::train_step(std::int64_t accumulation) const {
  BackendTotals sum;
  add(sum, micro_step, static_cast<double>(accumulation));
  add(sum, optimizer_step, 1);
  return sum;
}

Engine::~Engine() = default;

Engine::Engine(std::unique_ptr<Backend> backend, EngineOptions options)
    : options_(std::move(options)), backend_(std::move(backend)) {
  state_ = std::make_unique<Arena>("state", Space::device);
  host_ = std::make_unique<Arena>("host", Space::host);
  step_ = std::make_unique<Arena>("step", Space::device);
  build();
}

Engine::Engine(std::unique_ptr<Backend> backend, EngineOptions options, const Rehearsed& plan)
    : options_(std::move(options)), backend_(std::move(backend)) {
  device_memory_ = backend_->allocate(Space::device, plan.device_bytes());
  std::byte* host_base = nullptr;
  if (plan.host.bytes > 0) {
    host_memory_ = backend_->allocate(Space::host, plan.host.bytes);
    host_base = host_memory_->base();
  }
  state_ = std::make_unique<Arena>(plan.state, device_memory_->base());
  host_ = std::make_unique<Arena>(plan.host, host_base);
  step_ = std::make_unique<Arena>(plan.step, device_memory_->base() + plan.state.bytes);
  build();
}

void Engine::build() {
  options_.layout.gradients = !options_.inference;
  const PhaseScope state(*state_, "state");
  const PhaseScope host(*host_, "state");
  model_ = std::make_unique<Model>(*backend_, *state_, *step_, options_.model, options_.layout);
  totals_ = state_->keep("totals", MemoryTag::inputs, DType::f64, {2});
  if (!options_.inference) {
    optimizer_ = std::make_unique<Optimizer>(*backend_, *state_, *host_, model_->params(),
                                             model_->gradients(), options_.optim);
  }
  model_->prepare();
  stored_form_ = std::make_unique<StoredForm>(*backend_, weights());
  if (options_.sample_tokens > 0) {
    sample_logits_.resize(static_cast<std::size_t>(options_.model.vocab_size));
    sample_order_.resize(sample_logits_.size());
  }
}

Rehearsed Engine::rehearse(const EngineOptions& options, const Target& target) {
  Engine engine(make_backend("null", target), options);
  const std::vector<std::int32_t> tokens(static_cast<std::size_t>(options.micro_batch_tokens()), 0);
  const HostBatch batch{tokens, tokens};
  Rehearsed plan;
  Backend& backend = *engine.backend_;

  if (!options.inference) engine.rehearse_training(plan, batch);
  backend.reset_totals();
  engine.evaluate(batch);
  plan.eval_step = backend.totals();
  if (options.sample_tokens > 0) {
    const std::vector<std::int32_t> prompt{0};
    engine.sample(prompt, SampleOptions{.new_tokens = 1});
  }
  if (options.with_logits) engine.logits(tokens, {});
  for (Arena* arena : {engine.state_.get(), engine.host_.get(), engine.step_.get()}) arena->finish();
  plan.state = engine.state_->plan();
  plan.host = engine.host_->plan();
  plan.step = engine.step_->plan();
  return plan;
}

void Engine::rehearse_training(Rehearsed& plan, const HostBatch& batch) {
  Backend& backend = *backend_;
  init_weights(0);
  backend.reset_totals();
  // Two micro-batches: the first and a following one; more only repeat the second.
  const std::int64_t accumulation =
      std::exchange(options_.accumulation, std::min<std::int64_t>(options_.accumulation, 2));
  const auto note_micro_step = [&](std::int64_t) {
    plan.micro_step = backend.totals();
    backend.reset_totals();
  };
  accumulate([&](std::int64_t) { return batch; }, note_micro_step);
  options_.accumulation = accumulation;
  backend.reset_totals();
  measure(1.0, 1);
  update();
  plan.optimizer_step = backend.totals();
}

Optimizer& Engine::optimizer() {
  if (optimizer_ == nullptr)
    throw Error(ExitCode::internal, "Engine::optimizer: an engine for inference has none");
  return *optimizer_;
}

void Engine::init_weights(std::uint64_t seed) {
  Optimizer& trained = optimizer();
  const StepPhase phase(*step_, *backend_, "init");
  trained.init_weights(*step_, seed);
}

void Engine::encode_weights() {
  Optimizer& trained = optimizer();
  const StepPhase phase(*step_, *backend_, "init");
  trained.encode_weights(*step_);
}

double Engine::time_paging() {
  if (optimizer().paged_bytes() == 0) return 0;
  double seconds = 0;
  for (int pass = 0; pass < 2; ++pass) {  // the first touch of fresh memory costs more than any later one
    const StepPhase phase(*step_, *backend_, "init");
    backend_->synchronize();
    const auto start = std::chrono::steady_clock::now();
    optimizer_->page_through(*step_);
    backend_->synchronize();
    seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return seconds;
}

void Engine::accumulate(const FetchBatch& fetch, const BetweenBatches& between, double loss_scale) {
  for (const TensorView& region : model_->gradients()) backend_->run(Fill{.x = region, .value = 0});
  backend_->run(Fill{.x = totals_, .value = 0});
  // Each token's gradient is divided by the nominal number of tokens; measure() corrects for targets that
  // were not scored.
  const float grad_scale = static_cast<float>(loss_scale / static_cast<double>(options_.step_tokens()));
  for (std::int64_t micro = 0; micro < options_.accumulation; ++micro) {
    {
      const StepPhase phase(*step_, *backend_, "micro_step");
      model_->forward_backward(fetch(micro), grad_scale, totals_);
    }
    if (between) between(micro + 1);
  }
}

StepStats Engine::measure(double lr_multiplier, std::int64_t t, double loss_scale) {
  Optimizer& trained = optimizer();
  const StepPhase phase(*step_, *backend_, "norm");
  return trained.measure(*step_, totals_, lr_multiplier, t,
                         static_cast<double>(options_.step_tokens()) / loss_scale);
}

void Engine::update() {
  Optimizer& trained = optimizer();
  const StepPhase phase(*step_, *backend_, "optimizer_step");
  trained.update(*step_);
}

StepStats Engine::train_step(const FetchBatch& fetch, const BetweenBatches& between, double lr_multiplier,
                             std::int64_t t, double loss_scale) {
  accumulate(fetch, between, loss_scale);
  const StepStats stats = measure(lr_multiplier, t, loss_scale);
  if (stats.finite) update();
  return stats;
}

Engine::EvalSums Engine::evaluate(const HostBatch& batch) {
  const StepPhase phase(*step_, *backend_, "eval_step");
  backend_->run(Fill{.x = totals_, .value = 0});
  model_->evaluate(batch, totals_);
  const std::vector<double> sums = backend_->read_scalars(totals_);
  return EvalSums{.nats = sums[0], .targets = sums[1]};
}

std::vector<std::int32_t> Engine::sample(std::span<const std::int32_t> prompt, const SampleOptions& how,
                                         const BetweenBatches& between) {
  const StepPhase phase(*step_, *backend_, "sample");
  Decoder decoder(*model_, options_.sample_tokens);
  const std::span<float> logits(sample_logits_);
  std::vector<std::int32_t> text;
  const RngStream rng{.seed = how.seed, .purpose = RngPurpose::sample, .stream = how.stream};
  decoder.feed(prompt, logits);
  while (static_cast<std::int64_t>(text.size()) < how.new_tokens) {
    const double uniform = rng_unit(rng_u32(rng, text.size()));
    const std::int32_t token = pick_token(
        how.ids > 0 ? logits.first(static_cast<std::size_t>(how.ids)) : logits, how, uniform, sample_order_);
    text.push_back(token);
    if (decoder.position() == decoder.capacity()) break;
    if (static_cast<std::int64_t>(text.size()) == how.new_tokens) break;
    decoder.feed(std::span<const std::int32_t>(&token, 1), logits);
    if (between) between(static_cast<std::int64_t>(text.size()));
  }
  return text;
}

void Engine::logits(std::span<const std::int32_t> ids, std::span<float> out) {
  const StepPhase phase(*step_, *backend_, "logits");
  model_->logits(ids, out);
}

std::vector<NamedView> Engine::state() const {
  return optimizer_ != nullptr ? optimizer_->state() : std::vector<NamedView>{};
}

std::vector<NamedView> Engine::weights() const { return stored_weights(model_->params()); }

}  // namespace qt
