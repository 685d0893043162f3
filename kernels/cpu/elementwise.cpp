// Elementwise ops on the cpu: Fill, Cast, Add, InitNormal, Relu2Fwd, Relu2Bwd. Bound by memory, so that one
// pass over wide vectors is all there is to do. Each element is computed on its own: no result depends on how
// ranges are cut.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <hwy/highway.h>

#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {

template <class From, class To>
void CastTyped(const From* x, To* y, std::int64_t begin, std::int64_t end) {
  const F32Tag d;
  ForVectors(
      d, begin, end, [&](std::int64_t i) HWY_ATTR { StoreF32(d, LoadF32(d, x + i), y + i); },
      [&](std::int64_t i, std::size_t n)
          HWY_ATTR { StoreF32Partial(d, LoadF32Partial(d, x + i, n), y + i, n); });
}

void CastRange(const Cast& op, std::int64_t begin, std::int64_t end) {
  with_float(op.x.dtype, [&]<class From>() {
    with_float(op.y.dtype, [&]<class To>() { CastTyped(op.x.as<From>(), op.y.as<To>(), begin, end); });
  });
}

// y[i] = f(a[i], b[i]) in f32; y may be a or b.
template <class T, class Function>
HWY_INLINE void Binary(const T* a, const T* b, T* y, std::int64_t begin, std::int64_t end, Function&& f) {
  const F32Tag d;
  ForVectors(
      d, begin, end,
      [&](std::int64_t i) HWY_ATTR { StoreF32(d, f(LoadF32(d, a + i), LoadF32(d, b + i)), y + i); },
      [&](std::int64_t i, std::size_t n) HWY_ATTR {
        StoreF32Partial(d, f(LoadF32Partial(d, a + i, n), LoadF32Partial(d, b + i, n)), y + i, n);
      });
}

template <class T>
void AddTyped(const Add& op, std::int64_t begin, std::int64_t end) {
  Binary(op.a.as<T>(), op.b.as<T>(), op.y.as<T>(), begin, end,
         [](F32Vec a, F32Vec b) HWY_ATTR { return hn::Add(a, b); });
}

void AddRange(const Add& op, std::int64_t begin, std::int64_t end) {
  with_float(op.y.dtype, [&]<class T>() { AddTyped<T>(op, begin, end); });
}

// max(x, 0) that lets a NaN through: a diverged run must not look healthy behind an activation.
HWY_INLINE F32Vec Relu(F32Vec x) { return hn::IfThenZeroElse(hn::Lt(x, hn::Zero(F32Tag())), x); }

template <class T>
void Relu2FwdTyped(const Relu2Fwd& op, std::int64_t begin, std::int64_t end) {
  const F32Tag d;
  const T* x = op.x.as<T>();
  T* y = op.y.as<T>();
  const auto square = [](F32Vec v) HWY_ATTR {
    const F32Vec r = Relu(v);
    return hn::Mul(r, r);
  };
  ForVectors(
      d, begin, end, [&](std::int64_t i) HWY_ATTR { StoreF32(d, square(LoadF32(d, x + i)), y + i); },
      [&](std::int64_t i, std::size_t n)
          HWY_ATTR { StoreF32Partial(d, square(LoadF32Partial(d, x + i, n)), y + i, n); });
}

void Relu2FwdRange(const Relu2Fwd& op, std::int64_t begin, std::int64_t end) {
  with_float(op.y.dtype, [&]<class T>() { Relu2FwdTyped<T>(op, begin, end); });
}

template <class T>
void Relu2BwdTyped(const Relu2Bwd& op, std::int64_t begin, std::int64_t end) {
  Binary(op.x.as<T>(), op.dy.as<T>(), op.dx.as<T>(), begin, end, [](F32Vec x, F32Vec dy) HWY_ATTR {
    const F32Vec r = Relu(x);
    return hn::Mul(hn::Add(r, r), dy);
  });
}

