// Elementwise ops on the cpu: Fill, Cast, Add, Multiply, MultiplyBwd. Bound by memory, so that one pass over wide vectors is all that
// is to do. Each element is computed on its own: no result depends on how ranges are cut.
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
  Unary(x, y, begin, end, [](F32Vec v) HWY_ATTR { return v; });
}

void CastRange(const Cast& op, std::int64_t begin, std::int64_t end) {
  with_float(op.x.dtype, [&]<class From>() {
    with_float(op.y.dtype, [&]<class To>() { CastTyped(op.x.as<From>(), op.y.as<To>(), begin, end); });
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

template <class T>
void MultiplyTyped(const Multiply& op, std::int64_t begin, std::int64_t end) {
  Binary(op.a.as<T>(), op.b.as<T>(), op.y.as<T>(), begin, end,
         [](F32Vec a, F32Vec b) HWY_ATTR { return hn::Mul(a, b); });
}

void MultiplyRange(const Multiply& op, std::int64_t begin, std::int64_t end) {
  with_float(op.y.dtype, [&]<class T>() { MultiplyTyped<T>(op, begin, end); });
}

// Everything is loaded before anything is stored: da may be dy, and db may be b.
template <class T>
void MultiplyBwdTyped(const MultiplyBwd& op, std::int64_t begin, std::int64_t end) {
  const F32Tag d;
  const T *a = op.a.as<T>(), *b = op.b.as<T>(), *dy = op.dy.as<T>();
  T *da = op.da.as<T>(), *db = op.db.as<T>();
  ForVectors(
      d, begin, end,
      [&](std::int64_t i) HWY_ATTR {
        const F32Vec av = LoadF32(d, a + i), bv = LoadF32(d, b + i), dyv = LoadF32(d, dy + i);
        StoreF32(d, hn::Mul(dyv, bv), da + i);
        StoreF32(d, hn::Mul(dyv, av), db + i);
      },
      [&](std::int64_t i, std::size_t n) HWY_ATTR {
        const F32Vec av = LoadF32Partial(d, a + i, n), bv = LoadF32Partial(d, b + i, n),
                     dyv = LoadF32Partial(d, dy + i, n);
        StoreF32Partial(d, hn::Mul(dyv, bv), da + i, n);
        StoreF32Partial(d, hn::Mul(dyv, av), db + i, n);
      });
}

void MultiplyBwdRange(const MultiplyBwd& op, std::int64_t begin, std::int64_t end) {
  with_float(op.dy.dtype, [&]<class T>() { MultiplyBwdTyped<T>(op, begin, end); });
}

}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <algorithm>
#include <cstring>

namespace qt::cpu {

HWY_EXPORT(CastRange);
HWY_EXPORT(AddRange);
HWY_EXPORT(MultiplyRange);
HWY_EXPORT(MultiplyBwdRange);

namespace {

constexpr std::int64_t kGrainElems = 64 * 1024;  // a quarter of a second-level cache per operand

template <class T>
void fill_typed(const Fill& op, T value, Context& ctx) {
  T* x = op.x.as<T>();
  parallel_ranges(ctx, op.x.elems(), kGrainElems,
                  [&](std::int64_t begin, std::int64_t end, int) { std::fill(x + begin, x + end, value); });
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
    case DType::i64: break;  // check() refuses it: a type of files
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

void run(const Multiply& op, Context& ctx) {
  parallel_ranges(ctx, op.y.elems(), kGrainElems, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(MultiplyRange)(op, begin, end);
  });
}

void run(const MultiplyBwd& op, Context& ctx) {
  parallel_ranges(ctx, op.dy.elems(), kGrainElems, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(MultiplyBwdRange)(op, begin, end);
  });
}

}  // namespace qt::cpu

#endif  // HWY_ONCE
