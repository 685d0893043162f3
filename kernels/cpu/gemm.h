// What Matmul and PackedMatmul are on the cpu: one product over the tiles of kernels/gemm_grid.h.
//
// c[M, N] = a[M, R] b[R, N]; R is summed over in chunks, in ascending order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/gemm_tile.h"
#include "kernels/gemm_grid.h"

namespace qt::cpu {

// The right operand, as it is stored: a matrix [rows, cols] that is used as it is (nn, tn) or transposed
// (nt).
struct Stored {
  const TensorView* dense = nullptr;
  const PackedView* packed = nullptr;
  bool transposed = false;
};

struct Product {
  GemmShape shape;
  GemmGrid grid;
  Operand a;
  Stored b;
  TensorView c;
  bool accumulate = false;
  const float* bias = nullptr;  // [N]
  std::byte* pieces = nullptr;  // f32 [pieces, M, N], tile by tile

  std::int64_t rows_at(std::int64_t m) const { return std::min(grid.tile_m, shape.M - m); }
  std::int64_t cols_at(std::int64_t n) const { return std::min(grid.tile_n, shape.N - n); }
  // A piece's tiles lie one after the other, each of them densely.
  float* tile_of_piece(std::int64_t piece, std::int64_t m, std::int64_t n) const {
    return reinterpret_cast<float*>(pieces) + (piece * shape.M + m) * shape.N + n * rows_at(m);
  }
};

// Computes p.c, each tile by one thread: the bits do not depend on the threads. shape.R >= 1.
void run_product(const Product& p, Context& ctx);

}  // namespace qt::cpu
