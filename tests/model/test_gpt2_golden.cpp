// The gpt family against transformers' GPT2LMHeadModel with exact GELU: logits, loss and every gradient of
// one batch, with and without biases, all tensors random; twenty steps of torch.optim.AdamW. Mistakes that a
// port makes must break the same bounds.
#include <algorithm>
#include <cmath>
#include <functional>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "tests/support/trajectory.h"

namespace qt::test {
namespace {

// f32: PyTorch's own f32 is within 3.1e-6 of float64 here, the least of the mistakes at 2.3e-4.
constexpr double kF32Share = 1e-5;

// A rounding to storage is off by u / sqrt(3) in the mean square. As in tests/model/test_model_golden.cpp a block
// rounds about thirteen tensors in a row, and their errors add as independent ones do; LayerNorm subtracts a
// mean, so that its input's roundings count twice. The largest of a few hundred elements lies three standard
// deviations out.
double half_share(DType dtype, std::int64_t layers, int passes) {
  const double u = dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
  return 3 * u / std::sqrt(3.0) * std::sqrt(static_cast<double>(passes * (4 + 2 * 13 * layers)));
}

struct Outcome {
  Floats logits;
  std::map<std::string, Floats> gradients;  // of the mean loss over scored targets
  StepStats stats;
};

class Gpt2Golden : public ::testing::TestWithParam<const char*> {
 protected:
  GoldenModel golden{GetParam()};
  std::vector<std::int32_t> ids = golden.ints("ids"), targets = golden.ints("targets");

  double scored() const {
    return static_cast<double>(std::ranges::count_if(targets, [](std::int32_t t) { return t >= 0; }));
  }

  EngineOptions options() const {
    EngineOptions o;
    o.model = golden.config();
    o.layout.micro_batch_rows = golden.shape("ids").at(0);
    o.with_logits = true;
    o.optim.rule = &rules::adamw;
    o.optim.max_norm = 0;
    return o;
  }

  Outcome run(const EngineOptions& o, int threads = 2, double loss_scale = 1,
              const std::function<Floats(const Param&)>& weights = {}) const {
    TestEngine engine(o, threads);
    engine.set_masters(weights ? weights : [&](const Param& p) { return golden.floats(p.name); });
    Outcome out;
    out.logits = engine.logits(ids);
    engine->accumulate([&](std::int64_t) { return HostBatch{ids, targets}; }, {}, loss_scale);
    out.stats = engine->measure(1.0, 1, loss_scale);
    out.gradients = engine.gradients(static_cast<double>(o.step_tokens()) / scored() / loss_scale);
    return out;
  }

  Ratio logits_ratio(const Outcome& got, double share) const {
    return max_norm_ratio(got.logits, golden.floats("logits"), share);
  }

