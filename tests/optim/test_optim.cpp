// Optimizer: updates against the scalar arithmetic of quant/adam_math.h; paged and resident state bit for
// bit; what a bad gradient or a bad weight does.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/scratch.h"
#include "optim/optimizer.h"
#include "quant/q8.h"
#include "quant/tiles.h"
#include "src/core/rng.h"
#include "tests/support/optimizer_rig.h"

namespace qt::test {
namespace {

// Names of what differs.
std::string difference(const Snapshot& a, const Snapshot& b) {
  std::string names;
  for (const auto& [name, bytes] : a) {
    if (!b.contains(name) || b.at(name) != bytes) names += name + " ";
  }
  return a.size() == b.size() ? names : names + "(different lists)";
}

// --- paging ------------------------------------------------------------------------------------------------

TEST(OptimizerPaging, GivesTheBitsOfResidentStateAfterSeveralSteps) {
  for (const UpdateRule* rule : kRules) {
    for (const FormatId weights : {FormatId::nf4, FormatId::none}) {
      for (const auto& [gradient, master] : kGradientsAndMasters) {
        RigOptions s{.rule = rule, .paged = true, .weights = weights, .gradient = gradient, .master = master};
        Rig paged(s);
        s.paged = false;
        s.max_slab_bytes = kMaxSlabBytes;
        s.threads = 2;
        Rig resident(s);
        EXPECT_EQ(difference(paged.snapshot(), resident.snapshot()), "") << rule->name << " after init";
        const Snapshot before = paged.snapshot();
        paged.train(4);
        resident.train(4);
        EXPECT_EQ(difference(paged.snapshot(), resident.snapshot()), "") << rule->name;
        EXPECT_NE(difference(paged.snapshot(), before), "") << "something must have been learned";
        EXPECT_EQ(resident.optimizer().paged_bytes(), 0);
        EXPECT_EQ(resident.host->plan().bytes, 0);
      }
    }
  }
}

TEST(OptimizerPaging, CutsLargeTensorsAndMovesEachByteOnceEachWay) {
  for (const auto& [rule, master] : kRulesAndMasters) {
    Rig rig({.rule = rule, .max_slab_bytes = 200 * 1024, .master = master});
    std::int64_t bytes = 0;
    for (const NamedView& v : rig.optimizer().state()) bytes += v.view.bytes();
    EXPECT_EQ(rig.optimizer().paged_bytes(), bytes);
    EXPECT_GE(bytes, 3 * rig.setup.max_slab_bytes) << "too small to be cut into three slabs";
    rig.set_gradients(rig.random_gradients(1));
    rig.measure(1);
    rig.backend->reset_totals();
    rig.update();
    EXPECT_EQ(rig.backend->totals().host_to_device_bytes, static_cast<double>(bytes));
    EXPECT_EQ(rig.backend->totals().device_to_host_bytes,
              static_cast<double>(bytes + 8 * static_cast<std::int64_t>(rig.params().size())))
        << "and one flag per tensor";
    EXPECT_LE(rig.step_arena->plan().find("optimizer_step")->bytes, 2 * rig.setup.max_slab_bytes);
    EXPECT_EQ(rig.step_arena->used_bytes(), rig.step_arena->plan().bytes);
  }
}

TEST(OptimizerPaging, PassesThroughWithoutChangingABit) {
  Rig rig({.rule = &rules::adamw8});
  rig.train(1);
  const Snapshot before = rig.snapshot();
  rig.backend->reset_totals();
  {
    const PhaseScope phase(*rig.step_arena, "init");
    rig.optimizer().page_through(*rig.step_arena);
  }
  const auto each_way = static_cast<double>(rig.optimizer().paged_bytes());
  EXPECT_EQ(rig.backend->totals().host_to_device_bytes, each_way);
  EXPECT_EQ(rig.backend->totals().device_to_host_bytes, each_way);
  EXPECT_EQ(difference(rig.snapshot(), before), "");
}

// Begins each update of a packed weight with what its codes hold.
const UpdateRule kFromCodes = [] {
  UpdateRule rule = rules::adamw8;
  rule.update = [](const SlabUpdate& slab) {
    if (slab.param.weight.is_packed())
      slab.backend.run(Dequantize{.w = slab.param.weight.packed, .first = slab.first, .dst = slab.master});
    rules::adamw8.update(slab);
  };
  return rule;
}();

// One slab for all of "tiled", one to a row of tiles, and several to a tile; also where each step begins with
// unpacking such pieces.
TEST(OptimizerPaging, GivesTheSameBitsWhereverItCutsTiles) {
  RigOptions s{.rule = &kFromCodes, .max_slab_bytes = kMaxSlabBytes};
  Rig whole(s);
  whole.train(2);
  for (const std::int64_t slab_bytes : {64 * 1024, 32 * 1024}) {
    s.max_slab_bytes = slab_bytes;
    Rig cut(s);
    cut.train(2);
    EXPECT_EQ(difference(cut.snapshot(), whole.snapshot()), "") << slab_bytes;
  }
}

TEST(OptimizerPaging, RefusesSlabsThatHoldNoBlock) { EXPECT_THROW(Rig({.max_slab_bytes = 2048}), PlanError); }

// --- arithmetic --------------------------------------------------------------------------------------------

TEST(OptimizerInit, StartsMomentsAtZeroWhateverTheirCode) {
  for (const UpdateRule* rule : kRules) {
    Rig rig({.rule = rule});
    for (const Param& p : rig.params()) {
      if (p.group == ParamGroup::matrix && rule == &rules::adamw8) {
        for (const std::uint8_t code : rig.state_values<std::uint8_t>("m." + p.name))
          ASSERT_EQ(FirstMoment::kMap[code], 0.0f) << p.name;
        for (const std::uint8_t code : rig.state_values<std::uint8_t>("v." + p.name))
          ASSERT_EQ(SecondMoment::kMap[code], 0.0f) << p.name;
        for (const char* moment : {"m.", "v."}) {
          for (const float scale : rig.state_values<float>(moment + p.name + ".absmax"))
            ASSERT_EQ(scale, 0.0f);
        }
      } else {
        for (const float m : rig.state_values<float>("m." + p.name)) ASSERT_EQ(m, 0.0f);
        for (const float v : rig.state_values<float>("v." + p.name)) ASSERT_EQ(v, 0.0f);
      }
    }
  }
}

TEST(OptimizerInit, DrawsEveryTensorFromItsOwnStreamWithItsOwnSpread) {
  Rig rig({});
  const auto large = rig.state_values<float>("master.large");
  double sum = 0, squares = 0;
  for (const float w : large) {
    sum += w;
    squares += static_cast<double>(w) * w;
  }
  const double n = static_cast<double>(large.size());
  EXPECT_NEAR(sum / n, 0, 5 * 0.05 / std::sqrt(n));  // five standard errors
  EXPECT_NEAR(std::sqrt(squares / n), 0.05, 5 * 0.05 / std::sqrt(2 * n));
  for (const float w : rig.state_values<float>("master.zero")) EXPECT_EQ(w, 0.0f);
  for (const float w : rig.state_values<float>("master.norm")) EXPECT_EQ(w, 1.0f);
  const auto small = rig.state_values<float>("master.small");
  EXPECT_NE(small[0] / 0.1f, large[0] / 0.05f);
  const Snapshot seven = rig.snapshot();
  rig.init(8);
  EXPECT_NE(rig.state_values<float>("master.small"), small);
  rig.train(2);
  rig.init(7);
  EXPECT_EQ(difference(rig.snapshot(), seven), "") << "a fresh start forgets everything";
}

// The step of every element by the scalar reference, from a snapshot of state and gradients.
TEST(OptimizerStep, MatchesTheScalarArithmeticOfEveryGroup) {
  Rig rig({.rule = &rules::adamw, .max_norm = 0.5});
  constexpr double kLr = 0.25;
  for (std::int64_t t = 1; t <= 3; ++t) {
    const std::vector<float> grads = rig.random_gradients(static_cast<std::uint64_t>(t), 0.1f);
    constexpr double kTargets = 48;  // fewer than nominal: the mean is over those
    rig.set_gradients(grads, kTargets);
    double squares = 0;
    for (const float g : grads) squares += static_cast<double>(g) * g;
    const double norm = std::sqrt(squares) * kGradientTokens / kTargets;
    ASSERT_GT(norm, 0.5) << "clipping must have something to do";
    const float factor = static_cast<float>(kGradientTokens / kTargets * (0.5 / (norm + 1e-6)));

    std::map<std::string, std::vector<float>> want;
    std::int64_t first = 0;
    for (const Param& p : rig.params()) {
      auto w = rig.state_values<float>("master." + p.name), m = rig.state_values<float>("m." + p.name),
           v = rig.state_values<float>("v." + p.name);
      const double decay = p.group == ParamGroup::norm ? 0.0 : 0.1;  // vectors never decay
      const AdamHyper h = adam_hyper(kPeakLr[static_cast<int>(p.group)] * kLr, 0.8, 0.95, 1e-8, decay, t);
      for (std::size_t i = 0; i < w.size(); ++i)
        adam_update(w[i], grads[static_cast<std::size_t>(first) + i] * factor, m[i], v[i], h);
      want["master." + p.name] = w;
      want["m." + p.name] = m;
      want["v." + p.name] = v;
      first += (p.elems() + 255) / 256 * 256;
    }
    const StepStats stats = rig.measure(t, kLr);
    EXPECT_NEAR(stats.norm, norm, 1e-12 * norm);
    EXPECT_EQ(stats.loss, 3.25);
    EXPECT_EQ(stats.tokens, kTargets);
    EXPECT_TRUE(stats.finite);
    rig.update();
    for (const auto& [name, values] : want) {
      const auto got = rig.state_values<float>(name);
      // The norm's last bit may differ between a plain and a blocked sum, and with it the factor's.
      for (std::size_t i = 0; i < values.size(); ++i)
        ASSERT_NEAR(got[i], values[i], 1e-6f * std::abs(values[i]) + 1e-12f) << name << "[" << i << "]";
    }
  }
}

TEST(OptimizerStep, LeavesSmallGradientsUnclippedAndZeroMeansNever) {
  const auto first_moment = [](double max_norm, float scale) {
    Rig rig({.rule = &rules::adamw, .max_norm = max_norm});
    rig.set_gradients(rig.random_gradients(3, scale));
    rig.measure(1);
    rig.update();
    return rig.state_values<float>("m.large");
  };
  EXPECT_EQ(first_moment(1e6, 0.1f), first_moment(0, 0.1f));
  EXPECT_NE(first_moment(0.5, 0.1f), first_moment(0, 0.1f));
}

TEST(OptimizerStep, RenewsEveryWeightFromItsMasterInItsOwnFormat) {
  std::vector<RigOptions> setups;
  for (const auto& [weights, dtype] : kWeightsAndMasters)
    setups.push_back({.weights = weights, .master = dtype});
  for (const char* dense : {"large", "tiled"}) setups.push_back({.dense_matrix = dense});
  for (const RigOptions& setup : setups) {
    const FormatId weights = setup.weights;
    Rig rig(setup);
    rig.train(2);
    for (const Param& p : rig.params()) {
      const bool packs = p.group == ParamGroup::matrix && p.name != setup.dense_matrix;
      EXPECT_EQ(p.weight.format(), packs ? weights : FormatId::none) << p.name;
    }
    for (const Param& p : rig.params()) {
      const auto master = rig.master(p.name);
      if (p.weight.is_packed()) {
        std::vector<std::uint8_t> codes(static_cast<std::size_t>(code_bytes(weights, p.elems())));
        std::vector<float> absmax(static_cast<std::size_t>(scale_count(weights, p.elems())));
        Nf4::quantize(std::span<const float>(master), codes.data(), absmax.data());
        EXPECT_EQ(p.weight.packed.layout == PackedLayout::tiles,
                  p.name == "tiled" && test::test_backend_name() != "cpu");
        if (p.weight.packed.layout == PackedLayout::tiles) {
          flat_to_tiles(p.N, p.K, std::vector(codes), codes);
          flat_to_tiles(p.N, p.K, std::vector(absmax), absmax);
        }
        EXPECT_EQ(rig.values<std::uint8_t>(p.weight.packed.codes), codes) << p.name;
        EXPECT_EQ(rig.values<float>(p.weight.packed.absmax), absmax) << p.name;
      } else {
        const auto compute = rig.values<bf16>(p.weight.dense);
        for (std::size_t i = 0; i < master.size(); ++i)
          ASSERT_EQ(compute[i].bits, to_bf16(master[i]).bits) << p.name;
      }
    }
  }
}

TEST(OptimizerStep, KeepsEightBitMomentsOfMatricesOnly) {
  Rig rig({});
  for (const NamedView& v : rig.optimizer().state()) {
    const bool moment = v.name.starts_with("m.") || v.name.starts_with("v.");
    const bool matrix = of_a_matrix(v.name);
    EXPECT_EQ(v.view.dtype == DType::u8, moment && matrix && !v.name.ends_with(".absmax")) << v.name;
  }
}

TEST(OptimizerStep, EncodesMastersThatWereWrittenFromOutside) {
  Rig rig({});
  rig.train(1);
  const Snapshot before = rig.snapshot();
  rig.write_state("master.large", 100000, 123.0f);
  rig.write_state("master.head", 5, -2.0f);
  rig.encode();
  EXPECT_EQ(difference(rig.snapshot(), before),
            "absmax.large codes.large compute.head master.head master.large ");
}

// --- what is not finite ------------------------------------------------------------------------------------

TEST(BadGradients, LeaveEveryBitOfWeightsAndStateAlone) {
  constexpr float kInf = std::numeric_limits<float>::infinity(),
                  kNaN = std::numeric_limits<float>::quiet_NaN();
  for (const UpdateRule* rule : kRules) {
    Rig rig({.rule = rule});
    rig.train(2);
    const Snapshot before = rig.snapshot();
    for (const float bad : {kInf, -kInf, kNaN, 3e38f}) {
      std::vector<float> grads = rig.random_gradients(9);
      grads[5000] = bad;
      if (bad == 3e38f) std::fill(grads.begin(), grads.end(), bad);  // each finite, their norm not
      rig.set_gradients(grads);
      EXPECT_FALSE(rig.measure(3).finite) << bad;
      rig.update();
      EXPECT_EQ(difference(before, rig.snapshot()), "") << rule->name << " " << bad;
    }
    // The loss alone counts too.
    rig.set_gradients(rig.random_gradients(9), std::numeric_limits<double>::infinity());
    EXPECT_FALSE(rig.measure(3).finite);
    rig.update();
    EXPECT_EQ(difference(before, rig.snapshot()), "");
    // And without anything bad the same calls do change them.
    rig.train(1);
    EXPECT_NE(difference(before, rig.snapshot()), "");
  }
}

TEST(BadWeights, StopTheRunAndNameTensorAndElement) {
  for (const std::size_t index : {std::size_t{0}, std::size_t{99999}, std::size_t{512 * 301 - 1}}) {
    Rig rig({.master = index == 99999 ? DType::bf16 : DType::f32});
    rig.train(1);
    rig.write_state("master.large", index, std::numeric_limits<float>::quiet_NaN());
    rig.set_gradients(rig.random_gradients(2));
    rig.measure(2);
    try {
      rig.update();
      FAIL() << "a NaN went into the codes";
    } catch (const DivergedError& e) {
      EXPECT_EQ(e.code(), ExitCode::diverged);
      const std::string text = e.what();
      EXPECT_NE(text.find("'large'"), std::string::npos) << text;
      EXPECT_NE(text.find(fmt::format("element {}:", index)), std::string::npos) << text;
    }
    EXPECT_THROW(rig.encode(), DivergedError) << "it is still there";
    rig.write_state("master.large", index, 0.0f);
    EXPECT_NO_THROW(rig.encode());
  }
}

TEST(BadOptions, OfTheOptimizerAreRefused) {
  const auto with_betas = [](double beta1, double beta2) {
    const auto null = make_backend("null", test_target(1));
    Arena state("state", Space::device), host("host", Space::host);
    const PhaseScope state_phase(state, "state"), host_phase(host, "state");
    ParamList none;
    const TensorView gradients = state.keep("gradients", MemoryTag::gradients, DType::f32, {0});
    OptimizerOptions o;
    o.beta1 = beta1;
    o.beta2 = beta2;
    Optimizer(*null, state, host, none, {gradients}, o);
  };
  EXPECT_NO_THROW(with_betas(0, 0.999));
  EXPECT_THROW(with_betas(1, 0.95), ConfigError);
  EXPECT_THROW(with_betas(0.9, 1), ConfigError);
  EXPECT_THROW(with_betas(-0.1, 0.95), ConfigError);
  EXPECT_THROW(with_betas(std::nan(""), 0.95), ConfigError);
  EXPECT_THROW(Rig({.master = DType::f16}), ConfigError);
}

}  // namespace
}  // namespace qt::test
