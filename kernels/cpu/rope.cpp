// Rotary positions and the norm over the head that may follow them, in one op each way: the rotated head is
// never stored between the two. The cosines and sines of a token stay in cache while its heads pass by.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/rope.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <cmath>

#include <hwy/highway.h>

#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {

// The two halves of a head, or of its gradient, at the same index.
struct Halves {
  F32Vec lo, hi;
};

template <class T>
HWY_INLINE Halves LoadHalves(const T* x, std::int64_t half, std::int64_t i) {
  const F32Tag d;
  return {LoadF32(d, x + i), LoadF32(d, x + half + i)};
}

template <class T>
HWY_INLINE Halves LoadHalvesPartial(const T* x, std::int64_t half, std::int64_t i, std::size_t n) {
  const F32Tag d;
  return {LoadF32Partial(d, x + i, n), LoadF32Partial(d, x + half + i, n)};
}

// By -theta.
HWY_INLINE Halves RotateBack(Halves x, F32Vec cos, F32Vec sin) {
  return {hn::MulAdd(x.lo, cos, hn::Mul(x.hi, sin)), hn::NegMulAdd(x.lo, sin, hn::Mul(x.hi, cos))};
}

// By +theta: the transpose of RotateBack.
HWY_INLINE Halves RotateForward(Halves x, F32Vec cos, F32Vec sin) {
  return {hn::NegMulAdd(x.hi, sin, hn::Mul(x.lo, cos)), hn::MulAdd(x.lo, sin, hn::Mul(x.hi, cos))};
}

// Calls full(i, cos, sin) or tail(i, n, cos, sin) over one half of a head.
template <class T, class Full, class Tail>
HWY_INLINE void ForHalf(const T* cos, const T* sin, std::int64_t half, Full&& full, Tail&& tail) {
  const F32Tag d;
  ForVectors(
      d, 0, half, [&](std::int64_t i) HWY_ATTR { full(i, LoadF32(d, cos + i), LoadF32(d, sin + i)); },
      [&](std::int64_t i, std::size_t n)
          HWY_ATTR { tail(i, n, LoadF32Partial(d, cos + i, n), LoadF32Partial(d, sin + i, n)); });
}

template <class T>
void RopeNormFwdTyped(const RopeNormFwd& op, std::int64_t begin, std::int64_t end) {
  const F32Tag d;
  const std::int64_t H = op.x.dim(1), D = op.x.dim(2), half = D / 2;
  float* rstd_NH = op.rstd.defined() ? op.rstd.as<float>() : nullptr;
  for (std::int64_t n = begin; n < end; ++n) {
    const std::int64_t position = op.first_position + n % op.T;
    const T* cos = op.cos.as<T>() + position * half;
    const T* sin = op.sin.as<T>() + position * half;
    for (std::int64_t h = 0; h < H; ++h) {
      const T* x = op.x.as<T>() + (n * H + h) * D;
      T* y = op.y.as<T>() + (n * H + h) * D;
      // The rotation is done twice rather than kept: x may be y, and D has no bound to size a buffer by.
      float rstd = 1;
      if (rstd_NH != nullptr) {
        F32Vec sum_lo = hn::Zero(d), sum_hi = sum_lo;
        const auto add_squares = [&](Halves r) HWY_ATTR {
          sum_lo = hn::MulAdd(r.lo, r.lo, sum_lo);
          sum_hi = hn::MulAdd(r.hi, r.hi, sum_hi);
        };
        ForHalf(
            cos, sin, half,
            [&](std::int64_t i, F32Vec c, F32Vec s)
                HWY_ATTR { add_squares(RotateBack(LoadHalves(x, half, i), c, s)); },
            [&](std::int64_t i, std::size_t count, F32Vec c, F32Vec s)
                HWY_ATTR { add_squares(RotateBack(LoadHalvesPartial(x, half, i, count), c, s)); });
        const float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum_lo, sum_hi)));
        rstd = 1.0f / std::sqrt(sum / static_cast<float>(D) + op.eps);
        rstd_NH[n * H + h] = rstd;
      }
      const F32Vec scale = hn::Set(d, rstd);
      ForHalf(
          cos, sin, half,
          [&](std::int64_t i, F32Vec c, F32Vec s) HWY_ATTR {
            const Halves r = RotateBack(LoadHalves(x, half, i), c, s);
            StoreF32(d, hn::Mul(r.lo, scale), y + i);
            StoreF32(d, hn::Mul(r.hi, scale), y + half + i);
          },
          [&](std::int64_t i, std::size_t count, F32Vec c, F32Vec s) HWY_ATTR {
            const Halves r = RotateBack(LoadHalvesPartial(x, half, i, count), c, s);
            StoreF32Partial(d, hn::Mul(r.lo, scale), y + i, count);
            StoreF32Partial(d, hn::Mul(r.hi, scale), y + half + i, count);
          });
    }
  }
}

void RopeNormFwdRange(const RopeNormFwd& op, std::int64_t begin, std::int64_t end) {
  with_float(op.x.dtype, [&]<class T>() { RopeNormFwdTyped<T>(op, begin, end); });
}

