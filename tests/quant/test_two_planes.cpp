// A format that no production file knows (tests/support/two_planes.h) through everything that a weight goes
// through: packing, unpacking, the products of the forward and the backward pass; on the cpu and, flat, by the
// kernels for a card, on both routes.
#include <limits>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "kernels/cuda_entry.h"
#include "kernels/scratch.h"
#include "quant/format.h"
#include "quant/packed.h"
#include "tests/support/setups.h"

namespace qt::test {
namespace {

using std::size_t;

struct Sizes {
  std::int64_t N, K;
};
// Whole blocks a row; rows that begin within a block; rows that begin within a group, and a partial last one.
constexpr Sizes kSizes[] = {{128, 192}, {40, 72}, {33, 50}};

// run(backend, alignment) for the cpu and for a card's kernels by either route, at addresses of either kind.
template <class Fn>
void on_every_route(Fn&& run) {
  const auto fn = [&](Backend& backend) {
    for (const Alignment alignment : {Alignment::least, Alignment::whole_lines}) {
      SCOPED_TRACE(alignment == Alignment::least ? "least aligned" : "whole lines");
      run(backend, alignment);
    }
  };
  {
    SCOPED_TRACE("cpu");
    fn(cpu_with(2));
  }
  for (const GemmRoute route : {GemmRoute::fused, GemmRoute::scratch}) {
    SCOPED_TRACE(route == GemmRoute::fused ? "fused" : "scratch");
    Target target = cuda_target(86);
    target.gemm = route;
    fn(*make_cuda_backend(target));
  }
}

// What the reference packs.
struct Reference {
  std::vector<std::uint8_t> codes;
  std::vector<TwoPlanes::Scale> scales;

  template <class T>
  explicit Reference(const std::vector<T>& x)
      : codes(static_cast<size_t>(code_bytes(TwoPlanes::kId, static_cast<std::int64_t>(x.size()))), 0xA5),
        scales(static_cast<size_t>(scale_count(TwoPlanes::kId, static_cast<std::int64_t>(x.size()))), 0xA5) {
    TwoPlanes::quantize(std::span<const T>(x), codes.data(), scales.data());
  }

