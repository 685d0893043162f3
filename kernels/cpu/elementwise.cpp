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
#include <cstring>

#include "kernels/normal_quantile.h"

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

template <class T>
void init_normal(const InitNormal& op, Context& ctx) {
  T* x = op.x.as<T>();
  parallel_ranges(ctx, op.x.elems(), kGrainElems, [&](std::int64_t begin, std::int64_t end, int) {
    if (op.stddev == 0) return std::fill(x + begin, x + end, from_float<T>(op.constant));
    std::array<std::uint32_t, 4> draws{};
    for (std::int64_t i = begin; i < end; ++i) {
      const auto element = static_cast<std::uint64_t>(op.first_element + i);
      if (i == begin || element % 4 == 0) draws = rng_block(op.rng, element / 4);
      const double z = normal_quantile(static_cast<double>(rng_unit(draws[element % 4])));
      x[i] = from_float<T>(op.constant + op.stddev * static_cast<float>(z));
    }
  });
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
  if (op.x.dtype == DType::bf16) return init_normal<bf16>(op, ctx);
  init_normal<float>(op, ctx);
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