void Relu2BwdRange(const Relu2Bwd& op, std::int64_t begin, std::int64_t end) {
  with_float(op.dx.dtype, [&]<class T>() { Relu2BwdTyped<T>(op, begin, end); });
}

}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace qt::cpu {

HWY_EXPORT(CastRange);
HWY_EXPORT(AddRange);
HWY_EXPORT(Relu2FwdRange);
HWY_EXPORT(Relu2BwdRange);

namespace {

constexpr std::int64_t kGrainElems = 64 * 1024;  // a quarter of a second-level cache per operand

template <class T>
void fill_typed(const Fill& op, T value, Context& ctx) {
  T* x = op.x.as<T>();
  parallel_ranges(ctx, op.x.elems(), kGrainElems,
                  [&](std::int64_t begin, std::int64_t end, int) { std::fill(x + begin, x + end, value); });
}

// Coefficients from the highest power down.
constexpr double horner(const std::array<double, 8>& coefficients, double r) {
  double sum = 0;
  for (const double c : coefficients) sum = sum * r + c;
  return sum;
}

// The normal quantile, algorithm AS 241 (Wichura 1988), PPND16: relative error about 1e-16. For p and 1 - p
// above 1.4e-11; draws of 23 bits keep 6e-8 away from both ends, so that the algorithm's third range has no
// use here.
double normal_quantile(double p) {
  constexpr std::array<double, 8> kCentreNum = {
      2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
      1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0};
  constexpr std::array<double, 8> kCentreDen = {
      5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
      5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0};
  constexpr std::array<double, 8> kTailNum = {7.74545014278341407640e-4, 2.27238449892691845833e-2,
                                              2.41780725177450611770e-1, 1.27045825245236838258e0,
                                              3.64784832476320460504e0,  5.76949722146069140550e0,
                                              4.63033784615654529590e0,  1.42343711074968357734e0};
  constexpr std::array<double, 8> kTailDen = {1.05075007164441684324e-9, 5.47593808499534494600e-4,
                                              1.51986665636164571966e-2, 1.48103976427480074590e-1,
                                              6.89767334985100004550e-1, 1.67638483018380384940e0,
                                              2.05319162663775882187e0,  1.0};
  const double q = p - 0.5;
  if (std::abs(q) <= 0.425) {
    const double r = 0.180625 - q * q;
    return q * horner(kCentreNum, r) / horner(kCentreDen, r);
  }
  const double r = std::sqrt(-std::log(q < 0 ? p : 1.0 - p)) - 1.6;
  const double z = horner(kTailNum, r) / horner(kTailDen, r);
  return q < 0 ? -z : z;
}

}  // namespace

void run(const Fill& op, Context& ctx) {
  switch (op.x.dtype) {
    case DType::f32: return fill_typed(op, static_cast<float>(op.value), ctx);
    case DType::bf16: return fill_typed(op, to_bf16(static_cast<float>(op.value)), ctx);
    case DType::f16: return fill_typed(op, to_f16(static_cast<float>(op.value)), ctx);
    case DType::f64: return fill_typed(op, op.value, ctx);
    case DType::u8: return fill_typed(op, static_cast<std::uint8_t>(op.value), ctx);
    case DType::i32: return fill_typed(op, static_cast<std::int32_t>(op.value), ctx);
    case DType::i64: return fill_typed(op, static_cast<std::int64_t>(op.value), ctx);
  }
}

void run(const Cast& op, Context& ctx) {
  const bool same = op.x.dtype == op.y.dtype;
  const std::int64_t elem_bytes = dtype_bytes(op.x.dtype);
  parallel_ranges(ctx, op.x.elems(), kGrainElems, [&](std::int64_t begin, std::int64_t end, int) {
    if (same) {
      std::memcpy(op.y.data + begin * elem_bytes, op.x.data + begin * elem_bytes,
                  static_cast<std::size_t>((end - begin) * elem_bytes));
    } else {
      HWY_DYNAMIC_DISPATCH(CastRange)(op, begin, end);
    }
  });
}

void run(const Add& op, Context& ctx) {
  parallel_ranges(ctx, op.y.elems(), kGrainElems, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(AddRange)(op, begin, end);
  });
}

void run(const InitNormal& op, Context& ctx) {
  float* x = op.x.as<float>();
  parallel_ranges(ctx, op.x.elems(), kGrainElems, [&](std::int64_t begin, std::int64_t end, int) {
    if (op.stddev == 0) return std::fill(x + begin, x + end, op.constant);
    std::array<std::uint32_t, 4> draws{};
    for (std::int64_t i = begin; i < end; ++i) {
      const auto element = static_cast<std::uint64_t>(op.first_element + i);
      if (i == begin || element % 4 == 0) draws = rng_block(op.rng, element / 4);
      const double z = normal_quantile(static_cast<double>(rng_unit(draws[element % 4])));
      x[i] = op.constant + op.stddev * static_cast<float>(z);
    }
  });
}

void run(const Relu2Fwd& op, Context& ctx) {
  parallel_ranges(ctx, op.y.elems(), kGrainElems, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(Relu2FwdRange)(op, begin, end);
  });
}

void run(const Relu2Bwd& op, Context& ctx) {
  parallel_ranges(ctx, op.dx.elems(), kGrainElems, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(Relu2BwdRange)(op, begin, end);
  });
}

}  // namespace qt::cpu

#endif  // HWY_ONCE
