// LayerNorm with weight and bias, and RMSNorm with a weight, where mean_N is null. The gradient takes three
// passes: sums over blocks of rows, with threads along the columns; those blocks in ascending order into the
// gradients of weight and bias; and last the gradient of the input, which may overwrite dy. Legend: N tokens, C
// width.
#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/vector.cuh"
#include "kernels/row_blocks.h"

namespace qt::cuda {

namespace {

// bias_C may be null, y_NC may be x_NC.
template <class T, int kGroup, int kVectors>
__global__ void layernorm_fwd_kernel(const T* x_NC, const float* weight_C, const float* bias_C, T* y_NC,
                                     float* mean_N, float* rstd_N, std::int64_t N, int C, float eps) {
  const RowGroup<kGroup, kVectors> group;
  const std::int64_t row = group.row();
  if (row >= N) return;
  const Row<T, kGroup, kVectors> x(group, x_NC + row * C, C);
  float mean = 0;
  if (mean_N != nullptr) {
    float sum = 0;
    group.for_each(C, [&](int v, int first, int count) {
      const Floats f = x.get(v, first, count);
      for (int i = 0; i < kVectorElems; ++i) sum += f.x[i];
    });
    mean = group.sum(sum) / static_cast<float>(C);
  }
  float squares = 0;
  group.for_each(C, [&](int v, int first, int count) {
    const Floats f = x.get(v, first, count);
    for (int i = 0; i < kVectorElems; ++i) {
      const float off = i < count ? f.x[i] - mean : 0.0f;
      squares = fmaf(off, off, squares);
    }
  });
  const float rstd = 1.0f / sqrtf(group.sum(squares) / static_cast<float>(C) + eps);
  T* const y = y_NC + row * C;
  group.for_each(C, [&](int v, int first, int count) {
    Floats f = x.get(v, first, count);
    const Floats weight = group.load(weight_C + first, count);
    const Floats bias = bias_C == nullptr ? Floats{} : group.load(bias_C + first, count);
    for (int i = 0; i < kVectorElems; ++i) {
      f.x[i] = fmaf((f.x[i] - mean) * rstd, weight.x[i], bias.x[i]);
    }
    group.store(y + first, count, f);
  });
  if (group.is_first()) {
    if (mean_N != nullptr) mean_N[row] = mean;
    rstd_N[row] = rstd;
  }
}

// dx_NC may be dy_NC when not accumulating.
template <class T, int kGroup, int kVectors>
__global__ void layernorm_bwd_kernel(const T* x_NC, const float* mean_N, const float* rstd_N,
                                     const float* weight_C, const T* dy_NC, T* dx_NC, std::int64_t N, int C,
                                     bool accumulate) {
  const RowGroup<kGroup, kVectors> group;
  const std::int64_t row = group.row();
  if (row >= N) return;
  const Row<T, kGroup, kVectors> x(group, x_NC + row * C, C), dy(group, dy_NC + row * C, C);
  const float mean = mean_N == nullptr ? 0.0f : mean_N[row], rstd = rstd_N[row];
  float sum_g = 0, sum_gh = 0;
  group.for_each(C, [&](int v, int first, int count) {
    const Floats x_v = x.get(v, first, count), dy_v = dy.get(v, first, count);
    const Floats weight = group.load(weight_C + first, count);
    for (int i = 0; i < kVectorElems; ++i) {
      const float g = dy_v.x[i] * weight.x[i];  // 0 behind the row
      sum_g += g;
      if (i < count) sum_gh = fmaf(g, (x_v.x[i] - mean) * rstd, sum_gh);
    }
  });
  const float mean_g = mean_N == nullptr ? 0.0f : group.sum(sum_g) / static_cast<float>(C);
  const float mean_gh = group.sum(sum_gh) / static_cast<float>(C);
  T* const dx = dx_NC + row * C;
  group.for_each(C, [&](int v, int first, int count) {
    const Floats x_v = x.get(v, first, count), dy_v = dy.get(v, first, count);
    const Floats weight = group.load(weight_C + first, count);
    Floats inner;
    for (int i = 0; i < kVectorElems; ++i) {
      const float h = (x_v.x[i] - mean) * rstd;
      inner.x[i] = fmaf(-h, mean_gh, dy_v.x[i] * weight.x[i] - mean_g);
    }
    if (accumulate) {
      const Floats old = group.load(dx + first, count);
      for (int i = 0; i < kVectorElems; ++i) inner.x[i] = fmaf(rstd, inner.x[i], old.x[i]);
    } else {
      for (int i = 0; i < kVectorElems; ++i) inner.x[i] *= rstd;
    }
    group.store(dx + first, count, inner);
  });
}

constexpr int kColumnThreads = 64;  // few: with the blocks of rows, enough blocks for every multiprocessor

// kColumns elements of a row at p, aligned to their whole size.
template <int kColumns, class T>
__device__ void load_columns(const T* p, float (&to)[kColumns]) {
  static_assert(kColumns == 1 || kColumns == 4);
  if constexpr (kColumns == 1) {
    to[0] = widen(*p);
  } else {
    load_quad(p, to);
  }
}

// sums [blocks, 2, C]: of dy h, then of dy, over the rows of block blockIdx.y, in ascending order.
template <class T, int kColumns>
__global__ void layernorm_bwd_sums_kernel(const T* x_NC, const float* mean_N, const float* rstd_N,
                                          const T* dy_NC, float* sums, std::int64_t N,
                                          std::int64_t block_rows, int C) {
  const int column = static_cast<int>(global_thread()) * kColumns;
  if (column >= C) return;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.y) * block_rows;
  const std::int64_t end = begin + block_rows < N ? begin + block_rows : N;
  // -0 is what leaves every first term as it is.
  float dweight[kColumns], dbias[kColumns];
  for (int k = 0; k < kColumns; ++k) dweight[k] = dbias[k] = -0.0f;
#pragma unroll 4
  for (std::int64_t row = begin; row < end; ++row) {
    float x[kColumns], dy[kColumns];
    load_columns(x_NC + row * C + column, x);
    load_columns(dy_NC + row * C + column, dy);
    const float mean = mean_N == nullptr ? 0.0f : mean_N[row], rstd = rstd_N[row];
    for (int k = 0; k < kColumns; ++k) {
      dweight[k] += dy[k] * ((x[k] - mean) * rstd);
      dbias[k] += dy[k];
    }
  }
  float* const to = sums + static_cast<std::int64_t>(blockIdx.y) * 2 * C + column;
  for (int k = 0; k < kColumns; ++k) {
    to[k] = dweight[k];
    to[C + k] = dbias[k];
  }
}

// Adds the blocks in ascending order, then once to the gradients. dbias_C may be null.
__global__ void layernorm_bwd_weights_kernel(const float* sums, int blocks, int C, float* dweight_C,
                                             float* dbias_C) {
  const std::int64_t i = global_thread();  // of [2, C]
  if (i >= (dbias_C == nullptr ? 1 : 2) * static_cast<std::int64_t>(C)) return;
  float* const to = i < C ? dweight_C + i : dbias_C + (i - C);
  float sum = sums[i];
#pragma unroll 8
  for (int block = 1; block < blocks; ++block) sum += sums[static_cast<std::int64_t>(block) * 2 * C + i];
  *to += sum;
}

template <class T>
void sum_rows(const LayerNormBwd& op, const Context& context) {
  const std::int64_t N = op.x.dim(0), C = op.x.dim(1);
  const RowBlocks blocks = row_blocks(N);
  auto* const sums = reinterpret_cast<float*>(op.scratch.data);
  const auto launch_sums = [&]<int kColumns>() {
    const LaunchShape shape{.name = "layernorm_bwd_sums_kernel",
                            .blocks = blocks_for(C, kColumns * kColumnThreads),
                            .blocks_y = blocks.count,
                            .threads = kColumnThreads,
                            .stream = context.stream};
    launch(shape, layernorm_bwd_sums_kernel<T, kColumns>, op.x.as<T>(), floats_or_null(op.mean),
           op.rstd.as<float>(), op.dy.as<T>(), sums, N, blocks.rows, C);
  };
  if (C % 4 == 0 && all_aligned16(op.x, op.dy)) {
    launch_sums.template operator()<4>();
  } else {
    launch_sums.template operator()<1>();
  }
  const LaunchShape shape{.name = "layernorm_bwd_weights_kernel",
                          .blocks = blocks_for(2 * C, kColumnThreads),
                          .threads = kColumnThreads,
                          .stream = context.stream};
  launch(shape, layernorm_bwd_weights_kernel, sums, blocks.count, C, op.dweight.as<float>(),
         floats_or_null(op.dbias));
}

}  // namespace

