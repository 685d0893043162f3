// Twenty steps of training against a golden file: the course of losses, norms and weights, and how far it is
// off.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/engine_fixture.h"
#include "tests/support/model_golden.h"

namespace qt::test {

inline constexpr double kLossBound = 1e-5;    // absolute, nats; PyTorch's own f32 runs stay within 4.6e-7
inline constexpr double kNormBound = 1e-5;    // relative; 2.8e-7
inline constexpr double kWeightBound = 1e-4;  // absolute, after twenty steps; 1.5e-5

struct Course {
  std::vector<double> losses, norms;
  std::map<std::string, Floats> weights;
};

inline EngineOptions trajectory_options(const GoldenModel& golden, const std::string& variant, bool paged) {
  EngineOptions o;
  o.model = golden.config();
  o.layout.micro_batch_rows = golden.shape("ids").at(1);
  o.optim = GoldenModel::optimizer(golden.json("optimizer").at(variant), paged);
  return o;
}

inline Course train_course(const GoldenModel& golden, const EngineOptions& options) {
  TestEngine engine(options);
  engine.set_masters([&](const Param& p) { return golden.floats(p.name); });
  const auto ids = golden.ints("ids"), targets = golden.ints("targets");
  const auto tokens = static_cast<std::size_t>(options.step_tokens());
  Course course;
  for (std::size_t step = 0; step * tokens < ids.size(); ++step) {
    const HostBatch batch{std::span(ids).subspan(step * tokens, tokens),
                          std::span(targets).subspan(step * tokens, tokens)};
    const StepStats stats =
        engine->train_step([&](std::int64_t) { return batch; }, {}, 1.0, static_cast<std::int64_t>(step) + 1);
    EXPECT_TRUE(stats.finite);
    course.losses.push_back(stats.loss);
    course.norms.push_back(stats.norm);
  }
  for (const Param& p : engine->model().params()) course.weights[p.name] = engine.state("master." + p.name);
  return course;
}

inline Ratio losses_ratio(const GoldenModel& golden, const Course& course, const std::string& variant) {
  const Floats want = golden.floats(variant + ".loss");
  EXPECT_EQ(course.losses.size(), want.size());
  Ratio r;
  for (std::size_t i = 0; i < std::min(want.size(), course.losses.size()); ++i)
    r.take(course.losses[i], static_cast<double>(want[i]), kLossBound, i);
  return r;
}

// Losses, norms and final weights within their bounds; tensors that `skip` names are left out.
inline void expect_course(const GoldenModel& golden, const Course& course, const std::string& variant,
                          const std::function<bool(const std::string&)>& skip = {}) {
  ASSERT_EQ(course.losses.size(), 20u);
  EXPECT_GE(course.losses.front() - course.losses.back(), 1.0) << "nothing was learnt";
  expect_within(variant, "loss", DType::f32, losses_ratio(golden, course, variant));

  Ratio norms;
  const Floats want = golden.floats(variant + ".grad_norm");
  for (std::size_t i = 0; i < want.size(); ++i)
    norms.take(course.norms[i], static_cast<double>(want[i]), kNormBound * static_cast<double>(want[i]), i);
  expect_within(variant, "norm", DType::f32, norms);

  for (const auto& [name, w] : course.weights) {
    if (skip && skip(name)) continue;
    Ratio r;
    const Floats last = golden.floats(variant + ".final." + name);
    ASSERT_EQ(w.size(), last.size());
    for (std::size_t i = 0; i < w.size(); ++i)
      r.take(static_cast<double>(w[i]), static_cast<double>(last[i]), kWeightBound, i);
    expect_within(variant, part_of(name), DType::f32, r);
  }
}

}  // namespace qt::test
