// Vector exponential and normal distribution, in f32, for every instruction set.
//
// Include it after hwy/highway.h in a file that is compiled once per instruction set (hwy/foreach_target.h).

// Per-target include guard: the file is read again for each instruction set.
#if defined(QTRAIN_KERNELS_CPU_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QTRAIN_KERNELS_CPU_MATH_INL_H_
#undef QTRAIN_KERNELS_CPU_MATH_INL_H_
#else
#define QTRAIN_KERNELS_CPU_MATH_INL_H_
#endif

#include <hwy/highway.h>

#include "kernels/normal_tail.h"

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// exp(x) for -87 <= x <= 87, within 1.1 ulp (measured against double with and without fused multiply-adds, on
// every fifth float); NaN stays NaN, which is why this is not Highway's Exp (there it becomes 0, and a broken
// model would report a finite loss). Coefficients: Moshier's Cephes, expf.
template <class D>
HWY_INLINE hn::Vec<D> BoundedExp(D d, hn::Vec<D> x) {
  using V = hn::Vec<D>;
  const hn::RebindToSigned<D> di;
  const auto n = hn::NearestInt(hn::Mul(x, hn::Set(d, 1.44269504088896341f)));
  const V nf = hn::ConvertTo(d, n);
  // ln 2 in two parts, the first with few bits: its product with n is exact.
  V r = hn::NegMulAdd(nf, hn::Set(d, 0.693359375f), x);
  r = hn::NegMulAdd(nf, hn::Set(d, -2.12194440e-4f), r);
  V p = hn::Set(d, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(d, 1.0f));
  return hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<23>(hn::Add(n, hn::Set(di, 127)))));
}

// exp(x) for x <= 0, and 0 below -87: against terms near 1 that is lost anyway. The comparison lets NaN
// through.
template <class D>
HWY_INLINE hn::Vec<D> NegativeExp(D d, hn::Vec<D> x) {
  const auto gone = hn::Lt(x, hn::Set(d, -87.0f));
  return hn::IfThenZeroElse(gone, BoundedExp(d, hn::IfThenElse(gone, hn::Zero(d), x)));
}

// The normal distribution function Phi(x) = (1 + erf(x / sqrt(2))) / 2, and exp(-x^2 / 2), from which the
// density follows.
template <class D>
struct Normal {
  hn::Vec<D> cdf, bell;
};

// By the polynomial of kernels/normal_tail.h. With the rounding of f32 the tail is within 12 roundoffs
// (2^-24) and a^2 / 2 more, the error of rounding a^2 before the exponential.
template <class D>
HWY_INLINE Normal<D> NormalOf(D d, hn::Vec<D> x) {
  using V = hn::Vec<D>;
  const V one = hn::Set(d, 1.0f);
  const V bell = NegativeExp(d, hn::Mul(hn::Mul(x, x), hn::Set(d, -0.5f)));
  const V r = hn::Div(one, hn::Add(hn::Abs(x), hn::Set(d, NormalTail::kShift)));
  const V q = hn::NegMulAdd(hn::Set(d, 2 * NormalTail::kShift), r, one);
  V s = hn::Set(d, NormalTail::kS9);
  s = hn::MulAdd(s, q, hn::Set(d, NormalTail::kS8));
  s = hn::MulAdd(s, q, hn::Set(d, NormalTail::kS7));
  s = hn::MulAdd(s, q, hn::Set(d, NormalTail::kS6));
  s = hn::MulAdd(s, q, hn::Set(d, NormalTail::kS5));
  s = hn::MulAdd(s, q, hn::Set(d, NormalTail::kS4));
  s = hn::MulAdd(s, q, hn::Set(d, NormalTail::kS3));
  s = hn::MulAdd(s, q, hn::Set(d, NormalTail::kS2));
  s = hn::MulAdd(s, q, hn::Set(d, NormalTail::kS1));
  s = hn::MulAdd(s, q, hn::Set(d, NormalTail::kS0));
  const V tail = hn::Mul(bell, hn::Mul(s, r));
  return {hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(one, tail)), bell};
}

}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
