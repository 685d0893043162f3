// Training against PyTorch: twenty steps of AdamW from random weights, and single steps from reloaded states
// of nanochat's own zero initialisation, where Adam is sign-like and whole trajectories diverge even between
// double and f32.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/support/trajectory.h"

namespace qt::test {
namespace {

// ---- twenty steps ---------------------------------------------------------------------------------------

const GoldenModel& trajectory() {
  static const GoldenModel file("nanochat_trajectory");
  return file;
}

EngineOptions trajectory_options(const std::string& variant, bool paged) {
  return test::trajectory_options(trajectory(), variant, paged);
}
Course train(const EngineOptions& options) { return train_course(trajectory(), options); }

TEST(TrajectoryGolden, TwentyStepsFollowPyTorch) {
  for (const std::string variant : {"plain", "decay_clip"}) {
    SCOPED_TRACE(variant);
    expect_course(trajectory(), train(trajectory_options(variant, true)), variant);
  }
}

TEST(TrajectoryGolden, PagingAndCheckpointingChangeNoBit) {
  for (const std::string variant : {"plain", "decay_clip"}) {
    const Course paged = train(trajectory_options(variant, true));
    EngineOptions o = trajectory_options(variant, false);
    o.layout.checkpoint_activations = true;
    const Course resident = train(o);
    EXPECT_EQ(paged.losses, resident.losses);
    EXPECT_EQ(paged.norms, resident.norms);
    EXPECT_EQ(paged.weights, resident.weights);
  }
}

TEST(TrajectoryGolden, WouldCatchMistakesOfTheOptimizer) {
  const auto with = [](const auto& change) {
    EngineOptions o = trajectory_options("decay_clip", false);
    change(o.optim);
    return losses_ratio(trajectory(), train(o), "decay_clip").worst;
  };
  EXPECT_LE(with([](OptimizerOptions&) {}), 1);
  EXPECT_GT(with([](OptimizerOptions& o) { o.weight_decay = 0; }), 10);
  EXPECT_GT(with([](OptimizerOptions& o) { o.max_norm = 0; }), 10);
  EXPECT_GT(with([](OptimizerOptions& o) { o.beta2 = 0.951; }), 10);
  EXPECT_GT(with([](OptimizerOptions& o) { std::swap(o.beta1, o.beta2); }), 100);
  EXPECT_GT(with([](OptimizerOptions& o) { o.eps = 1e-5; }), 1);
}

// ---- single steps ---------------------------------------------------------------------------------------

const GoldenModel& steps() {
  static const GoldenModel file("nanochat_steps");
  return file;
}

// How far one f32 step may lie from the float64 one when every gradient element may be off by e:
// tools/README.md. t counts from 1; w, m, v, after the step.
struct StepBound {
  double lr, beta1, beta2, eps, t, e;

