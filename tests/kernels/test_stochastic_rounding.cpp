// Masters kept in bf16: an update is rounded stochastically, each element by its own draw. The rounding has
// no bias, and the ops give the bits of the scalar reference on every instruction set, number of threads and
// slab, on the cpu and in the kernels for a card.
#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "kernels/cuda_entry.h"
#include "quant/adam_math.h"
#include "quant/q8.h"
#include "tests/support/adamw8_slabs.h"
#include "tests/support/setups.h"
#include "tests/support/test_backend.h"

namespace qt::test {
namespace {

using std::size_t;

// ---- the rounding -------------------------------------------------------------------------------------

float stochastic(float x, std::uint32_t draw) { return to_float(to_bf16_stochastic(x, draw)); }

TEST(StochasticRounding, HasTheMeanOfWhatItRounds) {
  // Normal, subnormal, beside powers of two, ending a binade. All 2^16 outcomes of the draw count alike.
  for (const float x : {1.0f, 1.00001f, 0x1.FFFFFEp0f, 3.14159265f, 1e-3f, 0x1.234566p-120f, 0x1p-149f,
                        0x1.23456p-127f, 3e37f}) {
    for (const float value : {x, -x}) {
      double sum = 0, to_nearest = 0;
      for (std::uint32_t r = 0; r < 65536; ++r) {
        sum += static_cast<double>(stochastic(value, r << 16 | 0xABCDu));
        to_nearest += static_cast<double>(to_float(to_bf16(value)));
      }
      EXPECT_EQ(sum / 65536, static_cast<double>(value));
      // Rounding to nearest is told apart wherever it rounds at all.
      EXPECT_EQ(to_nearest / 65536 == static_cast<double>(value), to_float(to_bf16(value)) == value);
    }
  }
}

TEST(StochasticRounding, TakesOneOfTheTwoNeighboursAndLeavesWhatIsExact) {
  for (const float x : hostile(5000, 1)) {
    const float down = std::bit_cast<float>(std::bit_cast<std::uint32_t>(x) & 0xFFFF0000u);
    EXPECT_EQ(stochastic(x, 0), down);
    EXPECT_EQ(stochastic(down, 0xFFFFFFFFu), down);
    const float up = stochastic(x, 0xFFFFFFFFu);
    EXPECT_EQ(std::bit_cast<std::uint32_t>(up) - std::bit_cast<std::uint32_t>(down),
              x == down ? 0u : 0x10000u);
  }
}

TEST(StochasticRounding, KeepsInfinitiesAndNans) {
  for (const std::uint32_t draw : {0u, 0x12345678u, 0xFFFFFFFFu}) {
    EXPECT_EQ(stochastic(kInf, draw), kInf);
    EXPECT_EQ(stochastic(-kInf, draw), -kInf);
    for (const std::uint32_t nan : {0x7F800001u, 0xFF800001u, 0x7FFFFFFFu, 0xFFFFFFFFu, 0x7FC00000u}) {
      EXPECT_TRUE(std::isnan(stochastic(std::bit_cast<float>(nan), draw))) << nan;
    }
  }
}

// ---- the ops ------------------------------------------------------------------------------------------

constexpr RngStream kRng{.seed = 0x123456789ABCDEFu, .purpose = RngPurpose::stochastic_rounding, .stream = 7};
constexpr float kGradScale = 0.37f;

AdamHyper hyper() { return adam_hyper(1e-3, 0.9, 0.999, 1e-8, 1e-2, 3); }

std::vector<float> step_params() {
  std::vector<float> params(kStepParamFloats, 0.0f);
  params[0] = kGradScale;
  const AdamHyper h = hyper();
  const float values[] = {h.s, h.ceps, h.decay, h.beta1, h.one_minus_beta1, h.beta2, h.one_minus_beta2};
  std::ranges::copy(values, params.begin() + 4 + 8 * static_cast<int>(ParamGroup::head));
  return params;
}

struct State {
  std::vector<bf16> p;
  std::vector<float> m, v;  // decoded, for 8-bit moments
  std::vector<std::uint8_t> m_codes, v_codes;
  std::vector<float> m_absmax, v_absmax;

