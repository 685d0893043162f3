// Tiles of 16-bit rows in shared memory and the products of them that attention is made of, on tensor cores.
// A warp owns 16 rows of a product; its sums stay in registers, in the layout of ptx.cuh.
#pragma once

#include "kernels/cuda/attention_args.cuh"
#include "kernels/cuda/ptx.cuh"

namespace qt::cuda {

inline constexpr int kPieceElems = 8;  // 16 bytes: what cp.async and ldmatrix move
inline constexpr float kLog2E = 1.44269504f;

// Element where piece `piece` of row `row` lies in a tile of rows of kD elements. Pieces trade places within
// their row so that eight rows below each other, at one piece, lie in different banks: ldmatrix and cp.async
// then meet no conflicts. A row of 32 or 96 elements ends in the middle of the banks, which does half of it.
template <int kD>
__device__ int tile_at(int row, int piece) {
  static_assert(kD % 32 == 0);
  const int turn = kD % 64 == 0 ? row & 7 : row >> 1 & 3;
  return row * kD + (piece ^ turn) * kPieceElems;
}

// Starts the copy of kRows rows; those from `rows` on and columns from D on become zeros. A loop on purpose:
// the addresses of all its copies at once would cost the products their registers.
template <int kD, int kRows, int kThreads, class T>
__device__ void load_tile(const SharedArray<T>& to, const HeadRows<const T>& from, int first, int rows,
                          int D) {
  constexpr int kPieces = kD / kPieceElems;
  static_assert(kRows * kPieces % kThreads == 0);
#pragma unroll 1
  for (int i = 0; i < kRows * kPieces / kThreads; ++i) {
    const int at = i * kThreads + static_cast<int>(threadIdx.x);
    const int row = at / kPieces, piece = at % kPieces;
    const bool valid = row < rows && piece * kPieceElems < D;
    cp_async16(to, tile_at<kD>(row, piece), valid ? from.row(first + row) + piece * kPieceElems : from.data,
               valid);
  }
}

// The a fragment of 16 rows from `first` on, columns 16 step .. 16 step + 15.
template <int kD, class T>
__device__ void load_a(std::uint32_t (&a)[4], const SharedArray<T>& tile, int first, int step) {
  const int lane = lane_id();
  ldmatrix_x4(a, tile, tile_at<kD>(first + lane % 16, 2 * step + lane / 16));
}

// c = a tile^T: a_of(a, step) gives the fragment of columns 16 step on; kCols rows of the tile.
template <int kD, int kCols, class T, class AOf>
__device__ void multiply_transposed(float (&c)[kCols / 8][4], AOf&& a_of, const SharedArray<T>& tile) {
  const int lane = lane_id();
#pragma unroll
  for (int n = 0; n < kCols / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[n][i] = 0.0f;
  }
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) {
    std::uint32_t a[4];
    a_of(a, step);
#pragma unroll
    for (int n = 0; n < kCols / 16; ++n) {
      std::uint32_t b[4];
      ldmatrix_x4(b, tile, tile_at<kD>(16 * n + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
      mma_m16n8k16<T>(c[2 * n], a, {b[0], b[1]});
      mma_m16n8k16<T>(c[2 * n + 1], a, {b[2], b[3]});
    }
  }
}

// out += a tile, the sum over kRows rows of the tile.
template <int kD, int kRows, class T>
__device__ void multiply_add(float (&out)[kD / 8][4], const std::uint32_t (&a)[kRows / 16][4],
                             const SharedArray<T>& tile) {
  const int lane = lane_id();
#pragma unroll
  for (int step = 0; step < kRows / 16; ++step) {
#pragma unroll
    for (int d = 0; d < kD / 16; ++d) {
      std::uint32_t b[4];
      ldmatrix_x4_trans(b, tile, tile_at<kD>(16 * step + lane % 16, 2 * d + lane / 16));
      mma_m16n8k16<T>(out[2 * d], a[step], {b[0], b[1]});
      mma_m16n8k16<T>(out[2 * d + 1], a[step], {b[2], b[3]});
    }
  }
}

// Sums become the left operand of the next product: one rounding each.
template <class T, int kCols>
__device__ void to_fragments(std::uint32_t (&a)[kCols / 16][4], const float (&c)[kCols / 8][4]) {
#pragma unroll
  for (int step = 0; step < kCols / 16; ++step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float(&from)[4] = c[2 * step + half];
      a[step][2 * half] = cvt_pair<T>(from[0], from[1]);
      a[step][2 * half + 1] = cvt_pair<T>(from[2], from[3]);
    }
  }
}

template <int kD>
__device__ void clear(float (&c)[kD / 8][4]) {
#pragma unroll
  for (int d = 0; d < kD / 8; ++d) {
#pragma unroll
    for (int i = 0; i < 4; ++i) c[d][i] = 0.0f;
  }
}

// Stores the warp's 16 rows, the upper eight times factor[0], the lower times factor[1]: one rounding each.
// Rows from `rows` on and columns from D on are left out. `staging` holds 16 rows and belongs to the warp:
// the way through it makes whole lines of what goes out.
template <int kD, class T>
__device__ void store_rows(const HeadRows<T>& to, int first, int rows, int D, const float (&c)[kD / 8][4],
                           const float (&factor)[2], const SharedArray<T>& staging) {
  constexpr int kPieces = kD / kPieceElems;
  const int lane = lane_id();
  __syncwarp();
#pragma unroll
  for (int d = 0; d < kPieces; ++d) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      staging.template write_as<std::uint32_t>(
          tile_at<kD>(lane / 4 + 8 * half, d) + lane % 4 * 2,
          cvt_pair<T>(c[d][2 * half] * factor[half], c[d][2 * half + 1] * factor[half]));
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < 16 * kPieces / kWarpThreads; ++i) {
    const int at = i * kWarpThreads + lane, row = at / kPieces, piece = at % kPieces;
    const uint4 out = staging.template read_as<uint4>(tile_at<kD>(row, piece));
    if (row < rows && piece * kPieceElems < D) {
      write_global(to.row(first + row) + piece * kPieceElems, out);
    }
  }
}

