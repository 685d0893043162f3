// UpdateRule: the table, and rules that are in tests alone (tests/support/toy_rules.h), passed to the optimizer
// through its options: their arithmetic, and the same bits paged, resident and wherever slabs are cut.
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
  EXPECT_EQ(kUpdateRuleNames, fmt::format("{}", fmt::join(names, " | ")))
      << "rows and rules of the same names";
  try {
    update_rule_by_name("adam");
    FAIL() << "accepted";
  } catch (const ConfigError& e) {
    EXPECT_EQ(std::string(e.what()), "unknown optimizer 'adam'");
    EXPECT_EQ(e.hint(), fmt::format("use --optim with one of: {}", fmt::join(names, ", ")));
  }
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

TEST(ToyRules, GiveTheSameBitsPagedResidentAndWhereverSlabsAreCut) {
  for (const UpdateRule* rule : {&kSgd}) {
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
  for (const UpdateRule* rule : {&kSgd}) {
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
