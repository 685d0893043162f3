// The product of kernels/cpu/gemm.h: fixed output tiles (kernels/gemm_grid.h), each computed by one thread out of
// tile_gemm(). A packed operand is expanded into the worker's scratch one tile at a time and multiplied from
// there, so a packed product has the bits of Dequantize followed by Matmul.
#include "kernels/cpu/gemm.h"

#include <cstring>

#include "kernels/cpu/expand.h"
#include "kernels/cpu/row_ops.h"

namespace qt::cpu {

namespace {

// Bytes of one row of a staged operand: 256 rows of it are half a second-level cache of a common size.
constexpr std::int64_t kChunkBytes = 2048;
constexpr std::int64_t kMaxTileM = 512, kMaxTileN = 256;

constexpr std::int64_t kTileBytes = kMaxTileM * padded_pitch(kMaxTileN) * 4;
// A bf16 chunk has twice the columns of an f32 one, so that it never needs more.
constexpr std::int64_t kStageBytes = widened_bytes(kMaxTileN, kChunkBytes / 4);
constexpr std::int64_t kLeftBytes = widened_bytes(kMaxTileM, kChunkBytes / 4);
static_assert(kTileBytes + kStageBytes + kLibraryScratchBytes + kLeftBytes <= kWorkerScratchBytes);

// A worker's buffers for one tile.
struct Buffers {
  std::byte* sums = nullptr;     // the tile, where it cannot be computed in place
  std::byte* staged = nullptr;   // a chunk of the right operand
  std::byte* product = nullptr;  // of tile_gemm(): the library's scratch and a chunk of the left operand

