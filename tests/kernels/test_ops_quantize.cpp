// Proofs of packing and unpacking NF4 against its definition in double. That the bits equal quant/nf4.h
// everywhere is another test's matter; here the definition is written a second time. Legend: N, K rows and
// columns of a matrix.
#include <algorithm>
#include <cmath>
#include <span>

#include "quant/tiles.h"
#include "tests/oracle/matmul.h"
#include "tests/support/proofs.h"
#include "tests/support/random_weight.h"

namespace qt::test {
namespace {

using std::size_t;

struct Sizes {
  std::int64_t N, K;
};
// Odd numbers of elements, blocks across rows, partial last blocks, several ranges per thread.
const std::vector<Sizes> kSizes = {{1, 1}, {2, 64}, {5, 37}, {65, 100}, {128, 192}, {130, 65}, {3, 4099}};

// The code of x in a block of scale absmax, by the distance to every code point. A tie takes the lower code,
// and so may whatever lies within the roundings of x / absmax, the threshold and their comparison: three
// roundoffs.
struct AllowedCodes {
  int first, last;
};
AllowedCodes allowed_codes(double x, double absmax, bool exact) {
  const double y = absmax == 0 ? 0 : x / absmax;
  AllowedCodes allowed{15, 0};
  for (int c = 0; c < 16; ++c) {
    const auto point = [](int i) { return static_cast<double>(Nf4::kCodebook[static_cast<size_t>(i)]); };
    const double slack = exact ? 0 : 3 * oracle::kF32Roundoff * std::abs(y);
    const double below = c == 0 ? -INFINITY : oracle::round_to((point(c - 1) + point(c)) / 2, DType::f32);
    const double above = c == 15 ? INFINITY : oracle::round_to((point(c) + point(c + 1)) / 2, DType::f32);
    if (y > below - slack && y <= above + slack) {
      allowed.first = std::min(allowed.first, c);
      allowed.last = std::max(allowed.last, c);
    }
  }
  return allowed;
}

// Weights with a zero block, ties (where absmax is a power of two, so that the quotient is exact; in bf16
// beside them) and signed zeros.
std::vector<double> weights(Case& t, size_t n, bool powers_of_two) {
  std::vector<double> x = t.normal(n, 0.3);
  for (size_t i = 0; i < n; ++i) {
    if (i / 64 == 1) x[i] = i % 2 == 0 ? 0.0 : -0.0;
    if (!powers_of_two || i / 64 == 1) continue;
    if (i % 64 < 15) x[i] = static_cast<double>(Nf4::kThresholds[i % 64]);
    if (i % 64 == 15) x[i] = -1;
    x[i] = oracle::round_to(std::clamp(x[i], -1.0, 1.0) / 4, t.dtype());
  }
  return x;
}

void quantize(Case& t) {
  for (const auto [N, K] : kSizes) {
    for (const bool ties : {false, true}) {
      const std::int64_t elems = N * K, blocks = (elems + 63) / 64;
      if (!t.next(fmt::format("N={} K={} ties={}", N, K, ties))) return;
      const auto x = weights(t, static_cast<size_t>(elems), ties);
      PackedView w;
      w.format = FormatId::nf4;
      w.N = N;
      w.K = K;
      w.codes = t.out({(elems + 1) / 2}, DType::u8);
      w.absmax = t.out({blocks}, DType::f32);
      const TensorView bad = t.inout(std::vector<double>{0}, {1}, DType::f64);
      t.run(Quantize{.src = t.in(x, {elems}), .w = w, .bad_index = bad});
      t.expect_exact("bad_index", bad, std::vector<double>{0});

      std::vector<double> absmax;
      for (std::int64_t b = 0; b < blocks; ++b) {
        double top = 0;
        for (std::int64_t i = 64 * b; i < std::min(elems, 64 * (b + 1)); ++i) {
          const double v = x[static_cast<size_t>(i)];
          top = std::max(top, t.is("the scale is the largest value, not magnitude") ? v : std::abs(v));
        }
        absmax.push_back(top);
      }
      t.expect_exact("absmax", w.absmax, absmax);

      const auto codes = t.codes(w.codes);
      std::int64_t wrong = -1;
      for (std::int64_t i = 0; i < elems && wrong < 0; ++i) {
        const bool high = (i % 2 == 0) != t.is("the nibbles are swapped");
        const int code =
            high ? codes[static_cast<size_t>(i / 2)] >> 4 : codes[static_cast<size_t>(i / 2)] & 15;
        auto allowed = allowed_codes(x[static_cast<size_t>(i)], absmax[static_cast<size_t>(i / 64)], ties);
        const bool tie = ties && i % 64 < 15 && i / 64 != 1 && t.is("a tie takes the upper code");
        if (tie) allowed = {allowed.first + 1, allowed.last + 1};
        if (code < allowed.first || code > allowed.last) wrong = i;
      }
      t.expect_true("codes", wrong < 0, fmt::format("element {} has a wrong code", wrong));
      // An odd matrix leaves half a byte: files and hashes want it to be fixed.
      if (elems % 2 == 1)
        t.expect_true("padding", (codes.back() & 15) == 7, "the unused nibble is not the zero code");
    }
  }
}

// A range of a matrix touches its own blocks only, and joins with its neighbours to what one call gives.
TEST(QuantizeOp, RangesOfAMatrixJoinToTheWhole) {
  for (const std::string& backend : computing_backends()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      Case t(backend, dtype);
      const std::int64_t N = 5, K = 100, elems = N * K, cut = 192;
      const auto packed_by = [&](std::vector<std::pair<std::int64_t, std::int64_t>> ranges) {
        std::vector<std::uint8_t> codes(250, 0);
        std::vector<double> absmax(8, 0);
        for (const auto& [first, n] : ranges) {
          t.next(fmt::format("first={} n={}", first, n));
          const auto x = weights(t, static_cast<size_t>(elems), false);
          PackedView w;
          w.format = FormatId::nf4;
          w.N = N;
          w.K = K;
          w.codes = t.inout_bytes(codes);
          w.absmax = t.inout(absmax, {8}, DType::f32);
          const TensorView bad = t.inout(std::vector<double>{0}, {1}, DType::f64);
          t.run(Quantize{
              .src = t.in(std::span(x).subspan(static_cast<size_t>(first), static_cast<size_t>(n)), {n}),
              .w = w,
              .first = first,
              .bad_index = bad});
          codes = t.codes(w.codes);
          absmax = t.values(w.absmax);
        }
        return std::pair(codes, absmax);
      };
      const auto whole = packed_by({{0, elems}});
      EXPECT_EQ(packed_by({{0, cut}, {cut, elems - cut}}), whole);
      EXPECT_EQ(packed_by({{cut, elems - cut}, {0, cut}}), whole);
      EXPECT_NE(packed_by({{0, cut}}), whole);
    }
  }
}

TEST(QuantizeOp, LeavesTheSmallestIndexOfANonFiniteValue) {
  for (const std::string& backend : computing_backends()) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      Case t(backend, dtype);
      for (const double bad_value :
           {static_cast<double>(NAN), static_cast<double>(INFINITY), -static_cast<double>(INFINITY)}) {
        for (const double before : {0.0, 3.0, 100000.0}) {
          t.next(fmt::format("value={} before={}", bad_value, before));
          const std::int64_t N = 300, K = 1000, elems = N * K;
          auto x = weights(t, static_cast<size_t>(elems), false);
          x[70'000] = bad_value;
          x[250'000] = bad_value;
          PackedView w;
          w.format = FormatId::nf4;
          w.N = N;
          w.K = K;
          // The bad block itself may be left as it was.
          w.codes = t.inout_bytes(std::vector<std::uint8_t>(static_cast<size_t>(elems / 2), 0));
          w.absmax = t.inout(std::vector<double>(static_cast<size_t>((elems + 63) / 64), 0),
                             {(elems + 63) / 64}, DType::f32);
          const TensorView bad = t.inout(std::vector<double>{before}, {1}, DType::f64);
          t.run(Quantize{.src = t.in(x, {elems}), .w = w, .bad_index = bad});
          t.expect_exact("bad_index", bad, std::vector<double>{before == 3 ? 3 : 70'001.0});
        }
      }
    }
  }
}

void dequantize(Case& t) {
  const DType to = t.dtype();
  for (const auto [N, K] : kSizes) {
    const std::int64_t elems = N * K;
    // The whole matrix, and ranges that begin and end inside blocks and bytes.
    for (const std::int64_t first : {std::int64_t{0}, elems / 3, elems - 1}) {
      const std::int64_t n = first == 0 ? elems : std::max<std::int64_t>(1, (elems - first) / 2);
      if (!t.next(fmt::format("N={} K={} first={} n={}", N, K, first, n))) return;
      const RandomWeight weight(t, elems);
      const TensorView dst = t.out({n}, to);
      t.run(Dequantize{.w = weight.view(t, N, K), .first = first, .dst = dst});
      const auto all =
          oracle::unpack_nf4(weight.codes, weight.absmax, static_cast<size_t>(N), static_cast<size_t>(K),
                             {.rounds_to_bf16 = !t.is("the weight keeps its f32 bits"),
                              .low_nibble_first = t.is("the nibbles are swapped")});
      const auto from = all.begin() + (t.is("first is ignored") ? 0 : first);
      t.expect_exact("dst", dst, std::vector<double>(from, from + n));
    }
  }
}

// In the layout that the target wants, a range leaves the bytes of the flat layout, moved, and its own alone;
// and unpacks to the same weights.
TEST(QuantizeOp, FillsTheLayoutOfTheTargetAndDequantizeReadsIt) {
  constexpr std::int64_t kN = 128, kK = 192, kElems = kN * kK, kFirst = 10 * kK + 64, kRange = 70 * kK;
  for (const std::string& backend : computing_backends()) {
    const PackedLayout layout = packed_layout(FormatId::nf4, kN, kK, target_of(backend, 1));
    for (const DType dtype : {DType::f32, DType::bf16}) {
      Case t(backend, dtype);
      t.next("tiles");
      RandomWeight weight(t, kElems);
      std::vector<float> scales(weight.absmax.begin(), weight.absmax.end());
      // To the layout of the target.
      const auto laid_out = [&](std::vector<std::uint8_t>& codes, std::vector<float>& absmax) {
        if (layout == PackedLayout::flat) return;
        const auto flat_codes = codes;
        const auto flat_absmax = absmax;
        flat_to_tiles(kN, kK, flat_codes, codes);
        flat_to_tiles(kN, kK, flat_absmax, absmax);
      };
      const auto view_of = [&](const TensorView& codes, const TensorView& absmax) {
        return PackedView{
            .format = FormatId::nf4, .N = kN, .K = kK, .layout = layout, .codes = codes, .absmax = absmax};
      };

      auto codes = weight.codes;
      laid_out(codes, scales);
      const std::vector<double> stored(scales.begin(), scales.end());
      const TensorView dst = t.out({kRange}, DType::bf16);
      t.run(Dequantize{.w = view_of(t.in_bytes(codes), t.in(stored, {kElems / 64}, DType::f32)),
                       .first = kFirst,
                       .dst = dst});
      const auto all = oracle::unpack_nf4(weight.codes, weight.absmax, kN, kK, {.rounds_to_bf16 = true});
      t.expect_exact("dst", dst, std::vector<double>(all.begin() + kFirst, all.begin() + kFirst + kRange));

      t.next("tiles, packing");
      const auto x = weights(t, kRange, false);
      auto want_codes = weight.codes;
      std::vector<float> want_scales(weight.absmax.begin(), weight.absmax.end());
      const std::vector<float> narrow(x.begin(), x.end());
      EXPECT_FALSE(Nf4::quantize(std::span<const float>(narrow), want_codes.data() + kFirst / 2,
                                 want_scales.data() + kFirst / 64)
                       .has_value());
      laid_out(want_codes, want_scales);
      const PackedView w = view_of(t.inout_bytes(codes), t.inout(stored, {kElems / 64}, DType::f32));
      t.run(Quantize{.src = t.in(x, {kRange}),
                     .w = w,
                     .first = kFirst,
                     .bad_index = t.inout(std::vector<double>{0}, {1}, DType::f64)});
      EXPECT_EQ(t.codes(w.codes), want_codes);
      EXPECT_EQ(t.values(w.absmax), std::vector<double>(want_scales.begin(), want_scales.end()));
    }
  }
}

const Proves kQuantizeF32({"quantize",
                           {DType::f32},
                           {"the scale is the largest value, not magnitude", "the nibbles are swapped",
                            "a tie takes the upper code"},
                           quantize});
const Proves kQuantizeBf16({"quantize",
                            {DType::bf16},
                            {"the scale is the largest value, not magnitude", "the nibbles are swapped"},
                            quantize});
const Proves kDequantizeF32({"dequantize",
                             {DType::f32},
                             {"the weight keeps its f32 bits", "the nibbles are swapped", "first is ignored"},
                             dequantize});
const Proves kDequantizeBf16(
    {"dequantize", {DType::bf16}, {"the nibbles are swapped", "first is ignored"}, dequantize});

}  // namespace
}  // namespace qt::test
