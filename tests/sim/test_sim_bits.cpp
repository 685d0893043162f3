// Bits that backends promise each other: what docs/numerics.md calls exact comes out of the kernels for a
// card with the bits of the cpu backend, whatever the alignment and in whatever order blocks and threads run.
// That the cpu's are right is the business of test_bits*.cpp.
#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "kernels/cuda_entry.h"
#include "kernels/scratch.h"
#include "quant/nf4.h"
#include "quant/q8.h"
#include "quant/tiles.h"
#include "tests/support/adamw8_slabs.h"
#include "tests/support/edge_values.h"
#include "tests/support/setups.h"
#include "tests/support/test_backend.h"
#ifndef QTRAIN_TEST_CUDA
#include "kernels/sim/sim.h"
#endif

namespace qt::test {
namespace {

using std::size_t;

// The kernels for a card: on the simulator, or on a card.
Backend& card_backend() {
  static const std::unique_ptr<Backend> backend = make_cuda_backend(cuda_target(test_sm()));
  return *backend;
}

// What a run leaves behind.
class Bytes {
 public:
  template <class T>
  void add(const std::vector<T>& x) {
    const auto bytes = std::as_bytes(std::span(x));
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  // The first byte that differs, or -1.
  std::int64_t difference(const Bytes& other) const {
    const auto [at, unused] = std::ranges::mismatch(bytes_, other.bytes_);
    return at == bytes_.end() && bytes_.size() == other.bytes_.size() ? -1 : at - bytes_.begin();
  }

 private:
  std::vector<std::byte> bytes_;
};

// Builds its inputs in the memory, runs ops, and returns everything that they may have written.
using Body = std::function<Bytes(Backend&, Memory&)>;

Bytes result_of(const Body& run, Backend& backend, Alignment alignment) {
  Memory memory(backend, 4 << 20, alignment);
  return run(backend, memory);
}

void expect_the_same_bits(const std::string& what, const Body& run) {
  for (const Alignment alignment : {Alignment::least, Alignment::whole_lines}) {
    const Bytes want = result_of(run, cpu_with(2), alignment);
    EXPECT_EQ(result_of(run, card_backend(), alignment).difference(want), -1) << what;
#ifndef QTRAIN_TEST_CUDA
    const sim::ReversedOrder reversed;
    EXPECT_EQ(result_of(run, card_backend(), alignment).difference(want), -1) << what << ", reversed";
#endif
  }
}

std::vector<float> rounded_through_bf16(std::vector<float> x) {
  for (float& v : x) v = to_float(to_bf16(v));
  return x;
}

// ---- the test itself ----------------------------------------------------------------------------------

TEST(SimBits, AreComparedByteByByte) {
  const auto differs = [](float last) {
    const Body run = [&](Backend& backend, Memory& memory) {
      Bytes out;
      out.add(std::vector<float>{1, &backend == &card_backend() ? last : 2.0f});
      (void)memory;
      return out;
    };
    return result_of(run, card_backend(), Alignment::least)
        .difference(result_of(run, cpu_with(2), Alignment::least));
  };
  EXPECT_EQ(differs(2.0f), -1);
  EXPECT_GE(differs(std::nextafter(2.0f, 3.0f)), 4);
}

// ---- elementwise --------------------------------------------------------------------------------------

template <class From, class To>
void expect_casts_alike(const std::vector<From>& x, const std::string& what) {
  expect_the_same_bits(what, [&](Backend& backend, Memory& memory) {
    const TensorView from = memory.put(x), to = memory.room<To>(from.elems());
    backend.run(Cast{.x = from, .y = to});
    Bytes out;
    out.add(memory.get<To>(to));
    return out;
  });
}

TEST(SimBits, OfCastAndFillAreThoseOfTheCpu) {
  for (const size_t n : {1u, 7u, 8u, 1003u}) {
    auto x = hostile(n, 1);
    for (size_t i = 0; i < n; i += 5) x[i] *= 0x1p120f;  // beyond f16 and, rounded up, beyond bf16
    x[0] = std::bit_cast<float>(0x7F7FFFFFu);
    expect_casts_alike<float, bf16>(x, "f32 to bf16");
    expect_casts_alike<float, f16>(x, "f32 to f16");
    expect_casts_alike<bf16, f16>(rounded(x), "bf16 to f16");
    expect_casts_alike<bf16, float>(rounded(x), "bf16 to f32");
    expect_the_same_bits("fill", [&](Backend& backend, Memory& memory) {
      const TensorView wide = memory.put(x), narrow = memory.put(rounded(x));
      backend.run(Fill{.x = wide, .value = 0.1});
      backend.run(Fill{.x = narrow, .value = -0.1});
      Bytes out;
      out.add(memory.get<float>(wide));
      out.add(memory.get<bf16>(narrow));
      return out;
    });
  }
}

// ---- quantizing ---------------------------------------------------------------------------------------

PackedView packed_memory(Memory& memory, std::int64_t N, std::int64_t K) {
  const auto bytes = static_cast<size_t>(code_bytes(FormatId::nf4, N * K));
  const auto blocks = static_cast<size_t>(scale_count(FormatId::nf4, N * K));
  return {.format = FormatId::nf4,
          .N = N,
          .K = K,
          .codes = memory.put(std::vector<std::uint8_t>(bytes, 0xA5)),
          .absmax = memory.put(std::vector<float>(blocks, -7.0f))};
}

// Packs a matrix of one row in ranges that end at the given elements.
template <class T>
Bytes packed_in_ranges(Backend& backend, Memory& memory, const std::vector<T>& x,
                       const std::vector<std::int64_t>& ends) {
  const TensorView src = memory.put(x), bad = memory.put<double>({0});
  const PackedView w = packed_memory(memory, 1, src.elems());
  std::int64_t begin = 0;
  for (const std::int64_t end : ends) {
    backend.run(Quantize{.src = src.flat(begin, end - begin), .w = w, .first = begin, .bad_index = bad});
    begin = end;
  }
  Bytes out;
  out.add(memory.get<std::uint8_t>(w.codes));
  out.add(memory.get<float>(w.absmax));
  out.add(memory.get<double>(bad));
  return out;
}

TEST(SimBits, OfQuantizeAreThoseOfTheCpuForAwkwardSizesThresholdsAndScales) {
  for (const auto& x : weights_to_quantize()) {
    expect_the_same_bits(fmt::format("{} elements", x.size()), [&](Backend& backend, Memory& memory) {
      return packed_in_ranges(backend, memory, x, {static_cast<std::int64_t>(x.size())});
    });
    expect_the_same_bits(fmt::format("{} elements of bf16", x.size()), [&](Backend& backend, Memory& memory) {
      return packed_in_ranges(backend, memory, rounded(x), {static_cast<std::int64_t>(x.size())});
    });
  }
  const auto x = hostile(40 * 64 + 9, 10);
  expect_the_same_bits("ranges", [&](Backend& backend, Memory& memory) {
    return packed_in_ranges(backend, memory, x, {64, 17 * 64, 40 * 64, 40 * 64 + 9});
  });
}

TEST(SimBits, OfQuantizeAreThoseOfTheCpuAroundValuesThatAreNotFinite) {
  for (const float value : {kNan, -kNan, kInf, -kInf, std::bit_cast<float>(0x7F800001u)}) {
    for (const size_t at : {0u, 9u, 63u, 64u, 300u, 699u}) {
      auto x = hostile(700, 12);
      x[at] = value;
      x[690] = value;
      expect_the_same_bits(fmt::format("{} at {}", value, at), [&](Backend& backend, Memory& memory) {
        return packed_in_ranges(backend, memory, x, {448, 700});
      });
    }
  }
}

TEST(SimBits, OfDequantizeAreThoseOfTheCpuFromAnyFirstElementOn) {
  const auto x = hostile(5 * 1024 + 3, 14);
  const auto n = static_cast<std::int64_t>(x.size());
  for (const std::int64_t first : {0, 1, 7, 8, 56, 63, 64, 65, 1000, 4090}) {
    for (const std::int64_t count : {n - first, std::int64_t{1}, std::int64_t{70}, std::int64_t{136}}) {
      expect_the_same_bits(fmt::format("{} from {}", count, first), [&](Backend& backend, Memory& memory) {
        const PackedView w = packed_memory(memory, 1, n);
        Packed<Nf4> packed(x);
        backend.upload(std::as_bytes(packed.code_span()), w.codes);
        backend.upload(std::as_bytes(packed.absmax_span()), w.absmax);
        const TensorView wide = memory.room<float>(count), narrow = memory.room<bf16>(count);
        backend.run(Dequantize{.w = w, .first = first, .dst = wide});
        backend.run(Dequantize{.w = w, .first = first, .dst = narrow});
        Bytes out;
        out.add(memory.get<float>(wide));
        out.add(memory.get<bf16>(narrow));
        return out;
      });
    }
  }
}

// ---- tiles --------------------------------------------------------------------------------------------

// The bytes of a packed matrix as tiles, whichever layout the backend has.
Bytes as_tiles(Memory& memory, const PackedView& w) {
  auto codes = memory.get<std::uint8_t>(w.codes);
  auto scales = memory.get<float>(w.absmax);
  if (w.layout == PackedLayout::flat) {
    const auto flat_codes = codes;
    const auto flat_scales = scales;
    flat_to_tiles(w.N, w.K, flat_codes, codes);
    flat_to_tiles(w.N, w.K, flat_scales, scales);
  }
  Bytes out;
  out.add(codes);
  out.add(scales);
  return out;
}

// Packs a matrix in ranges that end at the given elements, in the layout of the backend.
template <class T>
Bytes packed_into_tiles(Backend& backend, Memory& memory, std::int64_t N, std::int64_t K,
                        const std::vector<T>& x, const std::vector<std::int64_t>& ends) {
  const TensorView src = memory.put(x), bad = memory.put<double>({0});
  PackedView w = packed_memory(memory, N, K);
  w.layout = packed_layout(FormatId::nf4, N, K, backend.target());
  std::int64_t begin = 0;
  for (const std::int64_t end : ends) {
    backend.run(Quantize{.src = src.flat(begin, end - begin), .w = w, .first = begin, .bad_index = bad});
    begin = end;
  }
  Bytes out = as_tiles(memory, w);
  out.add(memory.get<double>(bad));
  return out;
}

TEST(SimBits, OfTilesAreThoseOfTheFlatLayoutMoved) {
  ASSERT_EQ(packed_layout(FormatId::nf4, 128, 192, card_backend().target()), PackedLayout::tiles);
  ASSERT_EQ(packed_layout(FormatId::nf4, 128, 192, cpu_with(2).target()), PackedLayout::flat);
  ASSERT_EQ(packed_layout(FormatId::nf4, 128, 96, card_backend().target()), PackedLayout::flat);
  ASSERT_EQ(packed_layout(FormatId::nf4, 96, 128, card_backend().target()), PackedLayout::flat);
  ASSERT_EQ(packed_layout(FormatId::none, 128, 192, card_backend().target()), PackedLayout::flat);
  struct Sizes {
    std::int64_t N, K;
  };
  for (const auto& [N, K] : {Sizes{64, 64}, {128, 192}, {192, 64}}) {
    const std::int64_t elems = N * K;
    for (const bool spoiled : {false, true}) {
      auto x = hostile(static_cast<size_t>(elems), 15);
      if (spoiled) x[static_cast<size_t>(elems - 700)] = kNan, x[1000] = -kInf;
      // Whole, by rows of tiles, within rows of the matrix; the last leaves the end as it was.
      for (const std::vector<std::int64_t>& ends : {std::vector<std::int64_t>{elems},
                                                    {64 * K, elems},
                                                    {64, 1024, 30 * K, elems - 128, elems},
                                                    {elems - 64}}) {
        expect_the_same_bits(fmt::format("{} x {} in {} ranges", N, K, ends.size()),
                             [&](Backend& backend, Memory& memory) {
                               return packed_into_tiles(backend, memory, N, K, x, ends);
                             });
        expect_the_same_bits(fmt::format("{} x {} of bf16 in {} ranges", N, K, ends.size()),
                             [&](Backend& backend, Memory& memory) {
                               return packed_into_tiles(backend, memory, N, K, rounded(x), ends);
                             });
      }
    }
  }
}

TEST(SimBits, OfWeightsUnpackedFromTilesAreThoseOfTheFlatLayout) {
  const std::int64_t N = 128, K = 192, elems = N * K;
  const auto x = hostile(static_cast<size_t>(elems), 16);
  for (const std::int64_t first : {std::int64_t{0}, std::int64_t{64}, 64 * K, 70 * K + 128}) {
    for (const std::int64_t count : {elems - first, std::int64_t{64}, 5 * K}) {
      expect_the_same_bits(fmt::format("{} from {}", count, first), [&](Backend& backend, Memory& memory) {
        Packed<Nf4> packed(x);
        PackedView w = packed_memory(memory, N, K);
        w.layout = packed_layout(FormatId::nf4, N, K, backend.target());
        std::vector<std::uint8_t> codes(packed.code_span().begin(), packed.code_span().end());
        std::vector<float> scales(packed.absmax_span().begin(), packed.absmax_span().end());
        if (w.layout == PackedLayout::tiles) {
          flat_to_tiles(N, K, packed.code_span(), codes);
          flat_to_tiles(N, K, packed.absmax_span(), scales);
        }
        backend.upload(std::as_bytes(std::span(codes)), w.codes);
        backend.upload(std::as_bytes(std::span(scales)), w.absmax);
        const TensorView wide = memory.room<float>(count), narrow = memory.room<bf16>(count);
        backend.run(Dequantize{.w = w, .first = first, .dst = wide});
        backend.run(Dequantize{.w = w, .first = first, .dst = narrow});
        Bytes out;
        out.add(memory.get<float>(wide));
        out.add(memory.get<bf16>(narrow));
        return out;
      });
    }
  }
}

TEST(CpuBackend, RefusesMatricesInTiles) {
  Memory memory(cpu_with(1));
  PackedView w = packed_memory(memory, 64, 64);
  w.layout = PackedLayout::tiles;
  const TensorView weights = memory.room<float>(64 * 64), bad = memory.put<double>({0});
  EXPECT_THROW(cpu_with(1).run(Quantize{.src = weights, .w = w, .bad_index = bad}), DTypeError);
  EXPECT_THROW(cpu_with(1).run(Dequantize{.w = w, .dst = weights}), DTypeError);
  const TensorView xy = memory.room<float>(2 * 64);
  TensorView x(xy.data, DType::f32, {1, 64}), y(xy.data + 64 * 4, DType::f32, {1, 64});
  EXPECT_THROW(cpu_with(1).run(PackedMatmul{.x = x, .w = w, .y = y}), DTypeError);
}

// ---- AdamW --------------------------------------------------------------------------------------------

AdamHyper hyper_of_step(std::int64_t t) { return adam_hyper(1e-3, 0.9, 0.999, 1e-8, 1e-2, t); }

// The params tensor as kernels/ops.h lays it out; only the group `head` has its constants.
std::vector<float> step_params(const AdamHyper& h, float grad_scale, bool skip = false) {
  std::vector<float> params(kStepParamFloats, 0.0f);
  params[0] = grad_scale;
  params[1] = skip ? 1.0f : 0.0f;
  const float values[] = {h.s, h.ceps, h.decay, h.beta1, h.one_minus_beta1, h.beta2, h.one_minus_beta2};
  std::ranges::copy(values, params.begin() + 4 + 8 * static_cast<int>(ParamGroup::head));
  return params;
}

template <class G>
Bytes plain_step(Backend& backend, Memory& memory, const std::vector<G>& g,
                 const std::vector<float>& params) {
  auto v = hostile(g.size(), 3);
  for (float& value : v) value = value * value;
  AdamW op{.master = memory.put(hostile(g.size(), 1)),
           .grad = memory.put(g),
           .m = memory.put(scaled(hostile(g.size(), 2), 0.01f)),
           .v = memory.put(v),
           .params = memory.put(params),
           .group = ParamGroup::head};
  backend.run(op);
  Bytes out;
  for (const TensorView& view : {op.master, op.m, op.v}) out.add(memory.get<float>(view));
  return out;
}

TEST(SimBits, OfAdamWAreThoseOfTheCpuOnHostileGradientsOfEverySizeAndBothDtypes) {
  for (const size_t n : {1u, 3u, 8u, 17u, 1000u, 16385u}) {
    const auto g = rounded_through_bf16(hostile(n, 4));
    const auto params = step_params(hyper_of_step(9), 1.7f);
    const auto run = [&](const auto& gradient) {
      return [&](Backend& backend, Memory& memory) { return plain_step(backend, memory, gradient, params); };
    };
    const auto narrow = rounded(g);
    expect_the_same_bits(fmt::format("{} elements", n), run(g));
    expect_the_same_bits(fmt::format("{} elements, bf16", n), run(narrow));
  }
}

// Steps of AdamW8 from random weights and empty moments, each in slabs that end at the given elements.
template <class G>
Bytes steps8(Backend& backend, Memory& memory, const std::vector<std::vector<G>>& gradients,
             const std::vector<std::vector<float>>& params, std::vector<std::int64_t> slab_ends = {}) {
  const size_t n = gradients[0].size(), blocks = (n + 255) / 256;
  const TensorView p = memory.put(hostile(n, 1)),
                   mc = memory.put(std::vector<std::uint8_t>(n, FirstMoment::kZeroCode)),
                   vc = memory.put(std::vector<std::uint8_t>(n, SecondMoment::kZeroCode)),
                   ma = memory.put(std::vector<float>(blocks)), va = memory.put(std::vector<float>(blocks));
  Bytes out;
  for (size_t t = 0; t < gradients.size(); ++t) {
    const TensorView g = memory.put(gradients[t]), step = memory.put(params[t]);
    run_in_slabs(backend,
                 {.master = p,
                  .grad = g,
                  .m_codes = mc,
                  .v_codes = vc,
                  .m_absmax = ma,
                  .v_absmax = va,
                  .params = step,
                  .group = ParamGroup::head},
                 slab_ends);
    for (const TensorView& view : {p, ma, va}) out.add(memory.get<float>(view));
    for (const TensorView& view : {mc, vc}) out.add(memory.get<std::uint8_t>(view));
  }
  return out;
}

TEST(SimBits, OfAdamW8AreThoseOfTheCpuOnHostileGradientsOfEverySizeAndBothDtypes) {
  for (const size_t n : {1u, 3u, 127u, 130u, 255u, 256u, 257u, 1000u, 10'000u}) {
    std::vector<std::vector<float>> g, params;
    std::vector<std::vector<bf16>> narrow;
    for (std::int64_t t = 1; t <= 4; ++t) {
      g.push_back(rounded_through_bf16(hostile(n, static_cast<std::uint64_t>(10 + t))));
      narrow.push_back(rounded(g.back()));
      params.push_back(step_params(hyper_of_step(t), 0.37f, t == 3));  // the third step is skipped
    }
    expect_the_same_bits(fmt::format("{} elements", n), [&](Backend& backend, Memory& memory) {
      return steps8(backend, memory, g, params);
    });
    expect_the_same_bits(fmt::format("{} elements, bf16", n), [&](Backend& backend, Memory& memory) {
      return steps8(backend, memory, narrow, params);
    });
  }
}

TEST(SimBits, OfAdamW8AreThoseOfTheCpuAtEveryThresholdOfTheCodes) {
  for (const float scale :
       {1.0f, 0x1p-149f, 0x1p-130f, 0x1p-66f, 0x1p-60f, 0x1p60f, 1.3e19f, 0x1.8p126f, 3.4e38f}) {
    const AdamHyper copy{.s = 0,
                         .ceps = 1,
                         .decay = 1,
                         .one_minus_beta1 = 1,
                         .one_minus_beta2 = scale < 0x1p64f ? 1.0f : 0.0f};
    const auto g = gradients_at_thresholds(scale);
    expect_the_same_bits(fmt::format("scale {}", scale), [&](Backend& backend, Memory& memory) {
      return steps8<float>(backend, memory, {g}, {step_params(copy, 1.0f)});
    });
  }
}

TEST(SimBits, OfAdamW8DoNotDependOnTheSlabs) {
  const auto g = hostile(20 * 256 + 77, 5);
  const std::int64_t end = 20 * 256 + 77;
  const auto params = step_params(hyper_of_step(2), 1.0f);
  for (const std::vector<std::int64_t>& ends :
       {std::vector<std::int64_t>{256, 512, end}, {19 * 256, end}, {20 * 256, end}}) {
    const auto in_slabs = [&](const std::vector<std::int64_t>& slabs, Backend& backend) {
      Memory memory(backend);
      return steps8<float>(backend, memory, {g}, {params}, slabs);
    };
    EXPECT_EQ(in_slabs(ends, card_backend()).difference(in_slabs({}, cpu_with(2))), -1);
  }
}

}  // namespace
}  // namespace qt::test
