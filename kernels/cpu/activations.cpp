// The activations of the MLP on the cpu, forward and backward: ReLU^2 and the exact GELU, the normal
// distribution of which is in math-inl.h. Each element is computed on its own.
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

// max(x, 0) that lets a NaN through: a diverged run must not look healthy behind an activation.
HWY_INLINE F32Vec Relu(F32Vec x) { return hn::IfThenZeroElse(hn::Lt(x, hn::Zero(F32Tag())), x); }

template <class T>
void Relu2FwdTyped(const Relu2Fwd& op, std::int64_t begin, std::int64_t end) {
  Unary(op.x.as<T>(), op.y.as<T>(), begin, end, [](F32Vec x) HWY_ATTR {
    const F32Vec r = Relu(x);
    return hn::Mul(r, r);
  });
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

template <class T>
void GeluFwdTyped(const GeluFwd& op, std::int64_t begin, std::int64_t end) {
  Unary(op.x.as<T>(), op.y.as<T>(), begin, end,
        [](F32Vec x) HWY_ATTR { return hn::Mul(x, NormalOf(F32Tag(), x).cdf); });
}

void GeluFwdRange(const GeluFwd& op, std::int64_t begin, std::int64_t end) {
  with_float(op.x.dtype, [&]<class T>() { GeluFwdTyped<T>(op, begin, end); });
}

template <class T>
void GeluBwdTyped(const GeluBwd& op, std::int64_t begin, std::int64_t end) {
  Binary(op.x.as<T>(), op.dy.as<T>(), op.dx.as<T>(), begin, end, [](F32Vec x, F32Vec dy) HWY_ATTR {
    const F32Tag d;
    const auto normal = NormalOf(d, x);
    const F32Vec density = hn::Mul(normal.bell, hn::Set(d, kNormalDensityAt0));
    return hn::Mul(dy, hn::MulAdd(x, density, normal.cdf));
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

HWY_EXPORT(Relu2FwdRange);
HWY_EXPORT(Relu2BwdRange);
HWY_EXPORT(GeluFwdRange);
HWY_EXPORT(GeluBwdRange);

namespace {

// Elements of a task: ReLU^2 is bound by memory, GELU by arithmetic.
constexpr std::int64_t kRelu2Grain = 64 * 1024, kGeluGrain = 16 * 1024;

}  // namespace

void run(const Relu2Fwd& op, Context& ctx) {
  parallel_ranges(ctx, op.y.elems(), kRelu2Grain, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(Relu2FwdRange)(op, begin, end);
  });
}

void run(const Relu2Bwd& op, Context& ctx) {
  parallel_ranges(ctx, op.dx.elems(), kRelu2Grain, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(Relu2BwdRange)(op, begin, end);
  });
}

void run(const GeluFwd& op, Context& ctx) {
  parallel_ranges(ctx, op.y.elems(), kGeluGrain, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(GeluFwdRange)(op, begin, end);
  });
}

void run(const GeluBwd& op, Context& ctx) {
  parallel_ranges(ctx, op.dx.elems(), kGeluGrain, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(GeluBwdRange)(op, begin, end);
  });
}

}  // namespace qt::cpu

#endif  // HWY_ONCE
