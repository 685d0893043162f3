// One accumulation window: however its rows are cut into micro-batches, loss, gradient and the step that
// follows are those of the whole, also when targets are ignored unevenly; and its work is what nanochat's
// formula counts.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/support/engine_fixture.h"
#include "tests/support/model_golden.h"

namespace qt::test {
namespace {

constexpr std::int64_t kRows = 8;
// Loss, norm and the whole of a tensor's gradient (in the Euclidean norm), relative. A library may sum
// products of another size in another order. A sum of R random terms, rounded after each, is off by sqrt(R /
// 6) roundings of its own size; here R is 256 at most. Between tokens and a gradient stand at most 27
// products: 6 of each of two blocks and the head's forward, as many back, and the gradient's own. Their
// errors add as independent ones do, and both sides have them.
const double kShare = std::sqrt(2.0 * 27 * 256 / 6) * 0x1p-24;
// One element, of its tensor's max-norm: four standard deviations of a walk of 256 roundings, one a token.
const double kElementShare = 4 * 0x1p-24 * std::sqrt(256.0);

EngineOptions split(std::int64_t rows) {
  EngineOptions o;
  o.model.name = "small";
  o.model.n_layer = 2, o.model.n_head = 4, o.model.n_kv_head = 2, o.model.n_embd = 64;
  o.model.vocab_size = 97, o.model.seq_len = 32;
  o.layout.micro_batch_rows = rows;
  o.accumulation = kRows / rows;
  o.optim.rule = &rules::adamw;
  o.optim.max_norm = 0;
  return o;
}

struct Window {
  std::vector<std::int32_t> ids, targets;
};

Window full_window() {
  const EngineOptions o = split(kRows);
  const auto n = static_cast<std::size_t>(o.step_tokens());
  return {random_ids(n, o.model.vocab_size, 1), random_ids(n, o.model.vocab_size, 2)};
}

// Nothing is scored in row 0, one token in row 3, every third in rows 4 to 6, all elsewhere.
Window ragged_window() {
  Window w = full_window();
  for (std::size_t i = 0; i < w.targets.size(); ++i) {
    const std::size_t row = i / 32, t = i % 32;
    if (row == 0 || (row == 3 && t != 17) || (row >= 4 && row <= 6 && t % 3 != 0)) w.targets[i] = -1;
  }
  return w;
}

double scored(const Window& w) {
  return static_cast<double>(std::ranges::count_if(w.targets, [](std::int32_t t) { return t >= 0; }));
}

struct Outcome {
  StepStats stats;
  std::map<std::string, Floats> gradients;  // of the mean over scored tokens
  std::map<std::string, Floats> m;          // after a step at rate zero: what the optimizer saw
};

Outcome run(const EngineOptions& o, const Window& w) {
  TestEngine engine(o);
  engine.set_masters([](const Param& p) { return lively_weights(p); });
  engine->accumulate(fetch_from(w.ids, w.targets, o.micro_batch_tokens()), {});
  Outcome out;
  out.stats = engine->measure(0.0, 1);
  engine->update();
  out.gradients = engine.gradients(static_cast<double>(o.step_tokens()) / scored(w));
  for (const Param& p : engine->model().params()) out.m[p.name] = engine.state("m." + p.name);
  return out;
}

double l2_distance(const Floats& got, const Floats& want) {
  double apart = 0, whole = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    const double y = static_cast<double>(want[i]), d = static_cast<double>(got[i]) - y;
    apart += d * d;
    whole += y * y;
  }
  return std::sqrt(apart / whole);
}

// Every tensor's gradient, and m: after the first step (1 - beta1) times the gradient that the optimizer saw.
void expect_same_gradients(const std::string& what, const Outcome& got, const Outcome& want) {
  for (const auto& [name, g] : got.gradients) {
    Ratio l2;
    l2.take(l2_distance(g, want.gradients.at(name)), 0, kShare, 0);
    expect_within(what, part_of(name), DType::f32, l2);
    expect_within(what + ", one", part_of(name), DType::f32,
                  max_norm_ratio(g, want.gradients.at(name), kElementShare));
    Floats m = got.m.at(name);
    for (float& x : m) x = static_cast<float>(static_cast<double>(x) / (1.0 - split(1).optim.beta1));
    EXPECT_LE(l2_distance(m, want.gradients.at(name)), kShare) << "m of " << name;
  }
}

TEST(Window, LossAndGradientDoNotDependOnHowItIsSplit) {
  for (const bool ragged : {false, true}) {
    const Window w = ragged ? ragged_window() : full_window();
    const std::string what = ragged ? "ragged window" : "full window";
    const Outcome whole = run(split(kRows), w);
    EXPECT_EQ(whole.stats.tokens, scored(w));
    for (const std::int64_t rows : {4, 2, 1}) {
      SCOPED_TRACE(fmt::format("{} micro-batches of {}", kRows / rows, rows));
      const Outcome parts = run(split(rows), w);
      EXPECT_EQ(parts.stats.tokens, whole.stats.tokens);
      Ratio loss, norm;
      loss.take(parts.stats.loss, whole.stats.loss, kShare * whole.stats.loss, 0);
      norm.take(parts.stats.norm, whole.stats.norm, kShare * whole.stats.norm, 0);
      // Summed in double, these may well agree to the last bit, so they stay out of the table.
      EXPECT_LE(loss.worst, 1) << loss.text();
      EXPECT_LE(norm.worst, 1) << norm.text();
      expect_same_gradients(what, parts, whole);
    }
  }
}

TEST(Window, CheckpointingAndChunksOfTheLossChangeNothingBeyondTheOrderOfSums) {
  const Window w = ragged_window();
  const Outcome whole = run(split(2), w);
  EngineOptions o = split(2);
  o.layout.checkpoint_activations = true;
  EXPECT_EQ(run(o, w).gradients, whole.gradients);
  o.layout.loss_chunk_tokens = 11;  // 64 tokens: five chunks of 11 and one of 9
  expect_same_gradients("loss chunks", run(o, w), whole);
}

// The usual mistake: average the micro-batches' own means, which weighs a token by how few others its
// micro-batch scores.
TEST(Window, IsNoMeanOfMeans) {
  const Window w = ragged_window();
  const Outcome right = run(split(1), w);
  EngineOptions o = split(1);
  o.accumulation = 1;
  TestEngine engine(o);
  engine.set_masters([](const Param& p) { return lively_weights(p); });
  double loss = 0, weighted_loss = 0, micros = 0;
  std::map<std::string, Floats> mean, weighted;
  for (std::int64_t row = 0; row < kRows; ++row) {
    const HostBatch batch = fetch_from(w.ids, w.targets, o.micro_batch_tokens())(row);
    engine->accumulate([&](std::int64_t) { return batch; }, {});
    const StepStats stats = engine->measure(1.0, 1);
    if (stats.tokens == 0) continue;
    loss += stats.loss, ++micros;
    weighted_loss += stats.loss * stats.tokens / scored(w);
    for (const auto& [name, g] : engine.gradients(static_cast<double>(o.step_tokens()) / stats.tokens)) {
      mean[name].resize(g.size()), weighted[name].resize(g.size());
      for (std::size_t i = 0; i < g.size(); ++i) {
        mean[name][i] += g[i] / 7.0f;
        weighted[name][i] += g[i] * static_cast<float>(stats.tokens / scored(w));
      }
    }
  }
  ASSERT_EQ(micros, 7) << "row 0 has nothing to score";
  EXPECT_GT(std::abs(loss / micros - right.stats.loss), 1e-3);
  EXPECT_NEAR(weighted_loss, right.stats.loss, kShare * right.stats.loss);
  for (const auto& [name, g] : mean) {
    EXPECT_GT(l2_distance(g, right.gradients.at(name)), 0.1) << name;
    EXPECT_LE(l2_distance(weighted.at(name), right.gradients.at(name)), kShare) << name;
  }
}

TEST(Window, WithoutASingleTargetLeavesEverythingAsItWas) {
  Window w = full_window();
  std::ranges::fill(w.targets, -1);
  const EngineOptions o = split(2);
  TestEngine engine(o);
  engine.set_masters([](const Param& p) { return lively_weights(p); });
  const auto before = engine.everything();
  const StepStats stats =
      engine->train_step(fetch_from(w.ids, w.targets, o.micro_batch_tokens()), {}, 1.0, 1);
  EXPECT_EQ(stats.tokens, 0);
  EXPECT_EQ(stats.norm, 0);
  EXPECT_EQ(engine.everything(), before);
  const Window scored_window = full_window();
  engine->train_step(fetch_from(scored_window.ids, scored_window.targets, o.micro_batch_tokens()), {}, 1.0,
                     1);
  for (const auto& [name, g] : engine.gradients()) {
    EXPECT_TRUE(std::ranges::all_of(g, [](float x) { return std::isfinite(x); })) << name;
  }
}

TEST(Window, DoesTheWorkThatNanochatsFormulaCounts) {
  for (const FormatId format : {FormatId::none, FormatId::nf4}) {
    double executed_without_recompute = 0;
    for (const bool checkpointed : {false, true}) {
      EngineOptions o = split(2);
      o.layout.weights = format;
      o.layout.checkpoint_activations = checkpointed;
      o.optim.peak_lr = {1e-3, 1e-3, 1e-3, 0};
      TestEngine engine(o);
      engine->init_weights(1);
      engine->backend().reset_totals();
      const Window w = full_window();
      engine->train_step(fetch_from(w.ids, w.targets, o.micro_batch_tokens()), {}, 1.0, 1);
      const BackendTotals done = engine->backend().totals();
      const double tokens = static_cast<double>(o.step_tokens());
      EXPECT_EQ(done.model_flops / tokens, o.model.model_flops_per_token());
      if (checkpointed) {
        EXPECT_GT(done.executed_flops, executed_without_recompute);
      } else {
        executed_without_recompute = done.executed_flops;
      }

      const Rehearsed plan = Engine::rehearse(o, test_target(2));
      const BackendTotals planned = plan.train_step(o.accumulation);
      EXPECT_EQ(planned.model_flops, done.model_flops);
      EXPECT_EQ(planned.executed_flops, done.executed_flops);
      EXPECT_EQ(planned.host_to_device_bytes, done.host_to_device_bytes);
      EXPECT_EQ(planned.device_to_host_bytes, done.device_to_host_bytes);
    }
  }
}

}  // namespace
}  // namespace qt::test
