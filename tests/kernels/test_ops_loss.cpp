// Proofs of the loss head and its sums. Legend: M tokens of a chunk, V vocabulary.
#include <cmath>
#include <span>

#include "tests/oracle/loss.h"
#include "tests/support/proofs.h"

namespace qt::test {
namespace {

using std::size_t;

std::vector<Tracked> tracked(std::span<const double> x) { return {x.begin(), x.end()}; }

struct Chunk {
  std::int64_t M, V;
  double cap;
};
// A chunk of one row, vocabularies around vector widths and blocks, no cap, and caps where exp needs a shift.
// The last three are several pieces of what a block of a card reads at once: a 16-bit gradient then lies over
// logits that were read a while ago, and would lie over some that were not if the order were wrong.
const std::vector<Chunk> kChunks = {{1, 2, 15},      {5, 97, 15},   {7, 97, 0},    {4, 33, 100},
                                    {1, 1, 15},      {3, 4099, 15}, {2, 300, 0},   {3, 257, 30},
                                    {1, 30'011, 15}, {3, 8204, 30}, {1, 28'676, 0}};

void cross_entropy(Case& t) {
  for (const auto [M, V, cap] : kChunks) {
    for (const bool gradient : {true, false}) {
      if (!t.next(fmt::format("M={} V={} cap={} {}", M, V, cap, gradient ? "with gradient" : "loss only")))
        return;
      auto logits = t.normal_as(DType::f32, static_cast<size_t>(M * V), 5);
      logits[0] = 60;  // far up the cap, where its slope is almost 0
      logits.back() = -40;
      auto targets = t.integers(static_cast<size_t>(M), static_cast<std::int32_t>(V));
      targets[0] = static_cast<std::int32_t>(V - 1);
      if (M > 1) targets[1] = -1;
      const float grad_scale = 0.37f;
      const TensorView logits_view =
          gradient ? t.inout(logits, {M, V}, DType::f32) : t.in(logits, {M, V}, DType::f32);
      SoftcapCrossEntropy op{.logits = logits_view,
                             .targets = t.in(targets, {M}),
                             .nll = t.out({M}, DType::f32),
                             .dlogits = gradient ? dlogits_view(logits_view, t.dtype()) : TensorView(),
                             .softcap = static_cast<float>(cap),
                             .grad_scale = grad_scale};
      t.run(op);

      const oracle::LossRule rule{.cap_has_slope = !t.is("the slope of the cap is left out"),
                                  .slope_squares = !t.is("the slope of the cap is not squared"),
                                  .ignores_negative_targets = !t.is("ignored rows have a gradient")};
      std::vector<Tracked> nll, dlogits;
      for (std::int64_t r = 0; r < M; ++r) {
        const auto x = tracked(std::span(logits).subspan(static_cast<size_t>(r * V), static_cast<size_t>(V)));
        const int target = targets[static_cast<size_t>(r)];
        auto row = oracle::cross_entropy<Tracked>(x, target, cap);
        if (target >= 0 && t.is("the loss of the target is left out"))
          row.nll = row.nll + row.z[static_cast<size_t>(target)];
        nll.push_back(row.nll);
        const double scale = t.is("grad_scale is dropped") ? 1.0 : static_cast<double>(grad_scale);
        for (const Tracked& d : oracle::cross_entropy_gradient(row, target, cap, scale, rule))
          dlogits.push_back(oracle::stored(d, t.dtype()));
      }
      t.expect("nll", op.nll, nll);
      if (gradient) t.expect("dlogits", op.dlogits, dlogits);
    }
  }
}

// A model that begins with a zero head knows nothing: its loss is ln V, with no doubt in the sixth digit.
TEST(CrossEntropyOp, OfEqualLogitsIsTheLogarithmOfTheVocabulary) {
  for (const std::string& backend : computing_backends()) {
    for (const std::int64_t V : {2, 97, 4099, 65'536}) {
      for (const double cap : {15.0, 0.0}) {
        Case t(backend, DType::f32);
        t.next(fmt::format("V={} cap={}", V, cap));
        SoftcapCrossEntropy op{.logits = t.in(std::vector<double>(static_cast<size_t>(V), 0), {1, V}),
                               .targets = t.in(std::vector<std::int32_t>{1}, {1}),
                               .nll = t.out({1}, DType::f32),
                               .softcap = static_cast<float>(cap)};
        t.run(op);
        EXPECT_NEAR(t.values(op.nll)[0], std::log(static_cast<double>(V)), 1e-6);
      }
    }
  }
}

void softcap(Case& t) {
  for (const std::int64_t n : {1, 7, 97, 20'000}) {
    for (const double cap : {15.0, 0.5, 100.0}) {
      if (!t.next(fmt::format("n={} cap={}", n, cap))) return;
      auto x = t.normal_as(DType::f32, static_cast<size_t>(n), 12);
      x.back() = -200;
      const TensorView view = t.inout(x, {n}, DType::f32);
      t.run(Softcap{.x = view, .softcap = static_cast<float>(cap)});
      std::vector<Tracked> want;
      for (const double v : x) {
        Tracked w = oracle::softcap(Tracked(v), cap);
        if (t.is("the cap does not multiply")) w = w / Tracked(cap * 2);
        if (t.is("values are clipped instead of bent")) w = Tracked(std::clamp(v, -cap, cap));
        want.push_back(w);
      }
      t.expect("x", view, want);
    }
  }
}

// What summing n doubles in any order may cost, with one rounding more for the oracle's own result.
double sum_bound(std::size_t n, double magnitude) { return static_cast<double>(n + 1) * 0x1p-53 * magnitude; }

void sum_loss(Case& t) {
  for (const std::int64_t M : {1, 7, 65, 4096, 9001, 140'001}) {
    if (!t.next(fmt::format("M={}", M))) return;
    auto nll = t.spread(static_cast<size_t>(M));
    // More than a card sums at once. Whole numbers: against the bound of so many terms errors do not show.
    const bool whole = M > 100'000;
    if (whole) nll = t.normal(nll.size(), 100);
    for (double& x : nll) x = whole ? std::round(x) : x;
    auto targets = t.integers(nll.size(), 50);
    long double sum = 0;
    double counted = 0, magnitude = 0;
    for (size_t i = 0; i < nll.size(); ++i) {
      if (i % 5 == 3) targets[i] = -1, nll[i] = 0;
      sum += nll[i];
      magnitude += std::abs(nll[i]);
      counted += targets[i] >= 0 || t.is("ignored targets count") ? 1 : 0;
    }
    const std::vector<double> before = {123.25, 17};
    if (!t.is("the totals are overwritten")) sum += before[0], counted += before[1], magnitude += before[0];
    const TensorView totals = t.inout(before, {2}, DType::f64);
    t.run(SumLoss{.nll = t.in(nll, {M}, DType::f32), .targets = t.in(targets, {M}), .totals = totals});
    const double bound = whole ? 0 : sum_bound(nll.size(), magnitude);
    t.expect(whole ? "totals, whole" : "totals", totals,
             std::vector<double>{static_cast<double>(sum), counted}, std::vector<double>{bound, 0});
  }
}

void sum_squares(Case& t) {
  for (const std::int64_t n : {1, 37, 4096, 4099, kSanitized ? 30'000 : 2'000'003}) {
    if (!t.next(fmt::format("n={}", n))) return;
    auto x = t.spread(static_cast<size_t>(n));
    x.back() = 0.75;
    SumSquares op{.x = t.in(x, {n}), .out = t.out({1}, DType::f64)};
    op.scratch = t.scratch_for(op);
    t.run(op);
    if (t.is("the last element is left out")) x.back() = 0;
    long double wide = 0;
    for (const double v : x)
      wide +=
          t.is("magnitudes are summed instead of squares") ? std::abs(v) : static_cast<long double>(v) * v;
    const auto sum = static_cast<double>(wide);
    t.expect("out", op.out, std::vector<double>{sum}, std::vector<double>{sum_bound(x.size(), sum)});
  }
}

const Proves kCrossEntropy({"softcap_cross_entropy",
                            kFloats,
                            {"the slope of the cap is left out", "the slope of the cap is not squared",
                             "ignored rows have a gradient", "the loss of the target is left out",
                             "grad_scale is dropped"},
                            cross_entropy});
const Proves kSoftcap(
    {"softcap", {DType::f32}, {"the cap does not multiply", "values are clipped instead of bent"}, softcap});
const Proves kSumLoss(
    {"sum_loss", {DType::f32}, {"ignored targets count", "the totals are overwritten"}, sum_loss});
const Proves kSumSquares({"sum_squares",
                          kGradients,
                          {"the last element is left out", "magnitudes are summed instead of squares"},
                          sum_squares});

}  // namespace
}  // namespace qt::test
