// Products with a packed weight, by one of two routes with the same weights (packed_route() chooses):
//   fused    the codes are turned into weights inside the product, on their way to shared memory
//   scratch  a slice of the matrix at a time is expanded into scratch, then multiplied as a plain matrix
// f32 activations go through a simple kernel on the fused route: they are for checks, not for speed.
#include <algorithm>

#include "kernels/cuda/context.h"
#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/expand.h"
#include "kernels/cuda/gemm_tile.cuh"
#include "kernels/cuda/packed_gemm.cuh"
#include "kernels/scratch.h"

namespace qt::cuda {

namespace {

// ---- fused, bf16 ----

template <class Loader, int kTile, bool kSumOverRows, bool kAligned>
__global__ __launch_bounds__(
    GemmTile<kTile>::kThreads,
    GemmTile<kTile>::kBlocksAtOnce) void packed_gemm_kernel(GemmProblem<bf16> p,
                                                            PackedMatrix<typename Loader::Format> w,
                                                            CodePoints<typename Loader::Format> points) {
  SharedMemory shared;
  const SharedArray<float> table = take_code_points(shared, points);
  const Loader loader(w, table, static_cast<int>(threadIdx.x) % kSquareThreads);
  multiply_tile<kTile, kSumOverRows, kAligned>(p, loader, shared);
}

template <class Loader>
using OperandFor = PackedOperand<typename Loader::Format>;

template <class Loader, int kTile, bool kSumOverRows, bool kAligned>
void launch_fused(const GemmProblem<bf16>& p, const OperandFor<Loader>& weight, const Context& context) {
  constexpr int kSharedBytes = GemmTile<kTile>::kSharedBytes + kCodePointBytes<typename Loader::Format>;
  static_assert(kSharedBytes <= kMaxSharedBytes);
  launch({.name = "packed_gemm_kernel",
          .blocks = GemmTile<kTile>::blocks(p.M, p.N),
          .threads = GemmTile<kTile>::kThreads,
          .shared_bytes = kSharedBytes,
          .stream = context.stream},
         packed_gemm_kernel<Loader, kTile, kSumOverRows, kAligned>, p, weight.matrix, weight.points);
}

template <class Loader, bool kSumOverRows>
void fused_in_squares(const GemmProblem<bf16>& p, const OperandFor<Loader>& weight, const Context& context) {
  if (large_tiles(p.M, p.N, context.multiprocessors))
    return launch_fused<Loader, 128, kSumOverRows, true>(p, weight, context);
  launch_fused<Loader, 64, kSumOverRows, true>(p, weight, context);
}

template <bool kSumOverRows, class F>
void fused(const GemmProblem<bf16>& p, const PackedOperand<F>& weight, const Context& context) {
  const bool aligned = p.R % kUnitElems == 0 && is_aligned16(p.a);
  if constexpr (kFitsTiles<F>) {
    if (weight.matrix.in_tiles) {
      if (aligned) return fused_in_squares<TileLoader<F>, kSumOverRows>(p, weight, context);
      return launch_fused<TileLoader<F>, 64, kSumOverRows, false>(p, weight, context);
    }
  }
  if (aligned && weight.in_blocks) return fused_in_squares<BlockLoader<F>, kSumOverRows>(p, weight, context);
  launch_fused<AnyLoader<F>, 64, kSumOverRows, false>(p, weight, context);
}

// ---- fused, f32 ----

constexpr int kF32Tile = 64, kF32Step = 16, kF32Threads = 256;
constexpr int kF32Pitch = kF32Tile + 4;  // rows stay multiples of 16 bytes

// A tile of 64 x 64 outputs, 4 x 4 a thread; R in steps of 16, in ascending order, by fused multiply-adds.
template <class F, bool kSumOverRows>
__global__ __launch_bounds__(kF32Threads) void packed_gemm_f32_kernel(GemmProblem<float> p, PackedMatrix<F> w,
                                                                      CodePoints<F> points) {
  SharedMemory shared;
  const SharedArray<float> table = take_code_points(shared, points);
  const SharedArray<float> left = shared.take<float>(kF32Step * kF32Pitch);   // [R][M]
  const SharedArray<float> right = shared.take<float>(kF32Step * kF32Pitch);  // [R][N]
  const TileAt at = tile_at(blockIdx.x, blocks_for(p.M, kF32Tile), blocks_for(p.N, kF32Tile));
  const std::int64_t first_row = at.m * kF32Tile, first_col = at.n * kF32Tile;
  const int thread = static_cast<int>(threadIdx.x), x = thread % 16, y = thread / 16;

  float sums[4][4] = {};
  for (std::int64_t r = 0; r < p.R; r += kF32Step) {
    __syncthreads();  // the table is complete; the step before may be written over
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = y + 16 * i;  // neighbouring threads read neighbouring columns of a
      const bool inside = first_row + row < p.M && r + x < p.R;
      left.write(x * kF32Pitch + row, inside ? p.a[(first_row + row) * p.a_pitch + r + x] : 0.0f);
      if constexpr (kSumOverRows) {
        const int step = thread / kF32Tile + 4 * i, col = thread % kF32Tile;
        right.write(step * kF32Pitch + col, weight_at<F>(w, table, r + step, first_col + col));
      } else {
        right.write(x * kF32Pitch + row, weight_at<F>(w, table, first_col + row, r + x));
      }
    }
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kF32Step; ++step) {
      const float4 down = left.read_as<float4>(step * kF32Pitch + 4 * y);
      const float4 across = right.read_as<float4>(step * kF32Pitch + 4 * x);
      const float rows[4] = {down.x, down.y, down.z, down.w};
      const float cols[4] = {across.x, across.y, across.z, across.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(rows[i], cols[j], sums[i][j]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const std::int64_t row = first_row + 4 * y + i, col = first_col + 4 * x + j;
      if (row >= p.M || col >= p.N) continue;
      p.c[row * p.c_pitch + col] = p.bias == nullptr ? sums[i][j] : sums[i][j] + p.bias[col];
    }
  }
}

template <bool kSumOverRows, class F>
void fused(const GemmProblem<float>& p, const PackedOperand<F>& weight, const Context& context) {
  launch({.name = "packed_gemm_f32_kernel",
          .blocks = blocks_for(p.M, kF32Tile) * blocks_for(p.N, kF32Tile),
          .threads = kF32Threads,
          .shared_bytes = kCodePointBytes<F> + 2 * shared_array_bytes(kF32Step * kF32Pitch, sizeof(float)),
          .stream = context.stream},
         packed_gemm_f32_kernel<F, kSumOverRows>, p, weight.matrix, weight.points);
}

// ---- scratch ----

// Elements of a slice along the dimension that is not summed over: all, or as many whole squares as fit.
std::int64_t slice_length(std::int64_t length, std::int64_t other, std::int64_t room_elems) {
  if (length * other <= room_elems) return length;
  const std::int64_t fits = room_elems / other / kSquare * kSquare;
  QT_CHECK(fits > 0, ShapeError, "{}: a slice of 64 x {} weights does not fit its scratch",
           PackedMatmul::kName, other);
  return fits;
}

template <class T>
void by_slices(const PackedMatmul& op, const Context& context) {
  const bool nt = op.layout == GemmLayout::nt;
  const std::int64_t M = op.x.dim(0), N = op.y.dim(1), R = op.x.dim(1);
  T* const scratch = reinterpret_cast<T*>(op.scratch.data);
  const std::int64_t step = slice_length(N, R, op.scratch.bytes() / dtype_bytes(op.x.dtype));
  // Columns of y are independent of each other, so those are what is cut: rows of the weight, or its columns.
  for (std::int64_t first = 0; first < N; first += step) {
    const std::int64_t count = std::min(step, N - first);
    const Rectangle slice = nt ? Rectangle{.first_row = first, .rows = count, .cols = R}
                               : Rectangle{.rows = R, .first_col = first, .cols = count};
    expand(op.w, slice, scratch, context);
    dense_product({.M = M,
                   .N = count,
                   .R = R,
                   .a = op.x.data,
                   .b = scratch,
                   .c = op.y.as<T>() + first,
                   .operands = op.x.dtype,
                   .result = op.y.dtype,
                   .a_pitch = R,
                   .b_pitch = slice.cols,
                   .c_pitch = N,
                   .b_transposed = nt},
                  op.bias.defined() ? op.bias.as<float>() + first : nullptr, context);
  }
}

template <class T>
void run_as(const PackedMatmul& op, const Context& context) {
  if (packed_route(op, context.target) == GemmRoute::scratch) return by_slices<T>(op, context);
  const GemmProblem<T> p{.a = op.x.as<T>(),
                         .c = op.y.as<T>(),
                         .bias = op.bias.defined() ? op.bias.as<float>() : nullptr,
                         .M = op.x.dim(0),
                         .N = op.y.dim(1),
                         .R = op.x.dim(1),
                         .a_pitch = op.x.dim(1),
                         .c_pitch = op.y.dim(1)};
  dispatch_format(op.w.format, [&]<class F>() {
    const PackedOperand<F> weight = packed_operand_of<F>(op.w);
    if (op.layout == GemmLayout::nt) return fused<false>(p, weight, context);
    fused<true>(p, weight, context);
  });
}

}  // namespace

void run(const PackedMatmul& op, const Context& context) {
  if (op.x.dim(0) == 0) return;
  QT_CHECK(
      op.w.layout == PackedLayout::flat || (is_aligned16(op.w.codes.data) && is_aligned16(op.w.absmax.data)),
      ShapeError, "{}: tiles of w begin at no multiple of 16 bytes", PackedMatmul::kName);
  if (op.x.dtype == DType::bf16) return run_as<bf16>(op, context);
  run_as<float>(op, context);
}

}  // namespace qt::cuda
