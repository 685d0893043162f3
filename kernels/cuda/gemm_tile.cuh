// The main loop of our matrix products in 16-bit types: c[M, N] = a[M, R] b[R, N] (+ bias), f32 sums.
//
// A block makes a tile of kTile x kTile outputs, 64 steps of R at a time. The rows of a come by cp.async, two
// steps ahead; b comes through a loader: every thread takes what it will write to shared memory into
// registers two steps ahead, and turns it into 16-bit elements while the step before is multiplied. So there
// is one barrier a step, and a loader may do arithmetic (packed weights) without room of its own in shared
// memory.
//
// b is cut into squares of 64 x 64 elements of the matrix it is stored as, [rows][columns] with rows of 128
// bytes. What is summed over are its columns (nt: ldmatrix) or its rows (nn: ldmatrix.trans): both read the
// same bytes. 16-byte units of a row lie at unit ^ (row % 8), which leaves no bank conflicts in either
// direction nor in the copies.
//
// The sum of an output runs over R in ascending order, 16 at a time, whatever the tile: neither the size of
// the tile nor the grid enters a result.
#pragma once

#include <cstdint>

#include "kernels/aligned.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace qt::cuda {

inline constexpr int kSquare = 64;                      // side of a square of b, and the step along R
inline constexpr int kSquareElems = kSquare * kSquare;  // 8 KB
inline constexpr int kUnitElems = 8;                    // of 16 bytes
inline constexpr int kSquareUnits = kSquare / kUnitElems;
inline constexpr int kSquareThreads = 128;  // that load one square together, each in kParts parts
inline constexpr int kParts = 4;            // one before each 16 steps of R

// Element of row `row`, unit `unit` of that row.
__device__ inline int swizzled(int row, int unit) {
  return row * kSquare + (unit ^ (row % kSquareUnits)) * kUnitElems;
}

template <class T>
struct GemmProblem {
  const T* a = nullptr;
  T* c = nullptr;
  const float* bias = nullptr;  // [N] or none
  std::int64_t M = 0, N = 0, R = 0;
  std::int64_t a_pitch = 0, c_pitch = 0;
};

template <int kTile>
struct GemmTile {
  static_assert(kTile == 64 || kTile == 128);
  static constexpr int kSquares = kTile / kSquare;  // of b a step
  static constexpr int kThreads = kSquares * kSquareThreads;
  static constexpr int kBlocksAtOnce = kTile == 128 ? 1 : 2;  // on a multiprocessor, by their shared memory
  static constexpr int kWarpCols = 32;
  static constexpr int kWarpsAcross = kTile / kWarpCols;
  static constexpr int kWarpRows = kTile / (kThreads / kWarpThreads / kWarpsAcross);
  static constexpr int kAStages = 3, kBStages = 2;
  static constexpr int kStageElems = kTile * kSquare;
  static constexpr int kSharedBytes = shared_array_bytes((kAStages + kBStages) * kStageElems, 2);
  static_assert(kSharedBytes <= kMaxSharedBytes);
  static std::int64_t blocks(std::int64_t M, std::int64_t N) {
    return blocks_for(M, kTile) * blocks_for(N, kTile);
  }
};

// Large tiles read less, small ones fill more of a card: large where there are enough for every
// multiprocessor. Either way the same bits.
inline bool large_tiles(std::int64_t M, std::int64_t N, int multiprocessors) {
  return GemmTile<128>::blocks(M, N) >= multiprocessors;
}

// Tiles in groups of eight rows of tiles: blocks that run together then share what they read of a and b.
struct TileAt {
  std::int64_t m, n;
};
__device__ inline TileAt tile_at(std::int64_t block, std::int64_t tiles_m, std::int64_t tiles_n) {
  constexpr std::int64_t kGroup = 8;
  const std::int64_t first_m = block / (kGroup * tiles_n) * kGroup, within = block % (kGroup * tiles_n);
  const std::int64_t rows = tiles_m - first_m < kGroup ? tiles_m - first_m : kGroup;
  return {first_m + within % rows, within / rows};
}

