// Bits that the cpu backend promises: quantizing, and AdamW with f32 and 8-bit moments, give the bits of
// their scalar references on every instruction set of this machine, with any number of threads, at any
// alignment and however a tensor is cut into slabs. Whether the references are right is the business of
// test_quant*.cpp; how far ops stay from an oracle in double, of test_ops*.cpp.
#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "quant/nf4.h"
#include "quant/q8.h"
#include "tests/support/adamw8_slabs.h"
#include "tests/support/edge_values.h"
#include "tests/support/golden.h"
#include "tests/support/packed_tensor.h"
#include "tests/support/setups.h"

namespace qt::test {
namespace {

// ---- AdamW --------------------------------------------------------------------------------------------

AdamHyper hyper_of_step(std::int64_t t) { return adam_hyper(1e-3, 0.9, 0.999, 1e-8, 1e-2, t); }

struct StepInput {
  double grad_scale = 1;
  bool loss_is_finite = true;
};

// params as PrepareStep leaves them: the factor is gradient_tokens / targets when nothing is clipped.
TensorView prepared(Backend& backend, Memory& memory, const AdamHyper& hyper, StepInput in = {}) {
  PrepareStep op{.grad_sumsq = memory.put<double>({1.0}),
                 .totals = memory.put<double>({in.loss_is_finite ? 3.0 : std::nan(""), 1.0}),
                 .params = memory.room<float>(kStepParamFloats),
                 .stats = memory.room<double>(kStepStatDoubles),
                 .gradient_tokens = in.grad_scale};
  op.hyper.fill(AdamHyper{});  // another group's constants would be noticed
  op.hyper[static_cast<int>(ParamGroup::head)] = hyper;
  backend.run(op);
  return op.params;
}

struct PlainState {
  std::vector<float> p, m, v;
  bool operator==(const PlainState& o) const {
    return same_bits(p, o.p) && same_bits(m, o.m) && same_bits(v, o.v);
  }
};

struct State8 {
  std::vector<float> p;
  std::vector<std::uint8_t> m_codes, v_codes;
  std::vector<float> m_absmax, v_absmax;