void run(const LayerNormFwd& op, const Context& context) {
  const std::int64_t N = op.x.dim(0), C = op.x.dim(1);
  with_float(op.x.dtype, [&]<class T>() {
    with_row_group(C, all_aligned16(op.x, op.y, op.weight, op.bias), [&]<int kGroup, int kVectors>() {
      launch(rows_shape<kGroup>("layernorm_fwd_kernel", N, context),
             layernorm_fwd_kernel<T, kGroup, kVectors>, op.x.as<T>(), op.weight.as<float>(),
             floats_or_null(op.bias), op.y.as<T>(), floats_or_null(op.mean), op.rstd.as<float>(), N, C,
             op.eps);
    });
  });
}

void run(const LayerNormBwd& op, const Context& context) {
  const std::int64_t N = op.x.dim(0), C = op.x.dim(1);
  if (N == 0) return;
  with_float(op.x.dtype, [&]<class T>() {
    sum_rows<T>(op, context);
    with_row_group(C, all_aligned16(op.x, op.dy, op.dx, op.weight), [&]<int kGroup, int kVectors>() {
      launch(rows_shape<kGroup>("layernorm_bwd_kernel", N, context),
             layernorm_bwd_kernel<T, kGroup, kVectors>, op.x.as<T>(), floats_or_null(op.mean),
             op.rstd.as<float>(), op.weight.as<float>(), op.dy.as<T>(), op.dx.as<T>(), N, C, op.accumulate);
    });
  });
}

}  // namespace qt::cuda