// Elements [0, count) of p as one unit, zeros behind them; count may be anything, also below 0.
template <class T>
__device__ uint4 load_unit(const T* p, std::int64_t count) {
  unsigned pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const unsigned low = 2 * i < count ? p[2 * i].bits : 0u,
                   high = 2 * i + 1 < count ? p[2 * i + 1].bits : 0u;
    pairs[i] = low | high << 16;
  }
  return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// Starts to bring rows [first, first + kTile) of a, columns [r, r + 64), zeros outside of a. kAligned: rows
// begin at multiples of 16 bytes and R is a multiple of 8; else the copy is element by element, and done when
// the function returns.
template <int kTile, bool kAligned, class T>
__device__ void fetch_rows(const GemmProblem<T>& p, std::int64_t first, std::int64_t r,
                           const SharedArray<T>& stage) {
#pragma unroll
  for (int i = 0; i < kTile * kSquareUnits / GemmTile<kTile>::kThreads; ++i) {
    const int at = static_cast<int>(threadIdx.x) + i * GemmTile<kTile>::kThreads;
    const int row = at / kSquareUnits, unit = at % kSquareUnits;
    const std::int64_t m = first + row, column = r + unit * kUnitElems;
    if constexpr (kAligned) {
      const bool valid = m < p.M && column < p.R;
      cp_async16(stage, swizzled(row, unit), valid ? p.a + m * p.a_pitch + column : p.a, valid);
    } else {
      const std::int64_t left = m < p.M ? p.R - column : 0;
      stage.template write_as<uint4>(swizzled(row, unit), load_unit(p.a + m * p.a_pitch + column, left));
    }
  }
}

// What a warp keeps: its part of the tile, as fragments.
template <int kTile>
struct GemmSums {
  static constexpr int kDown = GemmTile<kTile>::kWarpRows / 16, kAcross = GemmTile<kTile>::kWarpCols / 8;
  float c[kDown][kAcross][4] = {};
};

// Adds 16 steps of R, those from 16 * part on, to the sums of this warp. kSumOverRows: of the squares of b.
template <int kTile, bool kSumOverRows, class T>
__device__ void multiply_part(GemmSums<kTile>& sums, int part, const SharedArray<T>& a,
                              const SharedArray<T>& b) {
  using Tile = GemmTile<kTile>;
  const int first_row = warp_id() / Tile::kWarpsAcross * Tile::kWarpRows;
  const int first_col = warp_id() % Tile::kWarpsAcross * Tile::kWarpCols;
  const int matrix = lane_id() / 8,
            row = lane_id() % 8;  // this lane gives ldmatrix the address of this row of this matrix

  std::uint32_t right[Tile::kWarpCols / 16][4];  // two neighbouring fragments of b in each
#pragma unroll
  for (int i = 0; i < Tile::kWarpCols / 16; ++i) {
    const int col = first_col + 16 * i;
    if constexpr (kSumOverRows) {
      const int square = col / kSquare, unit = col % kSquare / kUnitElems + matrix / 2;
      ldmatrix_x4_trans(right[i], b,
                        square * kSquareElems + swizzled(16 * part + matrix % 2 * 8 + row, unit));
    } else {
      ldmatrix_x4(right[i], b, swizzled(col + matrix / 2 * 8 + row, 2 * part + matrix % 2));
    }
  }
#pragma unroll
  for (int down = 0; down < GemmSums<kTile>::kDown; ++down) {
    std::uint32_t left[4];
    ldmatrix_x4(left, a, swizzled(first_row + 16 * down + matrix % 2 * 8 + row, 2 * part + matrix / 2));
#pragma unroll
    for (int across = 0; across < GemmSums<kTile>::kAcross; ++across) {
      const std::uint32_t pair[2] = {right[across / 2][across % 2 * 2],
                                     right[across / 2][across % 2 * 2 + 1]};
      mma_m16n8k16<T>(sums.c[down][across], left, pair);
    }
  }
}

