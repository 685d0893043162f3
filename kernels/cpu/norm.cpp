// RMSNorm without a weight on the cpu: a row is read twice, the second time from cache. Sums run in f32 in
// four vectors side by side, added in a fixed order; the row alone decides the result.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/norm.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <cmath>

#include <hwy/highway.h>

#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {

// sum(a[i] * b[i]), i < C.
template <class T>
HWY_INLINE float DotF32(const T* a, const T* b, std::int64_t C) {
  const F32Tag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  F32Vec sum0 = hn::Zero(d), sum1 = sum0, sum2 = sum0, sum3 = sum0;
  std::int64_t i = 0;
  for (; i + 4 * lanes <= C; i += 4 * lanes) {
    sum0 = hn::MulAdd(LoadF32(d, a + i), LoadF32(d, b + i), sum0);
    sum1 = hn::MulAdd(LoadF32(d, a + i + lanes), LoadF32(d, b + i + lanes), sum1);
    sum2 = hn::MulAdd(LoadF32(d, a + i + 2 * lanes), LoadF32(d, b + i + 2 * lanes), sum2);
    sum3 = hn::MulAdd(LoadF32(d, a + i + 3 * lanes), LoadF32(d, b + i + 3 * lanes), sum3);
  }
  ForVectors(
      d, i, C,
      [&](std::int64_t j) HWY_ATTR { sum0 = hn::MulAdd(LoadF32(d, a + j), LoadF32(d, b + j), sum0); },
      [&](std::int64_t j, std::size_t n)
          HWY_ATTR { sum1 = hn::MulAdd(LoadF32Partial(d, a + j, n), LoadF32Partial(d, b + j, n), sum1); });
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3))));
}

template <class T>
void RmsNormFwdTyped(const RmsNormFwd& op, std::int64_t begin, std::int64_t end) {
  const F32Tag d;
  const std::int64_t C = op.x.dim(1);
  float* rstd_N = op.rstd.as<float>();
  for (std::int64_t row = begin; row < end; ++row) {
    const T* x = op.x.as<T>() + row * C;
    T* y = op.y.as<T>() + row * C;
    const float mean_sq = DotF32(x, x, C) / static_cast<float>(C);
    const float rstd = 1.0f / std::sqrt(mean_sq + op.eps);
    const F32Vec scale = hn::Set(d, rstd);
    ForVectors(
        d, 0, C, [&](std::int64_t i) HWY_ATTR { StoreF32(d, hn::Mul(LoadF32(d, x + i), scale), y + i); },
        [&](std::int64_t i, std::size_t n)
            HWY_ATTR { StoreF32Partial(d, hn::Mul(LoadF32Partial(d, x + i, n), scale), y + i, n); });
    rstd_N[row] = rstd;
  }
}

void RmsNormFwdRange(const RmsNormFwd& op, std::int64_t begin, std::int64_t end) {
  with_float(op.x.dtype, [&]<class T>() { RmsNormFwdTyped<T>(op, begin, end); });
}

template <class T, bool kAccumulate>
void RmsNormBwdTyped(const RmsNormBwd& op, std::int64_t begin, std::int64_t end) {
  const F32Tag d;
  const std::int64_t C = op.y.dim(1);
  const float* rstd_N = op.rstd.as<float>();
  for (std::int64_t row = begin; row < end; ++row) {
    const T* y = op.y.as<T>() + row * C;
    const T* dy = op.dy.as<T>() + row * C;
    T* dx = op.dx.as<T>() + row * C;
    const F32Vec mean = hn::Set(d, DotF32(dy, y, C) / static_cast<float>(C));
    const F32Vec rstd = hn::Set(d, rstd_N[row]);
    const auto gradient = [&](F32Vec y_v, F32Vec dy_v, F32Vec dx_v) HWY_ATTR {
      const F32Vec inner = hn::NegMulAdd(y_v, mean, dy_v);
      return kAccumulate ? hn::MulAdd(rstd, inner, dx_v) : hn::Mul(rstd, inner);
    };
    ForVectors(
        d, 0, C,
        [&](std::int64_t i) HWY_ATTR {
          const F32Vec old = kAccumulate ? LoadF32(d, dx + i) : hn::Zero(d);
          StoreF32(d, gradient(LoadF32(d, y + i), LoadF32(d, dy + i), old), dx + i);
        },
        [&](std::int64_t i, std::size_t n) HWY_ATTR {
          const F32Vec old = kAccumulate ? LoadF32Partial(d, dx + i, n) : hn::Zero(d);
          StoreF32Partial(d, gradient(LoadF32Partial(d, y + i, n), LoadF32Partial(d, dy + i, n), old), dx + i,
                          n);
        });
  }
}

template <class T>
void RmsNormBwdOf(const RmsNormBwd& op, std::int64_t begin, std::int64_t end) {
  op.accumulate ? RmsNormBwdTyped<T, true>(op, begin, end) : RmsNormBwdTyped<T, false>(op, begin, end);
}

void RmsNormBwdRange(const RmsNormBwd& op, std::int64_t begin, std::int64_t end) {
  with_float(op.y.dtype, [&]<class T>() { RmsNormBwdOf<T>(op, begin, end); });
}

}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <algorithm>

namespace qt::cpu {

HWY_EXPORT(RmsNormFwdRange);
HWY_EXPORT(RmsNormBwdRange);

namespace {

// Rows per task: enough that handing out a task costs nothing next to it.
std::int64_t row_grain(std::int64_t C) { return std::max<std::int64_t>(1, 16 * 1024 / C); }

}  // namespace

void run(const RmsNormFwd& op, Context& ctx) {
  parallel_ranges(ctx, op.x.dim(0), row_grain(op.x.dim(1)), [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(RmsNormFwdRange)(op, begin, end);
  });
}

void run(const RmsNormBwd& op, Context& ctx) {
  parallel_ranges(ctx, op.y.dim(0), row_grain(op.y.dim(1)), [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(RmsNormBwdRange)(op, begin, end);
  });
}

}  // namespace qt::cpu

#endif  // HWY_ONCE
