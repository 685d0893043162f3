// RMSNorm without a weight, both ways. Memory-bound: a row is read once while it fits into registers.
// Legend: N tokens, C width.
#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/vector.cuh"

namespace qt::cuda {

namespace {

// y_NC may be x_NC.
template <class T, int kGroup, int kVectors>
__global__ void rmsnorm_fwd_kernel(const T* x_NC, T* y_NC, float* rstd_N, std::int64_t N, int C, float eps) {
  const RowGroup<kGroup, kVectors> group;
  const std::int64_t row = group.row();
  if (row >= N) return;
  const Row<T, kGroup, kVectors> x(group, x_NC + row * C, C);
  float squares = 0;
  group.for_each(C, [&](int v, int first, int count) {
    const Floats f = x.get(v, first, count);
    for (int i = 0; i < kVectorElems; ++i) squares = fmaf(f.x[i], f.x[i], squares);
  });
  const float rstd = 1.0f / sqrtf(group.sum(squares) / static_cast<float>(C) + eps);
  T* const y = y_NC + row * C;
  group.for_each(C, [&](int v, int first, int count) {
    Floats f = x.get(v, first, count);
    for (int i = 0; i < kVectorElems; ++i) f.x[i] *= rstd;
    group.store(y + first, count, f);
  });
  if (group.is_first()) rstd_N[row] = rstd;
}

// dx_NC may be dy_NC when not accumulating.
template <class T, int kGroup, int kVectors>
__global__ void rmsnorm_bwd_kernel(const T* y_NC, const float* rstd_N, const T* dy_NC, T* dx_NC,
                                   std::int64_t N, int C, bool accumulate) {
  const RowGroup<kGroup, kVectors> group;
  const std::int64_t row = group.row();
  if (row >= N) return;
  const Row<T, kGroup, kVectors> y(group, y_NC + row * C, C), dy(group, dy_NC + row * C, C);
  float products = 0;
  group.for_each(C, [&](int v, int first, int count) {
    const Floats y_v = y.get(v, first, count), dy_v = dy.get(v, first, count);
    for (int i = 0; i < kVectorElems; ++i) products = fmaf(dy_v.x[i], y_v.x[i], products);
  });
  const float mean = group.sum(products) / static_cast<float>(C), rstd = rstd_N[row];
  T* const dx = dx_NC + row * C;
  group.for_each(C, [&](int v, int first, int count) {
    const Floats y_v = y.get(v, first, count), dy_v = dy.get(v, first, count);
    Floats inner;
    for (int i = 0; i < kVectorElems; ++i) inner.x[i] = fmaf(-y_v.x[i], mean, dy_v.x[i]);
    if (accumulate) {
      const Floats old = group.load(dx + first, count);
      for (int i = 0; i < kVectorElems; ++i) inner.x[i] = fmaf(rstd, inner.x[i], old.x[i]);
    } else {
      for (int i = 0; i < kVectorElems; ++i) inner.x[i] *= rstd;
    }
    group.store(dx + first, count, inner);
  });
}

}  // namespace

void run(const RmsNormFwd& op, const Context& context) {
  const std::int64_t N = op.x.dim(0), C = op.x.dim(1);
  with_float(op.x.dtype, [&]<class T>() {
    with_row_group(C, all_aligned16(op.x, op.y), [&]<int kGroup, int kVectors>() {
      launch(rows_shape<kGroup>("rmsnorm_fwd_kernel", N, context), rmsnorm_fwd_kernel<T, kGroup, kVectors>,
             op.x.as<T>(), op.y.as<T>(), op.rstd.as<float>(), N, C, op.eps);
    });
  });
}

void run(const RmsNormBwd& op, const Context& context) {
  const std::int64_t N = op.y.dim(0), C = op.y.dim(1);
  with_float(op.y.dtype, [&]<class T>() {
    with_row_group(C, all_aligned16(op.y, op.dy, op.dx), [&]<int kGroup, int kVectors>() {
      launch(rows_shape<kGroup>("rmsnorm_bwd_kernel", N, context), rmsnorm_bwd_kernel<T, kGroup, kVectors>,
             op.y.as<T>(), op.rstd.as<float>(), op.dy.as<T>(), op.dx.as<T>(), N, C, op.accumulate);
    });
  });
}

}  // namespace qt::cuda
