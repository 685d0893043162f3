// Conversions between tiles of f32 working memory and rows of tensors: what happens around the products.
#pragma once

#include <cstdint>

#include "kernels/cpu/cpu_common.h"
#include "src/core/half.h"
#include "src/core/tensor.h"

namespace qt::cpu {

// to[row, col] = from[row, col] as f32. Pitches in elements; the buffers do not overlap.
void widen_rows(const bf16* from, std::int64_t from_pitch, std::int64_t rows, std::int64_t cols, float* to,
                std::int64_t to_pitch);

void widen_rows(const f16* from, std::int64_t from_pitch, std::int64_t rows, std::int64_t cols, float* to,
                std::int64_t to_pitch);

// to = sum of `pieces` buffers, `piece_stride` floats apart, added in ascending order; with accumulate, to +=
// that sum; with bias, that sum + bias[col]. Sums in f32, one rounding into to. to: f32 | bf16 | f16.
struct PieceSum {
  const float* pieces = nullptr;
  std::int64_t piece_count = 1;
  std::int64_t piece_stride = 0;
  std::int64_t pitch = 0;  // of a row within a piece
  std::byte* to = nullptr;
  DType to_dtype = DType::f32;
  std::int64_t to_pitch = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  bool accumulate = false;
  const float* bias = nullptr;  // not together with accumulate
};
void store_sum(const PieceSum& sum);

// to[c] += the sum of sums[block * stride + c] over the blocks, in ascending order, c < C; in parallel.
void add_blocks(Context& ctx, const float* sums, std::int64_t blocks, std::int64_t stride, std::int64_t C,
                float* to);

}  // namespace qt::cpu
