// Rows may begin at any element: a kernel then takes other paths through memory, but never to other bits.
// Legend: N tokens, C width, H heads, D head width, V vocabulary.
#include <cmath>
#include <functional>
#include <span>

#include "tests/support/proofs.h"
#include "tests/support/random_weight.h"
#include "tests/support/shifted.h"

namespace qt::test {
namespace {

using std::size_t;

class AnyAddress : public ::testing::TestWithParam<DType> {
 protected:
  // run(t, place) runs an op on tensors of `place` and returns its results.
  using Run = std::function<std::vector<TensorView>(Case& t, Shifted& place)>;
  static void expect_same_bits(const char* what, const Run& run) {
    Case t(computing_backends().front(), GetParam());
    std::vector<std::vector<std::byte>> aligned;
    for (const std::int64_t skip : {0, 1, 3}) {
      t.next(fmt::format("{} from element {}", what, skip));
      Shifted place(t, skip);
      const std::vector<TensorView> results = run(t, place);
      for (size_t i = 0; i < results.size(); ++i) {
        if (skip == 0) {
          aligned.push_back(t.bits(results[i]));
        } else {
          EXPECT_EQ(t.bits(results[i]), aligned[i]) << what << ", result " << i << ", from element " << skip;
        }
      }
    }
  }
};

constexpr std::int64_t N = 5, C = 264;

TEST_P(AnyAddress, GivesANormTheSameBits) {
  const DType dtype = GetParam();
  expect_same_bits("rmsnorm_fwd", [&](Case& t, Shifted& place) -> std::vector<TensorView> {
    const RmsNormFwd op{.x = place.in(t.normal(N * C), {N, C}, dtype),
                        .y = place.out(N * C, {N, C}, dtype),
                        .rstd = place.out(N, {N}, DType::f32),
                        .eps = 1e-6f};
    t.run(op);
    return {op.y, op.rstd};
  });
  expect_same_bits("rmsnorm_bwd", [&](Case& t, Shifted& place) -> std::vector<TensorView> {
    const RmsNormBwd op{.y = place.in(t.normal(N * C), {N, C}, dtype),
                        .rstd = place.in(t.normal_as(DType::f32, N, 1, 3), {N}, DType::f32),
                        .dy = place.in(t.normal(N * C), {N, C}, dtype),
                        .dx = place.inout(t.normal(N * C), {N, C}, dtype),
                        .accumulate = true};
    t.run(op);
    return {op.dx};
  });
}

TEST_P(AnyAddress, GivesALayerNormTheSameBits) {
  const DType dtype = GetParam();
  expect_same_bits("layernorm_fwd", [&](Case& t, Shifted& place) -> std::vector<TensorView> {
    const LayerNormFwd op{.x = place.in(t.normal(N * C), {N, C}, dtype),
                          .weight = place.in(t.normal_as(DType::f32, C), {C}, DType::f32),
                          .bias = place.in(t.normal_as(DType::f32, C), {C}, DType::f32),
                          .y = place.out(N * C, {N, C}, dtype),
                          .mean = place.out(N, {N}, DType::f32),
                          .rstd = place.out(N, {N}, DType::f32),
                          .eps = 1e-5f};
    t.run(op);
    return {op.y, op.mean, op.rstd};
  });
  expect_same_bits("layernorm_bwd", [&](Case& t, Shifted& place) -> std::vector<TensorView> {
    LayerNormBwd op{.x = place.in(t.normal(N * C), {N, C}, dtype),
                    .mean = place.in(t.normal_as(DType::f32, N), {N}, DType::f32),
                    .rstd = place.in(t.normal_as(DType::f32, N, 1, 3), {N}, DType::f32),
                    .weight = place.in(t.normal_as(DType::f32, C), {C}, DType::f32),
                    .dy = place.in(t.normal(N * C), {N, C}, dtype),
                    .dx = place.out(N * C, {N, C}, dtype),
                    .dweight = place.inout(t.normal_as(DType::f32, C), {C}, DType::f32),
                    .dbias = place.inout(t.normal_as(DType::f32, C), {C}, DType::f32)};
    op.scratch = t.scratch_for(op);
    t.run(op);
    return {op.dx, op.dweight, op.dbias};
  });
}

TEST_P(AnyAddress, GivesARotatedHeadTheSameBits) {
  const DType dtype = GetParam();
  constexpr std::int64_t H = 3, D = 48, elems = N * H * D, table = N * D / 2;
  expect_same_bits("rope_norm_fwd", [&](Case& t, Shifted& place) -> std::vector<TensorView> {
    const RopeNormFwd op{.x = place.in(t.normal(elems), {N, H, D}, dtype),
                         .y = place.out(elems, {N, H, D}, dtype),
                         .rstd = place.out(N * H, {N, H}, DType::f32),
                         .cos = place.in(t.normal(table), {N, D / 2}, dtype),
                         .sin = place.in(t.normal(table), {N, D / 2}, dtype),
                         .T = N,
                         .eps = 1e-6f};
    t.run(op);
    return {op.y, op.rstd};
  });
  expect_same_bits("rope_norm_bwd", [&](Case& t, Shifted& place) -> std::vector<TensorView> {
    const RopeNormBwd op{.y = place.in(t.normal(elems), {N, H, D}, dtype),
                         .rstd = place.in(t.normal_as(DType::f32, N * H, 1, 3), {N, H}, DType::f32),
                         .dy = place.in(t.normal(elems), {N, H, D}, dtype),
                         .dx = place.out(elems, {N, H, D}, dtype),
                         .cos = place.in(t.normal(table), {N, D / 2}, dtype),
                         .sin = place.in(t.normal(table), {N, D / 2}, dtype),
                         .T = N};
    t.run(op);
    return {op.dx};
  });
}

TEST_P(AnyAddress, GivesTheLossTheSameBits) {
  constexpr std::int64_t V = 4100;
  expect_same_bits("softcap_cross_entropy", [&](Case& t, Shifted& place) -> std::vector<TensorView> {
    const TensorView logits = place.inout(t.normal_as(DType::f32, 3 * V, 5), {3, V}, DType::f32);
    const SoftcapCrossEntropy op{.logits = logits,
                                 .targets = t.in(std::vector<std::int32_t>{7, -1, 4099}, {3}),
                                 .nll = place.out(3, {3}, DType::f32),
                                 .dlogits = dlogits_view(logits, GetParam())};
    t.run(op);
    std::vector<TensorView> results = {op.nll};
    for (std::int64_t r = 0; r < 3; ++r) {  // between the rows of a 16-bit gradient lie destroyed logits
      results.emplace_back(op.dlogits.data + r * op.dlogits.pitch * dtype_bytes(GetParam()), GetParam(),
                           Shape{V});
    }
    return results;
  });
}

// Codes, and activations but for the scratch route, where the library may take another algorithm for another
// alignment. Widths of whole blocks, of odd ones, and of whole tiles (which a card has).
TEST_P(AnyAddress, GivesAPackedProductTheSameBits) {
  const DType dtype = GetParam();
  if (dtype == DType::f16) return;  // no packed products
  struct Sizes {
    std::int64_t M, N, K;
  };
  for (const GemmLayout layout : {GemmLayout::nt, GemmLayout::nn}) {
    for (const Sizes& s : {Sizes{5, 72, 128}, Sizes{66, 65, 100}, Sizes{70, 128, 192}}) {
      const bool nt = layout == GemmLayout::nt;
      const auto product = [&](Case& t, const RandomWeight& weight, Shifted* x_place, Shifted* w_place) {
        Shifted aligned(t, 0);
        const std::int64_t inner = nt ? s.K : s.N, cols = nt ? s.N : s.K;
        PackedMatmul op{
            .x = (x_place != nullptr ? *x_place : aligned).in(t.normal(s.M * inner), {s.M, inner}, dtype),
            .w = weight.view(t, s.N, s.K, w_place != nullptr ? PackedLayout::flat : t.layout_for(s.N, s.K)),
            .y = t.out({s.M, cols}, dtype),
            .layout = layout};
        if (w_place != nullptr) op.w.codes = w_place->in_bytes(weight.codes);
        op.scratch = t.scratch_for(op);
        t.run(op);
        return op;
      };
      expect_same_bits("packed_matmul.x", [&](Case& t, Shifted& place) -> std::vector<TensorView> {
        const RandomWeight weight(t, s.N * s.K);
        const PackedMatmul op = product(t, weight, &place, nullptr);
        if (packed_route(op, t.target()) == GemmRoute::scratch) return {};
        return {op.y};
      });
      expect_same_bits("packed_matmul.w.codes", [&](Case& t, Shifted& place) -> std::vector<TensorView> {
        const RandomWeight weight(t, s.N * s.K);
        return {product(t, weight, nullptr, &place).y};
      });
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Floats, AnyAddress, ::testing::ValuesIn(kFloats),
                         [](const auto& subject) { return std::string(dtype_name(subject.param)); });

// What cannot be read in pieces of 16 bytes is refused, not read wrongly.
TEST(PackedMatmulOp, RefusesTilesAtAnOddAddress) {
  constexpr std::int64_t M = 3, kSide = 128;
  Case t(computing_backends().front(), DType::bf16);
  t.next("tiles");
  const PackedLayout layout = t.layout_for(kSide, kSide);
  if (layout != PackedLayout::tiles) return;  // the cpu has none
  const RandomWeight weight(t, kSide * kSide);
  Shifted odd(t, 1);
  PackedMatmul op{.x = t.in(t.normal(M * kSide), {M, kSide}),
                  .w = weight.view(t, kSide, kSide, layout),
                  .y = t.out({M, kSide})};
  op.scratch = t.scratch_for(op);
  t.run(op);
  PackedMatmul codes = op, absmax = op;
  codes.w.codes = odd.in_bytes(weight.codes);
  absmax.w.absmax = odd.in(weight.absmax, {static_cast<std::int64_t>(weight.absmax.size())}, DType::f32);
  EXPECT_THROW(t.run(codes), ShapeError);
  EXPECT_THROW(t.run(absmax), ShapeError);
}

}  // namespace
}  // namespace qt::test
