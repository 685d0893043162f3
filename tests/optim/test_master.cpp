// Masters in bf16 whose updates are rounded stochastically (--master bf16-sr), in whole steps: which masters
// they are, which draw rounds which element, and that they learn what f32 masters learn where masters rounded
// to nearest stall. That the op rounds as it should is tests/kernels/test_stochastic_rounding.cpp's.
#include <cmath>
#include <cstdio>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "quant/adam_math.h"
#include "src/convert/init_from.h"
#include "src/core/rng.h"
#include "src/train/run_state.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/tiny_run.h"

namespace qt::test {
namespace {

constexpr std::uint64_t kRunSeed = 0x5EED00000042;

EngineOptions options_with(DType master, const UpdateRule& rule = rules::adamw8) {
  EngineOptions e = tiny_engine_options({.rule = &rule, .master = master});
  e.optim.seed = kRunSeed;
  return e;
}

Floats to_nearest(Floats x) {
  for (float& v : x) v = to_float(to_bf16(v));
  return x;
}

// The windows of a run, of text.
class Windows {
 public:
  explicit Windows(const EngineOptions& options)
      : options_(options), data_(dir_.path()), batches_(data_.batches(options.model.seq_len)) {}

  Engine::FetchBatch window(std::int64_t number) {
    return [this, number](std::int64_t micro) {
      const std::int64_t rows = options_.layout.micro_batch_rows;
      ids_.resize(static_cast<std::size_t>(options_.micro_batch_tokens()));
      targets_.resize(ids_.size());
      batches_.fill((number * options_.accumulation + micro) * rows, rows, ids_, targets_);
      return HostBatch{ids_, targets_};
    };
  }