// The draws of an 8-column tile of scores, in the layout of its sums: rows are queries (g and g + 8, from
// `query` on), columns are keys from 4 key_block on. A pair of lanes shares two generator blocks: each makes
// one of them.
__device__ inline void draw_tile(std::uint32_t (&draw)[4], const HeadDraws& draws, int query, int key_block) {
  const int lane = lane_id();
  const bool odd = lane % 2 != 0;
  const auto w = draws.words(query + lane / 4 + (odd ? 8 : 0), key_block + lane % 4 / 2);
  const std::uint32_t other0 = __shfl_xor_sync(kFullWarp, odd ? w[0] : w[2], 1);
  const std::uint32_t other1 = __shfl_xor_sync(kFullWarp, odd ? w[1] : w[3], 1);
  draw[0] = odd ? other0 : w[0];
  draw[1] = odd ? other1 : w[1];
  draw[2] = odd ? w[2] : other0;
  draw[3] = odd ? w[3] : other1;
}

// The same where rows are keys (g and g + 8, from 4 key_block on) and columns queries from `query` on. Four
// lanes with neighbouring keys share four generator blocks: each makes one, and they trade words.
__device__ inline void draw_tile_transposed(std::uint32_t (&draw)[4], const HeadDraws& draws, int query,
                                            int key_block) {
  const int lane = lane_id(), own = lane / 4 % 4;
  const auto w = draws.words(query + lane % 4 * 2 + own % 2, key_block + own / 2 * 2 + lane / 16);
  const bool odd = own % 2 != 0, high = own / 2 != 0;
  // A 4x4 transposition: first within pairs of lanes, then between the pairs.
  const std::uint32_t a = __shfl_xor_sync(kFullWarp, odd ? w[0] : w[1], 4);
  const std::uint32_t b = __shfl_xor_sync(kFullWarp, odd ? w[2] : w[3], 4);
  const std::uint32_t x0 = odd ? a : w[0], x1 = odd ? w[1] : a, x2 = odd ? b : w[2], x3 = odd ? w[3] : b;
  const std::uint32_t c = __shfl_xor_sync(kFullWarp, high ? x0 : x2, 8);
  const std::uint32_t d = __shfl_xor_sync(kFullWarp, high ? x1 : x3, 8);
  draw[0] = high ? c : x0;
  draw[1] = high ? d : x1;
  draw[2] = high ? x2 : c;
  draw[3] = high ? x3 : d;
}

// Which of a warp's scores dropout drops, kCols columns of them: bit 4 n + i for element i of the 8-column
// tile n. A loop on purpose: unrolled, the generator would take all registers.
template <int kCols, class DrawTile>
__device__ std::uint32_t dropped_bits(std::uint32_t threshold, DrawTile&& draw_of_tile) {
  static_assert(kCols <= 64);
  std::uint32_t bits = 0;
#pragma unroll 1
  for (int n = 0; n < kCols / 8; ++n) {
    std::uint32_t draw[4];
    draw_of_tile(draw, n);
#pragma unroll
    for (int i = 0; i < 4; ++i) bits |= (draw[i] < threshold ? 1u : 0u) << (4 * n + i);
  }
  return bits;
}

}  // namespace qt::cuda
