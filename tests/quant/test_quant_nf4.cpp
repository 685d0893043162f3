// NF4 against golden vectors and a literal oracle, and its error statistics.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "quant/block.h"
#include "quant/format.h"
#include "src/core/rng.h"
#include "tests/support/golden.h"
#include "tests/support/packed_tensor.h"

namespace qt {
namespace {

using test::bits_of;
using test::hex;
using test::kAwkwardSizes;
using test::lcg;
using test::normal;
using test::Packed;
using test::sha256;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
const std::vector<float> kExtremeScales = {FLT_TRUE_MIN, 0x1p-127f, 0x1p-126f,       1e-38f, 2.9e-39f,
                                           3e-39f,       0x1p126f,  0x1.000002p126f, FLT_MAX};

// --- NF4 ----------------------------------------------------------------------------------------------

// The tables as published, typed in and not computed. Thresholds as bits: the midpoints 0, 8, 12 and 14 are
// ties between two floats, and their decimals with a suffix f round to the other neighbour.
constexpr std::uint32_t kLiteralThresholdBits[15] = {
    0xbf591cd8, 0xbf1c5270, 0xbeeb8480, 0xbeadea76, 0xbe703cec, 0xbe0d38bc, 0xbd3a7871, 0x3d22faff,
    0x3df64862, 0x3e5067e0, 0x3e9582d4, 0x3ec753f9, 0x3f006d04, 0x3f248daf, 0x3f5c89da};
constexpr std::uint32_t kLiteralCodebookBits[16] = {
    0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0, 0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000,
    0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a, 0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000};

float literal_threshold(int c) { return std::bit_cast<float>(kLiteralThresholdBits[c]); }

// The decision tree that bitsandbytes walks, as a search for the first threshold that y does not exceed.
int literal_code(float y, bool tie_goes_up = false) {
  int code = 0;
  while (code < 15 && (tie_goes_up ? y >= literal_threshold(code) : y > literal_threshold(code))) ++code;
  return code;
}

// One block, from the rules as they are written: absmax, reciprocal or quotient, search, zero block.
std::vector<int> literal_block(std::span<const float> x, float* absmax) {
  *absmax = 0;
  for (const float value : x) *absmax = std::fmax(*absmax, std::fabs(value));
  std::vector<int> codes;
  for (const float value : x) {
    const volatile float r = 1.0f / *absmax;
    const volatile float y = std::fpclassify(r) == FP_NORMAL ? value * r : value / *absmax;
    codes.push_back(*absmax == 0 ? 7 : literal_code(y));
  }
  return codes;
}

void expect_literal(const std::vector<float>& x, const std::string& what) {
  Packed<Nf4> packed(x);
  for (std::size_t first = 0; first < x.size(); first += 64) {
    float absmax = 0;
    const auto want = literal_block(
        std::span<const float>(x).subspan(first, std::min<std::size_t>(64, x.size() - first)), &absmax);
    ASSERT_EQ(std::bit_cast<std::uint32_t>(packed.absmax()[first / 64]), std::bit_cast<std::uint32_t>(absmax))
        << what;
    for (std::size_t i = 0; i < want.size(); ++i) {
      ASSERT_EQ(Nf4::code_at(packed.codes(), static_cast<std::int64_t>(first + i)), want[i])
          << what << ", n " << x.size() << ", element " << first + i << " = " << x[first + i];
    }
  }
  if (x.size() % 2 != 0) {
    EXPECT_EQ(packed.code_span().back() & 0xF, 7) << what << ": the nibble that pads an odd size";
  }
}

TEST(Nf4Tables, AreThePublishedOnes) {
  for (std::size_t c = 0; c < 16; ++c)
    EXPECT_EQ(std::bit_cast<std::uint32_t>(Nf4::kCodebook[c]), kLiteralCodebookBits[c]);
  for (int c = 0; c < 15; ++c) EXPECT_EQ(Nf4::kThresholds[static_cast<std::size_t>(c)], literal_threshold(c));
}

TEST(Nf4Golden, EncodesARamp) {
  std::vector<float> x(64);
  for (std::size_t i = 0; i < 64; ++i) x[i] = (static_cast<float>(i) - 31.5f) / 8;
  Packed<Nf4> packed(x);
  EXPECT_EQ(packed.absmax()[0], 3.9375f);
  EXPECT_EQ(hex(packed.code_span()), "00000111111112222233344445556667788899aaabbbccccddddeeeeeeefffff");
}

TEST(Nf4Golden, EncodesAPartialLastBlock) {
  std::vector<float> x(130);
  for (int i = 0; i < 130; ++i)
    x[static_cast<std::size_t>(i)] = static_cast<float>((37 * i % 101 - 50) / 50.0);
  Packed<Nf4> packed(x);
  EXPECT_EQ(packed.absmax()[0], 1.0f);
  EXPECT_EQ(packed.absmax()[1], 1.0f);
  EXPECT_EQ(packed.absmax()[2], 0.800000011920929f);
  EXPECT_EQ(hex(packed.code_span()),
            "04c16e29f3b05d17e29f3c05d18e2af4c16e18e3b05d17e29f3b05d18e2af4c16d18e3b04c17e29f3b05d17e2af4c06d"
            "18e2a04c16e29f3"
            "b05d17e29f3c05d18f2");
}

TEST(Nf4Golden, EncodesAndDecodes65536PseudoRandomValues) {
  Packed<Nf4> packed(lcg(12345, 65536));
  EXPECT_EQ(sha256(packed.code_span()), "043b8981f911161ac3ef610c523e3d0b2d5447638caee38087124c9a790534d4");
  EXPECT_EQ(sha256(packed.absmax_span()), "90f496867740a9cd71d2d928af4afa6c6c41944fa85b4c64953835cbc00af861");
}

TEST(Nf4Search, BreaksTiesDownwardsAtEveryThresholdAndScale) {
  int ties_seen = 0;
  for (int exponent = -120; exponent <= 120; exponent += 8) {
    std::vector<float> x;
    for (int c = 0; c < 15; ++c) {
      const float t = literal_threshold(c);
      for (const float y : {std::nextafter(t, -2.0f), t, std::nextafter(t, 2.0f)})
        x.push_back(std::ldexp(y, exponent));
      ties_seen += literal_code(t) != literal_code(t, true) ? 1 : 0;
    }
    x.push_back(std::ldexp(1.0f, exponent));
    Packed<Nf4> packed(x);
    for (std::int64_t i = 0; i < 45; ++i) {
      EXPECT_EQ(Nf4::code_at(packed.codes(), i), i / 3 + (i % 3 == 2 ? 1 : 0))
          << "2^" << exponent << " value " << i;
    }
    expect_literal(x, "thresholds");
  }
  EXPECT_EQ(ties_seen, 15 * 31) << "the set must tell the tie rules apart";
}

TEST(Nf4Search, EqualsTheLiteralSearchForAMillionValues) {
  const RngStream stream{.seed = 3};
  for (std::uint64_t i = 0; i < 1000000; ++i) {
    const float y = 2.1f * rng_unit(rng_u32(stream, i)) - 1.05f;
    ASSERT_EQ(Nf4::encode(y), literal_code(y)) << y;
  }
}

TEST(Nf4Adversarial, EqualsTheLiteralOracleForExtremeScales) {
  for (const float scale : kExtremeScales) {
    for (const std::int64_t n : kAwkwardSizes) {
      auto x = lcg(static_cast<std::uint32_t>(n), static_cast<std::size_t>(n));
      for (float& value : x) value *= scale;
      for (std::size_t i = 0; i < x.size(); i += 64) x[i] = i % 128 == 0 ? scale : -scale;
      expect_literal(x, fmt::format("absmax {:a}", scale));
    }
  }
}

TEST(Nf4Adversarial, SeesWhatAReciprocalAloneWouldGetWrong) {
  // Both sides of the rule matter: 1 / absmax overflows here, and is subnormal there.
  EXPECT_TRUE(std::isinf(1.0f / FLT_TRUE_MIN));
  EXPECT_TRUE(Normaliser(FLT_TRUE_MIN).divides());
  EXPECT_FALSE(Normaliser(3e-39f).divides());
  EXPECT_FALSE(Normaliser(0x1p126f).divides());
  EXPECT_TRUE(Normaliser(0x1.000002p126f).divides());
  EXPECT_TRUE(Normaliser(FLT_MAX).divides());
  int differ = 0;
  for (const float x : lcg(5, 10000)) {
    const float big = x * FLT_MAX;
    differ += big * (1.0f / FLT_MAX) != Normaliser(FLT_MAX)(big) ? 1 : 0;
  }
  EXPECT_GT(differ, 0);
}

TEST(Nf4Adversarial, EqualsTheLiteralOracleWithOutliersZeroBlocksAndEveryFloatPattern) {
  for (const std::int64_t n : kAwkwardSizes) {
    auto x = normal(static_cast<std::size_t>(n), 21);
    x[static_cast<std::size_t>(n) / 2] = 1e4f;
    expect_literal(x, "outlier");
    std::fill(x.begin(), x.begin() + std::min<std::int64_t>(64, n), 0.0f);
    expect_literal(x, "zero block first");
  }
  EXPECT_TRUE(rc::check([](const std::vector<std::uint32_t>& words) {
    std::vector<float> x;
    for (const std::uint32_t word : words) {
      const float value = std::bit_cast<float>(word * 2654435761u);
      if (std::isfinite(value)) x.push_back(value);
    }
    RC_PRE(!x.empty());
    expect_literal(x, "random bits");
    RC_ASSERT(!::testing::Test::HasFailure());
  }));
}

TEST(Nf4Statistics, ErrorOnNormalWeightsIsThePublishedOneFromBothSides) {
  // bitsandbytes' own test: mean and standard deviation over 200 draws of 1024 x 1024, block 64. Seven
  // standard deviations each way: too small an error is a wrong measurement, not a better format.
  const auto x = normal(1024 * 1024, 77);
  for (const bool canonical : {false, true}) {
    Packed<Nf4> packed(x);
    const auto w = canonical ? packed.weights() : packed.unrounded();
    double abs = 0, rel = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const double error = std::abs(static_cast<double>(x[i]) - static_cast<double>(w[i]));
      abs += error;
      rel += error / (std::abs(static_cast<double>(x[i])) + 1e-8);
    }
    EXPECT_NEAR(abs / static_cast<double>(x.size()), 0.072798, 7 * 0.000074);
    EXPECT_NEAR(rel / static_cast<double>(x.size()), 0.203339, 7 * 0.000340);
  }
}

TEST(Nf4Golden, EncodesBlocksOfDifferentScales) {
  auto y = lcg(12345, 65536);
  for (std::size_t i = 0; i < y.size(); ++i) y[i] *= static_cast<float>(1 + i / 64 % 7);
  Packed<Nf4> packed(y);
  EXPECT_EQ(sha256(packed.code_span()), "043b8981f911161ac3ef610c523e3d0b2d5447638caee38087124c9a790534d4");
  EXPECT_EQ(sha256(packed.absmax_span()), "52441d1fdb142ec92237c582d69e276de93b8766034e22c88357d364119ee8fd");
  EXPECT_EQ(sha256(packed.unrounded()), "9b76a3eeac59adcba793d9c5c49e19cf3dd19c07c592d178b84c9dd52504835a");
  EXPECT_EQ(sha256(packed.weights_bf16()),
            "f73353725c49d17a5043b0bc2393a809400341e3db561a101ea4730d888791ee");
}

}  // namespace
}  // namespace qt
