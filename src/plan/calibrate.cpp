#include "src/plan/calibrate.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "src/core/rng.h"
#include "src/plan/machine.h"
#include "src/train/pace.h"
#include "src/train/stop.h"

namespace qt {

namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kLeastRounds = 3, kMostRounds = 200;
// More than one apart, so that the difference is not lost in the noise; few, so that they fit and are quick.
constexpr std::int64_t kFewLayers = 1, kMoreLayers = 3;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// The same run with fewer layers.
class SmallRun {
 public:
  SmallRun(const Plan& run, std::int64_t layers, BackendFactory make_backend) {
    EngineOptions options = run.config.engine;
    options.model.n_layer = layers;
    options.accumulation = 1;
    options.sample_tokens = 0;
    const Rehearsed plan = Engine::rehearse(options, run.config.target);
    engine_ = std::make_unique<Engine>(open_backend(make_backend, run.config.target), options, plan);
    engine_->init_weights(1);
    // Any tokens: what a product takes does not depend on them.
    const RngStream rng{.seed = 1, .purpose = RngPurpose::data_order};
    const auto vocab = static_cast<std::uint32_t>(options.model.vocab_size);
    ids_.resize(static_cast<std::size_t>(options.micro_batch_tokens()));
    for (std::size_t i = 0; i < ids_.size(); ++i)
      ids_[i] = static_cast<std::int32_t>(rng_u32(rng, i) % vocab);
  }

  double micro_step() {
    return timed([&] { engine_->accumulate([&](std::int64_t) { return batch(); }, {}); });
  }
  double update() {
    return timed([&] {
      engine_->measure(0.01, ++steps_);  // small steps: weights stay finite for as long as it takes
      engine_->update();
    });
  }
  double evaluation() {
    return timed([&] { engine_->evaluate(batch()); });
  }

 private:
  HostBatch batch() const { return {.ids = ids_, .targets = ids_}; }
  double timed(const std::function<void()>& work) {
    poll_stop();
    const auto start = Clock::now();
    work();
    engine_->backend().synchronize();
    return seconds_since(start);
  }

  std::unique_ptr<Engine> engine_;
  std::vector<std::int32_t> ids_;
  std::int64_t steps_ = 0;
};

}  // namespace

double at_layers(double few_s, double more_s, std::int64_t few, std::int64_t more, std::int64_t layers) {
  if (more == few) return few_s;  // the model has no more
  return few_s + (more_s - few_s) / static_cast<double>(more - few) * static_cast<double>(layers - few);
}

Calibration calibrate(const Plan& run, BackendFactory make_backend, double budget_s) {
  const auto start = Clock::now();
  const std::int64_t layers = run.config.engine.model.n_layer;
  Calibration c{.few_layers = kFewLayers, .more_layers = std::min(layers, kMoreLayers)};
  SmallRun few(run, c.few_layers, make_backend), more(run, c.more_layers, make_backend);
  const auto accumulation = static_cast<double>(run.config.engine.accumulation);
  const auto whole = [&](double few_s, double more_s) {
    return at_layers(few_s, more_s, c.few_layers, c.more_layers, layers);
  };
  std::vector<double> steps, evaluations;
  for (std::int64_t round = -1; round < kMostRounds; ++round) {
    if (round >= kLeastRounds && seconds_since(start) > budget_s) break;
    const double micro = whole(few.micro_step(), more.micro_step());
    const double update = whole(few.update(), more.update());
    const double evaluation = whole(few.evaluation(), more.evaluation());
    if (round < 0) continue;  // pays for caches, page faults and just-in-time kernels
    steps.push_back(accumulation * micro + update);
    evaluations.push_back(evaluation);
    ++c.repetitions;
  }
  c.step_s = usual_seconds(std::move(steps));
  c.evaluation_batch_s = usual_seconds(std::move(evaluations));
  c.seconds = seconds_since(start);
  return c;
}

std::string calibration_text(const Calibration& c, std::int64_t layers) {
  return c.few_layers == c.more_layers
             ? fmt::format("{} of {} layers, {} times, in {:.0f} s", c.few_layers, layers, c.repetitions,
                           c.seconds)
             : fmt::format("{} and {} of {} layers, {} times each, in {:.0f} s", c.few_layers, c.more_layers,
                           layers, c.repetitions, c.seconds);
}

}  // namespace qt