  bool operator==(const State& o) const {
    return same_bits(p, o.p) && same_bits(m, o.m) && same_bits(v, o.v) && m_codes == o.m_codes &&
           v_codes == o.v_codes && same_bits(m_absmax, o.m_absmax) && same_bits(v_absmax, o.v_absmax);
  }
};

State start(size_t n, bool eight_bits) {
  State s;
  s.p = rounded(hostile(n, 1));
  s.m = scaled(hostile(n, 2), 0.01f);
  s.v = hostile(n, 3);
  for (float& x : s.v) x = x * x;
  if (!eight_bits) return s;
  s.m_codes.resize(n), s.v_codes.resize(n);
  s.m_absmax.resize((n + 255) / 256), s.v_absmax.resize((n + 255) / 256);
  EXPECT_FALSE(q8_quantize<FirstMoment>(s.m, s.m_codes.data(), s.m_absmax.data()).has_value());
  EXPECT_FALSE(q8_quantize<SecondMoment>(s.v, s.v_codes.data(), s.v_absmax.data()).has_value());
  s.m.clear(), s.v.clear();
  return s;
}

// Rounds the new master of an element; a mistake rounds it otherwise.
using Rounding = std::function<bf16(float, std::int64_t element)>;

bf16 by_its_draw(float x, std::int64_t element) {
  return to_bf16_stochastic(x, rng_u32(kRng, static_cast<std::uint64_t>(element)));
}

State reference(State s, const std::vector<float>& g, std::int64_t first_element, const Rounding& round) {
  const bool eight_bits = s.m.empty();
  std::vector<float> m = s.m, v = s.v;
  if (eight_bits) {
    m.resize(s.p.size()), v.resize(s.p.size());
    q8_dequantize<FirstMoment>(s.m_codes.data(), s.m_absmax.data(), m);
    q8_dequantize<SecondMoment>(s.v_codes.data(), s.v_absmax.data(), v);
  }
  for (size_t i = 0; i < s.p.size(); ++i) {
    float p = to_float(s.p[i]);
    adam_update(p, g[i] * kGradScale, m[i], v[i], hyper());
    s.p[i] = round(p, first_element + static_cast<std::int64_t>(i));
  }
  if (eight_bits) {
    EXPECT_FALSE(q8_quantize<FirstMoment>(m, s.m_codes.data(), s.m_absmax.data()).has_value());
    EXPECT_FALSE(q8_quantize<SecondMoment>(v, s.v_codes.data(), s.v_absmax.data()).has_value());
  } else {
    s.m = m, s.v = v;
  }
  return s;
}

// One step by the op, in slabs that end at the given elements.
State op_step(Backend& backend, const State& before, const std::vector<float>& g, std::int64_t first_element,
              bool narrow_gradient, std::vector<std::int64_t> slab_ends = {}) {
  Memory memory(backend, 4 << 20);
  const TensorView p = memory.put(before.p), params = memory.put(step_params());
  const TensorView grad = narrow_gradient ? memory.put(rounded(g)) : memory.put(g);
  if (slab_ends.empty()) slab_ends = {p.elems()};
  State after;
  if (before.m.empty()) {
    const TensorView mc = memory.put(before.m_codes), vc = memory.put(before.v_codes),
                     ma = memory.put(before.m_absmax), va = memory.put(before.v_absmax);
    run_in_slabs(backend,
                 {.master = p,
                  .grad = grad,
                  .m_codes = mc,
                  .v_codes = vc,
                  .m_absmax = ma,
                  .v_absmax = va,
                  .params = params,
                  .group = ParamGroup::head,
                  .rng = kRng,
                  .first_element = first_element},
                 slab_ends);
    after.m_codes = memory.get<std::uint8_t>(mc), after.v_codes = memory.get<std::uint8_t>(vc);
    after.m_absmax = memory.get<float>(ma), after.v_absmax = memory.get<float>(va);
  } else {
    const TensorView m = memory.put(before.m), v = memory.put(before.v);
    std::int64_t begin = 0;
    for (const std::int64_t end : slab_ends) {
      const std::int64_t n = end - begin;
      backend.run(AdamW{.master = p.flat(begin, n),
                        .grad = grad.flat(begin, n),
                        .m = m.flat(begin, n),
                        .v = v.flat(begin, n),
                        .params = params,
                        .group = ParamGroup::head,
                        .rng = kRng,
                        .first_element = first_element + begin});
      begin = end;
    }
    after.m = memory.get<float>(m), after.v = memory.get<float>(v);
  }
  after.p = memory.get<bf16>(p);
  return after;
}

// The cpu in every setup, and the kernels for a card, on the simulator or on a card.
void on_every_backend(const std::function<void(Backend&)>& fn) {
  on_every_setup(fn);
  static const std::unique_ptr<Backend> card = make_cuda_backend(cuda_target(test_sm()));
  SCOPED_TRACE("kernels for a card");
  fn(*card);
}

std::vector<float> gradient(size_t n) {
  auto g = hostile(n, 4);
  for (float& x : g) x = to_float(to_bf16(x));  // the same as f32 and as bf16
  return g;
}

class Bf16Master : public ::testing::TestWithParam<bool> {};  // true: 8-bit moments

TEST_P(Bf16Master, EqualsTheScalarReferenceWhereverItsDrawsBegin) {
  for (const size_t n : {1u, 3u, 17u, 255u, 256u, 1000u, 20'001u}) {
    for (const std::int64_t first : {std::int64_t{0}, std::int64_t{1}, (std::int64_t{1} << 34) - 518}) {
      const State before = start(n, GetParam());
      const auto g = gradient(n);
      const State want = reference(before, g, first, by_its_draw);
      on_every_backend([&](Backend& backend) {
        EXPECT_TRUE(op_step(backend, before, g, first, false) == want) << n << " from " << first;
        EXPECT_TRUE(op_step(backend, before, g, first, true) == want) << n << " from " << first << ", bf16";
      });
    }
  }
}

TEST_P(Bf16Master, DoesNotDependOnTheSlabs) {
  const size_t n = 20 * 256 + 77;
  const auto end = static_cast<std::int64_t>(n);
  const State before = start(n, GetParam());
  const auto g = gradient(n);
  const State want = reference(before, g, 4096, by_its_draw);
  on_every_backend([&](Backend& backend) {
    EXPECT_TRUE(op_step(backend, before, g, 4096, true, {256, 19 * 256, end}) == want);
  });
}

// What the comparison with the reference is worth: it sees each of these.
TEST_P(Bf16Master, IsToldApartFromOtherRoundings) {
  const size_t n = 1000;
  const State before = start(n, GetParam());
  const auto g = gradient(n);
  const auto draw = [](std::int64_t element, RngStream rng = kRng) {
    return rng_u32(rng, static_cast<std::uint64_t>(element));
  };
  const State got = op_step(cpu_with(1), before, g, 0, false);
  EXPECT_TRUE(got == reference(before, g, 0, by_its_draw));
  EXPECT_FALSE(got == reference(before, g, 1, by_its_draw)) << "draws begin one element later";
  for (const Rounding& mistake :
       {Rounding([](float x, std::int64_t) { return to_bf16(x); }),
        Rounding([&](float x, std::int64_t e) { return to_bf16_stochastic(x, draw(e) << 16); }),
        Rounding([&](float x, std::int64_t e) { return to_bf16_stochastic(x, draw(e / 2)); }),
        Rounding([&](float x, std::int64_t e) {
          return to_bf16_stochastic(x, draw(e, {kRng.seed, RngPurpose::dropout, kRng.stream}));
        }),
        Rounding([&](float x, std::int64_t e) {
          return to_bf16_stochastic(x, draw(e, {kRng.seed, kRng.purpose, kRng.stream + 1}));
        })}) {
    EXPECT_FALSE(got == reference(before, g, 0, mistake));
  }
}

INSTANTIATE_TEST_SUITE_P(Moments, Bf16Master, ::testing::Bool(),
                         [](const auto& p) { return p.param ? "EightBits" : "F32"; });

// Updates far below the spacing of bf16: to nearest they would all be lost.
TEST(Bf16Masters, MoveByUpdatesThatRoundingToNearestLoses) {
  constexpr size_t kElems = 40'000;
  constexpr int kSteps = 20;
  State state;
  state.p.assign(kElems, to_bf16(1.0f));
  state.m.assign(kElems, 0.0f), state.v.assign(kElems, 0.0f);
  const std::vector<float> g(kElems, 1.0f);
  // The same step twenty times; the draws differ because each takes other elements of the stream.
  double exact = 1;
  for (int t = 0; t < kSteps; ++t) {
    state.m.assign(kElems, 0.0f), state.v.assign(kElems, 0.0f);
    State f32 = state;
    float p = 1.0f, m = 0, v = 0;
    adam_update(p, g[0] * kGradScale, m, v, hyper());
    exact += static_cast<double>(p) - 1;
    state = op_step(cpu_with(2), state, g, static_cast<std::int64_t>(kElems) * t, false);
    EXPECT_EQ(to_float(to_bf16(p)), 1.0f) << "the update is not below half a spacing";
  }
  double mean = 0;
  for (const bf16 x : state.p) mean += static_cast<double>(to_float(x)) / kElems;
  // A step rounds with a standard deviation below half a spacing, 2^-9 beneath 1; draws are independent.
  const double deviation = 0x1p-9 * std::sqrt(static_cast<double>(kSteps) / kElems);
  // Decay and the size of a step depend on p a little: below 2 % of the way for the 2 % that p moves.
  EXPECT_NEAR(mean, exact, 5 * deviation + 0.02 * (1 - exact));
  EXPECT_GT(1 - exact, 20 * deviation) << "the way is too short to be seen";
}

}  // namespace
}  // namespace qt::test
