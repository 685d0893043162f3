// Bits that the cpu backend promises of f16, of dropout and of sums over rows: those of plain scalar code, on
// every instruction set and for any number of threads; and how far the vector GELU strays on each of them.
#include <algorithm>
#include <bit>
#include <cmath>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "kernels/scratch.h"
#include "tests/oracle/gelu.h"
#include "tests/support/setups.h"

namespace qt::test {
namespace {

template <class To, class From>
std::vector<To> op_cast(Backend& backend, const std::vector<From>& x) {
  Memory memory(backend);
  const TensorView y = memory.room<To>(static_cast<std::int64_t>(x.size()));
  backend.run(Cast{.x = memory.put(x), .y = y});
  return memory.get<To>(y);
}

template <class Op>
TensorView scratch_of(Memory& memory, Backend& backend, const Op& op) {
  const std::int64_t bytes = scratch_bytes(op, backend.target());
  return TensorView(memory.room<double>((bytes + 7) / 8).data, DType::u8, {bytes});
}

std::vector<f16> to_halves(const std::vector<float>& x) {
  std::vector<f16> y;
  for (const float v : x) y.push_back(to_f16(v));
  return y;
}

TEST(HalfBits, OfWideningAreThoseOfTheScalarFunctionForEveryHalf) {
  std::vector<f16> all;
  for (std::uint32_t bits = 0; bits < 65536; ++bits) all.push_back(f16{static_cast<std::uint16_t>(bits)});
  on_every_setup([&](Backend& backend) {
    const auto wide = op_cast<float>(backend, all);
    for (std::size_t i = 0; i < all.size(); ++i) {
      if (std::isnan(to_float(all[i]))) {
        ASSERT_TRUE(std::isnan(wide[i])) << i;  // instructions quiet a signalling NaN
      } else {
        ASSERT_EQ(std::bit_cast<std::uint32_t>(wide[i]), std::bit_cast<std::uint32_t>(to_float(all[i]))) << i;
      }
    }
  });
}

TEST(HalfBits, OfNarrowingAreThoseOfTheScalarFunctionForFloatsOfEveryKind) {
  std::mt19937 random(3);
  std::vector<float> x = {0.0f,
                          -0.0f,
                          65504.0f,
                          65519.996f,
                          65520.0f,
                          -65520.0f,
                          0x1p-14f,
                          0x1p-24f,
                          0x1p-25f,
                          -0x1p-25f,
                          0x1.000002p-25f,
                          0x1.8p-24f,
                          kInf,
                          -kInf,
                          kNan,
                          -kNan,
                          std::bit_cast<float>(0x7F800001u),
                          std::bit_cast<float>(0xFFC12345u),
                          0x1p-149f,
                          0x1.fffffep127f};
  for (int i = 0; i < 100'000; ++i) {
    x.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
    // Near the range of f16, where there is something to round.
    const auto bits = static_cast<std::uint32_t>(random());
    x.push_back(std::ldexp(1 + static_cast<float>(bits >> 9) * 0x1p-23f, static_cast<int>(bits % 46) - 28));
  }
  const auto want = to_halves(x);
  on_every_setup([&](Backend& backend) { EXPECT_TRUE(same_bits(op_cast<f16>(backend, x), want)); });
}

TEST(DropoutBits, AreThoseOfOneDrawPerElementHoweverTheTensorIsCut) {
  const RngStream rng{.seed = 77, .purpose = RngPurpose::dropout, .stream = 5};
  const float rate = 0.3f;
  const auto x = normal(5003, 1);
  const std::int64_t first = (std::int64_t{1} << 34) - 2001;  // the block counter passes 2^32 on the way
  std::vector<float> want;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const std::uint32_t draw = rng_u32(rng, static_cast<std::uint64_t>(first) + i);
    const bool drops = static_cast<double>(draw) < static_cast<double>(rate) * 0x1p32;
    want.push_back(drops ? 0.0f : x[i] * static_cast<float>(1 / (1 - static_cast<double>(rate))));
  }
  on_every_setup([&](Backend& backend) {
    for (const std::int64_t cut : {5003, 1, 2002}) {
      Memory memory(backend);
      const TensorView in = memory.put(x), out = memory.room<float>(in.elems());
      for (const auto& [begin, end] : {std::pair{std::int64_t{0}, cut}, std::pair{cut, in.elems()}}) {
        if (begin == end) continue;
        backend.run(Dropout{.x = in.flat(begin, end - begin),
                            .y = out.flat(begin, end - begin),
                            .rate = rate,
                            .rng = rng,
                            .first_element = first + begin});
      }
      EXPECT_TRUE(same_bits(memory.get<float>(out), want)) << cut;
    }
  });
}

// Blocks of max(16, ceil(M / 64)) rows, each from its first row on, then the blocks, then what was there.
TEST(ColumnSumBits, AreThoseOfTheBlocksOfRows) {
  for (const std::int64_t M : {1, 16, 17, 1000, 1025, 2050}) {
    const std::int64_t N = 37, rows = std::max<std::int64_t>(16, (M + 63) / 64);
    const auto x = hostile(static_cast<std::size_t>(M * N), 4),
               before = normal(static_cast<std::size_t>(N), 5);
    std::vector<float> want = before;
    for (std::int64_t n = 0; n < N; ++n) {
      float total = 0;
      for (std::int64_t begin = 0; begin < M; begin += rows) {
        float sum = x[static_cast<std::size_t>(begin * N + n)];
        for (std::int64_t m = begin + 1; m < std::min(M, begin + rows); ++m)
          sum += x[static_cast<std::size_t>(m * N + n)];
        total = begin == 0 ? sum : total + sum;
      }
      want[static_cast<std::size_t>(n)] += total;
    }
    on_every_setup([&](Backend& backend) {
      Memory memory(backend);
      ColumnSum op{.x = memory.put(x).reshape({M, N}), .out = memory.put(before)};
      op.scratch = scratch_of(memory, backend, op);
      backend.run(op);
      EXPECT_TRUE(same_bits(memory.get<float>(op.out), want)) << M;
    });
  }
}

TEST(PositionBits, AreThoseOfTheRowsOfTheBatchInOrder) {
  const std::int64_t B = 5, T = 33, C = 21;
  const auto dy = hostile(static_cast<std::size_t>(B * T * C), 6);
  const auto before = normal(static_cast<std::size_t>(T * C), 7);
  std::vector<float> want = before;
  for (std::size_t i = 0; i < want.size(); ++i) {
    float sum = dy[i];
    for (std::size_t at = i + want.size(); at < dy.size(); at += want.size()) sum += dy[at];
    want[i] += sum;
  }
  on_every_setup([&](Backend& backend) {
    Memory memory(backend);
    PositionBwd op{
        .dy = memory.put(dy).reshape({B * T, C}), .dpositions = memory.put(before).reshape({T, C}), .T = T};
    backend.run(op);
    EXPECT_TRUE(same_bits(memory.get<float>(op.dpositions.flat()), want));
  });
}

// A sweep much denser than that of the proofs, so that the stated error of the tail is known where fused
// multiply-adds are missing too.
TEST(GeluAccuracy, HoldsForADenseSweepOnEveryInstructionSet) {
  std::vector<float> x;
  for (int i = 0; i < 300'000; ++i) x.push_back(-14.0f + static_cast<float>(i) * 7.3e-5f);
  const auto n = static_cast<std::int64_t>(x.size());
  for (const std::int64_t target : hwy::SupportedAndGeneratedTargets()) {
    const PinnedTarget pinned(target);
    Backend& backend = cpu_with(2);
    Memory memory(backend);
    const TensorView in = memory.put(x).reshape({1, n}), y = memory.room<float>(n).reshape({1, n}),
                     one = memory.put(std::vector<float>(x.size(), 1)).reshape({1, n}),
                     dx = memory.room<float>(n).reshape({1, n});
    backend.run(GeluFwd{.x = in, .y = y});
    backend.run(GeluBwd{.x = in, .dy = one, .dx = dx});
    const auto forward = memory.get<float>(y.flat()), backward = memory.get<float>(dx.flat());
    double worst = 0, worst_slope = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
      const oracle::Tracked at(static_cast<double>(x[i]));
      const auto ratio = [](float got, const oracle::Tracked& want) {
        return std::abs(static_cast<double>(got) - want.value) / want.error;
      };
      worst = std::max(worst, ratio(forward[i], oracle::gelu(at)));
      worst_slope =
          std::max(worst_slope, ratio(backward[i], oracle::gelu_backward(at, oracle::Tracked(1.0))));
    }
    EXPECT_LE(worst, 1) << hwy::TargetName(target);
    EXPECT_LE(worst_slope, 1) << hwy::TargetName(target);
    EXPECT_GT(worst, 0.3) << "the bound says little";
  }
}

}  // namespace
}  // namespace qt::test
