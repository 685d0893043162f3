#include "quant/tiles.h"

#include "src/core/error.h"

namespace qt {

namespace {

// Calls code(flat byte, tile byte) for every byte of codes and scale(flat, tile) for every scale.
template <class Code, class Scale>
void for_each_place(std::int64_t N, std::int64_t K, Code code, Scale scale) {
  const std::int64_t tiles_per_row = K / kTileSide;
  for (std::int64_t n = 0; n < N; ++n) {
    for (std::int64_t column = 0; column < tiles_per_row; ++column) {
      const std::int64_t block = n * tiles_per_row + column;
      const std::int64_t tile = n / kTileSide * tiles_per_row + column;
      const int row = static_cast<int>(n % kTileSide);
      scale(static_cast<std::size_t>(block), static_cast<std::size_t>(tile * kTileSide + row));
      for (int k = 0; k < kTileSide; k += 2) {
        code(static_cast<std::size_t>(block * (kTileSide / 2) + k / 2),
             static_cast<std::size_t>(tile * kTileCodeBytes + tile_byte(row, k)));
      }
    }
  }
}

void check_sizes(std::int64_t N, std::int64_t K, std::initializer_list<std::size_t> codes,
                 std::initializer_list<std::size_t> scales) {
  QT_CHECK(N >= 0 && K >= 0 && can_be_tiled(N, K), ShapeError,
           "a matrix of {} x {} has no tiles: both must be multiples of {}", N, K, kTileSide);
  for (const std::size_t size : codes) {
    QT_CHECK(static_cast<std::int64_t>(size) == N * K / 2, ShapeError,
             "{} bytes of codes for a matrix of {} x {}", size, N, K);
  }
  for (const std::size_t size : scales) {
    QT_CHECK(static_cast<std::int64_t>(size) == N * K / kTileSide, ShapeError,
             "{} scales for a matrix of {} x {}", size, N, K);
  }
}

}  // namespace

void flat_to_tiles(std::int64_t N, std::int64_t K, std::span<const std::uint8_t> flat_codes,
                   std::span<const float> flat_scales, std::span<std::uint8_t> tile_codes,
                   std::span<float> tile_scales) {
  check_sizes(N, K, {flat_codes.size(), tile_codes.size()}, {flat_scales.size(), tile_scales.size()});
  for_each_place(
      N, K, [&](std::size_t flat, std::size_t tile) { tile_codes[tile] = flat_codes[flat]; },
      [&](std::size_t flat, std::size_t tile) { tile_scales[tile] = flat_scales[flat]; });
}

void tiles_to_flat(std::int64_t N, std::int64_t K, std::span<const std::uint8_t> tile_codes,
                   std::span<const float> tile_scales, std::span<std::uint8_t> flat_codes,
                   std::span<float> flat_scales) {
  check_sizes(N, K, {flat_codes.size(), tile_codes.size()}, {flat_scales.size(), tile_scales.size()});
  for_each_place(
      N, K, [&](std::size_t flat, std::size_t tile) { flat_codes[flat] = tile_codes[tile]; },
      [&](std::size_t flat, std::size_t tile) { flat_scales[flat] = tile_scales[tile]; });
}

}  // namespace qt
