// The sum over the rows of a matrix: blocks of rows (kernels/row_blocks.h), then the blocks in order. Legend:
// x [M, N].
#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vector.cuh"
#include "kernels/row_blocks.h"

namespace qt::cuda {

namespace {

constexpr int kThreads = 64;
constexpr int kColumnsPerBlock = kThreads * kVectorElems;

template <class T>
struct Matrix {
  const T* x;
  std::int64_t M, N, pitch;
};

// sums[block, n] = the sum of the block's rows, in ascending order. Few threads to a block: narrow matrices
// still spread over the card.
template <class T>
__global__ void column_sum_kernel(Matrix<T> m, RowBlocks blocks, float* sums) {
  const std::int64_t block = blockIdx.y, first = block * blocks.rows;
  const std::int64_t end = first + blocks.rows < m.M ? first + blocks.rows : m.M;
  const std::int64_t n = global_thread() * kVectorElems;
  const int count = vector_count(n, m.N);
  if (count == 0) return;
  const bool aligned = count == kVectorElems && rows_aligned16(m.x, m.pitch);
  const Floats sum = sum_of_rows<8>(m.x + n, m.pitch, first, end, count, aligned);
  store_floats(sums + block * m.N + n, count, sum);
}

// out[n] += the sum of sums[block, n] over the blocks, in ascending order.
__global__ void column_sum_blocks_kernel(const float* sums, std::int64_t blocks, std::int64_t N, float* out) {
  const std::int64_t n = global_thread();
  if (n >= N) return;
  float sum = sums[n];
#pragma unroll 8
  for (std::int64_t block = 1; block < blocks; ++block) sum += sums[block * N + n];
  out[n] += sum;
}

}  // namespace

void run(const ColumnSum& op, const Context& context) {
  const std::int64_t M = op.x.dim(0), N = op.x.dim(1);
  const RowBlocks blocks = row_blocks(M);
  if (blocks.count == 0) return;
  auto* const sums = reinterpret_cast<float*>(op.scratch.data);  // [blocks, N]
  with_float(op.x.dtype, [&]<class T>() {
    launch({.name = "column_sum_kernel",
            .blocks = blocks_for(N, kColumnsPerBlock),
            .blocks_y = blocks.count,
            .threads = kThreads,
            .stream = context.stream},
           column_sum_kernel<T>, Matrix<T>{.x = op.x.as<T>(), .M = M, .N = N, .pitch = op.x.pitch}, blocks,
           sums);
  });
  launch({.name = "column_sum_blocks_kernel",
          .blocks = blocks_for(N, kThreads),
          .threads = kThreads,
          .stream = context.stream},
         column_sum_blocks_kernel, sums, blocks.count, N, op.out.as<float>());
}

}  // namespace qt::cuda
