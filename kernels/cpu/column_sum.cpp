// The sum over the rows of a matrix on the cpu: blocks of rows in parallel, then the blocks in order
// (kernels/row_blocks.h).
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/column_sum.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <hwy/highway.h>

#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {

// sums[n] = the sum of rows [begin, end) in column n, for the columns [left, right).
template <class T>
void SumRowsTyped(const ColumnSum& op, std::int64_t begin, std::int64_t end, std::int64_t left,
                  std::int64_t right, float* sums) {
  const F32Tag d;
  const T* x = op.x.as<T>();
  const std::int64_t pitch = op.x.pitch;
  ForVectors(
      d, left, right,
      [&](std::int64_t n) HWY_ATTR {
        F32Vec sum = LoadF32(d, x + begin * pitch + n);
        for (std::int64_t m = begin + 1; m < end; ++m) sum = hn::Add(sum, LoadF32(d, x + m * pitch + n));
        StoreF32(d, sum, sums + n);
      },
      [&](std::int64_t n, std::size_t count) HWY_ATTR {
        F32Vec sum = LoadF32Partial(d, x + begin * pitch + n, count);
        for (std::int64_t m = begin + 1; m < end; ++m)
          sum = hn::Add(sum, LoadF32Partial(d, x + m * pitch + n, count));
        StoreF32Partial(d, sum, sums + n, count);
      });
}

void SumRows(const ColumnSum& op, std::int64_t begin, std::int64_t end, std::int64_t left, std::int64_t right,
             float* sums) {
  with_float(op.x.dtype, [&]<class T>() { SumRowsTyped<T>(op, begin, end, left, right, sums); });
}

}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <algorithm>

#include "kernels/cpu/row_ops.h"
#include "kernels/row_blocks.h"

namespace qt::cpu {

HWY_EXPORT(SumRows);

void run(const ColumnSum& op, Context& ctx) {
  constexpr std::int64_t kColumnsPerTask = 1024;
  const std::int64_t M = op.x.dim(0), N = op.x.dim(1);
  const RowBlocks blocks = row_blocks(M);
  if (blocks.count == 0 || N == 0) return;
  auto* const sums = reinterpret_cast<float*>(op.scratch.data);  // [blocks, N]
  const std::int64_t column_tasks = (N + kColumnsPerTask - 1) / kColumnsPerTask;
  ctx.pool.parallel_for(blocks.count * column_tasks, [&](std::int64_t task, int) {
    const std::int64_t block = task / column_tasks, left = task % column_tasks * kColumnsPerTask;
    HWY_DYNAMIC_DISPATCH(SumRows)
    (op, block * blocks.rows, std::min(M, (block + 1) * blocks.rows), left,
     std::min(N, left + kColumnsPerTask), sums + block * N);
  });
  add_blocks(ctx, sums, blocks.count, N, N, op.out.as<float>());
}

}  // namespace qt::cpu

#endif  // HWY_ONCE
