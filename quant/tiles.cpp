#include "quant/tiles.h"

#include <array>

#include "src/core/error.h"

namespace qt {

namespace {

// Of the 32 bytes of each row of a tile, in the order of the flat layout, their places in the tile.
constexpr auto kPlaces = [] {
  std::array<std::array<std::uint16_t, kTileSide / 2>, kTileSide> places{};
  for (int n = 0; n < kTileSide; ++n) {
    for (int k = 0; k < kTileSide; k += 2)
      places[static_cast<std::size_t>(n)][static_cast<std::size_t>(k / 2)] =
          static_cast<std::uint16_t>(tile_byte(n, k));
  }
  return places;
}();

// Calls block(row of its tile, flat block, tile) for every block of 64 along a row.
template <class Block>
void for_each_block(std::int64_t N, std::int64_t K, Block block) {
  const std::int64_t tiles_per_row = K / kTileSide;
  for (std::int64_t n = 0; n < N; ++n) {
    for (std::int64_t column = 0; column < tiles_per_row; ++column) {
      block(static_cast<std::size_t>(n % kTileSide), static_cast<std::size_t>(n * tiles_per_row + column),
            static_cast<std::size_t>(n / kTileSide * tiles_per_row + column));
    }
  }
}

// move(flat byte, tile byte) for every byte of codes.
template <class Move>
void for_each_code(std::int64_t N, std::int64_t K, Move move) {
  for_each_block(N, K, [&](std::size_t row, std::size_t block, std::size_t tile) {
    const auto& places = kPlaces[row];
    for (std::size_t k = 0; k < places.size(); ++k)
      move(block * places.size() + k, tile * kTileCodeBytes + places[k]);
  });
}

// move(flat, tile) for every scale.
template <class Move>
void for_each_scale(std::int64_t N, std::int64_t K, Move move) {
  for_each_block(N, K, [&](std::size_t row, std::size_t block, std::size_t tile) {
    move(block, tile * kTileSide + row);
  });
}

void check_sizes(std::int64_t N, std::int64_t K, const char* what, std::int64_t want,
                 std::initializer_list<std::size_t> sizes) {
  QT_CHECK(N >= 0 && K >= 0 && can_be_tiled(N, K), ShapeError,
           "a matrix of {} x {} has no tiles: both must be multiples of {}", N, K, kTileSide);
  for (const std::size_t size : sizes) {
    QT_CHECK(static_cast<std::int64_t>(size) == want, ShapeError, "{} {} for a matrix of {} x {}", size, what,
             N, K);
  }
}

void check_codes(std::int64_t N, std::int64_t K, std::size_t from, std::size_t to) {
  check_sizes(N, K, "bytes of codes", N * K / 2, {from, to});
}
void check_scales(std::int64_t N, std::int64_t K, std::size_t from, std::size_t to) {
  check_sizes(N, K, "scales", N * K / kTileSide, {from, to});
}

}  // namespace

void flat_to_tiles(std::int64_t N, std::int64_t K, std::span<const std::uint8_t> flat_codes,
                   std::span<std::uint8_t> tile_codes) {
  check_codes(N, K, flat_codes.size(), tile_codes.size());
  for_each_code(N, K, [&](std::size_t flat, std::size_t tile) { tile_codes[tile] = flat_codes[flat]; });
}

void flat_to_tiles(std::int64_t N, std::int64_t K, std::span<const TileScale> flat_scales,
                   std::span<TileScale> tile_scales) {
  check_scales(N, K, flat_scales.size(), tile_scales.size());
  for_each_scale(N, K, [&](std::size_t flat, std::size_t tile) { tile_scales[tile] = flat_scales[flat]; });
}

void tiles_to_flat(std::int64_t N, std::int64_t K, std::span<const std::uint8_t> tile_codes,
                   std::span<std::uint8_t> flat_codes) {
  check_codes(N, K, tile_codes.size(), flat_codes.size());
  for_each_code(N, K, [&](std::size_t flat, std::size_t tile) { flat_codes[flat] = tile_codes[tile]; });
}

void tiles_to_flat(std::int64_t N, std::int64_t K, std::span<const TileScale> tile_scales,
                   std::span<TileScale> flat_scales) {
  check_scales(N, K, tile_scales.size(), flat_scales.size());
  for_each_scale(N, K, [&](std::size_t flat, std::size_t tile) { flat_scales[flat] = tile_scales[tile]; });
}

}  // namespace qt
