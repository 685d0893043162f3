// The bank counter of the simulator: turns that an access of a warp takes, against what shared memory of 32
// banks of 4 bytes must need, by hand.
#include <array>

#include <gtest/gtest.h>

#include "tests/support/sim_rig.h"

namespace qt::test {
namespace {

using cuda::lane_id;
using cuda::SharedMemory;

constexpr int kBytes = 32 * 128;

// Lanes [first, last) read a vector each, `stride` bytes apart; from lane 8 on `jump` bytes further.
template <class T, class V>
__global__ void stride_kernel(int stride, int first, int last, int jump) {
  SharedMemory memory;
  const auto tile = memory.take<T>(kBytes / static_cast<int>(sizeof(T)));
  for (int i = lane_id(); i < kBytes / static_cast<int>(sizeof(T)); i += 32) tile.write(i, T{});
  __syncwarp();
  const int lane = lane_id();
  if (lane >= first && lane < last)
    tile.template read_as<V>((lane * stride + (lane < 8 ? 0 : jump)) / static_cast<int>(sizeof(T)));
}

struct Turns {
  std::int64_t turns, conflicts;
};

bool operator==(const Turns& a, const Turns& b) { return a.turns == b.turns && a.conflicts == b.conflicts; }
void PrintTo(const Turns& t, std::ostream* os) {
  *os << t.turns << " turns, " << t.conflicts << " conflicts";
}

// Of the read alone: the filling loop before it is another place.
template <class T, class V = T>
Turns read_turns(int stride, int first = 0, int last = 32, int jump = 0) {
  const sim::BankCounter counter;
  run_kernel({"stride_kernel", 1, 32, kBytes}, stride_kernel<T, V>, stride, first, last, jump);
  const auto sites = counter.sites();
  EXPECT_EQ(sites.size(), 2u);
  const sim::BankSite& fill = sites[0].accesses > sites[1].accesses ? sites[0] : sites[1];
  const sim::BankSite& read = sites[0].accesses > sites[1].accesses ? sites[1] : sites[0];
  EXPECT_EQ(fill.conflicts(), 0);
  EXPECT_EQ(read.accesses, 1);
  EXPECT_NE(read.place.find("test_sim_banks.cpp:"), std::string::npos);
  EXPECT_EQ(counter.conflicts(), read.conflicts());
  return {read.turns, read.conflicts()};
}

TEST(Banks, OfFourByteAccessesServeAWarpInOneTurn) {
  EXPECT_EQ(read_turns<float>(4), (Turns{1, 0}));
  EXPECT_EQ(read_turns<float>(0), (Turns{1, 0}));  // one word for all
  EXPECT_EQ(read_turns<float>(8), (Turns{2, 1}));
  EXPECT_EQ(read_turns<float>(12), (Turns{1, 0}));  // an odd number of words
  EXPECT_EQ(read_turns<float>(64), (Turns{16, 15}));
  EXPECT_EQ(read_turns<float>(124), (Turns{1, 0}));
}

TEST(Banks, OfTwoByteAccessesShareWords) {
  EXPECT_EQ(read_turns<bf16>(2), (Turns{1, 0}));
  EXPECT_EQ(read_turns<bf16>(4), (Turns{1, 0}));
  EXPECT_EQ(read_turns<bf16>(8), (Turns{2, 1}));
}

TEST(Banks, OfEightByteAccessesServeHalfAWarpInOneTurn) {
  EXPECT_EQ((read_turns<float, float2>(8)), (Turns{2, 0}));
  EXPECT_EQ((read_turns<float, float2>(16)), (Turns{4, 2}));
  EXPECT_EQ((read_turns<float, float2>(64)), (Turns{16, 14}));
}

TEST(Banks, OfSixteenByteAccessesServeAQuarterOfAWarpInOneTurn) {
  EXPECT_EQ((read_turns<float, float4>(16)), (Turns{4, 0}));
  EXPECT_EQ((read_turns<float, float4>(32)), (Turns{8, 4}));
  EXPECT_EQ((read_turns<float, float4>(48)), (Turns{4, 0}));
}

TEST(Banks, ServeTheQuartersOfAWarpApartWhoeverStaysAway) {
  // Lanes 4 to 11: two quarters, which may use the same banks.
  EXPECT_EQ((read_turns<float, float4>(16, 4, 12, 64)), (Turns{2, 0}));
  EXPECT_EQ((read_turns<float, float4>(128, 4, 8)), (Turns{4, 3}));
}

template <bool kSwizzled>
__global__ void matrix_rows_kernel(int pitch) {
  SharedMemory memory;
  const auto tile = memory.take<bf16>(kBytes / 2);
  for (int i = lane_id(); i < kBytes / 2; i += 32) tile.write(i, bf16{});
  __syncwarp();
  std::uint32_t r[4];
  const int row = lane_id(), piece = kSwizzled ? row % 8 : 0;
  cuda::ldmatrix_x4(r, tile, row * pitch + piece * 8);
}

template <bool kSwizzled>
std::int64_t matrix_conflicts(int pitch) {
  const sim::BankCounter counter;
  run_kernel({"matrix_rows_kernel", 1, 32, kBytes}, matrix_rows_kernel<kSwizzled>, pitch);
  return counter.conflicts();
}

TEST(Banks, OfMatrixRowsWantEightRowsInEightDifferentPlaces) {
  EXPECT_EQ(matrix_conflicts<false>(8), 0);       // row behind row
  EXPECT_EQ(matrix_conflicts<false>(64), 4 * 7);  // rows of 128 bytes start in the same bank
  EXPECT_EQ(matrix_conflicts<true>(64), 0);       // swizzled
  EXPECT_EQ(matrix_conflicts<false>(32), 4 * 3);
  EXPECT_EQ(matrix_conflicts<false>(40), 0);  // padded
}

TEST(Banks, AreCountedByOneListenerAtATimeAndNotWithoutOne) {
  EXPECT_FALSE(sim::counting_banks());
  {
    const sim::BankCounter counter;
    EXPECT_THROW(sim::BankCounter(), sim::SimError);
    EXPECT_TRUE(sim::counting_banks());
  }
  EXPECT_FALSE(sim::counting_banks());
}

}  // namespace
}  // namespace qt::test