  explicit Buffers(std::byte* base)
      : sums(base), staged(base + kTileBytes), product(base + kTileBytes + kStageBytes) {}
};

// Copies, widens or expands the rectangle at (row, col) of the stored operand; rows `pitch` apart.
template <class T>
void stage(const Stored& b, std::int64_t row, std::int64_t col, std::int64_t rows, std::int64_t cols, T* to,
           std::int64_t pitch) {
  if (b.packed != nullptr) {
    const std::int64_t width = b.packed->K;
    for (std::int64_t i = 0; i < rows; ++i) expand(*b.packed, (row + i) * width + col, cols, to + i * pitch);
    return;
  }
  const std::byte* from = b.dense->data + (row * b.dense->pitch + col) * dtype_bytes(b.dense->dtype);
  if constexpr (std::is_same_v<T, float>) {
    if (b.dense->dtype == DType::bf16)
      return widen_rows(reinterpret_cast<const bf16*>(from), b.dense->pitch, rows, cols, to, pitch);
    if (b.dense->dtype == DType::f16)
      return widen_rows(reinterpret_cast<const f16*>(from), b.dense->pitch, rows, cols, to, pitch);
  }
  const std::int64_t pitch_bytes = b.dense->pitch * static_cast<std::int64_t>(sizeof(T));
  for (std::int64_t i = 0; i < rows; ++i) {
    std::memcpy(to + i * pitch, from + i * pitch_bytes, static_cast<std::size_t>(cols) * sizeof(T));
  }
}

// c[rows m.., cols n..] (pitch ldc) = sum over [r_begin, r_end).
void compute_tile(const Product& p, std::int64_t m, std::int64_t n, std::int64_t r_begin, std::int64_t r_end,
                  float* c, std::int64_t ldc, const Buffers& buffers) {
  const std::int64_t M = p.rows_at(m), N = p.cols_at(n);
  const bool use_bf16 = p.a.dtype == DType::bf16 && multiplies_bf16();
  const DType dtype = use_bf16 ? DType::bf16 : DType::f32;
  const bool dense = wants_dense(M);
  const std::int64_t chunk = kChunkBytes / dtype_bytes(dtype);
  for (std::int64_t r = r_begin; r < r_end; r += chunk) {
    const std::int64_t R = std::min(chunk, r_end - r);
    // Where tiles need not be dense, f32 products choose their code by the distance between rows, so that an
    // operand that is not packed is staged as a packed one is: only then do both give the same bits. bf16
    // products do not, but for single rows and columns.
    const std::int64_t row = p.b.transposed ? n : r, col = p.b.transposed ? r : n;
    const std::int64_t rows = p.b.transposed ? N : R, cols = p.b.transposed ? R : N;
    const bool in_place = p.b.packed == nullptr && p.b.dense->dtype == dtype &&
                          (dense ? rows == 1 || p.b.dense->pitch == cols : use_bf16 && N > 1 && R > 1);
    Operand b;
    if (in_place) {
      b = Operand::rows(p.b.dense->data, dtype, p.b.dense->pitch).at(row, col);
    } else {
      const std::int64_t pitch = dense ? cols : padded_pitch(cols);
      use_bf16 ? stage(p.b, row, col, rows, cols, reinterpret_cast<bf16*>(buffers.staged), pitch)
               : stage(p.b, row, col, rows, cols, reinterpret_cast<float*>(buffers.staged), pitch);
      b = Operand::rows(buffers.staged, dtype, pitch);
    }
    if (p.b.transposed) b = b.transposed();

    Operand a = p.a.at(m, r);
    if (a.dtype != dtype) {  // b has been widened already
      a = widen_operand(a, M, R, dense, reinterpret_cast<float*>(buffers.product + kLibraryScratchBytes));
    }
    tile_gemm(M, N, R, a, b, c, ldc, r > r_begin, buffers.product);
  }
}

}  // namespace

void run_product(const Product& p, Context& ctx) {
  const GemmShape& s = p.shape;
  const GemmGrid& grid = p.grid;
  const std::int64_t tiles_m = grid.tiles_m(s), tiles = tiles_m * grid.tiles_n(s);
  const auto at = [&](std::int64_t m, std::int64_t n) {
    return p.c.data + (m * p.c.pitch + n) * dtype_bytes(p.c.dtype);
  };

  // Neighbouring tasks share the right operand, which may have to be expanded from memory.
  ctx.pool.parallel_for(tiles * grid.pieces, [&](std::int64_t task, int worker) {
    const std::int64_t piece = task / tiles, tile = task % tiles;
    const std::int64_t m = tile % tiles_m * grid.tile_m, n = tile / tiles_m * grid.tile_n;
    const std::int64_t r = piece * grid.piece_r, r_end = std::min(s.R, r + grid.piece_r);
    const Buffers buffers(ctx.worker_scratch(worker));
    const std::int64_t rows = p.rows_at(m), cols = p.cols_at(n);
    const bool is_sum = p.c.dtype == DType::f32 && !p.accumulate && p.bias == nullptr;

    if (grid.pieces > 1) {
      compute_tile(p, m, n, r, r_end, p.tile_of_piece(piece, m, n), cols, buffers);
    } else if (is_sum && (p.c.pitch == cols || !wants_dense(rows))) {
      compute_tile(p, m, n, r, r_end, reinterpret_cast<float*>(at(m, n)), p.c.pitch, buffers);
    } else {
      const std::int64_t pitch = wants_dense(rows) ? cols : padded_pitch(grid.tile_n);
      auto* const sums = reinterpret_cast<float*>(buffers.sums);
      compute_tile(p, m, n, r, r_end, sums, pitch, buffers);
      store_sum({.pieces = sums,
                 .pitch = pitch,
                 .to = at(m, n),
                 .to_dtype = p.c.dtype,
                 .to_pitch = p.c.pitch,
                 .rows = rows,
                 .cols = cols,
                 .accumulate = p.accumulate,
                 .bias = p.bias == nullptr ? nullptr : p.bias + n});
    }
  });
  if (grid.pieces == 1) return;  // only sums over tokens have more, and those have no bias

  constexpr std::int64_t kRowsPerTask = 16;  // rows of one tile: more than one tile are multiples of this
  parallel_ranges(ctx, s.M, kRowsPerTask, [&](std::int64_t begin, std::int64_t end, int) {
    const std::int64_t m = begin / grid.tile_m * grid.tile_m;
    for (std::int64_t n = 0; n < s.N; n += grid.tile_n) {
      const std::int64_t cols = p.cols_at(n);
      store_sum({.pieces = p.tile_of_piece(0, m, n) + (begin - m) * cols,
                 .piece_count = grid.pieces,
                 .piece_stride = s.M * s.N,
                 .pitch = cols,
                 .to = at(begin, n),
                 .to_dtype = p.c.dtype,
                 .to_pitch = p.c.pitch,
                 .rows = end - begin,
                 .cols = cols,
                 .accumulate = p.accumulate});
    }
  });
}

}  // namespace qt::cpu
