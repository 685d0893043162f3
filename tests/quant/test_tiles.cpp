// The layout of 4-bit matrices on a card: a permutation of the flat one, at the places its header names,
// with reads free of bank conflicts for both products.
#include <algorithm>
#include <array>
#include <numeric>
#include <set>
#include <vector>

#include <gtest/gtest.h>

#include "quant/nf4.h"
#include "quant/tiles.h"
#include "src/core/error.h"
#include "tests/support/packed_tensor.h"

namespace qt::test {
namespace {

using std::size_t;

struct Matrix {
  std::vector<std::uint8_t> codes;
  std::vector<float> scales;
  bool operator==(const Matrix&) const = default;
};

// Neighbouring bytes and scales all differ from each other.
Matrix numbered(std::int64_t N, std::int64_t K) {
  Matrix m{std::vector<std::uint8_t>(static_cast<size_t>(N * K / 2)),
           std::vector<float>(static_cast<size_t>(N * K / 64))};
  for (size_t i = 0; i < m.codes.size(); ++i) m.codes[i] = static_cast<std::uint8_t>(i * 167 + i / 251);
  std::iota(m.scales.begin(), m.scales.end(), 1.0f);
  return m;
}

Matrix tiled(std::int64_t N, std::int64_t K, const Matrix& flat) {
  Matrix tiles{std::vector<std::uint8_t>(flat.codes.size()), std::vector<float>(flat.scales.size())};
  flat_to_tiles(N, K, flat.codes, tiles.codes);
  flat_to_tiles(N, K, flat.scales, tiles.scales);
  return tiles;
}

Matrix untiled(std::int64_t N, std::int64_t K, const Matrix& tiles) {
  Matrix flat{std::vector<std::uint8_t>(tiles.codes.size()), std::vector<float>(tiles.scales.size())};
  tiles_to_flat(N, K, tiles.codes, flat.codes);
  tiles_to_flat(N, K, tiles.scales, flat.scales);
  return flat;
}

TEST(Tiles, HoldEveryByteOnce) {
  std::set<int> seen;
  for (int n = 0; n < 64; ++n) {
    for (int k = 0; k < 64; k += 2) seen.insert(tile_byte(n, k));
  }
  EXPECT_EQ(seen.size(), static_cast<size_t>(kTileCodeBytes));
  EXPECT_EQ(*seen.begin(), 0);
  EXPECT_EQ(*seen.rbegin(), kTileCodeBytes - 1);
}

TEST(Tiles, HoldElementsWhereTheHeaderSaysSo) {
  struct Place {
    int n, k, byte;
  };
  for (const Place& at : {Place{0, 0, 0},
                          {1, 0, 1},
                          {16, 0, 2},
                          {48, 0, 6},
                          {0, 16, 8},
                          {0, 2, 16},
                          {0, 14, 112},
                          {2, 0, 128 + 64},
                          {4, 0, 256 + 32},
                          {6, 0, 384 + 96},
                          {8, 0, 512},
                          {0, 32, 1024},
                          {5, 36, 1281},
                          {63, 62, 1951}}) {
    EXPECT_EQ(tile_byte(at.n, at.k), at.byte) << at.n << ", " << at.k;
  }
}

TEST(Tiles, FollowOneAnotherAlongARowAndBringTheirScales) {
  const std::int64_t N = 128, K = 192;
  const Matrix flat = numbered(N, K), tiles = tiled(N, K, flat);
  for (const std::int64_t n : {0, 1, 63, 64, 127}) {
    for (const std::int64_t k : {0, 62, 64, 130, 190}) {
      const std::int64_t tile = n / 64 * 3 + k / 64;
      EXPECT_EQ(tiles.codes[static_cast<size_t>(
                    tile * 2048 + tile_byte(static_cast<int>(n % 64), static_cast<int>(k % 64)))],
                flat.codes[static_cast<size_t>((n * K + k) / 2)]);
      EXPECT_EQ(tiles.scales[static_cast<size_t>(tile * 64 + n % 64)],
                flat.scales[static_cast<size_t>(n * 3 + k / 64)]);
    }
  }
}

TEST(Tiles, ComeBackToTheFlatLayoutUnchanged) {
  for (const auto& [N, K] :
       {std::pair<std::int64_t, std::int64_t>{64, 64}, {64, 320}, {256, 64}, {192, 128}}) {
    const Matrix flat = numbered(N, K), tiles = tiled(N, K, flat);
    EXPECT_NE(tiles.codes, flat.codes);
    const Matrix back = untiled(N, K, tiles);
    EXPECT_TRUE(back == flat) << N << " x " << K;
    // The other way round: any bytes are tiles of some matrix.
    EXPECT_TRUE(tiled(N, K, back) == tiles);
  }
}

TEST(Tiles, OfSixtyFourRowsAreOnePieceOfBothLayouts) {
  const std::int64_t N = 192, K = 128;
  const Matrix flat = numbered(N, K), tiles = tiled(N, K, flat);
  for (std::int64_t row = 0; row < N; row += 64) {
    const auto piece_of = [&](const Matrix& whole) {
      const auto codes = whole.codes.begin() + row * K / 2;
      const auto scales = whole.scales.begin() + row * K / 64;
      return Matrix{{codes, codes + 64 * K / 2}, {scales, scales + K}};
    };
    EXPECT_TRUE(tiled(64, K, piece_of(flat)) == piece_of(tiles)) << row;
    EXPECT_TRUE(untiled(64, K, piece_of(tiles)) == piece_of(flat)) << row;
  }
}

TEST(Tiles, AreRefusedForSizesThatTheyDoNotCover) {
  const Matrix m = numbered(64, 128);
  Matrix to = m;
  EXPECT_THROW(flat_to_tiles(32, 256, m.codes, to.codes), ShapeError);
  EXPECT_THROW(flat_to_tiles(32, 256, m.scales, to.scales), ShapeError);
  EXPECT_THROW(tiles_to_flat(256, 32, m.codes, to.codes), ShapeError);
  EXPECT_THROW(tiles_to_flat(256, 32, m.scales, to.scales), ShapeError);
  EXPECT_THROW(flat_to_tiles(64, 64, m.codes, to.codes), ShapeError);
  EXPECT_THROW(flat_to_tiles(64, 64, m.scales, to.scales), ShapeError);
  to.codes.pop_back();
  EXPECT_THROW(tiles_to_flat(64, 128, m.codes, to.codes), ShapeError);
  to.scales.pop_back();
  EXPECT_THROW(flat_to_tiles(64, 128, m.scales, to.scales), ShapeError);
}

// ---- reading for products -----------------------------------------------------------------------------

// Of one 16-byte read per lane, which a card serves eight lanes at a time: how often two lanes of eight want
// different words of the same banks.
int conflicts(const std::array<int, 32>& slot_of_lane) {
  int count = 0;
  for (size_t first = 0; first < 32; first += 8) {
    std::array<int, 8> lanes{};  // at each group of four banks
    for (size_t lane = first; lane < first + 8; ++lane) ++lanes[static_cast<size_t>(slot_of_lane[lane] % 8)];
    for (const int n : lanes) count += std::max(0, n - 1);
  }
  return count;
}

// Lane 4 g + t reads chunks (g, t) and (g, t + 4) for x W^T, (t, g) and (t + 4, g) for dy W, both halves.
template <class SlotOf>
int conflicts_of_a_product(bool transposed, SlotOf slot_of) {
  int count = 0;
  for (const int half : {0, 1}) {
    for (const int beyond : {0, 4}) {
      std::array<int, 32> slots{};
      for (int lane = 0; lane < 32; ++lane) {
        const int g = lane / 4, t = lane % 4 + beyond;
        slots[static_cast<size_t>(lane)] = transposed ? slot_of(half, t, g) : slot_of(half, g, t);
      }
      count += conflicts(slots);
    }
  }
  return count;
}

TEST(Tiles, AreReadWithoutBankConflictsForBothProducts) {
  EXPECT_EQ(conflicts_of_a_product(false, tile_slot), 0);
  EXPECT_EQ(conflicts_of_a_product(true, tile_slot), 0);
  // Without the swizzle both would conflict.
  const auto plain = [](int half, int p, int q) { return 64 * half + 8 * p + q; };
  EXPECT_GT(conflicts_of_a_product(false, plain), 0);
  EXPECT_GT(conflicts_of_a_product(true, plain), 0);
}

}  // namespace
}  // namespace qt::test