  template <class T>
  std::vector<T> weights(std::int64_t first, std::int64_t count) const {
    std::vector<T> w(static_cast<size_t>(count));
    TwoPlanes::dequantize(codes.data(), scales.data(), first, std::span<T>(w));
    return w;
  }
};

PackedView view_of(Memory& memory, const Sizes& size, const std::vector<std::uint8_t>& codes,
                   const std::vector<TwoPlanes::Scale>& scales) {
  return {.format = TwoPlanes::kId,
          .N = size.N,
          .K = size.K,
          .codes = memory.put(codes),
          .absmax = memory.put(scales)};
}

template <class T>
void expect_packed(Backend& backend, Alignment alignment, const Sizes& size, const std::vector<T>& x) {
  const Reference reference(x);
  Memory memory(backend, 4 << 20, alignment);
  const PackedView w = view_of(memory, size, std::vector<std::uint8_t>(reference.codes.size(), 0xA5),
                               std::vector<TwoPlanes::Scale>(reference.scales.size(), 0xA5));
  const TensorView bad = memory.put<double>({0});
  // In two ranges, the second from a block within the matrix on.
  const auto elems = static_cast<std::int64_t>(x.size());
  const TensorView src = memory.put(x);
  backend.run(Quantize{.src = src.flat(0, 640), .w = w, .bad_index = bad});
  backend.run(Quantize{.src = src.flat(640, elems - 640), .w = w, .first = 640, .bad_index = bad});
  EXPECT_EQ(memory.get<std::uint8_t>(w.codes), reference.codes);
  EXPECT_EQ(memory.get<TwoPlanes::Scale>(w.absmax), reference.scales);
  EXPECT_EQ(memory.get<double>(bad)[0], 0);
}

TEST(TwoPlanes, ArePackedAsTheirReferencePacksThem) {
  on_every_route([](Backend& backend, Alignment alignment) {
    for (const Sizes& size : kSizes) {
      const auto x = hostile(static_cast<size_t>(size.N * size.K), 3);
      expect_packed(backend, alignment, size, x);
      expect_packed(backend, alignment, size, rounded(x));
    }
  });
}

TEST(TwoPlanes, NameTheFirstValueThatIsNotFinite) {
  on_every_route([](Backend& backend, Alignment alignment) {
    auto x = normal(33 * 50, 4);
    x[777] = x[1200] = std::numeric_limits<float>::infinity();
    Memory memory(backend, 4 << 20, alignment);
    const Reference room(x);
    const PackedView w = view_of(memory, {33, 50}, room.codes, room.scales);
    const TensorView bad = memory.put<double>({0});
    backend.run(Quantize{.src = memory.put(x), .w = w, .bad_index = bad});
    EXPECT_EQ(memory.get<double>(bad)[0], 778);
  });
}

template <class T>
void expect_unpacked(Backend& backend, Alignment alignment, const Sizes& size, std::int64_t first,
                     std::int64_t count) {
  const Reference reference(hostile(static_cast<size_t>(size.N * size.K), 5));
  Memory memory(backend, 4 << 20, alignment);
  const PackedView w = view_of(memory, size, reference.codes, reference.scales);
  const TensorView dst = memory.room<T>(count);
  backend.run(Dequantize{.w = w, .first = first, .dst = dst});
  EXPECT_TRUE(same_bits(memory.get<T>(dst), reference.weights<T>(first, count)))
      << size.N << " x " << size.K << ": " << count << " from " << first;
}

TEST(TwoPlanes, AreUnpackedAsTheirReferenceUnpacksThem) {
  on_every_route([](Backend& backend, Alignment alignment) {
    for (const Sizes& size : kSizes) {
      for (const std::int64_t first : {0, 1, 7, 64, 65, 1000}) {
        for (const std::int64_t count : {size.N * size.K - first, std::int64_t{70}}) {
          expect_unpacked<float>(backend, alignment, size, first, count);
          expect_unpacked<bf16>(backend, alignment, size, first, count);
        }
      }
    }
  });
}

// Weights of -1, 0, 1/2 and 1 times a power of two for each block, so that no sum is rounded.
std::vector<float> exact_weights(const Sizes& size) {
  std::vector<float> x(static_cast<size_t>(size.N * size.K));
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t block = i / 64;
    const float code_point = i % 64 == 0 ? 1.0f : TwoPlanes::kCodebook[(i * 7 + i / 5 + block) % 4];
    x[i] = code_point * (block % 3 == 0 ? 2.0f : 1.0f);
  }
  return x;
}

template <class T>
void expect_product(Backend& backend, Alignment alignment, const Sizes& size, GemmLayout layout) {
  constexpr std::int64_t M = 5;
  const std::int64_t R = layout == GemmLayout::nt ? size.K : size.N, cols = size.N + size.K - R;
  const auto weights = exact_weights(size);
  std::vector<T> x, expected;
  for (std::int64_t i = 0; i < M * R; ++i) x.push_back(from_float<T>(static_cast<float>(i * 5 % 7 % 3 - 1)));
  for (std::int64_t m = 0; m < M; ++m) {
    for (std::int64_t c = 0; c < cols; ++c) {
      float sum = 0;
      for (std::int64_t r = 0; r < R; ++r) {
        const std::int64_t at = layout == GemmLayout::nt ? c * size.K + r : r * size.K + c;
        sum += to_float(x[static_cast<size_t>(m * R + r)]) * weights[static_cast<size_t>(at)];
      }
      expected.push_back(from_float<T>(sum));
    }
  }
  const Reference reference(weights);
  ASSERT_TRUE(same_bits(reference.weights<float>(0, size.N * size.K), weights));
  Memory memory(backend, 4 << 20, alignment);
  const TensorView y = memory.room<T>(M * cols), put = memory.put(x);
  PackedMatmul op{.x = TensorView(put.data, put.dtype, {M, R}),
                  .w = view_of(memory, size, reference.codes, reference.scales),
                  .y = TensorView(y.data, y.dtype, {M, cols}),
                  .layout = layout};
  if (const std::int64_t bytes = scratch_bytes(op, backend.target()); bytes > 0)
    op.scratch = TensorView(memory.room<double>((bytes + 7) / 8).data, DType::u8, {bytes});
  backend.run(op);
  EXPECT_TRUE(same_bits(memory.get<T>(y), expected)) << size.N << " x " << size.K;
}

TEST(TwoPlanes, AreMultipliedForwardAndBackward) {
  on_every_route([](Backend& backend, Alignment alignment) {
    for (const Sizes& size : kSizes) {
      for (const GemmLayout layout : {GemmLayout::nt, GemmLayout::nn}) {
        SCOPED_TRACE(layout == GemmLayout::nt ? "nt" : "nn");
        expect_product<float>(backend, alignment, size, layout);
        expect_product<bf16>(backend, alignment, size, layout);
      }
    }
  });
}

TEST(TwoPlanes, AreInTheRegistryAndStayFlat) {
  EXPECT_EQ(format_from_name("two-planes"), TwoPlanes::kId);
  EXPECT_EQ(code_bytes(TwoPlanes::kId, 9), 4);
  EXPECT_EQ(code_bytes(FormatId::nf4, 9), 5);
  EXPECT_EQ(packed_bytes(TwoPlanes::kId, 130), 2 * 17 + 3);
  EXPECT_EQ(format_info(TwoPlanes::kId).bits_per_weight, 2 + 8 / 64.0);
  Memory memory(cpu_with(1));
  const Reference reference(normal(64 * 64, 6));
  PackedView w = view_of(memory, {64, 64}, reference.codes, reference.scales);
  w.check("op", "w");
  w.layout = PackedLayout::tiles;
  EXPECT_THROW(w.check("op", "w"), ShapeError);
}

}  // namespace
}  // namespace qt::test
