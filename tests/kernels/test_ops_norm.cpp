// Proofs of RMSNorm and of RoPE with QK-norm. Legend: N tokens, C width, H heads, D head width, T tokens of a
// row, P positions of the table.
#include <cmath>
#include <span>

#include "tests/oracle/norm.h"
#include "tests/support/proofs.h"

namespace qt::test {
namespace {

using std::size_t;

constexpr float kEps = 1e-6f;

struct Rows {
  std::int64_t N, C;
};
// Single elements, vectors and their tails; widths that a warp of a card holds in 1, 2, 4 and 8 vectors a
// lane, and beyond, where a block has the row.
const std::vector<Rows> kRows = {{1, 1},    {2, 3},   {3, 24},  {7, 37},   {17, 1000},
                                 {2, 8192}, {65, 64}, {9, 264}, {2, 2048}, {3, 2051}};

std::vector<Tracked> tracked(std::span<const double> x) { return {x.begin(), x.end()}; }

std::vector<double> rounded(std::span<const Tracked> x, DType dtype) {
  std::vector<double> y;
  for (const Tracked& v : x) y.push_back(oracle::round_to(v.value, dtype));
  return y;
}

void rmsnorm_fwd(Case& t) {
  for (const auto [N, C] : kRows) {
    // Rows of ordinary size, and rows so small that eps decides.
    for (const double size : {1.0, 1e-3}) {
      if (!t.next(fmt::format("N={} C={} size={}", N, C, size))) return;
      const auto x = t.normal(static_cast<size_t>(N * C), size);
      const TensorView y = t.out({N, C}), rstd = t.out({N}, DType::f32);
      t.run(RmsNormFwd{.x = t.in(x, {N, C}), .y = y, .rstd = rstd, .eps = kEps});
      const double eps = t.is("eps is left out") ? 0 : static_cast<double>(kEps);
      auto want = oracle::rmsnorm<Tracked>(tracked(x), static_cast<size_t>(C), eps, t.dtype());
      if (t.is("the sum replaces the mean")) {
        for (auto& v : want.y) v.value /= std::sqrt(static_cast<double>(C));
      }
      t.expect("y", y, want.y);
      t.expect("rstd", rstd, want.rstd);
      if (t.mutating()) continue;

      const auto bits = t.bits(y);
      t.next(fmt::format("N={} C={} in place", N, C));
      const TensorView in_place = t.inout(x, {N, C});
      t.run(RmsNormFwd{.x = in_place, .y = in_place, .rstd = t.out({N}, DType::f32), .eps = kEps});
      EXPECT_EQ(t.bits(in_place), bits);
    }
  }
}

void rmsnorm_bwd(Case& t) {
  for (const auto [N, C] : kRows) {
    for (const bool accumulate : {false, true}) {
      if (!t.next(fmt::format("N={} C={} accumulate={}", N, C, accumulate))) return;
      const auto x = t.normal(static_cast<size_t>(N * C), 1, 0.5), dy = t.normal(x.size());
      const auto before = t.normal(x.size());
      const auto forward =
          oracle::rmsnorm<Tracked>(tracked(x), static_cast<size_t>(C), static_cast<double>(kEps), t.dtype());
      const auto y = rounded(forward.y, t.dtype()), rstd = rounded(forward.rstd, DType::f32);
      const TensorView dx = accumulate ? t.inout(before, {N, C}) : t.out({N, C});
      RmsNormBwd op{.y = t.in(y, {N, C}),
                    .rstd = t.in(rstd, {N}, DType::f32),
                    .dy = t.in(dy, {N, C}),
                    .dx = dx,
                    .accumulate = accumulate};
      t.run(op);
      auto want =
          oracle::rmsnorm_backward<Tracked>(tracked(y), tracked(rstd), tracked(dy), static_cast<size_t>(C));
      for (size_t i = 0; i < want.size(); ++i) {
        if (t.is("the mean of dy y is dropped")) want[i] = Tracked(rstd[i / static_cast<size_t>(C)]) * dy[i];
        if (t.is("rstd is dropped")) want[i] = want[i] / rstd[i / static_cast<size_t>(C)];
        if (accumulate && !t.is("dx is overwritten")) want[i] = want[i] + before[i];
        want[i] = oracle::stored(want[i], t.dtype());
      }
      t.expect(accumulate ? "dx +=" : "dx", dx, want);
      if (t.mutating() || accumulate) continue;

      const auto bits = t.bits(dx);
      t.next(fmt::format("N={} C={} over dy", N, C));
      const TensorView in_place = t.inout(dy, {N, C});
      t.run(RmsNormBwd{
          .y = t.in(y, {N, C}), .rstd = t.in(rstd, {N}, DType::f32), .dy = in_place, .dx = in_place});
      EXPECT_EQ(t.bits(in_place), bits);
    }
  }
}

void rope_table(Case& t) {
  struct Table {
    std::int64_t P, half;
    float base;
  };
  for (const auto [P, half, base] : {Table{1, 1, 10000}, Table{7, 8, 10000}, Table{130, 24, 10000},
                                     Table{65, 64, 100000}, Table{3, 600, 10000}}) {
    if (!t.next(fmt::format("P={} D={} base={}", P, 2 * half, base))) return;
    const TensorView cos = t.out({P, half}), sin = t.out({P, half});
    t.run(RopeTable{.cos = cos, .sin = sin, .base = base});
    std::vector<Tracked> want_cos, want_sin;
    for (std::int64_t p = 0; p < P; ++p) {
      for (std::int64_t i = 0; i < half; ++i) {
        const double exponent = (t.is("pairs count in steps of D") ? 1.0 : 2.0) * static_cast<double>(i) /
                                static_cast<double>(2 * half);
        const double inv_freq =
            std::pow(static_cast<double>(base), t.is("frequencies rise") ? exponent : -exponent);
        const double position = static_cast<double>(t.is("positions count from one") ? p + 1 : p);
        const Tracked angle = Tracked(position) * oracle::round_to(inv_freq, DType::f32);
        // The derivatives of both are at most 1. Libraries stay within 2 ulps, that is 4 roundoffs.
        want_cos.push_back(oracle::stored(Tracked(std::cos(angle.value), angle.error).rounded(4), t.dtype()));
        want_sin.push_back(oracle::stored(Tracked(std::sin(angle.value), angle.error).rounded(4), t.dtype()));
      }
    }
    t.expect("cos", cos, want_cos);
    t.expect("sin", sin, want_sin);
  }
}

struct Heads {
  std::int64_t B, T, H, D, first;
};
// Halves below, at and between whole vectors, at the width of a card's warp, and beyond it.
const std::vector<Heads> kHeads = {{1, 1, 1, 2, 0},    {2, 7, 2, 16, 0},  {1, 65, 3, 48, 3},
                                   {1, 130, 1, 64, 0}, {2, 5, 4, 128, 1}, {3, 1, 2, 6, 9},
                                   {2, 3, 5, 36, 2},   {1, 3, 3, 512, 0}, {1, 2, 3, 1038, 1}};

struct Angles {
  std::vector<double> cos, sin;  // [P, D/2], rounded to the dtype
};
Angles angles(std::int64_t P, std::int64_t D, DType dtype) {
  Angles a;
  for (std::int64_t p = 0; p < P; ++p) {
    for (std::int64_t i = 0; i < D / 2; ++i) {
      const double angle =
          static_cast<double>(p) * std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(D));
      a.cos.push_back(oracle::round_to(std::cos(angle), dtype));
      a.sin.push_back(oracle::round_to(std::sin(angle), dtype));
    }
  }
  return a;
}

oracle::Normed<Tracked> rope_norm(const Heads& s, std::span<const double> x, const Angles& a, double eps,
                                  DType dtype, size_t first, oracle::RopeConvention convention,
                                  bool normed = true) {
  const auto r = oracle::rotate<Tracked>(tracked(x), static_cast<size_t>(s.H), static_cast<size_t>(s.D),
                                         static_cast<size_t>(s.T), first, a.cos, a.sin, convention);
  if (normed) return oracle::rmsnorm<Tracked>(r, static_cast<size_t>(s.D), eps, dtype);
  oracle::Normed<Tracked> plain;
  for (const Tracked& v : r) plain.y.push_back(oracle::stored(v, dtype));
  return plain;
}

void rope_norm_fwd(Case& t) {
  for (const Heads& s : kHeads) {
    const auto [B, T, H, D, first] = s;
    for (const bool normed : {true, false}) {
      if (!t.next(fmt::format("B={} T={} H={} D={} first={}{}", B, T, H, D, first, normed ? "" : " no norm")))
        return;
      const std::int64_t N = B * T, P = first + T + 2;
      auto x = t.normal(static_cast<size_t>(N * H * D), 1, 0.3);
      for (size_t i = 0; i < static_cast<size_t>(D); ++i)
        x[i] = oracle::round_to(x[i] * 1e-3, t.dtype());  // one head where eps counts
      const Angles a = angles(P, D, t.dtype());
      const TensorView cos = t.in(a.cos, {P, D / 2}), sin = t.in(a.sin, {P, D / 2});
      const TensorView y = t.out({N, H, D}), rstd = normed ? t.out({N, H}, DType::f32) : TensorView();
      t.run(RopeNormFwd{.x = t.in(x, {N, H, D}),
                        .y = y,
                        .rstd = rstd,
                        .cos = cos,
                        .sin = sin,
                        .T = T,
                        .first_position = first,
                        .eps = kEps});

      const oracle::RopeConvention convention{.direction = t.is("the rotation turns by +theta") ? 1.0 : -1.0,
                                              .interleaved = t.is("pairs are neighbours instead of halves")};
      const auto want = rope_norm(s, x, a, t.is("eps is left out") ? 0 : static_cast<double>(kEps), t.dtype(),
                                  t.is("first_position is ignored") ? 0 : static_cast<size_t>(first),
                                  convention, normed || t.is("heads without rstd are normed"));
      t.expect("y", y, want.y);
      if (normed) t.expect("rstd", rstd, want.rstd);
      if (t.mutating()) continue;

      const auto bits = t.bits(y);
      t.next(fmt::format("B={} T={} H={} D={} in place", B, T, H, D));
      const TensorView in_place = t.inout(x, {N, H, D});
      t.run(RopeNormFwd{.x = in_place,
                        .y = in_place,
                        .rstd = normed ? t.out({N, H}, DType::f32) : TensorView(),
                        .cos = t.in(a.cos, {P, D / 2}),
                        .sin = t.in(a.sin, {P, D / 2}),
                        .T = T,
                        .first_position = first,
                        .eps = kEps});
      EXPECT_EQ(t.bits(in_place), bits);
    }
  }
}

void rope_norm_bwd(Case& t) {
  for (const Heads& s : kHeads) {
    const auto [B, T, H, D, first] = s;
    if (first != 0 && T == 1) continue;  // a decoding shape: it has no backward pass
    for (const bool normed : {true, false}) {
      if (!t.next(fmt::format("B={} T={} H={} D={}{}", B, T, H, D, normed ? "" : " no norm"))) return;
      const std::int64_t N = B * T;
      const auto x = t.normal(static_cast<size_t>(N * H * D), 1, 0.3), dy = t.normal(x.size());
      const Angles a = angles(T, D, t.dtype());
      const auto forward = rope_norm(s, x, a, static_cast<double>(kEps), t.dtype(), 0, {});
      const auto y = rounded(forward.y, t.dtype()), rstd = rounded(forward.rstd, DType::f32);
      const TensorView dx = t.out({N, H, D});
      RopeNormBwd op{.y = normed ? t.in(y, {N, H, D}) : TensorView(),
                     .rstd = normed ? t.in(rstd, {N, H}, DType::f32) : TensorView(),
                     .dy = t.in(dy, {N, H, D}),
                     .dx = dx,
                     .cos = t.in(a.cos, {T, D / 2}),
                     .sin = t.in(a.sin, {T, D / 2}),
                     .T = T};
      t.run(op);

      auto dr =
          oracle::rmsnorm_backward<Tracked>(tracked(y), tracked(rstd), tracked(dy), static_cast<size_t>(D));
      if (t.is("the mean of dy y is dropped")) {
        for (size_t i = 0; i < dr.size(); ++i) dr[i] = Tracked(rstd[i / static_cast<size_t>(D)]) * dy[i];
      }
      if (!normed && !t.is("heads without rstd have a norm's gradient")) dr = tracked(dy);
      auto want = oracle::rotate<Tracked>(dr, static_cast<size_t>(H), static_cast<size_t>(D),
                                          static_cast<size_t>(T), 0, a.cos, a.sin,
                                          {.direction = t.is("backward turns by -theta again") ? -1.0 : 1.0});
      for (auto& v : want) v = oracle::stored(v, t.dtype());
      t.expect("dx", dx, want);
      if (t.mutating()) continue;

      const auto bits = t.bits(dx);
      t.next(fmt::format("B={} T={} H={} D={} over dy", B, T, H, D));
      const TensorView in_place = t.inout(dy, {N, H, D});
      t.run(RopeNormBwd{.y = normed ? t.in(y, {N, H, D}) : TensorView(),
                        .rstd = normed ? t.in(rstd, {N, H}, DType::f32) : TensorView(),
                        .dy = in_place,
                        .dx = in_place,
                        .cos = t.in(a.cos, {T, D / 2}),
                        .sin = t.in(a.sin, {T, D / 2}),
                        .T = T});
      EXPECT_EQ(t.bits(in_place), bits);
    }
  }
}

const Proves kRmsNorm(
    {"rmsnorm_fwd", kFloats, {"eps is left out", "the sum replaces the mean"}, rmsnorm_fwd});
const Proves kRmsNormBwd({"rmsnorm_bwd",
                          kFloats,
                          {"the mean of dy y is dropped", "rstd is dropped", "dx is overwritten"},
                          rmsnorm_bwd});
const Proves kRopeTable({"rope_table",
                         kFloats,
                         {"positions count from one", "frequencies rise", "pairs count in steps of D"},
                         rope_table});
const Proves kRope({"rope_norm_fwd",
                    kFloats,
                    {"the rotation turns by +theta", "pairs are neighbours instead of halves",
                     "first_position is ignored", "eps is left out", "heads without rstd are normed"},
                    rope_norm_fwd});
const Proves kRopeBwd({"rope_norm_bwd",
                       kFloats,
                       {"backward turns by -theta again", "the mean of dy y is dropped",
                        "heads without rstd have a norm's gradient"},
                       rope_norm_bwd});

}  // namespace
}  // namespace qt::test
