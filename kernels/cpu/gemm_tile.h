// One product of two tiles on the calling thread, by oneDNN: the building block of matrix products and
// attention.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "src/core/tensor.h"

namespace qt::cpu {

// Where element (row, col) of an operand lies: data + row * row_stride + col * col_stride, strides in
// elements. One of the strides is 1, unless the operand has a single row or column.
struct Operand {
  const void* data = nullptr;
  DType dtype = DType::f32;  // f32 | bf16 | f16
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 0;

  static Operand rows(const void* data, DType dtype, std::int64_t pitch) { return {data, dtype, pitch, 1}; }
  Operand transposed() const { return {data, dtype, col_stride, row_stride}; }
  Operand at(std::int64_t row, std::int64_t col) const {
    const std::int64_t offset = (row * row_stride + col * col_stride) * dtype_bytes(dtype);
    return {static_cast<const std::byte*>(data) + offset, dtype, row_stride, col_stride};
  }
};

// A distance between rows of a buffer of our own that holds `cols` elements: a multiple of 16, and no
// multiple of a large power of two, where the rows of a tile would compete for the same cache sets.
constexpr std::int64_t padded_pitch(std::int64_t cols) { return (cols + 15) / 16 * 16 + 16; }

// True where the library multiplies dense tiles in scratch that we give it: its brgemm code, in oneDNN 2 for
// AVX-512, unless ONEDNN_MAX_CPU_ISA forbids it. Then tile_gemm() allocates nothing large, and tiles that are
// not dense are copied first: callers lay theirs out densely. Products of a single row are left to the
// library's own matrix-vector code, which is faster, takes any pitch and needs no scratch.
bool multiplies_dense();
inline bool wants_dense(std::int64_t M) { return M > 1 && multiplies_dense(); }

// A distance between rows for buffers of tiles of up to `cols` columns, read a vector at a time: a multiple
// of 16.
inline std::int64_t tile_pitch(std::int64_t cols) {
  return multiplies_dense() ? (cols + 15) / 16 * 16 : padded_pitch(cols);
}

// True where the machine multiplies bf16 itself (and ONEDNN_MAX_CPU_ISA does not forbid it). Elsewhere bf16
// tiles are widened to f32 first, as f16 tiles are everywhere: oneDNN 2 has no f16 product.
bool multiplies_bf16();

// c[M, N] = a[M, K] b[K, N], or c += with accumulate. a and b have the same dtype, sums run in f32.
// M, N, K >= 1; rows of c lie ldc floats apart. scratch: tile_gemm_scratch_bytes(), 64-byte aligned.
// The bits depend on shape, strides and values alone. Where wants_dense(M), and for bf16 operands as long as
// M, N and K exceed 1, they do not depend on the strides beyond whether an operand is transposed. Where not
// multiplies_dense(), the library allocates packing buffers for the duration of the call (below
// kLibraryScratchBytes for the tiles used here).
void tile_gemm(std::int64_t M, std::int64_t N, std::int64_t K, const Operand& a, const Operand& b, float* c,
               std::int64_t ldc, bool accumulate, std::byte* scratch);

// The [rows, cols] bf16 or f16 operand in f32, stored in the order it already has, densely or with a padded
// pitch. to: widened_bytes(rows, cols).
Operand widen_operand(const Operand& from, std::int64_t rows, std::int64_t cols, bool dense, float* to);
constexpr std::int64_t widened_bytes(std::int64_t rows, std::int64_t cols) {
  return std::max(rows * padded_pitch(cols), cols * padded_pitch(rows)) * 4;
}

// The [rows, cols] operand with nothing between its rows (its columns, where those are stored), and strides
// that say so even where there is but one: in place, or copied to `to`, rows * cols elements.
Operand dense_operand(const Operand& from, std::int64_t rows, std::int64_t cols, std::byte* to);

// Largest need of a product of these sizes: kLibraryScratchBytes, both operands widened or made dense, and a
// dense result; in this order, and what needs no copy takes no room.
std::int64_t tile_gemm_scratch_bytes(DType dtype, std::int64_t M, std::int64_t N, std::int64_t K);

}  // namespace qt::cpu