template <class T>
void RopeNormBwdTyped(const RopeNormBwd& op, std::int64_t begin, std::int64_t end) {
  const F32Tag d;
  const std::int64_t H = op.dy.dim(1), D = op.dy.dim(2), half = D / 2;
  const float* rstd_NH = op.rstd.defined() ? op.rstd.as<float>() : nullptr;
  // Without a norm dy stands for y and counts 0 times.
  const T* y_NHD = rstd_NH == nullptr ? op.dy.as<T>() : op.y.as<T>();
  for (std::int64_t n = begin; n < end; ++n) {
    const T* cos = op.cos.as<T>() + n % op.T * half;
    const T* sin = op.sin.as<T>() + n % op.T * half;
    for (std::int64_t h = 0; h < H; ++h) {
      const T* y = y_NHD + (n * H + h) * D;
      const T* dy = op.dy.as<T>() + (n * H + h) * D;
      T* dx = op.dx.as<T>() + (n * H + h) * D;
      F32Vec sum_lo = hn::Zero(d), sum_hi = sum_lo;
      const auto add_products = [&](Halves a, Halves b) HWY_ATTR {
        sum_lo = hn::MulAdd(a.lo, b.lo, sum_lo);
        sum_hi = hn::MulAdd(a.hi, b.hi, sum_hi);
      };
      ForVectors(
          d, 0, half,
          [&](std::int64_t i) HWY_ATTR { add_products(LoadHalves(dy, half, i), LoadHalves(y, half, i)); },
          [&](std::int64_t i, std::size_t count) HWY_ATTR {
            add_products(LoadHalvesPartial(dy, half, i, count), LoadHalvesPartial(y, half, i, count));
          });
      const float sum = hn::GetLane(hn::SumOfLanes(d, hn::Add(sum_lo, sum_hi)));
      const F32Vec mean = hn::Set(d, rstd_NH == nullptr ? 0.0f : sum / static_cast<float>(D));
      const F32Vec rstd = hn::Set(d, rstd_NH == nullptr ? 1.0f : rstd_NH[n * H + h]);
      const auto gradient = [&](Halves y_v, Halves dy_v, F32Vec c, F32Vec s) HWY_ATTR {
        const Halves dr = {hn::Mul(rstd, hn::NegMulAdd(y_v.lo, mean, dy_v.lo)),
                           hn::Mul(rstd, hn::NegMulAdd(y_v.hi, mean, dy_v.hi))};
        return RotateForward(dr, c, s);
      };
      ForHalf(
          cos, sin, half,
          [&](std::int64_t i, F32Vec c, F32Vec s) HWY_ATTR {
            const Halves g = gradient(LoadHalves(y, half, i), LoadHalves(dy, half, i), c, s);
            StoreF32(d, g.lo, dx + i);
            StoreF32(d, g.hi, dx + half + i);
          },
          [&](std::int64_t i, std::size_t count, F32Vec c, F32Vec s) HWY_ATTR {
            const Halves g =
                gradient(LoadHalvesPartial(y, half, i, count), LoadHalvesPartial(dy, half, i, count), c, s);
            StoreF32Partial(d, g.lo, dx + i, count);
            StoreF32Partial(d, g.hi, dx + half + i, count);
          });
    }
  }
}

void RopeNormBwdRange(const RopeNormBwd& op, std::int64_t begin, std::int64_t end) {
  with_float(op.dy.dtype, [&]<class T>() { RopeNormBwdTyped<T>(op, begin, end); });
}

}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <algorithm>

namespace qt::cpu {

HWY_EXPORT(RopeNormFwdRange);
HWY_EXPORT(RopeNormBwdRange);

namespace {

std::int64_t token_grain(std::int64_t H, std::int64_t D) {
  return std::max<std::int64_t>(1, 16 * 1024 / std::max<std::int64_t>(1, H * D));
}

template <class T>
void rope_table(const RopeTable& op, Context& ctx) {
  const std::int64_t half = op.cos.dim(1);
  T* cos = op.cos.as<T>();
  T* sin = op.sin.as<T>();
  parallel_ranges(ctx, op.cos.dim(0), token_grain(1, half), [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t i = 0; i < half; ++i) {
      const double exponent = -static_cast<double>(i) / static_cast<double>(half);
      const auto inv_freq = static_cast<float>(std::pow(static_cast<double>(op.base), exponent));
      for (std::int64_t t = begin; t < end; ++t) {
        const float angle = static_cast<float>(t) * inv_freq;
        cos[t * half + i] = from_float<T>(std::cos(angle));
        sin[t * half + i] = from_float<T>(std::sin(angle));
      }
    }
  });
}

}  // namespace

void run(const RopeTable& op, Context& ctx) {
  with_float(op.cos.dtype, [&]<class T>() { rope_table<T>(op, ctx); });
}

void run(const RopeNormFwd& op, Context& ctx) {
  const std::int64_t grain = token_grain(op.x.dim(1), op.x.dim(2));
  parallel_ranges(ctx, op.x.dim(0), grain, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(RopeNormFwdRange)(op, begin, end);
  });
}

void run(const RopeNormBwd& op, Context& ctx) {
  const std::int64_t grain = token_grain(op.dy.dim(1), op.dy.dim(2));
  parallel_ranges(ctx, op.dy.dim(0), grain, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(RopeNormBwdRange)(op, begin, end);
  });
}

}  // namespace qt::cpu

#endif  // HWY_ONCE