  // A key's bias shifts all scores of a query alike, so that its gradient is zero: compared with the largest
  // gradient of the query's bias instead of with its own.
  Ratio gradient_ratio(const std::string& name, const Floats& got, double share) const {
    const Floats want = golden.floats("grad." + name);
    if (!name.ends_with("attn.c_k.bias")) return max_norm_ratio(got, want, share);
    std::string query = name;
    query.replace(query.find("c_k"), 3, "c_q");
    Ratio r;
    for (std::size_t i = 0; i < got.size(); ++i)
      r.take(static_cast<double>(got[i]), 0, share * max_norm(golden.floats("grad." + query)), i);
    return r;
  }
  Ratio worst_gradient(const Outcome& got, double share) const {
    Ratio worst;
    for (const auto& [name, g] : got.gradients) {
      const Ratio r = gradient_ratio(name, g, share);
      if (r.worst > worst.worst) worst = r;
    }
    return worst;
  }
  Ratio loss_ratio(const Outcome& got, double tolerance) const {
    Ratio r;
    r.take(got.stats.loss, static_cast<double>(golden.floats("loss").at(0)), tolerance, 0);
    return r;
  }
};

TEST_P(Gpt2Golden, LogitsLossAndEveryGradientAgreeInF32) {
  for (const bool checkpointed : {false, true}) {
    for (const std::int64_t chunk : {0, 7}) {
      SCOPED_TRACE(fmt::format("checkpointing {}, loss chunk {}", checkpointed, chunk));
      EngineOptions o = options();
      o.layout.checkpoint_activations = checkpointed;
      o.layout.loss_chunk_tokens = chunk;
      const Outcome got = run(o);
      expect_within("forward", "logits", DType::f32, logits_ratio(got, kF32Share));
      expect_within("forward", "loss", DType::f32, loss_ratio(got, kF32Share));
      for (const auto& [name, g] : got.gradients)
        expect_within("gradient", part_of(name), DType::f32, gradient_ratio(name, g, kF32Share));
      EXPECT_EQ(got.stats.tokens, scored());
      EXPECT_LT(scored(), static_cast<double>(o.step_tokens())) << "some targets are ignored";
    }
  }
}

TEST_P(Gpt2Golden, HasExactlyTheTensorsOfTheFile) {
  const EngineOptions o = options();
  TestEngine engine(o);
  std::int64_t elems = 0;
  std::set<std::string> names;
  for (const Param& p : engine->model().params()) {
    elems += p.elems();
    names.insert(p.name);
  }
  EXPECT_EQ(elems, o.model.param_count());
  // GPT2LMHeadModel has biases always, and gradients of them; a model without stores none.
  std::set<std::string> wanted = golden.weights();
  if (!o.model.bias) std::erase_if(wanted, [](const std::string& name) { return name.ends_with(".bias"); });
  EXPECT_EQ(names, wanted);
}

TEST_P(Gpt2Golden, CheckpointingThreadsAndPagingChangeNoBit) {
  for (const DType compute : {DType::f32, DType::bf16, DType::f16}) {
    for (const double dropout : {0.0, 0.3}) {
      EngineOptions o = options();
      o.layout.compute = compute;
      o.model.dropout = dropout;
      const Outcome plain = run(o, 1);
      o.layout.checkpoint_activations = true;
      o.optim.paged = false;
      const Outcome other = run(o, 3);
      EXPECT_EQ(plain.logits, other.logits);
      EXPECT_EQ(plain.gradients, other.gradients);
      EXPECT_EQ(plain.stats.norm, other.stats.norm);
      // Evaluation and logits never drop; training does.
      if (dropout > 0) {
        EXPECT_GT(worst_gradient(plain, kF32Share).worst, 100);
      } else if (compute == DType::f32) {
        EXPECT_LE(worst_gradient(plain, kF32Share).worst, 1);
      }
    }
  }
}

// The mask belongs to a row of the run: however the rows are cut into micro-batches, they drop the same
// elements.
TEST_P(Gpt2Golden, DropsTheSameElementsInEveryCut) {
  EngineOptions o = options();
  o.model.dropout = 0.5;
  const std::int64_t rows = o.layout.micro_batch_rows, T = o.model.seq_len;
  const auto gradients = [&](std::int64_t rows_at_once, std::int64_t row_step) {
    EngineOptions cut = o;
    cut.layout.micro_batch_rows = rows_at_once;
    cut.accumulation = rows / rows_at_once;
    TestEngine engine(cut);
    engine.set_masters([&](const Param& p) { return golden.floats(p.name); });
    engine->accumulate(
        [&](std::int64_t micro) {
          const auto n = static_cast<std::size_t>(rows_at_once * T),
                     first = static_cast<std::size_t>(micro) * n;
          return HostBatch{std::span(ids).subspan(first, n), std::span(targets).subspan(first, n),
                           5 + micro * row_step};
        },
        {});
    return engine.gradients();
  };
  const auto whole = gradients(rows, rows), split = gradients(1, 1), same_mask = gradients(1, 0);
  double worst = 0;
  for (const auto& [name, g] : whole) {
    if (name.ends_with("attn.c_k.bias")) continue;  // zero but for rounding
    EXPECT_LE(max_norm_ratio(split.at(name), g, kF32Share).worst, 1) << name;
    worst = std::max(worst, max_norm_ratio(same_mask.at(name), g, kF32Share).worst);
  }
  EXPECT_GT(worst, 1000) << "masks that begin anew in every micro-batch would pass";
}

TEST_P(Gpt2Golden, AgreesIn16BitsToWhatItsRoundingsCost) {
  for (const DType compute : {DType::bf16, DType::f16}) {
    EngineOptions o = options();
    o.layout.compute = compute;
    const double loss_scale = compute == DType::f16 ? 1024 : 1;
    const Outcome got = run(o, 2, loss_scale);
    const std::int64_t layers = o.model.n_layer;
    expect_within("forward", "logits", compute, logits_ratio(got, half_share(compute, layers, 1)));
    expect_within("forward", "loss", compute, loss_ratio(got, half_share(compute, layers, 1)));
    for (const auto& [name, g] : got.gradients) {
      expect_within("gradient", part_of(name), compute,
                    gradient_ratio(name, g, half_share(compute, layers, 2)));
    }
  }
}

TEST_P(Gpt2Golden, GradientsOfVectorsStayInF32WhereThoseOfMatricesDoNot) {
  EngineOptions o = options();
  o.layout.compute = DType::bf16;
  o.layout.gradient = DType::bf16;
  TestEngine engine(o);
  for (const Param& p : engine->model().params())
    EXPECT_EQ(p.grad.dtype, p.group == ParamGroup::norm ? DType::f32 : DType::bf16) << p.name;
  ASSERT_EQ(engine->model().gradients().size(), 2u);
  const Outcome got = run(o);
  o.layout.gradient = DType::f32;
  const Outcome wide = run(o);
  // Both regions enter the norm, which is off by no more than one rounding of each of its elements.
  EXPECT_NEAR(got.stats.norm, wide.stats.norm, 0x1p-8 * wide.stats.norm);
  for (const auto& [name, g] : got.gradients) {
    expect_within("gradient in bf16", part_of(name), DType::bf16,
                  gradient_ratio(name, g, half_share(DType::bf16, o.model.n_layer, 2)));
  }
}

TEST_P(Gpt2Golden, WouldCatchTheMistakesOfAPort) {
  struct Mistake {
    const char* name;
    std::function<void(EngineOptions&)> change;
  };
  const std::vector<Mistake> mistakes = {
      {"norm eps 1e-6", [](EngineOptions& o) { o.model.norm_eps = 1e-6f; }},
      {"relu^2", [](EngineOptions& o) { o.model.activation = Activation::relu2; }},
      {"a softcap", [](EngineOptions& o) { o.model.logit_softcap = 15; }},
      {"a norm after the embedding", [](EngineOptions& o) { o.model.embedding_norm = true; }},
  };
  for (const Mistake& m : mistakes) {
    EngineOptions o = options();
    m.change(o);
    const Outcome got = run(o);
    EXPECT_GT(logits_ratio(got, kF32Share).worst, 5) << m.name;
    EXPECT_GT(worst_gradient(got, kF32Share).worst, 5) << m.name;
  }
  // Positions and biases are really used.
  for (const char* part : {"wpe.weight", "ln_f.weight", "ln_1.bias", "attn.c_v.bias", "mlp.c_proj.bias"}) {
    if (!golden.config().bias && std::string(part).ends_with("bias")) continue;
    const Outcome got = run(options(), 2, 1, [&](const Param& p) {
      Floats w = golden.floats(p.name);
      if (p.name.ends_with(part)) std::ranges::fill(w, 0.0f);
      return w;
    });
    EXPECT_GT(logits_ratio(got, kF32Share).worst, 100) << part;
  }
}

INSTANTIATE_TEST_SUITE_P(Bias, Gpt2Golden, ::testing::Values("gpt2_forward_bias", "gpt2_forward_nobias"),
                         [](const auto& test) { return std::string(test.param); });

// ---- twenty steps ---------------------------------------------------------------------------------------

const GoldenModel& trajectory() {
  static const GoldenModel file("gpt2_trajectory");
  return file;
}

TEST(Gpt2Trajectory, TwentyStepsFollowPyTorch) {
  for (const std::string variant : {"plain", "decay_clip"}) {
    SCOPED_TRACE(variant);
    // The gradient of a key's bias is zero but for rounding, which Adam makes as large as any other.
    const auto is_noise = [](const std::string& name) { return name.ends_with("attn.c_k.bias"); };
    expect_course(trajectory(), train_course(trajectory(), trajectory_options(trajectory(), variant, true)),
                  variant, is_noise);
  }
}

TEST(Gpt2Trajectory, WouldCatchMistakesOfTheOptimizer) {
  const auto with = [](const auto& change) {
    EngineOptions o = trajectory_options(trajectory(), "decay_clip", true);
    change(o.optim);
    return losses_ratio(trajectory(), train_course(trajectory(), o), "decay_clip").worst;
  };
  EXPECT_LE(with([](OptimizerOptions&) {}), 1);
  EXPECT_GT(with([](OptimizerOptions& o) { o.weight_decay = 0; }), 10);
  EXPECT_GT(with([](OptimizerOptions& o) { o.max_norm = 0; }), 10);
  EXPECT_GT(with([](OptimizerOptions& o) { std::swap(o.beta1, o.beta2); }), 100);
  EXPECT_GT(with([](OptimizerOptions& o) { o.peak_lr[static_cast<std::size_t>(ParamGroup::norm)] = 0; }),
            100);
}

}  // namespace
}  // namespace qt::test