 private:
  EngineOptions options_;
  TempDir dir_;
  TinyData data_;
  TokenBatches batches_;
  std::vector<std::int32_t> ids_, targets_;
};

TEST(MastersInBf16, AreThoseOfAllButVectorsAndBeginAsTheRoundedDraws) {
  // A GPT has vectors.
  const auto gpt_with = [](DType master) {
    EngineOptions e = options_with(master);
    e.model = model_by_name(
        "gpt", {.vocab_size = 265, .seq_len = 32, .n_layer = 2, .n_head = 4, .n_embd = 64, .bias = true});
    return e;
  };
  TestEngine wide(gpt_with(DType::f32)), narrow(gpt_with(DType::bf16));
  wide->init_weights(7);
  narrow->init_weights(7);
  std::map<std::string, DType> stored;
  for (const NamedView& v : narrow->state()) stored[v.name] = v.view.dtype;
  std::map<ParamGroup, int> groups;
  for (const Param& p : narrow->model().params()) {
    const bool is_vector = p.group == ParamGroup::norm;
    const std::string name = "master." + p.name;
    ++groups[p.group];
    EXPECT_EQ(stored.at(name), is_vector ? DType::f32 : DType::bf16) << name;
    EXPECT_EQ(narrow.state(name), is_vector ? wide.state(name) : to_nearest(wide.state(name))) << name;
  }
  EXPECT_GE(groups.size(), 3u) << "matrices, embeddings and vectors";
}

// (seed, param, step, element) decides each draw; so an update that is repeated after a restart rounds as it
// did before, and no other draws alike.
TEST(MastersInBf16, AreRoundedByTheDrawsOfTheirParamAndStep) {
  EngineOptions options = options_with(DType::bf16, rules::adamw);
  options.optim.max_norm = 0;  // nothing scales the gradients
  Windows windows(options);
  const auto wrongly_rounded_if = [&](std::string_view mistake) {
    TestEngine engine(options);
    engine->init_weights(7);
    std::size_t wrong = 0;
    for (std::int64_t t = 1; t <= 3; ++t) {
      engine->accumulate(windows.window(t), {});
      std::map<std::string, Floats> want;
      for (const Param& p : engine->model().params()) {
        Floats w = engine.state("master." + p.name), m = engine.state("m." + p.name),
               v = engine.state("v." + p.name);
        const Floats g = engine.gradient(p);
        const AdamHyper h = adam_hyper(options.optim.peak_lr[static_cast<std::size_t>(p.group)],
                                       options.optim.beta1, options.optim.beta2, options.optim.eps, 0, t);
        const std::uint64_t step = mistake == "all steps draw alike" ? 1 : static_cast<std::uint64_t>(t);
        const std::uint64_t param = mistake == "all params draw alike" ? 0 : p.rng_stream;
        const RngStream draws{.seed = mistake == "the seed is left out" ? 0 : kRunSeed,
                              .purpose = mistake == "draws are those of init"
                                             ? RngPurpose::init
                                             : RngPurpose::stochastic_rounding,
                              .stream = step << 32 | param};
        for (std::size_t i = 0; i < w.size(); ++i) {
          adam_update(w[i], g[i], m[i], v[i], h);
          w[i] = to_float(mistake == "updates are rounded to nearest"
                              ? to_bf16(w[i])
                              : to_bf16_stochastic(w[i], rng_u32(draws, i)));
        }
        want[p.name] = std::move(w);
      }
      engine->measure(1, t);
      engine->update();
      for (const auto& [name, w] : want) {
        const Floats got = engine.state("master." + name);
        for (std::size_t i = 0; i < w.size(); ++i) wrong += got[i] == w[i] ? 0 : 1;
      }
    }
    return wrong;
  };
  EXPECT_EQ(wrongly_rounded_if(""), 0u);
  for (const char* mistake : {"all steps draw alike", "all params draw alike", "the seed is left out",
                              "draws are those of init", "updates are rounded to nearest"})
    EXPECT_GT(wrongly_rounded_if(mistake), 1000u) << mistake;
}

// --init-from reads either: what has to be narrowed is rounded to nearest.
TEST(MastersInBf16, StartFromMastersInF32AndTheOtherWayRound) {
  const TempDir dir;
  const auto saved_weights = [&](TestEngine& engine, const std::string& run) {
    CheckpointStore store(dir / run, 2);
    RunState state;
    state.step = 1;
    store.save(*engine, state);
    std::string explanation;
    return store.newest(explanation);
  };
  TestEngine wide(options_with(DType::f32)), narrow(options_with(DType::bf16)),
      again(options_with(DType::f32));
  wide->init_weights(7);
  narrow->init_weights(8);
  again->init_weights(9);
  load_weights(*narrow, saved_weights(wide, "wide"));
  load_weights(*again, saved_weights(narrow, "narrow"));
  for (const Param& p : wide->model().params()) {
    const Floats want = to_nearest(wide.state("master." + p.name));
    EXPECT_EQ(narrow.state("master." + p.name), want) << p.name;
    EXPECT_EQ(again.state("master." + p.name), want) << p.name;
  }
}

// At u = 5e-5 a step is a tenth of the spacing s = 2^-11 of bf16 among weights near 0.1: rounding to nearest
// moves next to nothing. Rounded stochastically, n = 60 steps leave noise of variance n u s, 1.2e-3 in the
// root mean square, which is 0.4 of the way n u. Its sign is random and the way's is the gradient's, so of
// what the way wins over P = 130,000 weights the noise changes a share of 0.4 / (0.8 sqrt(P)) = 0.14 %.
// Gradients of unequal size and curvature add to that, for which the bound leaves a factor of seven. Packed,
// a master that is off by e also flips its code with probability e / D, and then by the spacing D = 0.03 of
// the codes: noise of sqrt(e D) = 6e-3, five times as much.
TEST(MastersInBf16, LearnWhatMastersInF32DoWhereRoundingToNearestStalls) {
  constexpr double kLr = 5e-5;
  constexpr int kSteps = 60;
  enum class Arm { f32, stochastic, nearest };
  for (const auto& [packed, bound] : {std::pair{false, 0.01}, {true, 0.05}}) {
    EngineOptions options = options_with(DType::f32);
    options.layout.weights = packed ? FormatId::nf4 : FormatId::none;
    options.optim.peak_lr.fill(kLr);
    Windows windows(options);
    const auto loss_after = [&](int steps, Arm arm, std::uint64_t seed = 0) {
      EngineOptions o = options;
      o.optim.seed = seed;
      if (arm == Arm::stochastic) o.optim.master = DType::bf16;
      TestEngine engine(o);
      const auto rounded = [&](const Param& p) { return to_nearest(engine.state("master." + p.name)); };
      engine.set_masters([](const Param& p) { return to_nearest(lively_weights(p)); });
      for (std::int64_t t = 1; t <= steps; ++t) {
        engine->train_step(windows.window(t), {}, 1, t);
        if (arm == Arm::nearest) engine.set_masters(rounded);
      }
      Engine::EvalSums all;
      for (std::int64_t w = 1000; w < 1008; ++w) {
        const Engine::EvalSums sums = engine->evaluate(windows.window(w)(0));
        all.nats += sums.nats;
        all.targets += sums.targets;
      }
      return all.nats / all.targets;
    };
    const double start = loss_after(0, Arm::f32), learned = start - loss_after(kSteps, Arm::f32);
    EXPECT_GT(learned, 0.5);
    const double stalled = start - loss_after(kSteps, Arm::nearest);
    EXPECT_LT(stalled, 0.25 * learned);
    std::printf("%s: the loss %.4f falls by %.4f; rounded to nearest by %.4f, stochastically by",
                packed ? "nf4" : "f32", start, learned, stalled);
    for (const std::uint64_t seed : {1, 2, 3}) {
      const double fell = start - loss_after(kSteps, Arm::stochastic, seed);
      std::printf(" %.4f", fell);
      EXPECT_NEAR(fell, learned, bound * learned) << seed;
    }
    std::printf("\n");
  }
}

}  // namespace
}  // namespace qt::test
