// Proofs of the optimizer's ops. Legend: n elements of a slab.
#include <cmath>
#include <span>

#include "quant/q8.h"
#include "tests/oracle/adamw.h"
#include "tests/support/proofs.h"

namespace qt::test {
namespace {

using oracle::AdamSettings;
using oracle::AdamState;
using std::size_t;

// Each group differs from the others in everything; step 3 so that bias corrections matter.
AdamSettings settings(int group) {
  return {.lr = 0.02 / (1 + group),
          .beta1 = 0.8 + 0.05 * group,
          .beta2 = 0.95 + 0.01 * group,
          .eps = 1e-6 * (1 + group),
          .weight_decay = 0.1 * (1 + group),
          .step = 3};
}

AdamHyper hyper(const AdamSettings& a) {
  return adam_hyper(a.lr, a.beta1, a.beta2, a.eps, a.weight_decay, a.step);
}

constexpr double kFactor = 0.75;  // on gradients: exact in f32, so that the product rounds once

// The params tensor as kernels/ops.h lays it out.
std::vector<double> step_params(bool skip) {
  std::vector<double> params(kStepParamFloats, 0);
  params[0] = kFactor;
  params[1] = skip ? 1 : 0;
  params[2] = 5;
  for (int g = 0; g < kParamGroups; ++g) {
    const AdamHyper h = hyper(settings(g));
    const float values[] = {h.s, h.ceps, h.decay, h.beta1, h.one_minus_beta1, h.beta2, h.one_minus_beta2};
    for (size_t i = 0; i < std::size(values); ++i)
      params[4 + 8 * static_cast<size_t>(g) + i] = static_cast<double>(values[i]);
  }
  return params;
}

oracle::AdamMistakes mistakes(const Case& t) {
  return {.decays_after = t.is("decay comes after the update"),
          .no_bias_correction = t.is("the bias correction is missing"),
          .eps_unscaled = t.is("eps is not scaled by the bias correction"),
          .eps_inside_root = t.is("eps stands inside the root"),
          .old_moments = t.is("the update reads the old moments")};
}

const std::vector<std::int64_t> kSlabs = {1, 37, 256, 257, 1000, kSanitized ? 4099 : 70'001};

// Every third element has moments and a gradient of the size of eps: nowhere else would a misplaced eps be
// seen.
void shrink_some(std::vector<double>& x, double factor, DType dtype) {
  for (size_t i = 0; i < x.size(); i += 3) x[i] = oracle::round_to(x[i] * factor, dtype);
}

void adamw(Case& t) {
  for (const std::int64_t n : kSlabs) {
    for (const bool skip : {false, true}) {
      const int group = skip ? 0 : static_cast<int>(n % kParamGroups);
      if (!t.next(fmt::format("n={} group={} skip={}", n, group, skip))) return;
      const auto count = static_cast<size_t>(n);
      auto p = t.normal_as(DType::f32, count, 0.5), g = t.normal(count),
           m = t.normal_as(DType::f32, count, 0.1);
      auto v = t.normal_as(DType::f32, count, 0.1, 0.5);
      for (double& x : v) x = std::abs(x);
      shrink_some(g, 1e-6, t.dtype());
      shrink_some(m, 1e-6, DType::f32);
      shrink_some(v, 1e-12, DType::f32);
      AdamW op{.master = t.inout(p, {n}, DType::f32),
               .grad = t.in(g, {n}),
               .m = t.inout(m, {n}, DType::f32),
               .v = t.inout(v, {n}, DType::f32),
               .params = t.in(step_params(skip), {kStepParamFloats}, DType::f32),
               .group = static_cast<ParamGroup>(group)};
      t.run(op);

      std::vector<Tracked> want_p, want_m, want_v;
      const AdamSettings a = settings(t.is("the group is ignored") ? (group + 1) % kParamGroups : group);
      for (size_t i = 0; i < count; ++i) {
        AdamState s{p[i], m[i], v[i]};
        const Tracked gradient =
            t.is("the factor on gradients is ignored") ? Tracked(g[i]) : Tracked(g[i]) * kFactor;
        if (!skip || t.is("a step to skip is taken")) s = oracle::adamw(s, gradient, a, mistakes(t));
        want_p.push_back(s.p), want_m.push_back(s.m), want_v.push_back(s.v);
      }
      const char* suffix = skip ? " (skip)" : "";
      t.expect((std::string("master") + suffix).c_str(), op.master, want_p);
      t.expect((std::string("m") + suffix).c_str(), op.m, want_m);
      t.expect((std::string("v") + suffix).c_str(), op.v, want_v);
    }
  }
}

// One kind of 8-bit moment: its map, the code of zero, and which codes a value may have.
struct MomentRule {
  const Q8Map& map;
  int zero_code;
  bool keeps_sign;      // m: a negative value is never coded as zero
  bool keeps_positive;  // v: a positive value is never coded as zero

  double value(int code) const { return static_cast<double>(map[static_cast<size_t>(code)]); }

  // The nearest code, a tie taking the lower one; then the two exceptions.
  int code_of(double x, double absmax) const {
    if (absmax == 0) return zero_code;
    const double y = x / absmax;
    int code = 0;
    while (code < 255 && y > oracle::round_to((value(code) + value(code + 1)) / 2, DType::f32)) ++code;
    if (code == zero_code && keeps_sign && x < 0) --code;
    if (code == zero_code && keeps_positive && x > 0) ++code;
    return code;
  }
  // Codes are monotone in x, so that those at both ends of its interval limit what f32 may give.
  bool allows(int code, const Tracked& x, const Tracked& absmax) const {
    const double slack = x.error + std::abs(x.value) * (absmax.error / std::max(absmax.value, 1e-300) +
                                                        3 * oracle::kF32Roundoff);
    const double low = x.value == 0 && x.error < 1e-40 ? 0 : x.value - slack,
                 high = x.value == 0 && x.error < 1e-40 ? 0 : x.value + slack;
    return code >= code_of(low, absmax.value) && code <= code_of(high, absmax.value);
  }
};

struct Block8 {
  std::vector<std::uint8_t> codes;
  std::vector<double> absmax;
};

Block8 random_moments(Case& t, size_t n, bool second, const std::vector<double>& small) {
  Block8 b;
  for (const std::int32_t c : t.integers(n, 256)) b.codes.push_back(static_cast<std::uint8_t>(c));
  for (const double a : t.normal_as(DType::f32, (n + 255) / 256, 0.01, 0.1)) b.absmax.push_back(std::abs(a));
  for (size_t i = 0; i < n; ++i) {
    if (small[i] != 0) b.codes[i] = second ? 0 : 127;  // zero before, so that the gradient alone decides
  }
  return b;
}

void adamw8(Case& t) {
  for (const std::int64_t n : kSlabs) {
    for (const bool skip : {false, true}) {
      const int group = skip ? 0 : static_cast<int>(n % kParamGroups);
      if (!t.next(fmt::format("n={} group={} skip={}", n, group, skip))) return;
      const auto count = static_cast<size_t>(n);
      const std::int64_t blocks = (n + 255) / 256;
      const auto p = t.normal_as(DType::f32, count, 0.5);
      auto g = t.normal(count);
      // Elements that never saw a gradient before and see a tiny one now: v must not be coded as zero, nor a
      // negative m.
      std::vector<double> small(count, 0);
      for (size_t i = 5; i < count; i += 7)
        small[i] = 1, g[i] = oracle::round_to((i % 2 == 0 ? 1 : -1) * 1e-8, t.dtype());
      for (size_t i = 6; i < count; i += 7) small[i] = 1, g[i] = 0;
      const Block8 m = random_moments(t, count, false, small), v = random_moments(t, count, true, small);
      AdamW8 op{.master = t.inout(p, {n}, DType::f32),
                .grad = t.in(g, {n}),
                .m_codes = t.inout_bytes(m.codes),
                .v_codes = t.inout_bytes(v.codes),
                .m_absmax = t.inout(m.absmax, {blocks}, DType::f32),
                .v_absmax = t.inout(v.absmax, {blocks}, DType::f32),
                .params = t.in(step_params(skip), {kStepParamFloats}, DType::f32),
                .group = static_cast<ParamGroup>(group)};
      t.run(op);
      if (skip) {
        t.expect_exact("master (skip)", op.master, p);
        t.expect_exact("m_absmax (skip)", op.m_absmax, m.absmax);
        t.expect_exact("v_absmax (skip)", op.v_absmax, v.absmax);
        t.expect_true("codes (skip)", t.codes(op.m_codes) == m.codes && t.codes(op.v_codes) == v.codes,
                      "a code changed");
        continue;
      }

      const MomentRule first{kQ8Signed, 127, !t.is("a small negative first moment becomes zero"), false};
      const MomentRule second{kQ8Unsigned, 0, false, !t.is("a small second moment becomes zero")};
      const AdamSettings a = settings(t.is("the group is ignored") ? (group + 1) % kParamGroups : group);
      std::vector<Tracked> want_p, next_m, next_v;
      for (size_t i = 0; i < count; ++i) {
        const Tracked old_m = Tracked(first.value(m.codes[i])) * m.absmax[i / 256],
                      old_v = Tracked(second.value(v.codes[i])) * v.absmax[i / 256];
        const Tracked gradient =
            t.is("the factor on gradients is ignored") ? Tracked(g[i]) : Tracked(g[i]) * kFactor;
        const AdamState s = oracle::adamw({p[i], old_m, old_v}, gradient, a, mistakes(t));
        want_p.push_back(s.p), next_m.push_back(s.m), next_v.push_back(s.v);
      }
      const auto scales = [&](const std::vector<Tracked>& x, const Block8& before) {
        std::vector<Tracked> absmax(static_cast<size_t>(blocks));
        for (size_t i = 0; i < x.size(); ++i) {
          Tracked& top = absmax[i / 256];
          top = {std::max(top.value, std::abs(x[i].value)), std::max(top.error, x[i].error)};
        }
        if (t.is("the scales are not renewed")) absmax = {before.absmax.begin(), before.absmax.end()};
        return absmax;
      };
      const auto m_scales = scales(next_m, m), v_scales = scales(next_v, v);
      t.expect("master", op.master, want_p);
      t.expect("m_absmax", op.m_absmax, m_scales);
      t.expect("v_absmax", op.v_absmax, v_scales);
      const auto m_codes = t.codes(op.m_codes), v_codes = t.codes(op.v_codes);
      std::string wrong;
      for (size_t i = 0; i < count && wrong.empty(); ++i) {
        if (!first.allows(m_codes[i], next_m[i], m_scales[i / 256]))
          wrong = fmt::format("m[{}] = {} has code {}", i, next_m[i].value, m_codes[i]);
        if (!second.allows(v_codes[i], next_v[i], v_scales[i / 256]))
          wrong = fmt::format("v[{}] = {} has code {}", i, next_v[i].value, v_codes[i]);
      }
      t.expect_true("codes", wrong.empty(), wrong);
    }
  }
}

struct Window {
  const char* what;
  double sumsq, loss_sum, targets, max_norm, gradient_tokens;
  bool skip, finite;
};

void prepare_step(Case& t) {
  const double inf = INFINITY, nan = NAN;
  for (const Window& w : {Window{"clipped", 9.0, 70, 10, 1, 10, false, true},
                          Window{"not clipped", 0.04, 70, 10, 1, 10, false, true},
                          Window{"no clipping", 9.0, 70, 10, 0, 10, false, true},
                          Window{"fewer targets than planned", 9.0, 70, 7, 1, 10, false, true},
                          Window{"tiny norm", 1e-14, 3, 10, 1e-6, 10, false, true},
                          Window{"infinite norm", inf, 70, 10, 1, 10, true, false},
                          Window{"norm not a number", nan, 70, 10, 1, 10, true, false},
                          Window{"infinite loss", 9.0, inf, 10, 1, 10, true, false},
                          Window{"loss not a number", 9.0, nan, 10, 0, 10, true, false},
                          Window{"no target", 0, 0, 0, 1, 10, true, true}}) {
    if (!t.next(w.what)) return;
    const std::vector<double> regions = {w.sumsq / 4, w.sumsq / 2, w.sumsq / 4};
    const double sumsq = t.is("only the first region of gradients counts") ? regions[0] : w.sumsq;
    PrepareStep op{.grad_sumsq = t.in(regions, {3}, DType::f64),
                   .totals = t.in(std::vector<double>{w.loss_sum, w.targets}, {2}, DType::f64),
                   .params = t.out({kStepParamFloats}, DType::f32),
                   .stats = t.out({kStepStatDoubles}, DType::f64),
                   .max_norm = w.max_norm,
                   .gradient_tokens = w.gradient_tokens};
    for (int g = 0; g < kParamGroups; ++g) op.hyper[static_cast<size_t>(g)] = hyper(settings(g));
    t.run(op);
    const auto params = t.values(op.params), stats = t.values(op.stats);
    const bool skip = w.skip && !t.is("a broken step is not skipped");
    t.expect_true("params[1]", params[1] == (skip ? 1 : 0), "the skip flag is wrong");
    t.expect_true("stats[2]", stats[2] == (w.finite ? 0 : 1), "the flag for a non-finite step is wrong");
    t.expect_true("stats[3]", stats[3] == w.targets, "the number of targets is wrong");

    const auto want_hyper = step_params(false);
    for (size_t i = 4; i < want_hyper.size(); ++i) {
      const bool padding = (i - 4) % 8 == 7;
      t.expect_true("hyper", padding ? std::isfinite(params[i]) : params[i] == want_hyper[i],
                    fmt::format("params[{}] is {}", i, params[i]));
    }
    if (w.skip) continue;

    const double renormalise = t.is("tokens do not normalise") ? 1 : w.gradient_tokens / w.targets;
    const double norm = std::sqrt(sumsq) * renormalise;
    double clip =
        w.max_norm > 0
            ? w.max_norm /
                  ((t.is("the norm is clipped before tokens normalise it") ? std::sqrt(sumsq) : norm) +
                   (t.is("1e-6 is left out") ? 0 : 1e-6))
            : 1;
    if (!t.is("small gradients are scaled up")) clip = std::min(1.0, clip);
    const double factor = renormalise * clip;
    // At most 8 operations in double, then one rounding to f32.
    const double slack = 8 * 0x1p-53;
    t.expect("factor", op.params.flat(0, 1), std::vector<double>{factor},
             std::vector<double>{(oracle::kF32Roundoff + slack) * factor});
    t.expect("norm", op.params.flat(2, 1), std::vector<double>{norm},
             std::vector<double>{(oracle::kF32Roundoff + slack) * norm});
    t.expect("loss", op.stats.flat(0, 1), std::vector<double>{w.loss_sum / w.targets},
             std::vector<double>{slack * w.loss_sum / w.targets});
    t.expect("norm f64", op.stats.flat(1, 1), std::vector<double>{norm}, std::vector<double>{slack * norm});
  }
}

const std::vector<std::string> kAdamMutants = {"decay comes after the update",
                                               "the bias correction is missing",
                                               "eps is not scaled by the bias correction",
                                               "eps stands inside the root",
                                               "the update reads the old moments",
                                               "the group is ignored",
                                               "the factor on gradients is ignored"};

std::vector<std::string> also(std::vector<std::string> mutants, std::initializer_list<const char*> more) {
  mutants.insert(mutants.end(), more.begin(), more.end());
  return mutants;
}

const Proves kAdamW({"adamw", kGradients, also(kAdamMutants, {"a step to skip is taken"}), adamw});
const Proves kAdamW8({"adamw8", kGradients,
                      also(kAdamMutants,
                           {"a small second moment becomes zero",
                            "a small negative first moment becomes zero", "the scales are not renewed"}),
                      adamw8});
const Proves kPrepareStep({"prepare_step",
                           {DType::f32},
                           {"tokens do not normalise", "the norm is clipped before tokens normalise it",
                            "1e-6 is left out", "small gradients are scaled up",
                            "a broken step is not skipped", "only the first region of gradients counts"},
                           prepare_step});

}  // namespace
}  // namespace qt::test
