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

// The tail Phi(-a), a >= 0, is exp(-a^2 / 2) S(q) / (a + 3.5), q = (a - 3.5) / (a + 3.5): scaled like that
// (the form is that of Shepherd and Laframboise, Math. Comp. 36, 1981) the tail is smooth enough for one
// polynomial. S is the minimax polynomial in relative error for 0 <= a <= 13.25, off by 5.3e-9
// (tools/fit_normal_tail.py). With the rounding of f32 the tail is within 12 roundoffs (2^-24) and a^2 / 2
// more, the error of rounding a^2 before the exponential.
template <class D>
HWY_INLINE Normal<D> NormalOf(D d, hn::Vec<D> x) {
  using V = hn::Vec<D>;
  const V one = hn::Set(d, 1.0f);
  const V bell = NegativeExp(d, hn::Mul(hn::Mul(x, x), hn::Set(d, -0.5f)));
  const V r = hn::Div(one, hn::Add(hn::Abs(x), hn::Set(d, 3.5f)));
  const V q = hn::NegMulAdd(hn::Set(d, 7.0f), r, one);
  V s = hn::Set(d, 1.15899412901e-4f);
  s = hn::MulAdd(s, q, hn::Set(d, 4.31668260822e-4f));
  s = hn::MulAdd(s, q, hn::Set(d, -4.93803545109e-4f));
  s = hn::MulAdd(s, q, hn::Set(d, -3.18149525045e-3f));
  s = hn::MulAdd(s, q, hn::Set(d, 6.49116304715e-3f));
  s = hn::MulAdd(s, q, hn::Set(d, 1.74076444336e-2f));
  s = hn::MulAdd(s, q, hn::Set(d, -1.16052655425e-1f));
  s = hn::MulAdd(s, q, hn::Set(d, 3.15424958962e-1f));
  s = hn::MulAdd(s, q, hn::Set(d, -5.65561761131e-1f));
  s = hn::MulAdd(s, q, hn::Set(d, 7.44416075251e-1f));
  const V tail = hn::Mul(bell, hn::Mul(s, r));
  return {hn::IfThenElse(hn::Lt(x, hn::Zero(d)), tail, hn::Sub(one, tail)), bell};
}

}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
