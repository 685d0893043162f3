// The exact GELU on the cpu: the normal distribution in vectors (math-inl.h), element by element.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/activations.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <hwy/highway.h>

#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {

template <class T>
void GeluFwdTyped(const GeluFwd& op, std::int64_t begin, std::int64_t end) {
  const F32Tag d;
  const T* x = op.x.as<T>();
  T* y = op.y.as<T>();
  const auto gelu = [](F32Vec v) HWY_ATTR { return hn::Mul(v, NormalOf(F32Tag(), v).cdf); };
  ForVectors(
      d, begin, end, [&](std::int64_t i) HWY_ATTR { StoreF32(d, gelu(LoadF32(d, x + i)), y + i); },
      [&](std::int64_t i, std::size_t n)
          HWY_ATTR { StoreF32Partial(d, gelu(LoadF32Partial(d, x + i, n)), y + i, n); });
}

void GeluFwdRange(const GeluFwd& op, std::int64_t begin, std::int64_t end) {
  with_float(op.x.dtype, [&]<class T>() { GeluFwdTyped<T>(op, begin, end); });
}

template <class T>
void GeluBwdTyped(const GeluBwd& op, std::int64_t begin, std::int64_t end) {
  const F32Tag d;
  const T* x = op.x.as<T>();
  const T* dy = op.dy.as<T>();
  T* dx = op.dx.as<T>();
  const auto gradient = [](F32Vec v, F32Vec dv) HWY_ATTR {
    const F32Tag tag;
    const auto normal = NormalOf(tag, v);
    const F32Vec density = hn::Mul(normal.bell, hn::Set(tag, kNormalDensityAt0));
    return hn::Mul(dv, hn::MulAdd(v, density, normal.cdf));
  };
  ForVectors(
      d, begin, end,
      [&](std::int64_t i) HWY_ATTR { StoreF32(d, gradient(LoadF32(d, x + i), LoadF32(d, dy + i)), dx + i); },
      [&](std::int64_t i, std::size_t n) HWY_ATTR {
        StoreF32Partial(d, gradient(LoadF32Partial(d, x + i, n), LoadF32Partial(d, dy + i, n)), dx + i, n);
      });
}

void GeluBwdRange(const GeluBwd& op, std::int64_t begin, std::int64_t end) {
  with_float(op.x.dtype, [&]<class T>() { GeluBwdTyped<T>(op, begin, end); });
}

}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace qt::cpu {

HWY_EXPORT(GeluFwdRange);
HWY_EXPORT(GeluBwdRange);

namespace {

constexpr std::int64_t kGrainElems = 16 * 1024;

}  // namespace

void run(const GeluFwd& op, Context& ctx) {
  parallel_ranges(ctx, op.y.elems(), kGrainElems, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(GeluFwdRange)(op, begin, end);
  });
}

void run(const GeluBwd& op, Context& ctx) {
  parallel_ranges(ctx, op.dx.elems(), kGrainElems, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(GeluBwdRange)(op, begin, end);
  });
}

}  // namespace qt::cpu

#endif  // HWY_ONCE