// Adds the bias, rounds once and stores what lies within c.
template <int kTile, class T>
__device__ void store_sums(const GemmProblem<T>& p, const GemmSums<kTile>& sums, const TileAt& at) {
  using Tile = GemmTile<kTile>;
  const std::int64_t first_row =
      at.m * kTile + warp_id() / Tile::kWarpsAcross * Tile::kWarpRows + lane_id() / 4;
  const std::int64_t first_col =
      at.n * kTile + warp_id() % Tile::kWarpsAcross * Tile::kWarpCols + lane_id() % 4 * 2;
  const bool in_pairs = p.c_pitch % 2 == 0 && is_aligned<4>(p.c);
#pragma unroll
  for (int across = 0; across < GemmSums<kTile>::kAcross; ++across) {
    const std::int64_t col = first_col + 8 * across;
    const float low_bias = p.bias != nullptr && col < p.N ? p.bias[col] : 0.0f;
    const float high_bias = p.bias != nullptr && col + 1 < p.N ? p.bias[col + 1] : 0.0f;
#pragma unroll
    for (int down = 0; down < GemmSums<kTile>::kDown; ++down) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t row = first_row + 16 * down + 8 * half;
        if (row >= p.M || col >= p.N) continue;
        float low = sums.c[down][across][2 * half], high = sums.c[down][across][2 * half + 1];
        if (p.bias != nullptr) low += low_bias, high += high_bias;
        T* const to = p.c + row * p.c_pitch + col;
        if (in_pairs && col + 1 < p.N) {
          write_global(to, cvt_pair<T>(low, high));
        } else {
          to[0] = narrow<T>(low);
          if (col + 1 < p.N) to[1] = narrow<T>(high);
        }
      }
    }
  }
}

// The tile of this block. Loader, one for each thread:
//   Piece load(row, col)            what the thread `lane` of kSquareThreads takes of the square at row `row`
//                                   and column `col`, counted in squares; zeros outside of the matrix
//   void put(piece, part, square)   writes part 0 .. 3 of it into shared memory, swizzled
// A barrier is passed before the first put().
template <int kTile, bool kSumOverRows, bool kAligned, class T, class Loader>
__device__ void multiply_tile(const GemmProblem<T>& p, const Loader& loader, SharedMemory& shared) {
  using Tile = GemmTile<kTile>;
  const SharedArray<T> memory = shared.take<T>((Tile::kAStages + Tile::kBStages) * Tile::kStageElems);
  const auto a_stage = [&](int step) {
    return memory.part(step % Tile::kAStages * Tile::kStageElems, Tile::kStageElems);
  };
  const auto b_stage = [&](int step) {
    return memory.part((Tile::kAStages + step % Tile::kBStages) * Tile::kStageElems, Tile::kStageElems);
  };
  const TileAt at = tile_at(blockIdx.x, blocks_for(p.M, kTile), blocks_for(p.N, kTile));
  const int square = static_cast<int>(threadIdx.x) / kSquareThreads;  // of a step of b, this thread's
  const auto load = [&](int step) {
    const std::int64_t across = at.n * Tile::kSquares + square;
    return kSumOverRows ? loader.load(step, across) : loader.load(across, step);
  };
  const auto put = [&](const typename Loader::Piece& piece, int part, int step) {
    loader.put(piece, part, b_stage(step).part(square * kSquareElems, kSquareElems));
  };
  const int steps = static_cast<int>(blocks_for(p.R, kSquare));
  const auto fetch = [&](int step) {
    if (step < steps)
      fetch_rows<kTile, kAligned>(p, at.m * kTile, std::int64_t{step} * kSquare, a_stage(step));
    cp_async_commit();  // also of nothing, so that the number of groups under way is known
  };

  fetch(0);
  fetch(1);
  __syncthreads();
  {
    const typename Loader::Piece first = load(0);
#pragma unroll
    for (int part = 0; part < kParts; ++part) put(first, part, 0);
  }
  typename Loader::Piece piece = load(1);
  GemmSums<kTile> sums;
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<1>();
    __syncthreads();  // this step of a and b is in shared memory, and the step before may be written over
    fetch(step + 2);
    const typename Loader::Piece next = load(step + 2);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      put(piece, part, step + 1);
      multiply_part<kTile, kSumOverRows>(sums, part, a_stage(step), b_stage(step));
    }
    piece = next;
  }
  store_sums<kTile>(p, sums, at);
}

}  // namespace qt::cuda
