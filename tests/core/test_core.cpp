// src/core: storage types, views, the generator, errors (tests/core/test_units_log.cpp has the rest). Half
// precision is checked over every bit pattern and against the definition of rounding (the nearest neighbour
// in double, ties to the even pattern), not against itself.
#include <cmath>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/core/half.h"
#include "src/core/rng.h"
#include "src/core/tensor.h"

namespace qt {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

// ---- half ----

// The value of a 16-bit float with this many exponent and mantissa bits, straight from the definition.
double decode_bits(std::uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = (bits >> 15) != 0 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) return mantissa != 0 ? std::nan("") : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign * std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
}

// Nearest pattern to a finite x >= 0 by walking to its two neighbours; ties to the even pattern. The step
// past the largest finite value counts as one more value, which is what makes overflow round to infinity at
// half a step.
template <class Decode>
std::uint16_t nearest_pattern(double x, std::uint16_t infinity, Decode decode) {
  std::uint16_t low = 0;
  std::uint16_t high = infinity;
  while (high - low > 1) {  // decode(low) <= x < decode(high): patterns of positive values are ordered
    const auto middle = static_cast<std::uint16_t>((low + high) / 2);
    (decode(middle) <= x ? low : high) = middle;
  }
  const double below = decode(low);
  const double above =
      high == infinity ? below + (below - decode(static_cast<std::uint16_t>(low - 1))) : decode(high);
  if (x - below == above - x) return (low & 1) == 0 ? low : high;
  return x - below < above - x ? low : high;
}

double decode_bf16(std::uint16_t bits) { return decode_bits(bits, 8, 7); }
double decode_f16(std::uint16_t bits) { return decode_bits(bits, 5, 10); }

TEST(Half, EveryBf16PatternMeansWhatTheFormatSaysAndComesBack) {
  for (int i = 0; i < 65536; ++i) {
    const bf16 x{static_cast<std::uint16_t>(i)};
    const double want = decode_bf16(x.bits);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(to_float(x))) << i;
      // A quiet NaN of the same sign; the payload that fits is kept.
      ASSERT_EQ(to_bf16(to_float(x)).bits, x.bits | 0x40) << i;
    } else {
      ASSERT_EQ(static_cast<double>(to_float(x)), want) << i;
      ASSERT_EQ(to_bf16(to_float(x)).bits, x.bits) << i;  // -0 included
    }
  }
}

TEST(Half, EveryF16PatternMeansWhatTheFormatSaysAndComesBack) {
  for (int i = 0; i < 65536; ++i) {
    const f16 x{static_cast<std::uint16_t>(i)};
    const double want = decode_f16(x.bits);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(to_float(x))) << i;
      ASSERT_EQ(to_f16(to_float(x)).bits, (x.bits & 0x8000) | 0x7E00) << i;
    } else {
      ASSERT_EQ(static_cast<double>(to_float(x)), want) << i;
      ASSERT_EQ(to_f16(to_float(x)).bits, x.bits) << i;
    }
  }
}

// Between any two neighbours: the tie, and one f32 step to either side of it.
template <class Half, class Round, class Decode>
void expect_ties_to_even(std::uint16_t infinity, Round round, Decode decode) {
  for (std::uint16_t low = 0; low + 1 < infinity; ++low) {
    const auto high = static_cast<std::uint16_t>(low + 1);
    const auto tie = static_cast<float>((decode(low) + decode(high)) / 2);
    ASSERT_EQ(static_cast<double>(tie), (decode(low) + decode(high)) / 2) << "the tie is not an f32";
    const std::uint16_t even = (low & 1) == 0 ? low : high;
    ASSERT_EQ(round(tie).bits, even) << low;
    ASSERT_EQ(round(-tie).bits, even | 0x8000) << low;
    ASSERT_EQ(round(std::nextafter(tie, 0.0f)).bits, low) << low;
    ASSERT_EQ(round(std::nextafter(tie, kInf)).bits, high) << low;
  }
}

TEST(Half, TiesGoToTheEvenPatternAndTheirNeighboursToTheNearer) {
  expect_ties_to_even<bf16>(0x7F80, to_bf16, decode_bf16);
  expect_ties_to_even<f16>(0x7C00, to_f16, decode_f16);
}

TEST(Half, RoundingIsToTheNearestPatternForFloatsOfEveryExponent) {
  const RngStream stream{.seed = 7, .purpose = RngPurpose::init, .stream = 1};
  int finite = 0;
  for (std::uint64_t i = 0; i < 200000; ++i) {
    const float x = std::bit_cast<float>(rng_u32(stream, i) & 0x7FFFFFFFu);
    if (!std::isfinite(x)) continue;
    ++finite;
    ASSERT_EQ(to_bf16(x).bits, nearest_pattern(x, 0x7F80, decode_bf16)) << x;
    const std::uint16_t want = x >= 65520.0f ? std::uint16_t{0x7C00} : nearest_pattern(x, 0x7C00, decode_f16);
    ASSERT_EQ(to_f16(x).bits, want) << x;
  }
  EXPECT_GT(finite, 190000);
}

