// Weight formats: properties that hold for every format of the list, the registry, packed views. What
// is particular to NF4 is in test_quant_nf4.cpp, the codes of moments in test_quant_state.cpp.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>
#include <set>

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "quant/block.h"
#include "quant/format.h"
#include "quant/packed.h"
#include "tests/support/golden.h"
#include "tests/support/packed_tensor.h"

namespace qt {
namespace {

using test::bits_of;
using test::hex;
using test::kAwkwardSizes;
using test::normal;
using test::Packed;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// --- every format of the list -------------------------------------------------------------------------

template <class List>
struct AsGtestTypes;
template <class... F>
struct AsGtestTypes<FormatList<F...>> {
  using type = ::testing::Types<F...>;
};

template <class F>
class EveryFormat : public ::testing::Test {};
TYPED_TEST_SUITE(EveryFormat, AsGtestTypes<WeightFormats>::type);

TYPED_TEST(EveryFormat, IsFoundByNameAndByIdAndByDispatch) {
  using F = TypeParam;
  EXPECT_EQ(format_from_name(F::kName), F::kId);
  const FormatInfo& info = format_info(F::kId);
  EXPECT_EQ(info.name, F::kName);
  EXPECT_EQ(info.block_elems, F::kBlockElems);
  EXPECT_EQ(dispatch_format(F::kId, []<class G>() { return std::string_view(G::kName); }), F::kName);
}

TYPED_TEST(EveryFormat, HasAnAscendingCodebookWithAnExactZero) {
  const auto codebook = TypeParam::kCodebook;
  EXPECT_TRUE(std::is_sorted(codebook.begin(), codebook.end(), std::less_equal<>()));
  EXPECT_EQ(std::bit_cast<std::uint32_t>(codebook[TypeParam::kZeroCode]), 0u);
}

TYPED_TEST(EveryFormat, TakesTheBytesPerWeightThatItDeclares) {
  const std::int64_t elems = std::int64_t{TypeParam::kBlockElems} * 1024;
  EXPECT_EQ(static_cast<double>(packed_bytes(TypeParam::kId, elems)) * 8,
            format_info(TypeParam::kId).bits_per_weight * static_cast<double>(elems));
}

// The reference packs, a card packs with eight_of() and both read with code_at() or code_of(): one order.
TYPED_TEST(EveryFormat, HasOneOrderOfCodesInMemory) {
  using F = TypeParam;
  Packed<F> packed(normal(F::kBlockElems, 7));
  for (std::int64_t first = 0; first < F::kBlockElems; first += 8) {
    typename F::Eight in_memory = 0, put_together = 0;
    for (int b = 0; b < F::kCodeBits; ++b) {
      const std::uint8_t byte = packed.codes()[code_offset<F>(first) + b];
      in_memory |= static_cast<typename F::Eight>(byte) << (8 * b);
    }
    for (int i = 0; i < 8; ++i) {
      const std::uint8_t code = F::code_at(packed.codes(), first + i);
      EXPECT_EQ(F::code_of(in_memory, i), code) << first + i;
      put_together |= F::eight_of(code, i);
    }
    EXPECT_EQ(put_together, in_memory) << first;
  }
}

TYPED_TEST(EveryFormat, CountsALastPartialGroupWhole) {
  using F = TypeParam;
  constexpr std::int64_t kGroupBytes = F::kGroupElems * F::kCodeBits / 8;
  for (std::int64_t n = 1; n <= 2 * F::kGroupElems; ++n)
    EXPECT_EQ(code_bytes(F::kId, n), (n <= F::kGroupElems ? 1 : 2) * kGroupBytes) << n;
}

TYPED_TEST(EveryFormat, RoundTripsEverySizeWithinHalfAGapAndWritesNothingElse) {
  for (const std::int64_t n : kAwkwardSizes) {
    const auto x = normal(static_cast<std::size_t>(n), static_cast<std::uint64_t>(n));
    Packed<TypeParam> packed(x);
    EXPECT_TRUE(packed.fences_intact()) << n;
    const auto w = packed.weights();
    const auto codebook = TypeParam::kCodebook;
    float gap = 0;
    for (std::size_t c = 1; c < codebook.size(); ++c) gap = std::max(gap, codebook[c] - codebook[c - 1]);
    for (std::size_t i = 0; i < x.size(); ++i) {
      const float scale = TypeParam::value_of(packed.absmax()[i / TypeParam::kBlockElems]);
      // Half a gap, a few ulp of the normalisation, and the rounding of the weight to bf16.
      EXPECT_LE(std::abs(w[i] - x[i]), scale * (gap / 2 + 4 * FLT_EPSILON + 0x1p-9f))
          << n << " element " << i;
    }
  }
}

TYPED_TEST(EveryFormat, TakesTheScaleOfAPartialLastBlockFromItsOwnElements) {
  std::vector<float> x(TypeParam::kBlockElems + 3, 100.0f);
  x[TypeParam::kBlockElems] = -0.25f;
  x[TypeParam::kBlockElems + 1] = x[TypeParam::kBlockElems + 2] = 0.0f;
  Packed<TypeParam> packed(x);
  EXPECT_EQ(packed.absmax()[0], TypeParam::scale_of(100.0f));
  EXPECT_EQ(packed.absmax()[1], TypeParam::scale_of(0.25f));
}

TYPED_TEST(EveryFormat, DecodesZeroBlocksToPlusZeroWhereverTheyLie) {
  for (const std::size_t zero_block : {0u, 1u, 2u}) {
    auto x = normal(3 * TypeParam::kBlockElems, 5);
    for (std::size_t i = 0; i < TypeParam::kBlockElems; ++i) {
      x[zero_block * TypeParam::kBlockElems + i] = i % 2 == 0 ? 0.0f : -0.0f;
    }
    Packed<TypeParam> packed(x);
    EXPECT_EQ(std::bit_cast<std::uint32_t>(TypeParam::value_of(packed.absmax()[zero_block])), 0u);
    for (const float w : packed.weights(static_cast<std::int64_t>(zero_block) * TypeParam::kBlockElems,
                                        TypeParam::kBlockElems)) {
      EXPECT_EQ(std::bit_cast<std::uint32_t>(w), 0u);
    }
  }
}

TYPED_TEST(EveryFormat, DecodesNegativeZeroToPlusZero) {
  auto x = normal(TypeParam::kBlockElems, 6);
  x[9] = -0.0f;
  EXPECT_EQ(std::bit_cast<std::uint32_t>(Packed<TypeParam>(x).weights()[9]), 0u);
}

TYPED_TEST(EveryFormat, GivesTheSameBitsForRangesAsForTheWhole) {
  const std::int64_t block = TypeParam::kBlockElems, n = 7 * block + 5;
  const auto x = normal(static_cast<std::size_t>(n), 8);
  Packed<TypeParam> whole(x), parts(n);
  for (const std::int64_t first :
       {4 * block, std::int64_t{0}, block}) {  // out of order: ranges are independent
    const std::int64_t end = first == 0 ? block : first == block ? 4 * block : n;
    TypeParam::quantize(std::span<const float>(x).subspan(static_cast<std::size_t>(first),
                                                          static_cast<std::size_t>(end - first)),
                        parts.codes() + code_bytes(TypeParam::kId, first), parts.absmax() + first / block);
  }
  EXPECT_EQ(hex(parts.code_span()), hex(whole.code_span()));
  EXPECT_EQ(hex(parts.absmax_bytes()), hex(whole.absmax_bytes()));

  // K = 37 is odd and no multiple of the block: most rows begin inside a block, every second inside a byte.
  const auto w = whole.weights();
  for (std::int64_t first = 0; first + 37 <= n; first += 37) {
    const auto row = whole.weights(first, 37);
    EXPECT_EQ(bits_of(row), bits_of(std::span(w).subspan(static_cast<std::size_t>(first), 37))) << first;
  }
}

TYPED_TEST(EveryFormat, HasOneCanonicalWeightInF32AndBf16) {
  Packed<TypeParam> packed(normal(1000, 9));
  const auto narrow = packed.weights_bf16();
  const auto wide = packed.weights(), unrounded = packed.unrounded();
  int rounded = 0;
  for (std::size_t i = 0; i < wide.size(); ++i) {
    EXPECT_EQ(std::bit_cast<std::uint32_t>(wide[i]), std::uint32_t{narrow[i].bits} << 16);
    EXPECT_EQ(narrow[i].bits, to_bf16(unrounded[i]).bits);
    rounded += wide[i] != unrounded[i] ? 1 : 0;
  }
  EXPECT_GT(rounded, 100) << "else this test could not tell the two apart";
}

TYPED_TEST(EveryFormat, WidensNarrowInputsExactly) {
  const auto x = normal(777, 10);
  std::vector<bf16> b;
  std::vector<f16> h;
  std::vector<float> from_b, from_h;
  for (const float value : x) {
    b.push_back(to_bf16(value)), from_b.push_back(to_float(b.back()));
    h.push_back(to_f16(value)), from_h.push_back(to_float(h.back()));
  }
  Packed<TypeParam> pb(b), pb32(from_b), ph(h), ph32(from_h);
  EXPECT_EQ(hex(pb.code_span()), hex(pb32.code_span()));
  EXPECT_EQ(hex(pb.absmax_bytes()), hex(pb32.absmax_bytes()));
  EXPECT_EQ(hex(ph.code_span()), hex(ph32.code_span()));
  EXPECT_EQ(hex(ph.absmax_bytes()), hex(ph32.absmax_bytes()));
}

TYPED_TEST(EveryFormat, NamesTheFirstNonFiniteElementAndLeavesItsBlockUnwritten) {
  for (const float bad : {kNaN, -kNaN, kInf, -kInf, std::bit_cast<float>(0x7F800001u)}) {
    for (const std::size_t at :
         {std::size_t{0}, std::size_t{63}, std::size_t{64}, std::size_t{100}, std::size_t{129}}) {
      auto x = normal(130, 11);
      x[at] = bad;
      x.back() = kInf;  // a later one must not be the one reported
      Packed<TypeParam> packed(x, static_cast<std::int64_t>(at));
      const std::size_t block = at / TypeParam::kBlockElems;
      EXPECT_EQ(packed.absmax()[block], packed.guard_scale());
      EXPECT_EQ(
          packed
              .codes()[code_bytes(TypeParam::kId, static_cast<std::int64_t>(block) * TypeParam::kBlockElems)],
          0xA5);
    }
  }
}

TYPED_TEST(EveryFormat, PacksItsOwnDecodedWeightsToTheSameCodes) {
  // Holds for both decodes of a block that has the value of its scale: that element keeps its end code, and bf16's
  // 2^-9 is far less than the distance from any other code to a threshold.
  EXPECT_TRUE(rc::check([](std::uint64_t seed, std::uint16_t size, std::int8_t exponent) {
    auto x = normal(1 + size % 1000u, seed);
    for (float& value : x) value = std::ldexp(value, exponent % 100);
    for (std::size_t i = 0; i < x.size(); i += TypeParam::kBlockElems) {
      const auto block = std::span<const float>(x).subspan(i);
      const auto top =
          max_magnitude_bits(block.first(std::min<std::size_t>(TypeParam::kBlockElems, block.size())));
      x[i] = std::copysign(TypeParam::value_of(TypeParam::scale_of(std::bit_cast<float>(top))), x[i]);
    }
    Packed<TypeParam> once(x);
    Packed<TypeParam> twice(once.unrounded()), from_canonical(once.weights());
    RC_ASSERT(hex(twice.code_span()) == hex(once.code_span()));
    RC_ASSERT(hex(twice.absmax_bytes()) == hex(once.absmax_bytes()));
    RC_ASSERT(hex(from_canonical.code_span()) == hex(once.code_span()));
  }));
}

TYPED_TEST(EveryFormat, ScalesWithPowersOfTwo) {
  EXPECT_TRUE(rc::check([](std::uint64_t seed, std::int8_t exponent) {
    const auto x = normal(200, seed);
    auto scaled = x;
    for (float& value : scaled) value = std::ldexp(value, exponent % 80);
    Packed<TypeParam> a(x), b(scaled);
    RC_ASSERT(hex(a.code_span()) == hex(b.code_span()));
  }));
}

// --- registry and packed view -------------------------------------------------------------------------

TEST(Formats, AreListedOnceWithDistinctNames) {
  std::set<std::string_view> names;
  for (const FormatInfo& format : all_formats()) names.insert(format.name);
  EXPECT_EQ(names.size(), static_cast<std::size_t>(WeightFormats::kCount) + 1);
  EXPECT_EQ(all_formats()[0].id, FormatId::none);
  EXPECT_EQ(format_info(FormatId::nf4).bits_per_weight, 4.5);
}

TEST(Formats, NoneHasNoBytesAndNoPackedType) {
  EXPECT_EQ(format_from_name("none"), FormatId::none);
  EXPECT_EQ(packed_bytes(FormatId::none, 1000), 0);
  EXPECT_THROW(dispatch_format(FormatId::none, []<class F>() {}), DataError);
}

TEST(Formats, UnknownNamesListTheKnownOnesAndSuggestTheNearest) {
  try {
    format_from_name("nf5");
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_STREQ(e.what(), "there is no weight format 'nf5'; known formats: none, nf4");
    EXPECT_EQ(e.hint(), "did you mean 'nf4'?");
  }
  try {
    format_from_name("exl2-turbo");
    FAIL();
  } catch (const ConfigError& e) {
    EXPECT_EQ(e.hint(), "") << "nothing is near";
  }
}

TEST(Formats, UnknownNumbersAreBadData) { EXPECT_THROW(format_info(static_cast<FormatId>(200)), DataError); }

TEST(Formats, SizesRoundPartialBytesAndBlocksUp) {
  EXPECT_EQ(code_bytes(FormatId::nf4, 0), 0);
  EXPECT_EQ(code_bytes(FormatId::nf4, 129), 65);
  EXPECT_EQ(scale_count(FormatId::nf4, 129), 3);
  EXPECT_EQ(packed_bytes(FormatId::nf4, 129), 65 + 12);
  EXPECT_EQ(packed_bytes(FormatId::nf4, std::int64_t{1} << 40),
            (std::int64_t{1} << 39) + (std::int64_t{1} << 36));
}

TEST(PackedViews, AreCheckedAgainstSizeAndFormat) {
  std::vector<std::uint8_t> codes(64);
  std::vector<float> scales(8);
  const auto view = [&](std::int64_t code_count, std::int64_t scales_count) {
    return PackedView{.format = FormatId::nf4,
                      .N = 3,
                      .K = 37,  // 111 elements: 56 bytes, 2 blocks
                      .codes = TensorView(codes.data(), DType::u8, {code_count}),
                      .absmax = TensorView(scales.data(), DType::f32, {scales_count})};
  };
  EXPECT_NO_THROW(view(56, 2).check("gemm", "w"));
  EXPECT_EQ(view(56, 2).bytes(), 64);
  EXPECT_EQ(view(56, 2).bytes(), packed_bytes(FormatId::nf4, 111));
  EXPECT_THROW(view(55, 2).check("gemm", "w"), ShapeError);
  EXPECT_THROW(view(56, 1).check("gemm", "w"), ShapeError);
  PackedView v = view(56, 2);
  v.absmax.dtype = DType::i32;
  EXPECT_THROW(v.check("gemm", "w"), DTypeError);
  v = view(56, 2);
  v.format = FormatId::none;
  EXPECT_THROW(v.check("gemm", "w"), ShapeError);
}

TEST(RequireFinite, NamesTensorIndexAndValue) {
  std::vector<float> x(100, 1.0f);
  EXPECT_NO_THROW(require_finite(std::span<const float>(x), "w"));
  x[42] = -kInf;
  try {
    require_finite(std::span<const float>(x), "transformer.h.0.attn.c_q.weight", 1000);
    FAIL();
  } catch (const DataError& e) {
    EXPECT_NE(std::string(e.what()).find(
                  "'transformer.h.0.attn.c_q.weight': element 1042 (flat, row-major) is -Inf"),
              std::string::npos)
        << e.what();
  }
  const std::vector<bf16> b = {bf16{0x3F80}, bf16{0x7FC0}};
  EXPECT_THROW(require_finite(std::span<const bf16>(b), "w"), DataError);
  const std::vector<f16> h = {f16{0x7C00}};
  EXPECT_THROW(require_finite(std::span<const f16>(h), "w"), DataError);
}

}  // namespace
}  // namespace qt
