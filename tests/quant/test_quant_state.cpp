// The 8-bit codes of Adam's moments and the arithmetic of AdamW: maps, search, zero blocks, the rules for
// signs and for small second moments, and three golden optimizer steps.
#include <cfloat>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include "quant/adam_math.h"
#include "quant/q8.h"
#include "src/core/rng.h"
#include "tests/support/golden.h"

namespace qt {
namespace {

using test::lcg;
using test::sha256;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

template <class Code>
struct State {
  std::vector<std::uint8_t> codes;
  std::vector<float> absmax;

  explicit State(std::size_t n)
      : codes(n, Code::kZeroCode),
        absmax(static_cast<std::size_t>(q8_scale_count(static_cast<std::int64_t>(n))), 0.0f) {}
  explicit State(const std::vector<float>& x) : State(x.size()) {
    std::fill(absmax.begin(), absmax.end(), kNaN);
    EXPECT_EQ(q8_quantize<Code>(x, codes.data(), absmax.data()), std::nullopt);
  }
  std::vector<float> values() const {
    std::vector<float> x(codes.size(), kNaN);
    q8_dequantize<Code>(codes.data(), absmax.data(), x);
    return x;
  }
};

// The oracle of both searches: the rule itself. Midpoints are formed here in double from the map.
int slow_search(const Q8Map& map, float y) {
  int low = 0, high = 255;  // the code lies in [low, high]
  while (low < high) {
    const int c = (low + high) / 2;
    const auto mid = static_cast<float>((static_cast<double>(map[static_cast<std::size_t>(c)]) +
                                         static_cast<double>(map[static_cast<std::size_t>(c) + 1])) /
                                        2);
    if (y > mid)
      low = c + 1;
    else
      high = c;
  }
  return low;
}

void expect_search(float y) {
  ASSERT_EQ(q8_search_signed(y), slow_search(kQ8Signed, y)) << fmt::format("{:a}", y);
  ASSERT_EQ(q8_search_unsigned(y), slow_search(kQ8Unsigned, y)) << fmt::format("{:a}", y);
  // Without the table of cells, as devices search.
  const auto finished = [y](int below, const Q8Map& mid) {
    return below + (y > mid[static_cast<std::size_t>(below)] ? 1 : 0);
  };
  ASSERT_EQ(finished(q8_code_below_signed(y), kQ8SignedMid), slow_search(kQ8Signed, y))
      << fmt::format("{:a}", y);
  ASSERT_EQ(finished(q8_code_below_unsigned(y), kQ8UnsignedMid), slow_search(kQ8Unsigned, y))
      << fmt::format("{:a}", y);
}

TEST(Q8Maps, HaveTheBitsOfThePublishedTables) {
  EXPECT_EQ(sha256(kQ8Signed), "e732639a65f497b4ad684bb166a4467708255edd5207757de8b8f0c7e1fda89c");
  EXPECT_EQ(sha256(kQ8Unsigned), "305f002cc11278fb769d13b25b9fd0c7c83c8402c40a878fe086f4039fde6398");
}

TEST(Q8Maps, AreStrictlyIncreasingWithZeroAndOne) {
  for (const Q8Map& map : {kQ8Signed, kQ8Unsigned}) {
    for (std::size_t c = 1; c < 256; ++c) EXPECT_LT(map[c - 1], map[c]);
    EXPECT_EQ(map[255], 1.0f);
  }
  EXPECT_EQ(std::bit_cast<std::uint32_t>(kQ8Signed[FirstMoment::kZeroCode]), 0u);
  EXPECT_EQ(std::bit_cast<std::uint32_t>(kQ8Unsigned[SecondMoment::kZeroCode]), 0u);
  for (std::size_t c = 0; c < 127; ++c) EXPECT_EQ(kQ8Signed[c], -kQ8Signed[254 - c]);
  EXPECT_EQ(kQ8Signed[0], -0.992968738f) << "the signed map has no -1";
}

TEST(Q8Search, EqualsTheBinarySearchAtEveryThresholdAndBesideIt) {
  for (const Q8Map* map : {&kQ8Signed, &kQ8Unsigned}) {
    for (std::size_t c = 0; c + 1 < 256; ++c) {
      const auto mid =
          static_cast<float>((static_cast<double>((*map)[c]) + static_cast<double>((*map)[c + 1])) / 2);
      EXPECT_EQ(slow_search(*map, mid), static_cast<int>(c)) << "a tie takes the lower code";
      EXPECT_EQ(slow_search(*map, std::nextafter(mid, 2.0f)), static_cast<int>(c) + 1);
      for (const float y : {mid, (*map)[c]}) {
        for (const float z : {std::nextafter(y, -2.0f), y, std::nextafter(y, 2.0f)}) {
          expect_search(z);
          expect_search(-z);
        }
      }
    }
  }
}

TEST(Q8Search, EqualsTheBinarySearchForAMillionValuesOfEveryMagnitude) {
  const RngStream stream{.seed = 8};
  for (std::uint64_t i = 0; i < 500000; ++i) {
    const auto bits = rng_block(stream, i);
    expect_search(2.2f * rng_unit(bits[0]) - 1.1f);
    const float any = std::bit_cast<float>(bits[1]);
    if (!std::isnan(any)) expect_search(any);
    expect_search(std::ldexp(rng_unit(bits[2]), -static_cast<int>(bits[3] % 40)) *
                  (bits[3] & 64u ? -1.0f : 1.0f));
  }
}

TEST(Q8Search, EqualsTheBinarySearchAtTheEdgesOfEveryCell) {
  for (std::uint32_t cell = Q8Cells::kFirst - 2; cell <= Q8Cells::kLast + 2; ++cell) {
    for (const std::uint32_t bits : {(cell << Q8Cells::kShift) - 1, cell << Q8Cells::kShift}) {
      expect_search(std::bit_cast<float>(bits));
      expect_search(std::bit_cast<float>(bits | 0x80000000u));
    }
  }
  for (const float y : {0.0f, -0.0f, FLT_TRUE_MIN, -FLT_TRUE_MIN, FLT_MIN, FLT_MAX, -FLT_MAX, kInf, -kInf})
    expect_search(y);
}

TEST(Q8Golden, Encodes65536PseudoRandomValues) {
  auto x = lcg(12345, 65536);
  EXPECT_EQ(sha256(State<Q8Signed>(x).codes),
            "9a0dd8ce547909e9290020e252aab063743c52012fd87c7ac1ced1e4ede623ac");
  for (float& value : x) value = std::abs(value);
  EXPECT_EQ(sha256(State<Q8Unsigned>(x).codes),
            "7f0c09bc0fe10006580e59d796055fc7f047ef8f830dac1b62db27832e6ab1ea");
}

TEST(Q8Blocks, GiveZeroBlocksTheZeroCodeAndPlusZero) {
  std::vector<float> x(600, 0.0f);
  x[3] = -0.0f;
  x[300] = 1.0f;  // the middle block
  const State<FirstMoment> m(x);
  const State<SecondMoment> v(x);
  for (const std::size_t i : {0u, 3u, 255u, 512u, 599u}) {
    EXPECT_EQ(m.codes[i], 127);
    EXPECT_EQ(v.codes[i], 0);
    EXPECT_EQ(std::bit_cast<std::uint32_t>(m.values()[i]), 0u);
    EXPECT_EQ(std::bit_cast<std::uint32_t>(v.values()[i]), 0u);
  }
  EXPECT_EQ(m.absmax, (std::vector<float>{0, 1, 0}));
  EXPECT_EQ(m.codes[300], 255);
}

TEST(Q8Blocks, StartAsZeroStates) {
  for (const float x : State<FirstMoment>(1000).values()) EXPECT_EQ(std::bit_cast<std::uint32_t>(x), 0u);
  for (const float x : State<SecondMoment>(1000).values()) EXPECT_EQ(std::bit_cast<std::uint32_t>(x), 0u);
}

TEST(Q8Blocks, LoseUpTo0Point7PercentOfANegativeExtremeOnly) {
  std::vector<float> x(256, 0.0f);
  x[0] = -2.0f;
  EXPECT_EQ(State<Q8Signed>(x).values()[0], -2.0f * 0.992968738f);
  x[0] = 2.0f;
  EXPECT_EQ(State<Q8Signed>(x).values()[0], 2.0f);
}

TEST(Q8Blocks, EqualTheRulesForEverySizeAndScale) {
  for (const float scale : {1.0f, FLT_TRUE_MIN, 0x1p-127f, 1e-38f, 0x1p126f, 0x1.8p126f, FLT_MAX}) {
    for (const std::size_t n : {1u, 255u, 256u, 257u, 1000u}) {
      auto x = lcg(static_cast<std::uint32_t>(n), n);
      for (float& value : x) value *= scale;
      const State<Q8Signed> q(x);
      for (std::size_t i = 0; i < n; ++i) {
        const float am = q.absmax[i / 256];
        const volatile float r = 1.0f / am;
        const volatile float y = std::fpclassify(r) == FP_NORMAL ? x[i] * r : x[i] / am;
        ASSERT_EQ(q.codes[i], am == 0 ? 127 : slow_search(kQ8Signed, y)) << scale << " " << i;
      }
    }
  }
}

TEST(Q8Blocks, ReportTheFirstNonFiniteElementAndWriteOnlyTheBlocksBeforeIt) {
  for (const float bad : {kNaN, kInf, -kInf}) {
    std::vector<float> x(600, 1.0f);
    x[400] = bad;
    x[599] = kNaN;
    std::vector<std::uint8_t> codes(600, 0xA5);
    std::vector<float> absmax(3, -1.0f);
    EXPECT_EQ(q8_quantize<FirstMoment>(x, codes.data(), absmax.data()), 400);
    EXPECT_EQ(codes[255], 255);
    EXPECT_EQ(codes[256], 0xA5);
    EXPECT_EQ(absmax, (std::vector<float>{1.0f, -1.0f, -1.0f}));
  }
}

TEST(Q8Statistics, ErrorsAreThoseOfThePublishedTables) {
  auto mean_error = [](const std::vector<float>& x, const std::vector<float>& q) {
    double sum = 0;
    for (std::size_t i = 0; i < x.size(); ++i)
      sum += std::abs(static_cast<double>(x[i]) - static_cast<double>(q[i]));
    return sum / static_cast<double>(x.size());
  };
  auto x = lcg(99, 1 << 20);  // uniform in [-1, 1)
  EXPECT_NEAR(mean_error(x, State<Q8Signed>(x).values()), 0.0032, 0.0002);
  for (float& value : x) value = std::abs(value);
  EXPECT_NEAR(mean_error(x, State<Q8Unsigned>(x).values()), 0.0016, 0.0002);
}

// The rule as bitsandbytes states it, by sign bits. It differs from ours for -0 alone.
int literal_first_moment(float m, float y) {
  int code = slow_search(kQ8Signed, y);
  if (std::signbit(kQ8Signed[static_cast<std::size_t>(code)]) != std::signbit(m)) code += m > 0 ? 1 : -1;
  return code;
}

TEST(FirstMoments, KeepTheSignOfTinyNegativeValues) {
  std::vector<float> x(256, 0.0f);
  x[0] = 1.0f, x[1] = -1e-9f, x[2] = 1e-9f, x[3] = -FLT_TRUE_MIN, x[4] = -0.0f, x[5] = -2.75e-7f;
  const State<FirstMoment> m(x);
  EXPECT_EQ(m.codes[1], 126);
  EXPECT_EQ(m.codes[2], 127);
  EXPECT_EQ(m.codes[3], 126);
  EXPECT_EQ(m.codes[4], 127) << "-0 is zero";
  EXPECT_EQ(literal_first_moment(-0.0f, -0.0f), 126)
      << "the one value for which the rule by sign bits differs";
  EXPECT_EQ(State<Q8Signed>(x).codes[1], 127) << "without the rule the sign would be lost";
}

TEST(FirstMoments, EqualTheRuleBySignBitsForEverythingButMinusZero) {
  const RngStream stream{.seed = 12};
  int fired = 0;
  for (std::uint64_t i = 0; i < 300000; ++i) {
    const auto bits = rng_block(stream, i);
    const float m =
        std::ldexp(rng_unit(bits[0]), -static_cast<int>(bits[1] % 140)) * (bits[2] & 1u ? -1.0f : 1.0f);
    ASSERT_EQ(FirstMoment::encode(m, m), literal_first_moment(m, m)) << m;
    fired += FirstMoment::encode(m, m) != q8_search_signed(m) ? 1 : 0;
  }
  EXPECT_GT(fired, 1000);
}

TEST(SecondMoments, NeverEncodeAPositiveValueAsZero) {
  std::vector<float> x(256, 0.0f);
  x[0] = 1.0f, x[1] = 1e-9f, x[2] = FLT_TRUE_MIN, x[3] = 1e-7f;
  const State<SecondMoment> v(x);
  const State<Q8Unsigned> without(x);
  for (const std::size_t i : {1u, 2u, 3u}) {
    EXPECT_EQ(v.codes[i], 1);
    EXPECT_EQ(without.codes[i], 0) << "the nearest entry is 0: the rule is what saves it";
    EXPECT_GE(v.values()[i], x[i]) << "rounded up: the step gets shorter, not longer";
  }
  EXPECT_EQ(v.codes[4], 0) << "a true zero stays zero";
  EXPECT_TRUE(rc::check([](std::uint32_t a, std::uint32_t b) {
    const float x0 = std::bit_cast<float>(a & 0x7F7FFFFFu), x1 = std::bit_cast<float>(b & 0x7F7FFFFFu);
    const State<SecondMoment> s({x0, x1});
    RC_ASSERT((s.codes[0] > 0) == (x0 > 0));
    RC_ASSERT((s.codes[1] > 0) == (x1 > 0));
  }));
}

TEST(SecondMoments, BoundTheStepThatAVanishedMomentWouldTake) {
  // One small gradient beside a large one in its block, then silence. Without the rule, v reads back as 0
  // and the next steps divide by epsilon alone.
  std::vector<float> g(256, 0.0f);
  g[0] = 1.0f, g[1] = 1e-4f;
  const auto largest_step = [&]<class V>() {
    State<FirstMoment> m(256);
    State<V> v(256);
    double largest = 0;
    for (std::int64_t t = 1; t <= 5; ++t) {
      const AdamHyper h = adam_hyper(1e-3, 0.9, 0.999, 1e-8, 0, t);
      auto mm = m.values(), vv = v.values();
      for (std::size_t i = 0; i < 256; ++i) {
        float p = 0;
        adam_update(p, t == 1 ? g[i] : 0.0f, mm[i], vv[i], h);
        largest = std::max(largest, std::abs(static_cast<double>(p)) / 1e-3);
      }
      m = State<FirstMoment>(mm);
      v = State<V>(vv);
    }
    return largest;
  };
  EXPECT_LT(largest_step.operator()<SecondMoment>(), 2.0);
  EXPECT_GT(largest_step.operator()<Q8Unsigned>(), 100.0) << "the guard must be what makes the difference";
}

TEST(AdamMath, RoundsConstantsOnceFromDouble) {
  const AdamHyper h = adam_hyper(1e-3, 0.9, 0.999, 1e-8, 1e-2, 3);
  const double c1 = 1 - 0.9 * 0.9 * 0.9, c2 = std::sqrt(1 - 0.999 * 0.999 * 0.999);
  EXPECT_EQ(h.s, static_cast<float>(-1e-3 * c2 / c1));
  EXPECT_EQ(h.ceps, static_cast<float>(c2) * 1e-8f);
  EXPECT_EQ(h.decay, static_cast<float>(1 - 1e-5));
  EXPECT_EQ(h.one_minus_beta1, 1.0f - 0.9f);
  EXPECT_EQ(adam_hyper(1e-3, 0.9, 0.999, 1e-8, 0, 3).decay, 1.0f);
}

TEST(AdamMath, PowersAgreeWithTheLibraryForAMillionSteps) {
  for (const double beta : {0.0, 0.8, 0.9, 0.95, 0.999}) {
    for (const std::int64_t t : {1, 2, 3, 10, 1000, 71680, 1000000}) {
      const double want = std::pow(beta, static_cast<double>(t));
      // Each of the 2 log2(t) products may add half an ulp, and squaring doubles the error so far.
      EXPECT_NEAR(int_power(beta, t), want, want * 0x1p-52 * static_cast<double>(t)) << beta << "^" << t;
    }
  }
}

TEST(AdamMath, FollowsAdamWInDoubleOver200Steps) {
  const auto gradients = lcg(31, 200);
  float p = 0.1f, m = 0, v = 0;
  double P = p, M = 0, V = 0;
  const double lr = 1e-3, b1 = 0.9, b2 = 0.999, eps = 1e-8, wd = 0.1;
  for (std::int64_t t = 1; t <= 200; ++t) {
    const float g = gradients[static_cast<std::size_t>(t - 1)];
    adam_update(p, g, m, v, adam_hyper(lr, b1, b2, eps, wd, t));
    const double G = g;
    M = b1 * M + (1 - b1) * G;
    V = b2 * V + (1 - b2) * G * G;
    P -= lr * wd * P;
    P -= lr * (M / (1 - std::pow(b1, t))) / (std::sqrt(V / (1 - std::pow(b2, t))) + eps);
  }
  // 200 steps of at most lr each, every one within a few f32 roundings of the exact one; 1 - f32(beta2)
  // is off by 1.3e-5 of its value at t = 1 and less later.
  EXPECT_NEAR(p, P, 200 * lr * 2e-5 + 200 * 0x1p-24 * 0.3);
  EXPECT_GT(std::abs(P - 0.1), 0.001) << "it must have moved";
}

struct GoldenStep {
  const char *p, *p_decay_after, *m_codes, *v_codes, *m_absmax, *v_absmax;
};

constexpr GoldenStep kGoldenSteps[3] = {{"753f223b50c0edc31641a3bedc79d5b921554b454601b443bff4d1b76e1fa352",
                                         "212b2527b71505740d2e57f03eb2ffb0a37ffced9765713f2e7fad7832ffe86d",
                                         "8fd89ffb0fc9c62cfb7217e025bd85dacc8f124787f0eeb353838efc2aa012a3",
                                         "60006eba6ab0cbe47584d968b88ca0b962c9a1b4b0b7d9bb44d97d2e3d8f30b6",
                                         "68666b75c4ff5f591f61918cb2af021d4e53c50071132ad7a34b3ff191500dbc",
                                         "220cbb0997ea9c96a58e4f5ef8a925276876d17ba6cd3cc14e92c161ab8e792c"},
                                        {"fe813b88141a335214c37ecb7e37c14dd6ea5a69d258e284c332b74a816fd510",
                                         "844fdea887de7551fd5d509db8ac37b467e8f25871b2346dfa13b9aa11374e10",
                                         "20c8ac7c9f97034e7f8f44144054ca0d7303283f4560ebc161e21f44250f2f9c",
                                         "c29d95444d2f151075b56b6171aea3c8ed6aac4d9edb549ad249c6c11622e4f9",
                                         "a6eeb1bc0b148d086ba4f0d87bcded62e8b7d2f4b0c1a78fd0512a68c96c40ae",
                                         "eb45d7908dc61a12cea0f2d00d7e7bbf56e9916fc81fa4261c8aebbc98abe850"},
                                        {"93e569123c63430986349ad98d471b59960b7093cf83af2a072c1dfa24c301d2",
                                         "d3e3fd13c9f80e774a058fe50d97f92e0ed2abd0edb4810c08170aa35e431d5c",
                                         "ac15d2fa61d917e93d6fb3fe627ad8ff0350db5c603b625148f5dfbfc1b323b9",
                                         "8ed8c2508d7222245cd232eadc4217224bc3f449dab94fbb782c99c05fa57a52",
                                         "efd9f0569da52ef94edf103cb653604827b22ae816c855d1d79c9b2a244a148b",
                                         "3cd34469a028c49caf6601c605f75e2618854bc4236ae8d6251362fed050d4b4"}};

std::vector<float> scaled(std::vector<float> x, float factor) {
  for (float& value : x) value *= factor;
  return x;
}

// Three steps on 4096 parameters. With `decay_after` the decay multiplies the updated parameter, as
// bitsandbytes' CUDA kernel does.
void run_golden_steps(bool decay_after) {
  constexpr std::size_t n = 4096;
  auto p = scaled(lcg(777, n), 0.1f);
  State<FirstMoment> m(n);
  State<SecondMoment> v(n);
  for (std::uint32_t t = 1; t <= 3; ++t) {
    const auto g = scaled(lcg(1000 + t, n), 0.01f);
    AdamHyper h = adam_hyper(1e-3, 0.9, 0.999, 1e-8, 1e-2, t);
    const float decay = h.decay;
    if (decay_after) h.decay = 1.0f;
    auto mm = m.values(), vv = v.values();
    for (std::size_t i = 0; i < n; ++i) {
      adam_update(p[i], g[i], mm[i], vv[i], h);
      if (decay_after) p[i] *= decay;
    }
    m = State<FirstMoment>(mm);
    v = State<SecondMoment>(vv);
    const GoldenStep& want = kGoldenSteps[t - 1];
    EXPECT_EQ(sha256(p), decay_after ? want.p_decay_after : want.p) << t;
    EXPECT_EQ(sha256(m.codes), want.m_codes) << t;
    EXPECT_EQ(sha256(v.codes), want.v_codes) << t;
    EXPECT_EQ(sha256(m.absmax), want.m_absmax) << t;
    EXPECT_EQ(sha256(v.absmax), want.v_absmax) << t;
    if (t == 1 && !decay_after) {
      EXPECT_EQ(p[0], 0.006439154967665672f);
      EXPECT_EQ(p[1], 0.05207798257470131f);
    }
    if (t == 3 && !decay_after) {
      EXPECT_EQ(p[0], 0.004438277333974838f);
      EXPECT_EQ(p[1], 0.05401625856757164f);
    }
  }
}

TEST(AdamGolden, ThreeStepsWith8BitMomentsMatchBitForBit) { run_golden_steps(false); }
TEST(AdamGolden, TheOrderOfDecayIsVisibleInTheBits) { run_golden_steps(true); }

}  // namespace
}  // namespace qt