TEST(Half, OverflowStartsHalfAStepBeyondTheLargestValue) {
  EXPECT_EQ(to_f16(65519.996f).bits, 0x7BFF);
  EXPECT_EQ(to_f16(65520.0f).bits, 0x7C00);
  EXPECT_EQ(to_f16(-1e30f).bits, 0xFC00);
  EXPECT_EQ(to_bf16(std::bit_cast<float>(0x7F7F7FFFu)).bits, 0x7F7F);
  EXPECT_EQ(to_bf16(std::numeric_limits<float>::max()).bits, 0x7F80);
  // A NaN with a mantissa wholly in the bits that are cut off must not become infinity.
  EXPECT_EQ(to_bf16(std::bit_cast<float>(0x7F800001u)).bits, 0x7FC0);
  EXPECT_EQ(to_f16(std::bit_cast<float>(0xFF800001u)).bits, 0xFE00);
}

// ---- tensor ----

TEST(Tensor, AViewKnowsItsShapeAndItsBytes) {
  std::vector<float> memory(24);
  const TensorView v(memory.data(), DType::f32, {2, 3, 4});
  EXPECT_EQ(v.rank, 3);
  EXPECT_EQ(v.elems(), 24);
  EXPECT_EQ(v.bytes(), 96);
  EXPECT_EQ(v.row_elems(), 12);
  EXPECT_EQ(v.pitch, 12);
  EXPECT_TRUE(v.dense());
  EXPECT_EQ(v.shape(), "[2, 3, 4] f32");
  EXPECT_FALSE(TensorView().defined());
}

TEST(Tensor, RowsFlatAndReshapeNameTheSameMemory) {
  std::vector<std::uint8_t> memory(60);
  const TensorView v(memory.data(), DType::u8, {5, 12}, Space::host);
  EXPECT_EQ(v.rows(2, 3).as<std::uint8_t>(), memory.data() + 24);
  EXPECT_EQ(v.rows(2, 3).shape(), "[3, 12] u8");
  EXPECT_EQ(v.rows(5, 0).elems(), 0);
  EXPECT_EQ(v.flat(7, 9).as<std::uint8_t>(), memory.data() + 7);
  EXPECT_EQ(v.reshape({3, 4, 5}).shape(), "[3, 4, 5] u8");
  EXPECT_EQ(v.rows(1, 2).space, Space::host);
  EXPECT_EQ(v.flat().space, Space::host);
  EXPECT_THROW(v.rows(3, 3), ShapeError);
  EXPECT_THROW(v.rows(-1, 2), ShapeError);
  EXPECT_THROW(v.flat(50, 11), ShapeError);
  EXPECT_THROW(v.reshape({7, 9}), ShapeError);
}

TEST(Tensor, AViewWithGapsBetweenItsRowsRefusesToBeFlattened) {
  std::vector<float> memory(40);
  TensorView v(memory.data(), DType::f32, {4, 6});
  v.pitch = 10;
  EXPECT_FALSE(v.dense());
  EXPECT_EQ(v.bytes(), 96);  // without the gaps
  EXPECT_EQ(v.rows(3, 1).as<float>(), memory.data() + 30);
  EXPECT_TRUE(v.rows(3, 1).dense());
  EXPECT_THROW(v.flat(), ShapeError);
  EXPECT_THROW(v.reshape({24}), ShapeError);
}

TEST(Tensor, ReadingAViewAsAnotherTypeIsAnError) {
  float memory = 0;
  const TensorView v(&memory, DType::f32, {1});
  EXPECT_EQ(v.as<float>(), &memory);
  EXPECT_THROW(v.as<bf16>(), DTypeError);
  EXPECT_THROW(v.as<std::int32_t>(), DTypeError);
}

TEST(Tensor, ChecksNameTheOpAndTheField) {
  float memory[6] = {};
  const TensorView v(memory, DType::f32, {2, 3});
  EXPECT_NO_THROW(check_shape(v, {2, 3}, "norm", "x"));
  EXPECT_NO_THROW(check_shape(v, {-1, 3}, "norm", "x"));
  EXPECT_THROW(check_shape(v, {6}, "norm", "x"), ShapeError);
  EXPECT_THROW(check_shape(v, {2, 3, 1}, "norm", "x"), ShapeError);
  EXPECT_THROW(check_shape(TensorView(), {2, 3}, "norm", "x"), ShapeError);
  try {
    check_shape(v, {2, 4}, "norm", "x");
    FAIL() << "no error";
  } catch (const ShapeError& error) {
    EXPECT_NE(std::string(error.what()).find("norm: x must be [2, 4]"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("got [2, 3] f32"), std::string::npos) << error.what();
  }
  EXPECT_NO_THROW(check_dtype(v, {DType::bf16, DType::f32}, "norm", "x"));
  EXPECT_THROW(check_dtype(v, {DType::bf16, DType::u8}, "norm", "x"), DTypeError);
}

TEST(Tensor, EveryDataTypeHasANameThatReadsBack) {
  for (const DType t : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::u8, DType::i32, DType::i64}) {
    EXPECT_EQ(dtype_from_name(dtype_name(t)), t);
    EXPECT_GT(dtype_bytes(t), 0);
  }
  EXPECT_THROW(dtype_from_name("fp8"), ConfigError);
  EXPECT_THROW(dtype_from_name(""), ConfigError);
}

