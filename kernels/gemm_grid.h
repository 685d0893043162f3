// How the cpu backend cuts a matrix product into tasks. The cut depends on the shape alone, never on the
// number of threads, so that results do not either; scratch_bytes() and the implementation both ask here.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "kernels/ops.h"

namespace qt {

// c[M, N] = a[M, R] b[R, N]; R is the dimension that is summed over.
struct GemmShape {
  std::int64_t M = 0;
  std::int64_t N = 0;
  std::int64_t R = 0;
};

// Tiles of tile_m x tile_n outputs, one task each. With pieces > 1 every tile is computed once per piece of
// R, in f32 in scratch, and the pieces are added in ascending order afterwards.
struct GemmGrid {
  std::int64_t tile_m = 0;
  std::int64_t tile_n = 0;
  std::int64_t pieces = 1;
  std::int64_t piece_r = 0;  // length of a piece; the last may be shorter

  std::int64_t tiles_m(const GemmShape& s) const { return (s.M + tile_m - 1) / tile_m; }
  std::int64_t tiles_n(const GemmShape& s) const { return (s.N + tile_n - 1) / tile_n; }
  std::int64_t scratch_bytes(const GemmShape& s) const { return pieces > 1 ? pieces * s.M * s.N * 4 : 0; }
};

inline GemmShape gemm_shape(const Matmul& op) {
  const bool tn = op.layout == GemmLayout::tn;
  return {.M = op.c.dim(0), .N = op.c.dim(1), .R = op.a.dim(tn ? 0 : 1)};
}

// Large tiles run nearer to the peak and expand a packed operand less often; small ones feed more threads.
// The first entry that gives kEnoughTasks is taken: two tasks for each of eight threads. A sum over tokens
// (tn) is long and its output small: there R is split before tiles get tiny. Packed products are never tn, so
// they need no scratch.
inline GemmGrid cpu_gemm_grid(const GemmShape& s, GemmLayout layout) {
  constexpr std::int64_t kEnoughTasks = 16, kMaxPieces = 8, kMinPiece = 512, kPieceStep = 64;
  constexpr std::array<std::array<std::int64_t, 2>, 6> kTiles = {
      {{512, 256}, {256, 256}, {256, 128}, {128, 128}, {128, 64}, {64, 64}}};
  const bool tn = layout == GemmLayout::tn;
  const std::size_t last = tn ? 2 : kTiles.size() - 1;
  GemmGrid grid{.piece_r = s.R};
  for (std::size_t i = 0; i <= last; ++i) {
    grid.tile_m = std::min(kTiles[i][0], s.M);
    grid.tile_n = std::min(kTiles[i][1], s.N);
    if (grid.tiles_m(s) * grid.tiles_n(s) >= kEnoughTasks) break;
  }
  const std::int64_t tiles = grid.tiles_m(s) * grid.tiles_n(s);
  const std::int64_t wanted = std::min({kMaxPieces, (kEnoughTasks + tiles - 1) / tiles, s.R / kMinPiece});
  if (tn && wanted > 1) {
    grid.piece_r = ((s.R + wanted - 1) / wanted + kPieceStep - 1) / kPieceStep * kPieceStep;
    grid.pieces = (s.R + grid.piece_r - 1) / grid.piece_r;
  }
  return grid;
}

}  // namespace qt
