// The nanochat model against transformers' NanoChatForCausalLM: logits, loss and every gradient of one batch,
// with four query heads on two key/value heads and all weights random. The mistakes a port makes must break
// the same bounds.
//
// Our gradients are sums over scored tokens divided by the nominal tokens of a step; the golden's loss is a
// mean over scored tokens, so they are compared after the factor tokens / targets that the optimizer applies
// (checked here as well).
#include <algorithm>
#include <cmath>
#include <functional>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "quant/packed.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/model_golden.h"

namespace qt::test {
namespace {

// f32: PyTorch's own f32 is within 9.1e-7 of float64 here, the least of the mistakes at 1.3e-4.
constexpr double kF32Share = 1e-5;

// bf16 storage rounds by up to u = 2^-8 relative. A block rounds its weights and twelve tensors in a row
// (norm, q or k, rotated, probabilities, y, projected, sum, norm, h, relu^2, projected, sum); embedding,
// first and last norm and head are four more. The errors are as good as independent, so their root sum of
// squares is what reaches the end; a gradient passes through forward and backward.
double bf16_share(std::int64_t layers, int passes) {
  return 0x1p-8 * std::sqrt(static_cast<double>(passes * (4 + 13 * layers)));
}

struct Batch {
  std::vector<std::int32_t> ids, targets;
};

struct Outcome {
  Floats logits;
  std::map<std::string, Floats> gradients;  // of the mean loss over scored targets
  StepStats stats;
};

const GoldenModel& golden() {
  static const GoldenModel file("nanochat_forward");
  return file;
}

Batch golden_batch() { return {golden().ints("ids"), golden().ints("targets")}; }

double scored(const Batch& b) {
  return static_cast<double>(std::ranges::count_if(b.targets, [](std::int32_t t) { return t >= 0; }));
}

EngineOptions golden_options() {
  EngineOptions o;
  o.model = golden().config();
  o.layout.micro_batch_rows = golden().shape("ids").at(0);
  o.with_logits = true;
  o.optim.rule = &rules::adamw;
  o.optim.max_norm = 0;
  return o;
}

Outcome run(const EngineOptions& options, const Batch& batch,
            const std::function<Floats(const Param&)>& weights, int threads = 2) {
  TestEngine engine(options, threads);
  engine.set_masters(weights);
  Outcome out;
  out.logits = engine.logits(batch.ids);
  engine->accumulate([&](std::int64_t) { return HostBatch{batch.ids, batch.targets}; }, {});
  out.stats = engine->measure(1.0, 1);
  out.gradients = engine.gradients(static_cast<double>(options.step_tokens()) / scored(batch));
  return out;
}

Floats golden_weights(const Param& p) { return golden().floats(p.name); }

Outcome run(const EngineOptions& options, const Batch& batch = golden_batch()) {
  return run(options, batch, golden_weights);
}

Ratio logits_ratio(const Outcome& got, double share) {
  return max_norm_ratio(got.logits, golden().floats("logits"), share);
}

// The worst tensor.
Ratio gradient_ratio(const Outcome& got, double share) {
  Ratio worst;
  for (const auto& [name, g] : got.gradients) {
    const Ratio r = max_norm_ratio(g, golden().floats("grad." + name), share);
    if (r.worst > worst.worst) worst = r;
  }
  return worst;
}

Ratio loss_ratio(const Outcome& got, double tolerance) {
  Ratio r;
  r.take(got.stats.loss, static_cast<double>(golden().floats("loss").at(0)), tolerance, 0);
  return r;
}

double golden_norm() {
  double sum = 0;
  for (const std::string part : {"transformer.wte", "lm_head"}) {
    for (const float g : golden().floats("grad." + part + ".weight"))
      sum += static_cast<double>(g) * static_cast<double>(g);
  }
  for (int l = 0; l < golden().config().n_layer; ++l) {
    for (const char* part : {"attn.c_q", "attn.c_k", "attn.c_v", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}) {
      for (const float g : golden().floats(fmt::format("grad.transformer.h.{}.{}.weight", l, part))) {
        sum += static_cast<double>(g) * static_cast<double>(g);
      }
    }
  }
  return std::sqrt(sum);
}

TEST(ModelGolden, LogitsLossAndEveryGradientAgreeInF32) {
  for (const bool checkpointed : {false, true}) {
    for (const std::int64_t chunk : {0, 7}) {  // 48 tokens: one chunk, or six of 7 and one of 6
      SCOPED_TRACE(fmt::format("checkpointing {}, loss chunk {}", checkpointed, chunk));
      EngineOptions o = golden_options();
      o.layout.checkpoint_activations = checkpointed;
      o.layout.loss_chunk_tokens = chunk;
      const Outcome got = run(o);
      expect_within("forward", "logits", DType::f32, logits_ratio(got, kF32Share));
      expect_within("forward", "loss", DType::f32, loss_ratio(got, kF32Share));
      for (const auto& [name, g] : got.gradients) {
        expect_within("gradient", part_of(name), DType::f32,
                      max_norm_ratio(g, golden().floats("grad." + name), kF32Share));
      }
      EXPECT_EQ(got.stats.tokens, scored(golden_batch()));
    }
  }
}

TEST(ModelGolden, CheckpointingThreadsAndPagingChangeNoBit) {
  for (const DType compute : {DType::f32, DType::bf16}) {
    for (const FormatId format : {FormatId::none, FormatId::nf4}) {
      EngineOptions o = golden_options();
      o.layout.compute = compute;
      o.layout.weights = format;
      const Outcome plain = run(o, golden_batch(), golden_weights, 1);
      o.layout.checkpoint_activations = true;
      o.optim.paged = false;
      const Outcome other = run(o, golden_batch(), golden_weights, 3);
      EXPECT_EQ(plain.logits, other.logits);
      EXPECT_EQ(plain.gradients, other.gradients);
      EXPECT_EQ(plain.stats.loss, other.stats.loss);
      EXPECT_EQ(plain.stats.norm, other.stats.norm);
    }
  }
}

TEST(ModelGolden, AgreesInBf16ToWhatItsRoundingsCost) {
  for (const DType gradient : {DType::f32, DType::bf16}) {
    EngineOptions o = golden_options();
    o.layout.compute = DType::bf16;
    o.layout.gradient = gradient;
    const Outcome got = run(o);
    const std::int64_t layers = o.model.n_layer;
    expect_within("forward", "logits", DType::bf16, logits_ratio(got, bf16_share(layers, 1)));
    expect_within("forward", "loss", DType::bf16, loss_ratio(got, bf16_share(layers, 1)));
    const std::string what = gradient == DType::f32 ? "gradient" : "gradient in bf16";
    for (const auto& [name, g] : got.gradients) {
      const Ratio r = max_norm_ratio(g, golden().floats("grad." + name), bf16_share(layers, 2));
      expect_within(what, part_of(name), DType::bf16, r);
    }
  }
}

// Each must be seen in the logits or in a gradient by more than the bound, or the tests above prove little.
TEST(ModelGolden, WouldCatchTheMistakesOfAPort) {
  struct Mistake {
    const char* name;
    std::function<void(EngineOptions&)> change;
    bool in_bf16;  // large enough to show through bf16's roundings
  };
  const std::vector<Mistake> mistakes = {
      {"norm eps 1e-6", [](EngineOptions& o) { o.model.norm_eps = 1e-6f; }, false},
      {"norm eps 0", [](EngineOptions& o) { o.model.norm_eps = 0.0f; }, false},
      {"rope base 1000", [](EngineOptions& o) { o.model.rope_base = 1000.0f; }, true},
      {"no softcap", [](EngineOptions& o) { o.model.logit_softcap = 1e6f; }, true},
  };
  for (const Mistake& m : mistakes) {
    EngineOptions o = golden_options();
    m.change(o);
    const Outcome got = run(o);
    EXPECT_GT(logits_ratio(got, kF32Share).worst, 5) << m.name;
    EXPECT_GT(gradient_ratio(got, kF32Share).worst, 5) << m.name;
    if (!m.in_bf16) continue;
    o.layout.compute = DType::bf16;
    EXPECT_GT(logits_ratio(run(o), bf16_share(o.model.n_layer, 1)).worst, 1) << m.name;
  }
}

TEST(ModelGolden, WouldCatchQueryHeadsThatReadTheWrongKeys) {
  const ModelConfig c = golden().config();
  const auto dealt_in_turn = [&](const Param& p) {
    Floats w = golden_weights(p);
    if (part_of(p.name) != "attn.c_q") return w;
    const Floats from = w;
    const std::size_t head = static_cast<std::size_t>(c.head_dim() * c.n_embd);
    const std::size_t order[] = {0, 2, 1, 3};
    for (std::size_t h = 0; h < 4; ++h)
      std::copy_n(from.begin() + static_cast<std::ptrdiff_t>(order[h] * head), head,
                  w.begin() + static_cast<std::ptrdiff_t>(h * head));
    return w;
  };
  ASSERT_EQ(c.n_head, 4);
  EXPECT_GT(logits_ratio(run(golden_options(), golden_batch(), dealt_in_turn), kF32Share).worst, 1000);
}

TEST(ModelGolden, WouldCatchSwappedTargetsInEveryDtype) {
  Batch swapped = golden_batch();
  // Two scored targets of one row change places: ids, counts and logits stay the same. Not those of the first
  // two tokens, which are one id twice and so have the same logits.
  const auto differ =
      std::adjacent_find(swapped.targets.begin() + 8, swapped.targets.end(),
                         [](std::int32_t a, std::int32_t b) { return a >= 0 && b >= 0 && a != b; });
  ASSERT_NE(differ, swapped.targets.end());
  std::iter_swap(differ, differ + 1);
  EngineOptions o = golden_options();
  const Outcome f32 = run(o, swapped);
  EXPECT_LE(logits_ratio(f32, kF32Share).worst, 1);
  EXPECT_GT(loss_ratio(f32, kF32Share).worst, 1);
  EXPECT_GT(gradient_ratio(f32, kF32Share).worst, 1000);
  o.layout.compute = DType::bf16;
  EXPECT_GT(gradient_ratio(run(o, swapped), bf16_share(o.model.n_layer, 2)).worst, 1);
}

TEST(ModelGolden, TheOptimizerNormalisesByTheTargetsThatWereScored) {
  const Batch batch = golden_batch();
  EngineOptions o = golden_options();
  ASSERT_LT(scored(batch), static_cast<double>(o.step_tokens()))
      << "without ignored targets nothing would be normalised";
  TestEngine engine(o);
  engine.set_masters(golden_weights);
  engine->accumulate([&](std::int64_t) { return HostBatch{batch.ids, batch.targets}; }, {});
  const StepStats stats = engine->measure(0.0, 1);  // a rate of zero: moments move, weights do not
  engine->update();
  Ratio norm;
  norm.take(stats.norm, golden_norm(), kF32Share * golden_norm(), 0);
  expect_within("measure", "norm", DType::f32, norm);

  // After one step from zero, m is (1 - beta1) times the gradient that the optimizer saw.
  const double one_minus_beta1 = 1.0 - o.optim.beta1;
  for (const Param& p : engine->model().params()) {
    Floats m = engine.state("m." + p.name);
    for (float& x : m) x = static_cast<float>(static_cast<double>(x) / one_minus_beta1);
    const Floats want = golden().floats("grad." + p.name);
    expect_within("measure", "m", DType::f32, max_norm_ratio(m, want, kF32Share));
    EXPECT_EQ(engine.state("master." + p.name), golden_weights(p));
    // The nominal number of tokens instead would be off by 5 in 48.
    EXPECT_GT(max_norm_ratio(engine.gradient(p), want, kF32Share).worst, 1000) << p.name;
  }
}

TEST(ModelGolden, PackedWeightsComputeWhatTheirDequantizedValuesDo) {
  for (const DType compute : {DType::f32, DType::bf16}) {
    EngineOptions o = golden_options();
    o.layout.compute = compute;
    o.layout.weights = FormatId::nf4;
    std::map<std::string, Floats> dequantized;
    {
      TestEngine engine(o);
      engine.set_masters(golden_weights);
      Backend& be = engine->backend();
      for (const Param& p : engine->model().params()) {
        if (!p.weight.is_packed()) continue;
        const auto region = be.allocate(Space::device, 4 * p.elems());
        const TensorView dst(region->base(), DType::f32, {p.elems()});
        be.run(Dequantize{.w = p.weight.packed, .dst = dst});
        dequantized[p.name] = read_floats(be, dst);
        EXPECT_GT(max_norm_ratio(dequantized[p.name], golden_weights(p), 0.01).worst, 1)
            << p.name << " was not packed";
      }
    }
    const auto weights = [&](const Param& p) {
      return dequantized.contains(p.name) ? dequantized.at(p.name) : golden_weights(p);
    };
    const Outcome packed = run(o);
    o.layout.weights = FormatId::none;
    const Outcome plain = run(o, golden_batch(), weights);
    // The canonical weight is a bf16 value, so both see the same numbers; only sums may be ordered otherwise.
    const double forward = compute == DType::f32 ? kF32Share : bf16_share(o.model.n_layer, 1);
    const double backward = compute == DType::f32 ? kF32Share : bf16_share(o.model.n_layer, 2);
    expect_within("packed", "logits", compute, max_norm_ratio(packed.logits, plain.logits, forward));
    for (const auto& [name, g] : packed.gradients) {
      expect_within("packed", part_of(name), compute, max_norm_ratio(g, plain.gradients.at(name), backward));
    }
    EXPECT_GT(gradient_ratio(packed, kF32Share).worst, 1000) << "NF4 rounds by more than nothing";
  }
}

}  // namespace
}  // namespace qt::test
