// A run that diverges must be seen: a NaN or Inf that enters an op leaves it again, down to the flag that
// skips the step.
#include <algorithm>
#include <cmath>
#include <span>

#include "tests/support/proofs.h"

namespace qt::test {
namespace {

using std::size_t;

constexpr double kNaN = NAN;

class NonFinite : public ::testing::TestWithParam<DType> {
 protected:
  NonFinite() : t(computing_backends().front(), GetParam()) { t.next("non-finite input"); }

  // n numbers of which one is broken.
  std::vector<double> broken(size_t n, size_t at, double value = kNaN) {
    auto x = t.normal(n);
    x[at] = value;
    return x;
  }
  // Which elements of a view are not finite.
  std::vector<size_t> lost(const TensorView& view) {
    std::vector<size_t> at;
    const auto x = t.values(view);
    for (size_t i = 0; i < x.size(); ++i) {
      if (!std::isfinite(x[i])) at.push_back(i);
    }
    return at;
  }

  Case t;
};

TEST_P(NonFinite, ValuesPassElementwiseOps) {
  for (const size_t at : {size_t{2}, size_t{36}}) {  // inside a vector, and behind the last whole one
    const std::vector<size_t> there = {at};
    // Makes the op from (broken, sound, output).
    const auto expect_lost = [&](auto&& make) {
      t.next(fmt::format("element {}", at));
      const TensorView x = t.in(broken(37, at), {1, 37}), one = t.in(std::vector<double>(37, 1), {1, 37}),
                       y = t.out({1, 37});
      t.run(make(x, one, y));
      EXPECT_EQ(lost(y), there);
    };
    expect_lost([](auto x, auto, auto y) { return Relu2Fwd{.x = x, .y = y}; });
    expect_lost([](auto x, auto one, auto y) { return Relu2Bwd{.x = x, .dy = one, .dx = y}; });
    expect_lost([](auto x, auto one, auto y) { return Relu2Bwd{.x = one, .dy = x, .dx = y}; });
    expect_lost([](auto x, auto, auto y) { return GeluFwd{.x = x, .y = y}; });
    expect_lost([](auto x, auto one, auto y) { return GeluBwd{.x = x, .dy = one, .dx = y}; });
    expect_lost([](auto x, auto one, auto y) { return GeluBwd{.x = one, .dy = x, .dx = y}; });
    expect_lost([](auto x, auto one, auto y) { return Add{.a = one, .b = x, .y = y}; });
    expect_lost([](auto x, auto one, auto y) { return Multiply{.a = one, .b = x, .y = y}; });
    expect_lost([&](auto x, auto one, auto y) {
      return MultiplyBwd{.a = one, .b = x, .dy = one, .da = y, .db = t.out({1, 37})};
    });
  }
}

TEST_P(NonFinite, ValuesSpoilTheirRowOfANormAndNoOther) {
  const TensorView y = t.out({3, 5}), rstd = t.out({3}, DType::f32);
  t.run(RmsNormFwd{.x = t.in(broken(15, 7), {3, 5}), .y = y, .rstd = rstd, .eps = 1e-6f});
  EXPECT_EQ(lost(y), (std::vector<size_t>{5, 6, 7, 8, 9}));
  EXPECT_EQ(lost(rstd), std::vector<size_t>{1});
}

TEST_P(NonFinite, ValuesSpoilTheirRowOfALayerNormAndTheSumsOverItsRows) {
  const auto f32 = [&](std::vector<double> x) {
    return t.in(x, {static_cast<std::int64_t>(x.size())}, DType::f32);
  };
  LayerNormFwd forward{.x = t.in(broken(15, 7), {3, 5}),
                       .weight = f32(std::vector<double>(5, 1)),
                       .bias = f32(std::vector<double>(5, 1)),
                       .y = t.out({3, 5}),
                       .mean = t.out({3}, DType::f32),
                       .rstd = t.out({3}, DType::f32),
                       .eps = 1e-5f};
  t.run(forward);
  EXPECT_EQ(lost(forward.y), (std::vector<size_t>{5, 6, 7, 8, 9}));
  EXPECT_EQ(lost(forward.mean), std::vector<size_t>{1});
  EXPECT_EQ(lost(forward.rstd), std::vector<size_t>{1});

  t.next("backward");
  LayerNormBwd backward{.x = t.in(t.normal(15), {3, 5}),
                        .mean = f32(std::vector<double>(3, 0)),
                        .rstd = f32(std::vector<double>(3, 1)),
                        .weight = f32(std::vector<double>(5, 1)),
                        .dy = t.in(broken(15, 7), {3, 5}),
                        .dx = t.out({3, 5}),
                        .dweight = t.inout(std::vector<double>(5, 1), {5}, DType::f32),
                        .dbias = t.inout(std::vector<double>(5, 1), {5}, DType::f32)};
  backward.scratch = t.scratch_for(backward);
  t.run(backward);
  EXPECT_EQ(lost(backward.dx), (std::vector<size_t>{5, 6, 7, 8, 9}));
  EXPECT_EQ(lost(backward.dweight), std::vector<size_t>{2});
  EXPECT_EQ(lost(backward.dbias), std::vector<size_t>{2});
}

TEST_P(NonFinite, ValuesSpoilTheirColumnOfASumOverRows) {
  t.next("column sum");
  ColumnSum sum{.x = t.in(broken(15, 7), {3, 5}), .out = t.inout(std::vector<double>(5, 1), {5}, DType::f32)};
  sum.scratch = t.scratch_for(sum);
  t.run(sum);
  EXPECT_EQ(lost(sum.out), std::vector<size_t>{2});

  t.next("positions");
  PositionBwd positions{.dy = t.in(broken(30, 17), {6, 5}),
                        .dpositions = t.inout(std::vector<double>(20, 1), {4, 5}, DType::f32),
                        .T = 3};
  t.run(positions);
  EXPECT_EQ(lost(positions.dpositions), std::vector<size_t>{2});

  // A rare id, and one that is summed by the kernel for frequent ones.
  for (const std::int64_t N : {6, 200}) {
    t.next(fmt::format("embedding of {} tokens", N));
    std::vector<std::int32_t> ids(static_cast<size_t>(N), 1);
    ids[1] = 3;
    EmbeddingBwd embedding{.ids = t.in(ids, {N}),
                           .dy = t.in(broken(static_cast<size_t>(N) * 5, 17), {N, 5}),
                           .dtable = t.inout(std::vector<double>(20, 1), {4, 5}, DType::f32)};
    embedding.scratch = t.scratch_for(embedding);
    t.run(embedding);
    EXPECT_EQ(lost(embedding.dtable), std::vector<size_t>{7});
  }
}

TEST_P(NonFinite, ValuesSpoilTheirRowOfAProductAndNoOther) {
  const TensorView c = t.out({3, 4});
  Matmul op{.a = t.in(broken(15, 7), {3, 5}), .b = t.in(t.normal(20), {4, 5}), .c = c};
  op.scratch = t.scratch_for(op);
  t.run(op);
  EXPECT_EQ(lost(c), (std::vector<size_t>{4, 5, 6, 7}));
}

TEST_P(NonFinite, ScoresAndValuesSpoilTheQueriesThatSeeThem) {
  for (const bool in_keys : {true, false}) {
    t.next(in_keys ? "broken key" : "broken value");
    const TensorView good = t.in(t.normal(8), {1, 4, 1, 2}),
                     bad = t.in(broken(8, 4), {1, 4, 1, 2});  // of token 2
    AttentionFwd op{.q = t.in(t.normal(8), {1, 4, 1, 2}),
                    .k = in_keys ? bad : good,
                    .v = in_keys ? good : bad,
                    .y = t.out({1, 4, 1, 2}),
                    .lse = t.out({1, 1, 4}, DType::f32)};
    op.scratch = t.scratch_for(op);
    t.run(op);
    // At least those: a hidden value may meet a probability of 0, and their product is no number either.
    const auto at = lost(op.y);
    const auto want = in_keys ? std::vector<size_t>{4, 5, 6, 7} : std::vector<size_t>{4, 6};
    EXPECT_TRUE(std::includes(at.begin(), at.end(), want.begin(), want.end()))
        << (in_keys ? "broken key" : "broken value");
  }
}

TEST_P(NonFinite, LogitsSpoilTheLossOfTheirRow) {
  for (const double cap : {15.0, 0.0, 100.0}) {
    t.next(fmt::format("cap={}", cap));
    const TensorView logits = t.inout(broken(3 * 37, 40), {3, 37}, DType::f32);
    SoftcapCrossEntropy op{.logits = logits,
                           .targets = t.in(std::vector<std::int32_t>{1, 9, 3}, {3}),
                           .nll = t.out({3}, DType::f32),
                           .dlogits = dlogits_view(logits, t.dtype()),
                           .softcap = static_cast<float>(cap)};
    t.run(op);
    EXPECT_EQ(lost(op.nll), std::vector<size_t>{1}) << "cap " << cap;
  }
}

TEST_P(NonFinite, GradientsReachTheNorm) {
  for (const double value : {kNaN, static_cast<double>(INFINITY)}) {
    t.next(fmt::format("{}", value));
    // f16 gradients are accumulated in f32.
    const DType dtype = t.dtype() == DType::f16 ? DType::f32 : t.dtype();
    SumSquares op{.x = t.in(broken(5000, 4999, value), {5000}, dtype), .out = t.out({1}, DType::f64)};
    op.scratch = t.scratch_for(op);
    t.run(op);
    EXPECT_FALSE(std::isfinite(t.values(op.out)[0]));
  }
}

// Loss scaling relies on it: a scale that is too large overflows an activation's gradient to infinity, the
// weight's gradient and the norm are not finite then, and the step is skipped and says so.
TEST(F16, OverflowOfAGradientIsSeenByTheStepThatIsSkipped) {
  const std::string backend = computing_backends().front();
  for (const double loss_scale : {1024.0, 1048576.0}) {
    const bool too_large = loss_scale > 1e5;
    Case t(backend, DType::f16);
    t.next(fmt::format("scale {}", loss_scale));
    const std::int64_t M = 4, V = 7, C = 5;
    const TensorView logits = t.inout(std::vector<double>(static_cast<size_t>(M * V), 0), {M, V}, DType::f32);
    SoftcapCrossEntropy loss{.logits = logits,
                             .targets = t.in(std::vector<std::int32_t>{1, 2, 3, 4}, {M}),
                             .nll = t.out({M}, DType::f32),
                             .dlogits = dlogits_view(logits, DType::f16),
                             .grad_scale = static_cast<float>(loss_scale / static_cast<double>(M))};
    t.run(loss);
    const auto dlogits = t.values(loss.dlogits);
    EXPECT_EQ(std::isinf(dlogits[1]), too_large);

    t.next("weight gradient");
    Matmul product{.a = t.in(dlogits, {M, V}),
                   .b = t.in(t.normal(static_cast<size_t>(M * C)), {M, C}),
                   .c = t.inout(std::vector<double>(static_cast<size_t>(V * C), 0), {V, C}, DType::f32),
                   .layout = GemmLayout::tn,
                   .accumulate = true};
    product.scratch = t.scratch_for(product);
    t.run(product);
    const auto dw = t.values(product.c);

    t.next("norm");
    SumSquares squares{.x = t.in(dw, {V * C}, DType::f32), .out = t.out({1}, DType::f64)};
    squares.scratch = t.scratch_for(squares);
    t.run(squares);
    const auto sumsq = t.values(squares.out);

    t.next("step");
    PrepareStep step{.grad_sumsq = t.in(sumsq, {1}, DType::f64),
                     .totals = t.in(std::vector<double>{8, static_cast<double>(M)}, {2}, DType::f64),
                     .params = t.out({kStepParamFloats}, DType::f32),
                     .stats = t.out({kStepStatDoubles}, DType::f64),
                     .gradient_tokens = static_cast<double>(M) / loss_scale};
    t.run(step);
    const auto params = t.values(step.params), stats = t.values(step.stats);
    EXPECT_EQ(stats[2], too_large ? 1 : 0);
    EXPECT_EQ(params[1], too_large ? 1 : 0);
    if (too_large) continue;
    // The factor takes the scale away again, and the norm is that of the unscaled gradient.
    EXPECT_EQ(params[0], static_cast<float>(1 / loss_scale));
    EXPECT_NEAR(stats[1], std::sqrt(sumsq[0]) / loss_scale, 1e-12);
  }
}

INSTANTIATE_TEST_SUITE_P(Floats, NonFinite, ::testing::ValuesIn(kFloats),
                         [](const auto& subject) { return std::string(dtype_name(subject.param)); });

}  // namespace
}  // namespace qt::test