  explicit State8(std::vector<float> start)
      : p(std::move(start)),
        m_codes(p.size(), FirstMoment::kZeroCode),
        v_codes(p.size(), SecondMoment::kZeroCode),
        m_absmax(static_cast<std::size_t>(q8_scale_count(static_cast<std::int64_t>(p.size())))),
        v_absmax(m_absmax) {}
  bool operator==(const State8& o) const {
    return same_bits(p, o.p) && m_codes == o.m_codes && v_codes == o.v_codes &&
           same_bits(m_absmax, o.m_absmax) && same_bits(v_absmax, o.v_absmax);
  }
};

// One step by the scalar headers.
void reference_step(State8& s, const std::vector<float>& g, float scale, const AdamHyper& h) {
  std::vector<float> m(s.p.size()), v(s.p.size());
  q8_dequantize<FirstMoment>(s.m_codes.data(), s.m_absmax.data(), m);
  q8_dequantize<SecondMoment>(s.v_codes.data(), s.v_absmax.data(), v);
  for (std::size_t i = 0; i < s.p.size(); ++i) adam_update(s.p[i], g[i] * scale, m[i], v[i], h);
  EXPECT_FALSE(q8_quantize<FirstMoment>(m, s.m_codes.data(), s.m_absmax.data()).has_value());
  EXPECT_FALSE(q8_quantize<SecondMoment>(v, s.v_codes.data(), s.v_absmax.data()).has_value());
}

// One step by the op, in slabs that end at the given elements.
template <class G>
State8 op_step(Backend& backend, const State8& before, const std::vector<G>& g, const AdamHyper& h,
               StepInput in = {}, std::vector<std::int64_t> slab_ends = {}) {
  Memory memory(backend);
  const TensorView p = memory.put(before.p), grad = memory.put(g), mc = memory.put(before.m_codes),
                   vc = memory.put(before.v_codes), ma = memory.put(before.m_absmax),
                   va = memory.put(before.v_absmax);
  const TensorView params = prepared(backend, memory, h, in);
  run_in_slabs(backend,
               {.master = p,
                .grad = grad,
                .m_codes = mc,
                .v_codes = vc,
                .m_absmax = ma,
                .v_absmax = va,
                .params = params,
                .group = ParamGroup::head},
               slab_ends);
  State8 after(memory.get<float>(p));
  after.m_codes = memory.get<std::uint8_t>(mc);
  after.v_codes = memory.get<std::uint8_t>(vc);
  after.m_absmax = memory.get<float>(ma);
  after.v_absmax = memory.get<float>(va);
  return after;
}

template <class G>
PlainState op_step(Backend& backend, const PlainState& before, const std::vector<G>& g, const AdamHyper& h,
                   StepInput in = {}) {
  Memory memory(backend);
  const TensorView p = memory.put(before.p), m = memory.put(before.m), v = memory.put(before.v);
  const TensorView grad = memory.put(g), params = prepared(backend, memory, h, in);
  backend.run(AdamW{.master = p, .grad = grad, .m = m, .v = v, .params = params, .group = ParamGroup::head});
  return {memory.get<float>(p), memory.get<float>(m), memory.get<float>(v)};
}

struct GoldenStep {
  const char *p, *m_codes, *v_codes, *m_absmax, *v_absmax;
};
constexpr GoldenStep kGoldenSteps[] = {
    {"753f223b50c0edc31641a3bedc79d5b921554b454601b443bff4d1b76e1fa352",
     "8fd89ffb0fc9c62cfb7217e025bd85dacc8f124787f0eeb353838efc2aa012a3",
     "60006eba6ab0cbe47584d968b88ca0b962c9a1b4b0b7d9bb44d97d2e3d8f30b6",
     "68666b75c4ff5f591f61918cb2af021d4e53c50071132ad7a34b3ff191500dbc",
     "220cbb0997ea9c96a58e4f5ef8a925276876d17ba6cd3cc14e92c161ab8e792c"},
    {"fe813b88141a335214c37ecb7e37c14dd6ea5a69d258e284c332b74a816fd510",
     "20c8ac7c9f97034e7f8f44144054ca0d7303283f4560ebc161e21f44250f2f9c",
     "c29d95444d2f151075b56b6171aea3c8ed6aac4d9edb549ad249c6c11622e4f9",
     "a6eeb1bc0b148d086ba4f0d87bcded62e8b7d2f4b0c1a78fd0512a68c96c40ae",
     "eb45d7908dc61a12cea0f2d00d7e7bbf56e9916fc81fa4261c8aebbc98abe850"},
    {"93e569123c63430986349ad98d471b59960b7093cf83af2a072c1dfa24c301d2",
     "ac15d2fa61d917e93d6fb3fe627ad8ff0350db5c603b625148f5dfbfc1b323b9",
     "8ed8c2508d7222245cd232eadc4217224bc3f449dab94fbb782c99c05fa57a52",
     "efd9f0569da52ef94edf103cb653604827b22ae816c855d1d79c9b2a244a148b",
     "3cd34469a028c49caf6601c605f75e2618854bc4236ae8d6251362fed050d4b4"},
};

TEST(AdamW8Bits, AreThePublishedOnesForThreeSteps) {
  on_every_setup([](Backend& backend) {
    State8 state(scaled(lcg(777, 4096), 0.1f));
    for (std::int64_t t = 1; t <= 3; ++t) {
      const auto g = scaled(lcg(static_cast<std::uint32_t>(1000 + t), 4096), 0.01f);
      state = op_step(backend, state, g, hyper_of_step(t));
      const GoldenStep& want = kGoldenSteps[t - 1];
      EXPECT_EQ(sha256(state.p), want.p) << "step " << t;
      EXPECT_EQ(sha256(state.m_codes), want.m_codes) << "step " << t;
      EXPECT_EQ(sha256(state.v_codes), want.v_codes) << "step " << t;
      EXPECT_EQ(sha256(state.m_absmax), want.m_absmax) << "step " << t;
      EXPECT_EQ(sha256(state.v_absmax), want.v_absmax) << "step " << t;
    }
  });
}

TEST(AdamW8Bits, EqualTheScalarReferenceOnHostileGradientsOfEverySizeAndBothDtypes) {
  for (const std::size_t n : {1u, 15u, 16u, 255u, 256u, 257u, 1000u, 4099u, 49153u}) {
    std::vector<State8> want{State8(hostile(n, 1))};
    std::vector<std::vector<float>> g;
    constexpr float kScale = 0.37f;
    for (std::int64_t t = 1; t <= 4; ++t) {
      g.push_back(hostile(n, static_cast<std::uint64_t>(10 + t)));
      want.push_back(want.back());
      for (float& v : g.back()) v = to_float(to_bf16(v));
      reference_step(want.back(), g.back(), kScale, hyper_of_step(t));
    }
    on_every_setup([&](Backend& backend) {
      for (std::size_t t = 1; t <= g.size(); ++t) {
        const AdamHyper h = hyper_of_step(static_cast<std::int64_t>(t));
        EXPECT_TRUE(op_step(backend, want[t - 1], g[t - 1], h, {kScale}) == want[t])
            << n << " elements, step " << t;
        EXPECT_TRUE(op_step(backend, want[t - 1], rounded(g[t - 1]), h, {kScale}) == want[t])
            << n << " as bf16, step " << t;
      }
    });
  }
}

// Blocks that hold every threshold of both code books and its neighbours, under largest magnitudes so small
// and so large that normalising has to divide, and others. With these constants m is the gradient and v its
// square, or 0 where the square would overflow.
TEST(AdamW8Bits, EqualTheScalarReferenceAtEveryThresholdOfTheCodes) {
  for (const float scale :
       {1.0f, 0x1p-149f, 0x1p-130f, 0x1p-66f, 0x1p-60f, 0x1p60f, 1.3e19f, 0x1.8p126f, 3.4e38f}) {
    const AdamHyper copy{.s = 0,
                         .ceps = 1,
                         .decay = 1,
                         .one_minus_beta1 = 1,
                         .one_minus_beta2 = scale < 0x1p64f ? 1.0f : 0.0f};
    const std::vector<float> g = gradients_at_thresholds(scale);
    const State8 before(std::vector<float>(g.size(), 0.5f));
    State8 want = before;
    reference_step(want, g, 1.0f, copy);
    on_every_setup(
        [&](Backend& backend) { EXPECT_TRUE(op_step(backend, before, g, copy) == want) << scale; });
  }
}

TEST(AdamW8Bits, DoNotDependOnTheSlabs) {
  constexpr std::size_t kElems = 20 * 256 + 77;
  State8 before(hostile(kElems, 3));
  reference_step(before, hostile(kElems, 4), 1.0f, hyper_of_step(1));
  const auto g = hostile(kElems, 5);
  const State8 whole = op_step(cpu_with(1), before, g, hyper_of_step(2));
  on_every_setup([&](Backend& backend) {
    for (const std::vector<std::int64_t>& ends :
         {std::vector<std::int64_t>{256, 512, kElems}, {19 * 256, kElems}, {20 * 256, kElems}}) {
      EXPECT_TRUE(op_step(backend, before, g, hyper_of_step(2), {}, ends) == whole);
    }
  });
}

TEST(AdamWBits, EqualTheScalarReferenceOnHostileGradientsOfEverySizeAndBothDtypes) {
  for (const std::size_t n : {1u, 3u, 15u, 16u, 17u, 1000u, 16385u, 40001u}) {
    const PlainState before{hostile(n, 1), scaled(hostile(n, 2), 0.01f), [&] {
                              auto v = hostile(n, 3);
                              for (float& x : v) x = x * x;
                              return v;
                            }()};
    auto g = hostile(n, 4);
    for (float& v : g) v = to_float(to_bf16(v));
    PlainState want = before;
    constexpr float kScale = 1.7f;
    for (std::size_t i = 0; i < n; ++i)
      adam_update(want.p[i], g[i] * kScale, want.m[i], want.v[i], hyper_of_step(9));
    on_every_setup([&](Backend& backend) {
      EXPECT_TRUE(op_step(backend, before, g, hyper_of_step(9), {kScale}) == want) << n;
      EXPECT_TRUE(op_step(backend, before, rounded(g), hyper_of_step(9), {kScale}) == want)
          << n << " as bf16";
    });
  }
}

TEST(SkippedSteps, LeaveParametersAndStateAlone) {
  constexpr std::size_t kElems = 1000;
  State8 state(normal(kElems, 1));
  reference_step(state, normal(kElems, 2), 1.0f, hyper_of_step(1));
  const PlainState plain{normal(kElems, 1), normal(kElems, 2), std::vector<float>(kElems, 1.0f)};
  auto g = normal(kElems, 3);
  g[500] = kNan;
  on_every_setup([&](Backend& backend) {
    const StepInput skip{.loss_is_finite = false};
    EXPECT_TRUE(op_step(backend, state, g, hyper_of_step(2), skip) == state);
    EXPECT_TRUE(op_step(backend, plain, g, hyper_of_step(2), skip) == plain);
    // The same without the flag: the comparison sees what the flag prevents.
    EXPECT_FALSE(op_step(backend, state, g, hyper_of_step(2)) == state);
    EXPECT_FALSE(op_step(backend, plain, g, hyper_of_step(2)) == plain);
  });
}

// ---- quantizing ---------------------------------------------------------------------------------------

struct Encoded {
  std::vector<std::uint8_t> codes;
  std::vector<float> absmax;
  double bad_index = 0;
};

// [n] as a matrix of one row, in slabs that end at the given elements. Codes and scales start as rubbish.
Encoded op_quantize(Backend& backend, const std::vector<float>& x, std::vector<std::int64_t> slab_ends = {},
                    double bad_before = 0) {
  Memory memory(backend);
  const auto n = static_cast<std::int64_t>(x.size());
  const TensorView src = memory.put(x), bad = memory.put<double>({bad_before});
  const PackedView w{
      .format = FormatId::nf4,
      .N = 1,
      .K = n,
      .codes =
          memory.put(std::vector<std::uint8_t>(static_cast<std::size_t>(code_bytes(FormatId::nf4, n)), 0xA5)),
      .absmax =
          memory.put(std::vector<float>(static_cast<std::size_t>(scale_count(FormatId::nf4, n)), -7.0f))};
  if (slab_ends.empty()) slab_ends = {n};
  std::int64_t begin = 0;
  for (const std::int64_t end : slab_ends) {
    backend.run(Quantize{.src = src.flat(begin, end - begin), .w = w, .first = begin, .bad_index = bad});
    begin = end;
  }
  return {memory.get<std::uint8_t>(w.codes), memory.get<float>(w.absmax), memory.get<double>(bad)[0]};
}

template <class T>
std::vector<T> op_dequantize(Backend& backend, const Encoded& e, std::int64_t elems, std::int64_t first,
                             std::int64_t n) {
  Memory memory(backend);
  const PackedView w{.format = FormatId::nf4,
                     .N = 1,
                     .K = elems,
                     .codes = memory.put(e.codes),
                     .absmax = memory.put(e.absmax)};
  const TensorView dst = memory.room<T>(n);
  backend.run(Dequantize{.w = w, .first = first, .dst = dst});
  return memory.get<T>(dst);
}

TEST(QuantizeBits, AreThePublishedOnesFor65536PseudoRandomValues) {
  const auto x = lcg(12345, 65536);
  on_every_setup([&](Backend& backend) {
    const Encoded e = op_quantize(backend, x);
    EXPECT_EQ(sha256(e.codes), "043b8981f911161ac3ef610c523e3d0b2d5447638caee38087124c9a790534d4");
    EXPECT_EQ(sha256(e.absmax), "90f496867740a9cd71d2d928af4afa6c6c41944fa85b4c64953835cbc00af861");
    EXPECT_EQ(e.bad_index, 0);
  });
}

TEST(DequantizeBits, AreThePublishedOnesFor65536PseudoRandomValues) {
  auto x = lcg(12345, 65536);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] *= static_cast<float>(1 + (i / 64) % 7);
  on_every_setup([&](Backend& backend) {
    const Encoded e = op_quantize(backend, x);
    const auto w = op_dequantize<bf16>(backend, e, 65536, 0, 65536);
    EXPECT_EQ(sha256(w), "f73353725c49d17a5043b0bc2393a809400341e3db561a101ea4730d888791ee");
    const auto wide = op_dequantize<float>(backend, e, 65536, 0, 65536);
    for (std::size_t i = 0; i < w.size(); ++i) {
      ASSERT_EQ(std::bit_cast<std::uint32_t>(wide[i]), std::uint32_t{w[i].bits} << 16) << i;
    }
  });
}

TEST(QuantizeBits, EqualTheScalarReferenceForAwkwardSizesThresholdsAndScales) {
  for (const auto& x : weights_to_quantize()) {
    Packed<Nf4> want(x);
    on_every_setup([&](Backend& backend) {
      const Encoded e = op_quantize(backend, x);
      EXPECT_TRUE(std::ranges::equal(e.codes, want.code_span())) << x.size();
      EXPECT_EQ(bits_of(e.absmax), bits_of(want.absmax_span())) << x.size();
    });
  }
}

TEST(QuantizeBits, DoNotDependOnTheSlabs) {
  const auto x = hostile(40 * 64 + 9, 10);
  const Encoded whole = op_quantize(cpu_with(1), x);
  on_every_setup([&](Backend& backend) {
    const Encoded e = op_quantize(backend, x, {64, 17 * 64, 40 * 64, 40 * 64 + 9});
    EXPECT_EQ(e.codes, whole.codes);
    EXPECT_EQ(bits_of(e.absmax), bits_of(whole.absmax));
  });
}

TEST(DequantizeBits, EqualTheScalarReferenceFromAnyFirstElementOn) {
  for (const auto& x : weights_to_quantize()) {
    Packed<Nf4> packed(x);
    const Encoded e{{packed.code_span().begin(), packed.code_span().end()},
                    {packed.absmax_span().begin(), packed.absmax_span().end()}};
    const auto n = static_cast<std::int64_t>(x.size());
    on_every_setup([&](Backend& backend) {
      for (const std::int64_t first : {0, 1, 63, 64, 65, 4090, 16384, 20001}) {
        for (const std::int64_t count : {n - first, n - first - 1, std::int64_t{70}, std::int64_t{128}}) {
          if (count < 1 || first + count > n) continue;
          const auto want = packed.weights(first, count);
          EXPECT_EQ(bits_of(op_dequantize<float>(backend, e, n, first, count)), bits_of(want))
              << first << " " << count;
          EXPECT_TRUE(same_bits(op_dequantize<bf16>(backend, e, n, first, count), rounded(want)))
              << first << " " << count;
        }
      }
    });
  }
}

TEST(BadIndex, IsTheSmallestOneWhateverTheThreads) {
  constexpr std::int64_t kElems = 200000;  // a dozen tasks
  auto x = normal(kElems, 11);
  for (const std::size_t at : {199999u, 150001u, 70003u, 70002u}) x[at] = at % 2 == 0 ? kInf : kNan;
  on_every_setup([&](Backend& backend) {
    for (int repeat = 0; repeat < 3; ++repeat) EXPECT_EQ(op_quantize(backend, x).bad_index, 70003);
    EXPECT_EQ(op_quantize(backend, x, {128 * 1024, kElems}).bad_index, 70003) << "slabs keep what they found";
    EXPECT_EQ(op_quantize(backend, x, {}, 5).bad_index, 5) << "an earlier tensor's smaller index stays";
    EXPECT_EQ(op_quantize(backend, x, {}, 70004).bad_index, 70003);
  });
}

TEST(BadIndex, NamesEveryKindOfNonFiniteValueAtEveryPlaceOfABlockAndLeavesThatBlockAlone) {
  for (const std::size_t n : {64u, 200u}) {
    const Encoded good = op_quantize(cpu_with(1), normal(n, 12));
    for (const float value : {kNan, -kNan, kInf, -kInf, std::bit_cast<float>(0x7F800001u)}) {
      on_every_setup([&](Backend& backend) {
        for (std::size_t at = n - 1; at < n; at -= 13) {
          auto x = normal(n, 12);
          x[at] = value;
          const Encoded e = op_quantize(backend, x);
          EXPECT_EQ(e.bad_index, static_cast<double>(at + 1));
          for (std::size_t block = 0; block < e.absmax.size(); ++block) {
            const bool hit = block == at / 64;
            EXPECT_EQ(e.absmax[block], hit ? -7.0f : good.absmax[block]);
            for (std::size_t k = 32 * block; k < std::min(e.codes.size(), 32 * (block + 1)); ++k) {
              EXPECT_EQ(e.codes[k], hit ? 0xA5 : good.codes[k]);
            }
          }
        }
      });
    }
  }
}

}  // namespace
}  // namespace qt::test
