// nanochat's own initialisation: what is random and how, what is zero, and what follows for the first three
// steps: the loss begins at ln V, and gradients are exactly zero until the zeros before them have moved.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "quant/packed.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/model_golden.h"

namespace qt::test {
namespace {

bool ends_with(const std::string& text, std::string_view end) { return text.ends_with(end); }

bool starts_at_zero(const std::string& name) {
  return name == "lm_head.weight" || ends_with(name, "c_proj.weight");
}

// The step at which a gradient first is anything but zero: the head at once; what the head alone stands
// before at 1; what stands behind a zero projection at 2.
int first_step_with_gradient(const std::string& name) {
  if (name == "lm_head.weight") return 0;
  return ends_with(name, "c_proj.weight") || name == "transformer.wte.weight" ? 1 : 2;
}

EngineOptions fresh(FormatId format, DType compute, std::int64_t vocab = 300) {
  EngineOptions o;
  o.model = model_by_name("d2", {.vocab_size = vocab, .seq_len = 32});
  o.layout.weights = format;
  o.layout.compute = compute;
  o.layout.micro_batch_rows = 2;
  o.accumulation = 2;
  o.optim.peak_lr = {3e-3, 0.2, 4e-3, 0};
  return o;
}

struct Window {
  std::vector<std::int32_t> ids, targets;
  std::int64_t micro_tokens;
  Engine::FetchBatch fetch() const { return fetch_from(ids, targets, micro_tokens); }
};

Window random_window(const EngineOptions& o, std::uint64_t seed) {
  const auto n = static_cast<std::size_t>(o.step_tokens());
  return {random_ids(n, o.model.vocab_size, seed), random_ids(n, o.model.vocab_size, seed + 1000),
          o.micro_batch_tokens()};
}

std::vector<std::pair<FormatId, DType>> setups() {
  return {{FormatId::none, DType::f32},
          {FormatId::none, DType::bf16},
          {FormatId::nf4, DType::f32},
          {FormatId::nf4, DType::bf16}};
}

std::string setup_name(FormatId format, DType compute) {
  return fmt::format("{} {}", format == FormatId::nf4 ? "nf4" : "none", dtype_name(compute));
}

TEST(Init, TheFirstLossIsTheLogarithmOfTheVocabulary) {
  for (const auto& [format, compute] : setups()) {
    for (const std::int64_t vocab : {300, 4096}) {
      SCOPED_TRACE(setup_name(format, compute));
      const EngineOptions o = fresh(format, compute, vocab);
      TestEngine engine(o);
      engine->init_weights(1);
      const Window w = random_window(o, 7);
      engine->accumulate(w.fetch(), {});
      const StepStats stats = engine->measure(1.0, 1);
      const double want = std::log(static_cast<double>(vocab));
      EXPECT_NEAR(stats.loss, want, 1e-6);
      EXPECT_EQ(stats.tokens, static_cast<double>(o.step_tokens()));
      const Engine::EvalSums sums = engine->evaluate(w.fetch()(0));
      EXPECT_NEAR(sums.nats / sums.targets, want, 1e-6);

      // A head that is merely small would show.
      const Param& head = engine->model().params().back();
      Floats small = lively_weights(head);
      for (float& x : small) x *= 0.01f;
      engine.set_state("master." + head.name, small);
      engine->encode_weights();
      const Engine::EvalSums other = engine->evaluate(w.fetch()(0));
      EXPECT_GT(std::abs(other.nats / other.targets - want), 1e-5);
    }
  }
}

TEST(Init, TheFirstLossOfTheFullVocabularyIsElevenPointNought90354889) {
  EngineOptions o = fresh(FormatId::nf4, DType::bf16, 65536);
  o.accumulation = 1;
  o.layout.gradient = DType::bf16;
  TestEngine engine(o);
  engine->init_weights(3);
  const Window w = random_window(o, 9);
  const Engine::EvalSums sums = engine->evaluate(w.fetch()(0));
  EXPECT_NEAR(sums.nats / sums.targets, 11.090354889, 1e-6);
}

TEST(Init, GradientsAreExactlyZeroUntilTheZerosBeforeThemHaveMoved) {
  for (const std::string optimizer : {"adamw8", "adamw"}) {
    for (const auto& [format, compute] : setups()) {
      for (const bool checkpointed : {false, true}) {
        SCOPED_TRACE(
            fmt::format("{} {} checkpointing {}", optimizer, setup_name(format, compute), checkpointed));
        EngineOptions o = fresh(format, compute);
        o.optim.rule = &update_rule_by_name(optimizer);
        o.layout.checkpoint_activations = checkpointed;
        TestEngine engine(o);
        engine->init_weights(1);
        for (int step = 0; step < 3; ++step) {
          const Window w = random_window(o, 20 + static_cast<std::uint64_t>(step));
          const StepStats stats = engine->train_step(w.fetch(), {}, 1.0, step + 1);
          ASSERT_TRUE(stats.finite);
          for (const Param& p : engine->model().params()) {
            const Floats g = engine.gradient(p);
            const bool zero = std::ranges::all_of(g, [](float x) { return x == 0; });
            EXPECT_EQ(zero, step < first_step_with_gradient(p.name)) << p.name << " at step " << step;
            ASSERT_TRUE(std::ranges::all_of(g, [](float x) { return std::isfinite(x); })) << p.name;
          }
          // Of the embedding only the rows of tokens that occurred.
          const Param& wte = engine->model().params().front();
          const Floats g = engine.gradient(wte);
          for (std::int64_t id = 0; id < wte.N; ++id) {
            if (std::ranges::find(w.ids, static_cast<std::int32_t>(id)) != w.ids.end()) continue;
            const auto row = g.begin() + static_cast<std::ptrdiff_t>(id * wte.K);
            EXPECT_TRUE(std::all_of(row, row + wte.K, [](float x) { return x == 0; }))
                << "row " << id << ", step " << step;
          }
        }
      }
    }
  }
}

// The same look at the gradients when the zeros are not there: it can see what it is meant to see.
TEST(Init, GradientsThatShouldBeZeroAreNotOnceTheirZeroIsGone) {
  EngineOptions o = fresh(FormatId::nf4, DType::f32);
  const Window w = random_window(o, 30);
  const auto zero_gradients = [&](const auto& lively) {
    TestEngine engine(o);
    engine->init_weights(1);
    for (const Param& p : engine->model().params()) {
      if (lively(p.name)) engine.set_state("master." + p.name, lively_weights(p));
    }
    engine->encode_weights();
    engine->accumulate(w.fetch(), {});
    std::vector<std::string> zero;
    for (const Param& p : engine->model().params()) {
      if (std::ranges::all_of(engine.gradient(p), [](float x) { return x == 0; })) zero.push_back(p.name);
    }
    return zero;
  };
  const std::size_t params = 2 + 6 * 2;
  EXPECT_EQ(zero_gradients([](const std::string&) { return false; }).size(), params - 1);
  EXPECT_EQ(zero_gradients([](const std::string& n) { return n == "lm_head.weight"; }).size(), 8u)
      << "c_q, c_k, c_v, c_fc twice";
  EXPECT_TRUE(zero_gradients(starts_at_zero).empty());
}

// ---- the draws ------------------------------------------------------------------------------------------

struct Moments {
  double mean = 0, stddev = 0, kurtosis = 0, largest = 0;
};

Moments moments_of(const Floats& x) {
  const double n = static_cast<double>(x.size());
  Moments m;
  for (const float v : x) m.mean += static_cast<double>(v) / n;
  double second = 0, fourth = 0;
  for (const float v : x) {
    const double d = static_cast<double>(v) - m.mean;
    second += d * d / n;
    fourth += d * d * d * d / n;
    m.largest = std::max(m.largest, std::abs(static_cast<double>(v)));
  }
  m.stddev = std::sqrt(second);
  m.kurtosis = second > 0 ? fourth / (second * second) : 0;
  return m;
}

EngineOptions grouped() {
  EngineOptions o;
  o.model = model_by_name("d4", {.vocab_size = 512, .seq_len = 8, .n_kv_head = 1});
  o.optim.peak_lr = {3e-3, 0.2, 4e-3, 0};
  return o;
}

// What nanochat draws: 1 for the embedding, else 1 / sqrt(fan_in) * min(1, sqrt(fan_out / fan_in)).
double stddev_of(const Param& p) {
  if (starts_at_zero(p.name)) return 0;
  if (p.name == "transformer.wte.weight") return 1;
  if (ends_with(p.name, "c_k.weight") || ends_with(p.name, "c_v.weight"))
    return 1.0 / 16 * std::sqrt(0.5);  // [128, 256]
  return 1.0 / 16;                     // c_q [256, 256], c_fc [1024, 256]
}

TEST(Init, EachTensorHasItsOwnSpreadAndTheShapeOfANormalDistribution) {
  TestEngine engine(grouped());
  engine->init_weights(11);
  for (const Param& p : engine->model().params()) {
    SCOPED_TRACE(p.name);
    const Moments m = moments_of(engine.state("master." + p.name));
    const double n = static_cast<double>(p.elems()), sigma = stddev_of(p);
    if (sigma == 0) {
      EXPECT_EQ(m.largest, 0);
      continue;
    }
    // Five standard errors: std / sqrt(2 n), std / sqrt(n), sqrt(24 / n).
    EXPECT_NEAR(m.stddev, sigma, 5 * sigma / std::sqrt(2 * n));
    EXPECT_NEAR(m.mean, 0, 5 * sigma / std::sqrt(n));
    EXPECT_NEAR(m.kurtosis, 3, 5 * std::sqrt(24 / n));
    EXPECT_GT(m.largest, 3.5 * sigma);
    EXPECT_LT(m.largest, 6.5 * sigma);
  }
  // The bounds tell a spread of 1/sqrt(fan_in) from the smaller one of grouped keys, and a normal from a
  // uniform.
  const Param& key = engine->model().params()[2];
  ASSERT_TRUE(ends_with(key.name, "c_k.weight"));
  EXPECT_GT(1.0 / 16 - stddev_of(key),
            100 * stddev_of(key) / std::sqrt(2.0 * static_cast<double>(key.elems())));
  EXPECT_GT(3 - 1.8, 5 * std::sqrt(24.0 / static_cast<double>(key.elems())));
}

TEST(Init, TensorsAndSeedsShareNoDraws) {
  TestEngine engine(grouped());
  std::vector<std::pair<std::string, Floats>> drawn;
  for (const std::uint64_t seed : {11, 12}) {
    engine->init_weights(seed);
    for (const Param& p : engine->model().params()) {
      if (!starts_at_zero(p.name))
        drawn.emplace_back(fmt::format("{} of seed {}", p.name, seed), engine.state("master." + p.name));
    }
  }
  const auto correlation = [](const Floats& a, const Floats& b) {
    const std::size_t n = std::min(a.size(), b.size());
    double ab = 0, aa = 0, bb = 0;
    for (std::size_t i = 0; i < n; ++i) {
      const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
      ab += x * y, aa += x * x, bb += y * y;
    }
    return std::abs(ab) / std::sqrt(aa * bb) * std::sqrt(static_cast<double>(n));  // in standard errors
  };
  for (std::size_t i = 0; i < drawn.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) {
      EXPECT_LT(correlation(drawn[i].second, drawn[j].second), 5.5)
          << drawn[i].first << " and " << drawn[j].first;
    }
    EXPECT_GT(correlation(drawn[i].second, drawn[i].second), 100);
  }
}

TEST(Init, ThreadsPagingAndSlabsChangeNoBit) {
  for (const FormatId format : {FormatId::none, FormatId::nf4}) {
    EngineOptions o = fresh(format, DType::f32, 301);
    std::map<std::string, std::vector<std::byte>> want;
    {
      TestEngine engine(o, 1);
      engine->init_weights(5);
      want = engine.everything();
    }
    for (const int threads : {2, 3, 8}) {
      TestEngine engine(o, threads);
      engine->init_weights(5);
      EXPECT_EQ(engine.everything(), want) << threads << " threads";
    }
    o.optim.paged = false;
    TestEngine resident(o);
    resident->init_weights(5);
    EXPECT_EQ(resident.everything(), want);
    resident->init_weights(6);
    EXPECT_NE(resident.everything(), want) << "the seed must matter";

    std::size_t compared = 0;
    run_planned(
        o.model, o.layout, o.optim,
        [&](Parts& parts) {
          {
            const PhaseScope phase(parts.step, "init");
            parts.optimizer->init_weights(parts.step, 5);
          }
          if (parts.backend.name() == "null") return;
          for (const NamedView& piece : parts.optimizer->state()) {
            EXPECT_EQ(read_bytes_of(parts.backend, piece.view), want.at(piece.name)) << piece.name;
            ++compared;
          }
          const std::vector<NamedView> weights = stored_weights(parts.model.params());
          StoredForm form(parts.backend, weights);
          for (const NamedView& v : weights) EXPECT_EQ(stored_bytes_of(form, v), want.at(v.name)) << v.name;
        },
        2, 64 * 1024);  // a few thousand elements: every tensor in many slabs
    EXPECT_GT(compared, 40u);
  }
}

TEST(Init, BlocksOfZerosInNf4AreZeroAndStayFinite) {
  const EngineOptions o = fresh(FormatId::nf4, DType::bf16);
  TestEngine engine(o);
  engine->init_weights(1);
  Backend& be = engine->backend();
  for (const Param& p : engine->model().params()) {
    if (!p.weight.is_packed()) continue;
    const auto region = be.allocate(Space::device, 4 * p.elems());
    const TensorView dst(region->base(), DType::f32, {p.elems()});
    be.run(Fill{.x = dst, .value = NAN});
    be.run(Dequantize{.w = p.weight.packed, .dst = dst});
    const Floats w = read_floats(be, dst);
    const bool zero = std::ranges::all_of(w, [](float x) { return x == 0; });
    EXPECT_EQ(zero, starts_at_zero(p.name)) << p.name;
    const Floats scales = read_floats(be, p.weight.packed.absmax);
    EXPECT_EQ(std::ranges::all_of(scales, [](float x) { return x == 0; }), starts_at_zero(p.name)) << p.name;
  }
  for (int step = 0; step < 3; ++step) {
    EXPECT_TRUE(engine->train_step(random_window(o, 40).fetch(), {}, 1.0, step + 1).finite);
  }
  for (const Param& p : engine->model().params()) {
    const Floats w = engine.state("master." + p.name);
    EXPECT_TRUE(std::ranges::all_of(w, [](float x) { return std::isfinite(x); })) << p.name;
    EXPECT_GT(max_norm(w), 0) << p.name << " has not moved";
  }
}

}  // namespace
}  // namespace qt::test