// ---- rng ----

using Block = std::array<std::uint32_t, 4>;

// The known answers that Random123 ships for philox4x32 with 10 rounds.
TEST(Rng, PhiloxGivesItsPublishedKnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}), (Block{0x6627e8d5u, 0xe169c58du, 0xbc57ac4cu, 0x9b00dbd8u}));
  EXPECT_EQ(philox4x32({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
            (Block{0x408f276du, 0x41c83b0eu, 0xa20bc7c6u, 0x6d5451fdu}));
  EXPECT_EQ(philox4x32({0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u}, {0xa4093822u, 0x299f31d0u}),
            (Block{0xd16cfe09u, 0x94fdcceb, 0x5001e420u, 0x24126ea1u}));
}

TEST(Rng, EveryPartOfAStreamsNameChangesTheDraw) {
  const RngStream base{.seed = 42, .purpose = RngPurpose::init, .stream = 5};
  const auto with = [&](auto change) {
    RngStream s = base;
    change(s);
    return rng_block(s, 9);
  };
  const std::vector<Block> draws = {
      rng_block(base, 9),
      rng_block(base, 10),
      rng_block(base, 9 + (std::uint64_t{1} << 32)),
      with([](RngStream& s) { s.seed = 43; }),
      with([](RngStream& s) { s.seed += std::uint64_t{1} << 32; }),
      with([](RngStream& s) { s.purpose = RngPurpose::sample; }),
      with([](RngStream& s) { s.stream = 6; }),
      with([](RngStream& s) { s.stream += std::uint64_t{1} << 32; }),
  };
  for (std::size_t i = 0; i < draws.size(); ++i) {
    for (std::size_t j = i + 1; j < draws.size(); ++j) EXPECT_NE(draws[i], draws[j]) << i << " and " << j;
  }
}

TEST(Rng, ElementsAreTheWordsOfTheirBlockInOrder) {
  const RngStream s{.seed = 1, .purpose = RngPurpose::data_order, .stream = 0};
  for (std::uint64_t element = 0; element < 40; ++element) {
    EXPECT_EQ(rng_u32(s, element), rng_block(s, element / 4)[element % 4]);
  }
}

TEST(Rng, UnitDrawsStayInsideTheOpenIntervalAndHaveItsMean) {
  EXPECT_EQ(rng_unit(0), 0x1p-24f);
  EXPECT_EQ(rng_unit(~0u), 1.0f - 0x1p-24f);  // as far from its end: the draws are centred
  const RngStream s{.seed = 3, .purpose = RngPurpose::sample, .stream = 2};
  constexpr int kDraws = 1 << 16;
  double sum = 0;
  for (std::uint64_t i = 0; i < kDraws; ++i) sum += rng_unit(rng_u32(s, i));
  // The mean of n uniform draws has a standard deviation of 1/sqrt(12 n) = 1.13e-3; five of them. The draws
  // are fixed, so this passes always or never.
  EXPECT_NEAR(sum / kDraws, 0.5, 5 * 1.13e-3);
}

// ---- error ----

TEST(Error, EveryKindCarriesItsExitCodeAndHint) {
  EXPECT_EQ(ConfigError("x").code(), ExitCode::usage);
  EXPECT_EQ(FitError("x").code(), ExitCode::no_fit);
  EXPECT_EQ(DataError("x").code(), ExitCode::bad_data);
  EXPECT_EQ(DivergedError("x").code(), ExitCode::diverged);
  EXPECT_EQ(DeviceError("x").code(), ExitCode::device);
  EXPECT_EQ(DiskError("x").code(), ExitCode::disk);
  EXPECT_EQ(static_cast<int>(StopRequested("x").code()), 75);
  EXPECT_EQ(ConfigError("what", "hint").hint(), "hint");
  EXPECT_THROW(QT_CHECK(1 > 2, ShapeError, "{} is not above {}", 1, 2), ShapeError);
  EXPECT_NO_THROW(QT_CHECK(2 > 1, ShapeError, "never"));
}

}  // namespace
}  // namespace qt
