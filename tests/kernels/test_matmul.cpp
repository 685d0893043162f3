// Proofs of the plain and the packed products, and the figures that published MFU is quoted in.
// Legend as in kernels/ops.h: nt c[M,N] = a[M,K] b[N,K]^T, nn c[M,K] = a[M,N] b[N,K], tn c[N,K] = a[M,N]^T
// b[M,K].
#include <algorithm>
#include <cmath>
#include <span>

#include "quant/packed.h"
#include "tests/oracle/matmul.h"
#include "tests/support/proofs.h"
#include "tests/support/random_weight.h"

namespace qt::test {
namespace {

using std::size_t;

struct Product {
  std::int64_t rows, cols, inner;
};
// Odd sizes around the tiles and vectors of backends; both long and short inner dimensions; single rows and
// columns.
const std::vector<Product> kProducts = [] {
  std::vector<Product> all =
      {{1, 1, 1},   {1, 7, 3},     {5, 1, 64},     {3, 65, 33}, {17, 16, 257},
       {64, 48, 1}, {31, 130, 66}, {129, 257, 40}, {65, 72, 72}};  // rows of whole 16-byte units, and a tile
                                                                   // begun in each direction
  if (!kSanitized) {
    all.push_back({300, 299, 301});
    all.push_back({2, 33, 4100});  // deep: implementations split the inner dimension
  }
  return all;
}();

const char* layout_name(GemmLayout layout) {
  return layout == GemmLayout::nt ? "nt" : layout == GemmLayout::nn ? "nn" : "tn";
}

// The oracle's product plus the bias and what c held, as the op stores it.
std::vector<Tracked> finished(std::vector<Tracked> product, std::span<const double> bias,
                              std::span<const double> before, DType dtype) {
  for (size_t i = 0; i < product.size(); ++i) {
    if (!bias.empty()) product[i] = product[i] + bias[i % bias.size()];
    if (!before.empty()) product[i] = product[i] + before[i];
    product[i] = oracle::stored(product[i], dtype);
  }
  return product;
}

std::vector<Tracked> tracked(std::span<const double> x) { return {x.begin(), x.end()}; }

// rows x cols of the other matrix: for the mistake of reading an operand along the wrong dimension.
std::vector<double> transposed(std::span<const double> x, size_t rows, size_t cols) {
  std::vector<double> y;
  for (size_t c = 0; c < cols; ++c) {
    for (size_t r = 0; r < rows; ++r) y.push_back(x[r * cols + c]);
  }
  return y;
}

void matmul(Case& t) {
  const DType in = t.dtype();
  for (const GemmLayout layout : {GemmLayout::nt, GemmLayout::nn, GemmLayout::tn}) {
    const bool a_is_transposed = layout == GemmLayout::tn, b_is_transposed = layout == GemmLayout::nt;
    for (const auto [rows, cols, inner] : kProducts) {
      // c is never narrower than the operands; into f32 operands' own dtype is into f32.
      const bool into_own = in == DType::bf16 || (in == DType::f16 && layout != GemmLayout::tn);
      for (const DType out : into_own ? std::vector<DType>{DType::f32, in} : std::vector<DType>{DType::f32}) {
        // Every size in one of four ways; the largest only once: accumulate and pitch change the edges, not
        // the inside.
        for (const bool accumulate : {false, true}) {
          const bool pitched = (rows + cols + (accumulate ? 1 : 0)) % 2 == 0;
          const std::string label =
              fmt::format("{} {}x{}x{} into {}{}{}", layout_name(layout), rows, cols, inner, dtype_name(out),
                          accumulate ? " accumulate" : "", pitched ? " pitched" : "");
          if (!t.next(label)) return;
          auto a = t.normal(static_cast<size_t>(rows * inner)),
               b = t.normal(static_cast<size_t>(cols * inner));
          auto before = t.normal_as(out, static_cast<size_t>(rows * cols), 3);
          const bool has_bias = layout == GemmLayout::nt && !accumulate && rows % 2 == 1;
          auto bias = t.normal_as(DType::f32, has_bias ? static_cast<size_t>(cols) : 0, 3);
          const std::int64_t a_rows = a_is_transposed ? inner : rows, a_cols = a_is_transposed ? rows : inner;
          const std::int64_t b_rows = b_is_transposed ? cols : inner, b_cols = b_is_transposed ? inner : cols;
          const std::int64_t gap = pitched ? 5 : 0;
          Matmul op{.a = t.in_pitched(a, {a_rows, a_cols}, in, a_cols + gap),
                    .b = t.in_pitched(b, {b_rows, b_cols}, in, b_cols + 2 * gap),
                    .c = accumulate ? t.inout(before, {rows, cols}, out, cols + 3 * gap)
                                    : t.out({rows, cols}, out, cols + 3 * gap),
                    .bias = has_bias ? t.in(bias, {cols}, DType::f32) : TensorView(),
                    .layout = layout,
                    .accumulate = accumulate};
          op.scratch = t.scratch_for(op);
          t.run(op);

          if (t.is("the bias is dropped")) bias.clear();
          if (!accumulate || t.is("accumulate is dropped")) before.clear();
          if (t.is("the last term is left out")) {
            for (std::int64_t r = 0; r < rows; ++r)
              a[static_cast<size_t>(a_is_transposed ? (inner - 1) * rows + r : (r + 1) * inner - 1)] = 0;
          }
          if (t.is("b is read along the other dimension"))
            b = transposed(b, static_cast<size_t>(b_rows), static_cast<size_t>(b_cols));
          const auto want =
              oracle::matmul<Tracked>(layout, tracked(a), tracked(b), static_cast<size_t>(rows),
                                      static_cast<size_t>(cols), static_cast<size_t>(inner), t.adding());
          t.expect(fmt::format("c {}", dtype_name(out)).c_str(), op.c, finished(want, bias, before, out));
        }
      }
    }
  }
}

struct Packed {
  std::int64_t M, N, K;
};
// K no multiple of the block, so that blocks cross rows; N K no multiple either, so that the last block is
// partial.
const std::vector<Packed> kPacked = [] {
  std::vector<Packed> all = {
      {1, 1, 1},      {3, 2, 64},   {2, 5, 37},    {7, 65, 100},
      {33, 128, 192}, {1, 130, 65}, {65, 24, 257}, {70, 72, 128},  // blocks end with the rows, tiles do not
      {70, 192, 64}};
  if (!kSanitized) all.push_back({130, 300, 301});
  return all;
}();

// Each flat, and as the backend's planner places it where that is in tiles.
struct PlacedPacked {
  std::int64_t M, N, K;
  PackedLayout placed;
};
std::vector<PlacedPacked> packed_cases(const Case& t) {
  std::vector<PlacedPacked> all;
  for (const auto [M, N, K] : kPacked) {
    all.push_back({M, N, K, PackedLayout::flat});
    if (t.layout_for(N, K) == PackedLayout::tiles) all.push_back({M, N, K, PackedLayout::tiles});
  }
  return all;
}

void packed_matmul(Case& t) {
  for (const GemmLayout layout : {GemmLayout::nt, GemmLayout::nn}) {
    for (const auto& [M, N, K, placed] : packed_cases(t)) {
      if (!t.next(fmt::format("{} M={} N={} K={}{}", layout_name(layout), M, N, K,
                              placed == PackedLayout::tiles ? " in tiles" : "")))
        return;
      const bool nt = layout == GemmLayout::nt;
      const std::int64_t cols = nt ? N : K, inner = nt ? K : N;
      const RandomWeight weight(t, N * K);
      const auto x = t.normal(static_cast<size_t>(M * inner));
      PackedMatmul op{.x = t.in(x, {M, inner}),
                      .w = weight.view(t, N, K, placed),
                      .y = t.out({M, cols}),
                      .layout = layout};
      const bool has_bias = nt && M % 2 == 1;
      auto bias = t.normal_as(DType::f32, has_bias ? static_cast<size_t>(N) : 0, 3);
      if (has_bias) op.bias = t.in(bias, {N}, DType::f32);
      op.scratch = t.scratch_for(op);
      t.run(op);

      if (t.is("the bias is dropped")) bias.clear();
      const auto w =
          oracle::unpack_nf4(weight.codes, weight.absmax, static_cast<size_t>(N), static_cast<size_t>(K),
                             {.rounds_to_bf16 = !t.is("the weight keeps its f32 bits"),
                              .low_nibble_first = t.is("the nibbles are swapped"),
                              .blocks_restart_in_rows = t.is("every row begins a block")});
      auto want = oracle::matmul<Tracked>(layout, tracked(x), tracked(w), static_cast<size_t>(M),
                                          static_cast<size_t>(cols), static_cast<size_t>(inner), t.adding());
      t.expect("y", op.y, finished(std::move(want), bias, {}, t.dtype()));
    }
  }
}

const Proves kMatmul({"matmul",
                      kFloats,
                      {"accumulate is dropped", "the bias is dropped", "the last term is left out",
                       "b is read along the other dimension"},
                      matmul});
const Proves kPackedF32({"packed_matmul",
                         {DType::f32},
                         {"the weight keeps its f32 bits", "the nibbles are swapped",
                          "every row begins a block", "the bias is dropped"},
                         packed_matmul});
// Products in bf16 round more than the weight does: there that mistake hides, and dequantize has to show it.
const Proves kPackedBf16({"packed_matmul",
                          {DType::bf16},
                          {"the nibbles are swapped", "every row begins a block", "the bias is dropped"},
                          packed_matmul});

#ifdef QTRAIN_TEST_CUDA
// A product with a bias that fills a card, cut as below, against pieces of it that do not.
TEST(BiasedMatmul, GivesInLargeTilesTheBitsOfSmallOnes) {
  constexpr std::int64_t kRows = 2048, kFew = 64, kWide = 2048, kNarrow = 128;
  for (const DType dtype : {DType::bf16, DType::f16}) {
    Case t(test_backend_name(), dtype);
    std::vector<std::byte> whole;
    for (const std::int64_t first : {std::int64_t{-1}, std::int64_t{0}, kRows / 2, kRows - kFew}) {
      t.next(fmt::format("rows from {}", first));
      const auto x = t.normal(static_cast<size_t>(kRows * kNarrow)),
                 w = t.normal(static_cast<size_t>(kWide * kNarrow), 2);
      const auto bias = t.normal_as(DType::f32, static_cast<size_t>(kWide), 3);
      const std::int64_t rows = first < 0 ? kRows : kFew,
                         skipped = std::max<std::int64_t>(first, 0) * kNarrow;
      const Matmul op{
          .a = t.in(std::span(x).subspan(static_cast<size_t>(skipped), static_cast<size_t>(rows * kNarrow)),
                    {rows, kNarrow}),
          .b = t.in(w, {kWide, kNarrow}),
          .c = t.out({rows, kWide}),
          .bias = t.in(bias, {kWide}, DType::f32)};
      t.run(op);
      const std::vector<std::byte> bits = t.bits(op.c);
      if (first < 0) {
        whole = bits;
        continue;
      }
      const auto at = whole.begin() + first * kWide * dtype_bytes(dtype);
      EXPECT_TRUE(std::equal(bits.begin(), bits.end(), at)) << dtype_name(dtype) << " rows from " << first;
    }
  }
}

// Products that fill a card are cut into tiles of 128 x 128, others of 64 x 64, in the same order of sums.
// Products of a few rows are held against the oracle above; here the large one is held against those.
TEST(PackedMatmulOp, GivesInLargeTilesTheBitsOfSmallOnes) {
  constexpr std::int64_t kRows = 2048, kFew = 64, kWide = 2048, kNarrow = 128;
  Case t("cuda-fused", DType::bf16);
  ASSERT_GE(kRows / 128 * kWide / 128, probe_cuda_device().multiprocessors) << "tiles for a card of today";
  for (const GemmLayout layout : {GemmLayout::nt, GemmLayout::nn}) {
    const bool nt = layout == GemmLayout::nt;
    const std::int64_t N = nt ? kWide : kNarrow, K = nt ? kNarrow : kWide;
    for (const PackedLayout placed : {PackedLayout::flat, t.layout_for(N, K)}) {
      std::vector<std::byte> whole;
      for (const std::int64_t first : {std::int64_t{-1}, std::int64_t{0}, kRows / 2, kRows - kFew}) {
        t.next(fmt::format("{} rows from {}", layout_name(layout), first));
        const RandomWeight weight(t, N * K);
        const auto x = t.normal(static_cast<size_t>(kRows * kNarrow));
        const std::int64_t rows = first < 0 ? kRows : kFew,
                           skipped = std::max<std::int64_t>(first, 0) * kNarrow;
        const PackedMatmul op{
            .x = t.in(std::span(x).subspan(static_cast<size_t>(skipped), static_cast<size_t>(rows * kNarrow)),
                      {rows, kNarrow}),
            .w = weight.view(t, N, K, placed),
            .y = t.out({rows, kWide}),
            .layout = layout};
        t.run(op);
        const std::vector<std::byte> bits = t.bits(op.y);
        if (first < 0) {
          whole = bits;
          continue;
        }
        const auto at = whole.begin() + first * kWide * dtype_bytes(DType::bf16);
        EXPECT_TRUE(std::equal(bits.begin(), bits.end(), at))
            << layout_name(layout) << " rows from " << first;
      }
    }
  }
}
#endif

// ---- figures ----

TensorView shape_only(Shape shape, DType dtype = DType::bf16) {
  return TensorView(reinterpret_cast<void*>(4096), dtype, shape);
}

TEST(MatmulCost, CountsTwoOperationsForEachMultiplyAdd) {
  const Matmul nt{.a = shape_only({7, 5}), .b = shape_only({3, 5}), .c = shape_only({7, 3})};
  EXPECT_EQ(nt.cost().model_flops, 2.0 * 7 * 3 * 5);
  EXPECT_EQ(nt.cost().executed_flops, 2.0 * 7 * 3 * 5);
  EXPECT_EQ(nt.cost().read_bytes, 2.0 * (7 * 5 + 3 * 5));
  EXPECT_EQ(nt.cost().written_bytes, 2.0 * 7 * 3);
  const Matmul tn{.a = shape_only({7, 3}),
                  .b = shape_only({7, 5}),
                  .c = shape_only({3, 5}, DType::f32),
                  .layout = GemmLayout::tn,
                  .accumulate = true};
  EXPECT_EQ(tn.cost().model_flops, 2.0 * 7 * 3 * 5);
  EXPECT_EQ(tn.cost().read_bytes, 2.0 * (7 * 3 + 7 * 5) + 4.0 * 3 * 5);  // it reads what it adds to
  const Matmul nn{
      .a = shape_only({7, 3}), .b = shape_only({3, 5}), .c = shape_only({7, 5}), .layout = GemmLayout::nn};
  EXPECT_EQ(nn.cost().model_flops, 2.0 * 7 * 3 * 5);
  Matmul biased = nt;
  biased.bias = shape_only({3}, DType::f32);
  EXPECT_EQ(biased.cost().model_flops, nt.cost().model_flops);
  EXPECT_EQ(biased.cost().executed_flops, 2.0 * 7 * 3 * 5 + 7 * 3);
  EXPECT_EQ(biased.cost().read_bytes, nt.cost().read_bytes + 4.0 * 3);
}

TEST(MatmulCost, OfAPackedOperandIsThatOfThePlainOneInFlopsAndLessInBytes) {
  PackedView w;
  w.format = FormatId::nf4;
  w.N = 128;
  w.K = 192;
  w.codes = shape_only({128 * 192 / 2}, DType::u8);
  w.absmax = shape_only({128 * 192 / 64}, DType::f32);
  const PackedMatmul packed{.x = shape_only({9, 192}), .w = w, .y = shape_only({9, 128})};
  const Matmul plain{.a = shape_only({9, 192}), .b = shape_only({128, 192}), .c = shape_only({9, 128})};
  EXPECT_EQ(packed.cost().model_flops, plain.cost().model_flops);
  EXPECT_EQ(plain.cost().read_bytes - packed.cost().read_bytes, (16 - 4.5) / 8 * 128 * 192);
}

// nanochat counts 6 per matrix weight and token, and 12 L H D T per token for attention.
TEST(MatmulCost, OfOneWeightForwardAndBackwardIsSixPerWeightAndToken) {
  const std::int64_t M = 48, N = 24, K = 40;
  const double forward =
      Matmul{.a = shape_only({M, K}), .b = shape_only({N, K}), .c = shape_only({M, N})}.cost().model_flops;
  const double dx =
      Matmul{
          .a = shape_only({M, N}), .b = shape_only({N, K}), .c = shape_only({M, K}), .layout = GemmLayout::nn}
          .cost()
          .model_flops;
  const double dw =
      Matmul{
          .a = shape_only({M, N}), .b = shape_only({M, K}), .c = shape_only({N, K}), .layout = GemmLayout::tn}
          .cost()
          .model_flops;
  EXPECT_EQ(forward + dx + dw, 6.0 * static_cast<double>(M * N * K));
}

}  // namespace
}  // namespace qt::test