  double weight(double w, double m, double v) const {
    const double c1 = 1 - std::pow(beta1, t), c2 = 1 - std::pow(beta2, t);
    const double a = (1 - beta1) / c1, b = std::sqrt((1 - beta2) / c2), largest = a / b * t;
    const double D = std::sqrt(v / c2) + eps, U = std::abs(m) / (c1 * D), q = e / D;
    const double moved = b * q >= 1 ? INFINITY : (a + b * U) * q / (1 - b * q);
    return lr * std::min(moved, 2 * largest) + 0x1p-23 * (std::abs(w) + 4 * lr * largest);
  }
  double first_moment(double g, double m) const {
    return (1 - beta1) * e + 0x1p-22 * (std::abs(m) + std::abs(g));
  }
  double second_moment(double g, double v) const {
    return (1 - beta2) * (2 * std::abs(g) + e) * e + 0x1p-22 * v;
  }
};

EngineOptions steps_options() {
  EngineOptions o;
  o.model = steps().config();
  o.layout.micro_batch_rows = steps().shape("ids").at(1);
  o.optim = GoldenModel::optimizer(steps().json("optimizer"), true);
  return o;
}

std::int64_t step_count() { return steps().shape("ids").at(0); }

// Loads state `from`, runs one step with batch `from` and step number t (from + 1 is right).
StepStats one_step(TestEngine& engine, std::int64_t from, std::int64_t t) {
  const auto tokens = static_cast<std::size_t>(engine->options().step_tokens());
  const auto ids = steps().ints("ids"), targets = steps().ints("targets");
  for (const Param& p : engine->model().params()) {
    engine.set_state("m." + p.name, steps().floats(fmt::format("state{}.m.{}", from, p.name)));
    engine.set_state("v." + p.name, steps().floats(fmt::format("state{}.v.{}", from, p.name)));
  }
  engine.set_masters([&](const Param& p) { return steps().floats(fmt::format("state{}.{}", from, p.name)); });
  const std::size_t first = static_cast<std::size_t>(from) * tokens;
  const HostBatch batch{std::span(ids).subspan(first, tokens), std::span(targets).subspan(first, tokens)};
  return engine->train_step([&](std::int64_t) { return batch; }, {}, 1.0, t);
}

// Worst observed / bound of weight, m and v of a param after the step from state `from`.
std::array<Ratio, 3> step_ratios(TestEngine& engine, const Param& p, std::int64_t from) {
  const Json settings = steps().json("optimizer");
  const Floats g = steps().floats(fmt::format("grad{}.{}", from, p.name));
  const double grad_error = steps().json("grad_error").get<double>();
  const StepBound bound{.lr = engine->options().optim.peak_lr[static_cast<std::size_t>(p.group)],
                        .beta1 = settings.at("beta1"),
                        .beta2 = settings.at("beta2"),
                        .eps = settings.at("eps"),
                        .t = static_cast<double>(from + 1),
                        .e = grad_error * max_norm(g)};
  const Floats want_w = steps().floats(fmt::format("state{}.{}", from + 1, p.name));
  const Floats want_m = steps().floats(fmt::format("state{}.m.{}", from + 1, p.name));
  const Floats want_v = steps().floats(fmt::format("state{}.v.{}", from + 1, p.name));
  const Floats got_w = engine.state("master." + p.name), got_m = engine.state("m." + p.name),
               got_v = engine.state("v." + p.name);
  std::array<Ratio, 3> r;
  for (std::size_t i = 0; i < g.size(); ++i) {
    const double w = static_cast<double>(want_w[i]), m = static_cast<double>(want_m[i]),
                 v = static_cast<double>(want_v[i]);
    r[0].take(static_cast<double>(got_w[i]), w, bound.weight(w, m, v), i);
    r[1].take(static_cast<double>(got_m[i]), m, bound.first_moment(static_cast<double>(g[i]), m), i);
    r[2].take(static_cast<double>(got_v[i]), v, bound.second_moment(static_cast<double>(g[i]), v), i);
  }
  return r;
}

TEST(StepsGolden, EachStepFromNanochatsInitAgreesWithinItsDerivedBound) {
  TestEngine engine(steps_options());
  const Floats losses = steps().floats("loss");
  const Json first_nonzero = steps().json("first_nonzero_gradient");
  const double grad_error = steps().json("grad_error").get<double>();
  for (std::int64_t s = 0; s < step_count(); ++s) {
    SCOPED_TRACE(fmt::format("step {}", s));
    const StepStats stats = one_step(engine, s, s + 1);
    EXPECT_NEAR(stats.loss, static_cast<double>(losses[static_cast<std::size_t>(s)]), 2e-6);
    if (s == 0) {
      EXPECT_NEAR(stats.loss, std::log(static_cast<double>(engine->options().model.vocab_size)), 1e-6);
    }
    for (const Param& p : engine->model().params()) {
      const Floats want = steps().floats(fmt::format("grad{}.{}", s, p.name));
      const Floats got = engine.gradient(p);  // every target is scored, so the factor is one
      const bool zero = s < first_nonzero.at(p.name).get<std::int64_t>();
      EXPECT_EQ(std::ranges::all_of(got, [](float x) { return x == 0; }), zero) << p.name;
      expect_within("gradient", part_of(p.name), DType::f32, max_norm_ratio(got, want, grad_error));
      const auto [w, m, v] = step_ratios(engine, p, s);
      expect_within("step weight", part_of(p.name), DType::f32, w);
      expect_within("step m", part_of(p.name), DType::f32, m);
      expect_within("step v", part_of(p.name), DType::f32, v);
    }
  }
}

TEST(StepsGolden, WouldCatchABiasCorrectionThatIsOneStepOff) {
  TestEngine engine(steps_options());
  for (std::int64_t s = 1; s < step_count(); ++s) {
    one_step(engine, s, s + 2);
    double worst = 0;
    for (const Param& p : engine->model().params())
      worst = std::max(worst, step_ratios(engine, p, s)[0].worst);
    EXPECT_GT(worst, 100) << "step " << s;
  }
}

TEST(StepsGolden, WouldCatchASecondMomentThatStaysBehind) {
  TestEngine engine(steps_options());
  one_step(engine, 3, 4);
  const Param& head = engine->model().params().back();
  engine.set_state("v." + head.name, steps().floats("state3.v." + head.name));
  EXPECT_GT(step_ratios(engine, head, 3)[2].worst, 1000);
}

}  // namespace
}  // namespace qt::test
