// Proofs of LayerNorm, of sums over rows and of learned positions. Legend: N tokens, C width, T tokens of a
// row, P positions of the table, V vocabulary.
#include <cmath>
#include <span>

#include "tests/oracle/layernorm.h"
#include "tests/oracle/norm.h"
#include "tests/support/proofs.h"

namespace qt::test {
namespace {

using std::size_t;

constexpr float kEps = 1e-5f;

struct Rows {
  std::int64_t N, C;
};
// Widths of GPT-2 sizes, single elements, vectors and their tails, and what a warp of a card does not hold;
// rows around the blocks of their sums.
const std::vector<Rows> kRows = {{1, 1},   {2, 3},    {5, 48},   {7, 65},  {17, 384}, {3, 1600},
                                 {16, 96}, {33, 144}, {1100, 5}, {3, 776}, {2, 2048}, {2, 2051}};

std::vector<Tracked> tracked(std::span<const double> x) { return {x.begin(), x.end()}; }

std::vector<double> rounded(std::span<const Tracked> x, DType dtype) {
  std::vector<double> y;
  for (const Tracked& v : x) y.push_back(oracle::round_to(v.value, dtype));
  return y;
}

void layernorm_fwd(Case& t) {
  for (const auto [N, C] : kRows) {
    // Ordinary rows with and without a bias; rows far off zero; rows so small that eps decides.
    struct Kind {
      const char* name;
      double mean, stddev;
      bool bias, centred = true;
    };
    for (const Kind kind :
         {Kind{"ordinary", 0.3, 1, true}, Kind{"no bias", 0.3, 1, false}, Kind{"far off", 50, 1, true},
          Kind{"small", 0, 1e-3, true}, Kind{"no mean", 0.3, 1, true, false}}) {
      if (!t.next(fmt::format("N={} C={} {}", N, C, kind.name))) return;
      const auto x = t.normal(static_cast<size_t>(N * C), kind.stddev, kind.mean);
      const auto weight = t.normal_as(DType::f32, static_cast<size_t>(C), 0.2, 1);
      const auto bias = t.normal_as(DType::f32, kind.bias ? static_cast<size_t>(C) : 0, 0.5);
      LayerNormFwd op{.x = t.in(x, {N, C}),
                      .weight = t.in(weight, {C}, DType::f32),
                      .bias = kind.bias ? t.in(bias, {C}, DType::f32) : TensorView(),
                      .y = t.out({N, C}),
                      .mean = kind.centred ? t.out({N}, DType::f32) : TensorView(),
                      .rstd = t.out({N}, DType::f32),
                      .eps = kEps};
      t.run(op);
      const auto want =
          oracle::layernorm<Tracked>(tracked(x), tracked(weight), tracked(bias),
                                     t.is("eps is left out") ? 0 : static_cast<double>(kEps), t.dtype(),
                                     {.unbiased = t.is("the variance is divided by C - 1") && C > 1,
                                      .keeps_mean = t.is("the mean is not subtracted"),
                                      .drops_weight = t.is("the weight is dropped"),
                                      .drops_bias = t.is("the bias is dropped")},
                                     kind.centred || t.is("rows without a mean are centred"));
      t.expect("y", op.y, want.y);
      if (kind.centred) t.expect("mean", op.mean, want.mean);
      t.expect("rstd", op.rstd, want.rstd);
      if (t.mutating() || !kind.bias) continue;

      const auto bits = t.bits(op.y);
      t.next(fmt::format("N={} C={} {} in place", N, C, kind.name));
      const TensorView in_place = t.inout(x, {N, C});
      t.run(LayerNormFwd{.x = in_place,
                         .weight = t.in(weight, {C}, DType::f32),
                         .bias = t.in(bias, {C}, DType::f32),
                         .y = in_place,
                         .mean = kind.centred ? t.out({N}, DType::f32) : TensorView(),
                         .rstd = t.out({N}, DType::f32),
                         .eps = kEps});
      EXPECT_EQ(t.bits(in_place), bits);
    }
  }
}

void layernorm_bwd(Case& t) {
  struct Kind {
    bool accumulate, centred;
  };
  for (const auto [N, C] : kRows) {
    for (const auto [accumulate, centred] : {Kind{false, true}, Kind{true, true}, Kind{false, false}}) {
      if (!t.next(fmt::format("N={} C={} accumulate={}{}", N, C, accumulate, centred ? "" : " no mean")))
        return;
      const auto width = static_cast<size_t>(C);
      const auto x = t.normal(static_cast<size_t>(N * C), 1, 0.5), dy = t.normal(x.size());
      auto before = t.normal(x.size());
      const auto weight = t.normal_as(DType::f32, width, 0.2, 1);
      auto dweight = t.normal_as(DType::f32, width, 3), dbias = t.normal_as(DType::f32, width, 3);
      const auto forward = oracle::layernorm<Tracked>(tracked(x), tracked(weight), {},
                                                      static_cast<double>(kEps), t.dtype(), {}, centred);
      const auto mean = rounded(forward.mean, DType::f32), rstd = rounded(forward.rstd, DType::f32);
      const bool has_bias = !accumulate || C % 2 == 0;
      LayerNormBwd op{.x = t.in(x, {N, C}),
                      .mean = centred ? t.in(mean, {N}, DType::f32) : TensorView(),
                      .rstd = t.in(rstd, {N}, DType::f32),
                      .weight = t.in(weight, {C}, DType::f32),
                      .dy = t.in(dy, {N, C}),
                      .dx = accumulate ? t.inout(before, {N, C}) : t.out({N, C}),
                      .dweight = t.inout(dweight, {C}, DType::f32),
                      .dbias = has_bias ? t.inout(dbias, {C}, DType::f32) : TensorView(),
                      .accumulate = accumulate};
      op.scratch = t.scratch_for(op);
      t.run(op);

      auto want = oracle::layernorm_backward<Tracked>(
          tracked(x), tracked(mean), tracked(rstd), tracked(weight), tracked(dy),
          {.drops_weight = t.is("the weight is dropped"),
           .drops_mean_term = t.is("the mean of g is dropped"),
           .drops_slope_term = t.is("the mean of g h is dropped")},
          centred || t.is("rows without a mean have the mean of g"));
      if (!accumulate || t.is("dx is overwritten")) std::fill(before.begin(), before.end(), 0.0);
      if (t.is("the gradients of the weights are overwritten"))
        dweight.assign(width, 0), dbias.assign(width, 0);
      for (size_t i = 0; i < x.size(); ++i) {
        if (accumulate) want.dx[i] = want.dx[i] + before[i];
        want.dx[i] = oracle::stored(want.dx[i], t.dtype());
      }
      if (t.is("the gradients of weight and bias change places")) std::swap(want.dweight, want.dbias);
      for (size_t c = 0; c < width; ++c) {
        want.dweight[c] = want.dweight[c] + dweight[c];
        want.dbias[c] = want.dbias[c] + dbias[c];
      }
      t.expect(accumulate ? "dx +=" : "dx", op.dx, want.dx);
      t.expect("dweight", op.dweight, want.dweight);
      if (has_bias) t.expect("dbias", op.dbias, want.dbias);
      if (t.mutating() || accumulate) continue;

      const auto bits = t.bits(op.dx);
      t.next(fmt::format("N={} C={} over dy", N, C));
      const TensorView in_place = t.inout(dy, {N, C});
      LayerNormBwd over{.x = t.in(x, {N, C}),
                        .mean = centred ? t.in(mean, {N}, DType::f32) : TensorView(),
                        .rstd = t.in(rstd, {N}, DType::f32),
                        .weight = t.in(weight, {C}, DType::f32),
                        .dy = in_place,
                        .dx = in_place,
                        .dweight = t.inout(dweight, {C}, DType::f32),
                        .dbias = t.inout(dbias, {C}, DType::f32)};
      over.scratch = t.scratch_for(over);
      t.run(over);
      EXPECT_EQ(t.bits(in_place), bits);
    }
  }
}

void column_sum(Case& t) {
  for (const auto [M, N] :
       {Rows{1, 1}, Rows{7, 3}, Rows{16, 48}, Rows{17, 65}, Rows{130, 1600}, Rows{3, 384}, Rows{1027, 37}}) {
    for (const bool pitched : {false, true}) {
      if (!t.next(fmt::format("M={} N={}{}", M, N, pitched ? " pitched" : ""))) return;
      auto x = t.normal(static_cast<size_t>(M * N));
      auto before = t.normal_as(DType::f32, static_cast<size_t>(N), 3);
      ColumnSum op{.x = t.in_pitched(x, {M, N}, t.dtype(), N + (pitched ? 7 : 0)),
                   .out = t.inout(before, {N}, DType::f32)};
      op.scratch = t.scratch_for(op);
      t.run(op);
      if (t.is("the last row is left out")) std::fill(x.end() - N, x.end(), 0.0);
      if (t.is("out is overwritten")) std::fill(before.begin(), before.end(), 0.0);
      auto want = oracle::column_sum<Tracked>(tracked(x), static_cast<size_t>(N));
      for (size_t n = 0; n < want.size(); ++n) want[n] = want[n] + before[n];
      t.expect("out", op.out, want);
    }
  }
}

struct Positions {
  std::int64_t B, T, C, first;
};
const std::vector<Positions> kPositions = {{1, 1, 1, 0},   {2, 5, 3, 0},    {3, 7, 65, 4},
                                           {2, 33, 48, 1}, {1, 9, 1600, 2}, {5, 130, 24, 0}};

void embedding_with_positions(Case& t) {
  for (const auto [B, T, C, first] : kPositions) {
    if (!t.next(fmt::format("B={} T={} C={} first={}", B, T, C, first))) return;
    const std::int64_t N = B * T, V = 11, P = first + T + 2;
    const auto table = t.normal(static_cast<size_t>(V * C)), positions = t.normal(static_cast<size_t>(P * C));
    const auto ids = t.integers(static_cast<size_t>(N), static_cast<std::int32_t>(V));
    const TensorView y = t.out({N, C});
    t.run(EmbeddingFwd{.ids = t.in(ids, {N}),
                       .table = t.in(table, {V, C}),
                       .y = y,
                       .positions = t.in(positions, {P, C}),
                       .T = T,
                       .first_position = first});
    const auto tokens = oracle::embedding<Tracked>(ids, tracked(table), static_cast<size_t>(C));
    auto want = oracle::add_positions<Tracked>(
        tokens, tracked(positions), static_cast<size_t>(C),
        t.is("positions run on across rows") ? static_cast<size_t>(P - first) : static_cast<size_t>(T),
        t.is("first_position is ignored") ? 0 : static_cast<size_t>(first));
    if (t.is("positions are not added")) want = tokens;
    for (Tracked& w : want) w = oracle::stored(w, t.dtype());
    t.expect("y", y, want);
  }
}

void position_bwd(Case& t) {
  for (const DType grad_dtype : kGradients) {
    if (t.dtype() == DType::f16 && grad_dtype != DType::f32) continue;
    for (const auto [B, T, C, extra] : kPositions) {
      if (!t.next(fmt::format("B={} T={} C={} into {}", B, T, C, dtype_name(grad_dtype)))) return;
      const std::int64_t N = B * T, P = T + extra;
      auto dy = t.normal(static_cast<size_t>(N * C));
      auto before = t.normal_as(grad_dtype, static_cast<size_t>(P * C));
      PositionBwd op{.dy = t.in(dy, {N, C}), .dpositions = t.inout(before, {P, C}, grad_dtype), .T = T};
      t.run(op);
      if (t.is("only the first row of the batch counts"))
        std::fill(dy.begin() + static_cast<std::ptrdiff_t>(T * C), dy.end(), 0.0);
      if (t.is("dpositions is overwritten"))
        std::fill_n(before.begin(), static_cast<std::ptrdiff_t>(T * C), 0.0);
      const auto sums =
          oracle::positions_backward<Tracked>(tracked(dy), static_cast<size_t>(C), static_cast<size_t>(T));
      std::vector<Tracked> want = tracked(before);  // rows beyond T keep their bits
      for (size_t i = 0; i < sums.size(); ++i) want[i] = oracle::stored(want[i] + sums[i], grad_dtype);
      t.expect(grad_dtype == DType::f32 ? "dpositions f32" : "dpositions bf16", op.dpositions, want);
    }
  }
}

const Proves kLayerNorm({"layernorm_fwd",
                         kFloats,
                         {"eps is left out", "the variance is divided by C - 1", "the mean is not subtracted",
                          "the weight is dropped", "the bias is dropped", "rows without a mean are centred"},
                         layernorm_fwd});
const Proves kLayerNormBwd(
    {"layernorm_bwd",
     kFloats,
     {"the weight is dropped", "the mean of g is dropped", "the mean of g h is dropped", "dx is overwritten",
      "the gradients of the weights are overwritten", "the gradients of weight and bias change places",
      "rows without a mean have the mean of g"},
     layernorm_bwd});
const Proves kColumnSum(
    {"column_sum", kFloats, {"the last row is left out", "out is overwritten"}, column_sum});
const Proves kEmbeddingPositions({"embedding_fwd",
                                  kFloats,
                                  {"positions are not added", "first_position is ignored",
                                   "positions run on across rows"},
                                  embedding_with_positions,
                                  "_positions"});
const Proves kPositionBwd({"position_bwd",
                           kFloats,
                           {"only the first row of the batch counts", "dpositions is overwritten"},
                           position_bwd});

}  // namespace
}  // namespace qt::test
