// Rows may begin at any element: a kernel then takes other paths through memory, but never to other bits.
// Legend: N tokens, C width, H heads, D head width, V vocabulary.
#include <cmath>
#include <functional>
#include <span>

#include "tests/support/proofs.h"

namespace qt::test {
namespace {

using std::size_t;

// Tensors of a case, each beginning `skip` elements behind an address that is aligned to everything.
class Shifted {
 public:
  Shifted(Case& t, std::int64_t skip) : t_(t), skip_(skip) {}

  TensorView in(std::span<const double> x, Shape shape, DType dtype) {
    return behind(t_.in(padded(x), {skip_ + count(x)}, dtype), shape);
  }
  TensorView inout(std::span<const double> x, Shape shape, DType dtype) {
    return behind(t_.inout(padded(x), {skip_ + count(x)}, dtype), shape);
  }
  TensorView out(std::int64_t elems, Shape shape, DType dtype) {
    return inout(std::vector<double>(static_cast<size_t>(elems), 7.0), shape, dtype);
  }

 private:
  static std::int64_t count(std::span<const double> x) { return static_cast<std::int64_t>(x.size()); }
  std::vector<double> padded(std::span<const double> x) const {
    std::vector<double> all(static_cast<size_t>(skip_), 5.0);
    all.insert(all.end(), x.begin(), x.end());
    return all;
  }
  TensorView behind(const TensorView& all, Shape shape) const {
    return {all.data + skip_ * dtype_bytes(all.dtype), all.dtype, shape};
  }

  Case& t_;
  std::int64_t skip_;
};

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

INSTANTIATE_TEST_SUITE_P(Floats, AnyAddress, ::testing::ValuesIn(kFloats),
                         [](const auto& subject) { return std::string(dtype_name(subject.param)); });

}  // namespace
}  // namespace qt::test
