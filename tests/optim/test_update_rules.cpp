// UpdateRule: the table, and rules that are in tests alone (tests/support/toy_rules.h), passed to the optimizer
// through its options: their arithmetic, and the same bits paged, resident and wherever slabs are cut.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "optim/update_rule.h"
#include "src/core/rng.h"
#include "tests/support/optimizer_rig.h"
#include "tests/support/toy_rules.h"

namespace qt::test {
namespace {

TEST(UpdateRules, AreFoundByNameOrRefusedWithTheList) {
  std::vector<std::string_view> names;
  for (const UpdateRule* rule : kRules) {
    EXPECT_EQ(&update_rule_by_name(rule->name), rule);
    names.push_back(rule->name);
  }
  EXPECT_TRUE(std::ranges::equal(all_update_rules(), kRules));
  try {
    update_rule_by_name("adam");
    FAIL() << "accepted";
  } catch (const ConfigError& e) {
    EXPECT_EQ(std::string(e.what()), "unknown optimizer 'adam'");
    EXPECT_EQ(e.hint(), fmt::format("use --optim with one of: {}", fmt::join(names, ", ")));
  }
  EXPECT_THROW(update_rule_by_name("sgd"), ConfigError);
  add_update_rule(kSgd);
  EXPECT_EQ(&update_rule_by_name("sgd"), &kSgd);
}

// The gradients of one param, and where they begin among those of the rig.
std::vector<float> of_param(const Rig& rig, const std::vector<float>& gradients, const std::string& name) {
  std::int64_t first = 0;
  for (const Param& p : rig.placed->params) {
    if (p.name == name) return {gradients.begin() + first, gradients.begin() + first + p.elems()};
    first += (p.elems() + 255) / 256 * 256;
  }
  ADD_FAILURE() << name;
  return {};
}

std::string difference(const Snapshot& a, const Snapshot& b) {
  std::string names;
  for (const auto& [name, bytes] : a) names += b.contains(name) && b.at(name) == bytes ? "" : name + " ";
  return a.size() == b.size() ? names : names + "(different lists)";
}

TEST(Sgd, MatchesItsFormulaToTheBit) {
  for (const DType master : {DType::f32, DType::bf16}) {
    Rig rig({.rule = &kSgd, .max_norm = 0, .max_slab_bytes = 8 * 1024, .master = master});
    for (std::int64_t t = 1; t <= 2; ++t) {
      const std::vector<float> gradients = rig.random_gradients(static_cast<std::uint64_t>(t), 1.0f);
      std::map<std::string, std::vector<float>> want;
      for (const Param& p : rig.params()) {
        const double lr = 0.5 * kPeakLr[static_cast<std::size_t>(p.group)];
        const auto s = static_cast<float>(-lr), decay = static_cast<float>(1 - lr * 0.1);
        std::vector<float> w = rig.master(p.name);
        const std::vector<float> g = of_param(rig, gradients, p.name);
        const RngStream draws{.purpose = RngPurpose::stochastic_rounding,
                              .stream = static_cast<std::uint64_t>(t) << 32 | p.rng_stream};
        for (std::size_t i = 0; i < w.size(); ++i) {
          w[i] = w[i] * decay + s * g[i];
          if (master == DType::bf16 && p.group != ParamGroup::norm)
            w[i] = to_float(to_bf16_stochastic(w[i], rng_u32(draws, i)));
        }
        want[p.name] = std::move(w);
      }
      rig.set_gradients(gradients);
      rig.measure(t, 0.5);
      rig.update();
      for (const auto& [name, w] : want) EXPECT_EQ(rig.master(name), w) << name;
    }
    EXPECT_EQ(rig.optimizer().state().size(), rig.params().size()) << "masters alone";
    EXPECT_EQ(rig.step_arena->used_bytes(), rig.step_arena->plan().bytes);
  }
}

// D = M + M M^T M in double.
std::vector<double> cubic(const Param& p, const std::vector<float>& M_NK) {
  const auto N = static_cast<std::size_t>(p.N), K = static_cast<std::size_t>(p.K);
  std::vector<double> D_NK(M_NK.begin(), M_NK.end());
  for (std::size_t i = 0; i < N; ++i) {
    for (std::size_t j = 0; j < N; ++j) {
      double dot = 0;
      for (std::size_t k = 0; k < K; ++k) dot += static_cast<double>(M_NK[i * K + k]) * M_NK[j * K + k];
      for (std::size_t k = 0; k < K; ++k) D_NK[i * K + k] += dot * M_NK[j * K + k];
    }
  }
  return D_NK;
}

TEST(Cubic, MatchesItsFormulaInMatricesLargerThanManySlabs) {
  constexpr double kBeta1 = 0.8;  // the default
  Rig rig({.rule = &kCubic, .max_norm = 0, .max_slab_bytes = 8 * 1024});
  for (std::int64_t t = 1; t <= 2; ++t) {
    const std::vector<float> gradients = rig.random_gradients(static_cast<std::uint64_t>(t), 1.0f);
    std::map<std::string, std::vector<float>> momentum;
    std::map<std::string, std::vector<double>> master, way;
    for (const Param& p : rig.params()) {
      if (p.group != ParamGroup::matrix) continue;
      const double lr = 0.5 * kPeakLr[static_cast<std::size_t>(ParamGroup::matrix)];
      const std::vector<float> w = rig.master(p.name), g = of_param(rig, gradients, p.name);
      std::vector<float> m = rig.state_values<float>("momentum." + p.name);
      const auto b1 = static_cast<float>(kBeta1);
      for (std::size_t i = 0; i < m.size(); ++i) m[i] = m[i] * b1 + (1.0f - b1) * g[i];
      const std::vector<double> D = cubic(p, m);
      for (std::size_t i = 0; i < w.size(); ++i) {
        way[p.name].push_back(-lr * (1 - kBeta1) * D[i]);
        master[p.name].push_back((1 - lr * 0.1) * w[i] + way[p.name].back());
      }
      momentum[p.name] = std::move(m);
    }
    rig.set_gradients(gradients);
    rig.measure(t, 0.5);
    rig.update();
    for (const auto& [name, want] : master) {
      EXPECT_EQ(rig.state_values<float>("momentum." + name), momentum.at(name)) << name;
      const auto larger = [](double a, double b) { return std::abs(a) < std::abs(b); };
      const double furthest = std::abs(*std::ranges::max_element(way.at(name), larger));
      const std::vector<float> got = rig.master(name);
      for (std::size_t i = 0; i < want.size(); ++i) {
        // Products are summed in f32. The factor of decay, its product and the sum are each rounded to f32.
        ASSERT_NEAR(got[i], want[i], 1e-5 * furthest + 3 * 0x1p-24 * std::abs(want[i]))
            << name << "[" << i << "]";
      }
    }
  }
}

TEST(Cubic, PagesEachByteOnceAndHoldsOneMatrixOfTheStepArena) {
  Rig rig({.rule = &kCubic16, .max_slab_bytes = 8 * 1024});
  std::int64_t bytes = 0;
  for (const NamedView& v : rig.optimizer().state()) bytes += v.view.bytes();
  EXPECT_EQ(rig.optimizer().paged_bytes(), bytes);
  rig.set_gradients(rig.random_gradients(1));
  rig.measure(1);
  rig.backend->reset_totals();
  rig.update();
  EXPECT_EQ(rig.backend->totals().host_to_device_bytes, static_cast<double>(bytes));
  const PhasePlan& phase = *rig.step_arena->plan().find("optimizer_step");
  std::int64_t slots = 0, matrices = 0, largest = 0;
  for (const Request& r : phase.requests) {
    if (r.tag == MemoryTag::slots) slots += r.bytes;
    if (r.name != "direction") continue;
    ++matrices;
    largest = std::max(largest, r.bytes);
  }
  EXPECT_LE(slots, 2 * rig.setup.max_slab_bytes);
  EXPECT_EQ(matrices, 4) << "one of each matrix";
  EXPECT_EQ(largest, 512 * 301 * 2);
  // The matrix, its square and its cube, and the slots: the matrices of two params are never there at once.
  EXPECT_LT(phase.live_bytes, slots + 3 * largest + 512 * 512 * 2);
  EXPECT_EQ(rig.step_arena->used_bytes(), rig.step_arena->plan().bytes);
}

TEST(ToyRules, GiveTheSameBitsPagedResidentAndWhereverSlabsAreCut) {
  for (const UpdateRule* rule : {&kSgd, &kCubic, &kCubic16, &kCubicOfGradient}) {
    for (const auto& [gradient, master] : kGradientsAndMasters) {
      SCOPED_TRACE(
          fmt::format("{}, gradient {}, master {}", rule->name, dtype_name(gradient), dtype_name(master)));
      RigOptions s{.rule = rule,
                   .paged = false,
                   .gradient = gradient,
                   .max_slab_bytes = kMaxSlabBytes,
                   .threads = 2,
                   .master = master};
      Rig resident(s);
      const Snapshot before = resident.snapshot();
      resident.train(3, 1.0f);
      EXPECT_NE(difference(resident.snapshot(), before), "") << "something must have been learned";
      s.threads = 1;
      for (const bool paged : {true, false}) {
        for (const std::int64_t slab_bytes : {8 * 1024, 64 * 1024}) {
          s.paged = paged;
          s.max_slab_bytes = slab_bytes;
          Rig cut(s);
          cut.train(3, 1.0f);
          EXPECT_EQ(difference(cut.snapshot(), resident.snapshot()), "") << paged << " " << slab_bytes;
          EXPECT_EQ(cut.step_arena->used_bytes(), cut.step_arena->plan().bytes);
        }
      }
    }
  }
}

TEST(ToyRules, ChangeNothingInAStepThatIsSkipped) {
  for (const UpdateRule* rule : {&kSgd, &kCubic, &kCubic16, &kCubicOfGradient}) {
    Rig rig({.rule = rule});
    rig.train(1, 1.0f);
    const Snapshot before = rig.snapshot();
    std::vector<float> gradients = rig.random_gradients(2, 1.0f);
    gradients[5000] = std::numeric_limits<float>::quiet_NaN();
    rig.set_gradients(gradients);
    EXPECT_FALSE(rig.measure(2).finite);
    rig.update();
    EXPECT_EQ(difference(before, rig.snapshot()), "") << rule->name;
  }
}

}  // namespace
}  // namespace qt::test
