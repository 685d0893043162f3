// Highway helpers for kernels that compute in f32 and store f32, bf16 or f16: loads that widen, stores that
// round to nearest even, and forms for the last few elements of a row that touch nothing beyond them.
//
// Include it after hwy/highway.h in a file that is compiled once per instruction set (hwy/foreach_target.h).

// Per-target include guard: the file is read again for each instruction set.
#if defined(QTRAIN_KERNELS_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QTRAIN_KERNELS_CPU_SIMD_INL_H_
#undef QTRAIN_KERNELS_CPU_SIMD_INL_H_
#else
#define QTRAIN_KERNELS_CPU_SIMD_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <hwy/highway.h>

#include "src/core/half.h"

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using F32Tag = hn::ScalableTag<float>;
using F32Vec = hn::Vec<F32Tag>;

// Lanes(d) elements as f32. No alignment needed.
template <class D>
HWY_INLINE hn::Vec<D> LoadF32(D d, const float* from) {
  return hn::LoadU(d, from);
}

template <class D>
HWY_INLINE hn::Vec<D> LoadF32(D d, const bf16* from) {
  const hn::Rebind<std::uint16_t, D> d16;
  const hn::RebindToUnsigned<D> d32;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, hn::LoadU(d16, &from->bits))));
}

template <class D>
HWY_INLINE void StoreF32(D d, hn::Vec<D> v, float* to) {
  hn::StoreU(v, d, to);
}

// The bits of qt::to_bf16 in the low halves of the lanes. Integer arithmetic on every target: the conversion
// instruction of AVX512_BF16 flushes denormals, so that its bits would differ from every other target's.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToUnsigned<D>> RoundToBf16Bits(D /*d*/, hn::Vec<D> v) {
  const hn::RebindToUnsigned<D> d32;
  const auto bits = hn::BitCast(d32, v);
  const auto high = hn::ShiftRight<16>(bits);
  const auto odd = hn::And(high, hn::Set(d32, 1u));
  const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(d32, 0x7FFFu)), odd));
  const auto quiet_nan = hn::Or(high, hn::Set(d32, 0x40u));
  return hn::IfThenElse(hn::RebindMask(d32, hn::IsNaN(v)), quiet_nan, rounded);
}

template <class D>
HWY_INLINE void StoreF32(D d, hn::Vec<D> v, bf16* to) {
  const hn::Rebind<std::uint16_t, D> d16;
  const hn::RebindToSigned<D> di32;
  // Every lane is at most 0xFFFF, so that the saturating conversion saturates nothing.
  hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di32, RoundToBf16Bits(d, v))), d16, &to->bits);
}

// Conversion instructions for f16: exact for denormals and rounding to nearest even, as qt::to_f16. Highway's
// own code for targets without them truncates: there each lane takes the scalar function.
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL || \
    (HWY_ARCH_ARM_A64 && HWY_TARGET == HWY_NEON)
#define QTRAIN_NATIVE_F16 1
#else
#define QTRAIN_NATIVE_F16 0
#endif

template <class D>
HWY_INLINE hn::Vec<D> LoadF32(D d, const f16* from) {
#if QTRAIN_NATIVE_F16
  const hn::Rebind<std::uint16_t, D> d16;
  const hn::Rebind<hwy::float16_t, D> df16;
  return hn::PromoteTo(d, hn::BitCast(df16, hn::LoadU(d16, &from->bits)));
#else
  float wide[hn::MaxLanes(d)];
  for (std::size_t i = 0; i < hn::Lanes(d); ++i) wide[i] = to_float(from[i]);
  return hn::LoadU(d, wide);
#endif
}

template <class D>
HWY_INLINE void StoreF32(D d, hn::Vec<D> v, f16* to) {
#if QTRAIN_NATIVE_F16
  const hn::Rebind<std::uint16_t, D> d16;
  const hn::Rebind<hwy::float16_t, D> df16;
  const hn::RebindToUnsigned<D> d32;
  // The instruction keeps what it can of a NaN's payload; to_f16 keeps its sign alone.
  const auto plain_nan =
      hn::Or(hn::And(hn::BitCast(d32, v), hn::Set(d32, 0x80000000u)), hn::Set(d32, 0x7FC00000u));
  const auto safe = hn::IfThenElse(hn::IsNaN(v), hn::BitCast(d, plain_nan), v);
  hn::StoreU(hn::BitCast(d16, hn::DemoteTo(df16, safe)), d16, &to->bits);
#else
  float wide[hn::MaxLanes(d)];
  hn::StoreU(v, d, wide);
  for (std::size_t i = 0; i < hn::Lanes(d); ++i) to[i] = to_f16(wide[i]);
#endif
}

#undef QTRAIN_NATIVE_F16

// n < Lanes(d) elements; the other lanes are 0. Through a small buffer: masked loads read the whole vector on
// some targets, and sanitizers count such a read as out of bounds on all of them.
template <class D, class T>
HWY_INLINE hn::Vec<D> LoadF32Partial(D d, const T* from, std::size_t n) {
  T buffer[hn::MaxLanes(d)] = {};
  std::memcpy(buffer, from, n * sizeof(T));
  return LoadF32(d, buffer);
}

// Writes the first n < Lanes(d) lanes.
template <class D, class T>
HWY_INLINE void StoreF32Partial(D d, hn::Vec<D> v, T* to, std::size_t n) {
  T buffer[hn::MaxLanes(d)];
  StoreF32(d, v, buffer);
  std::memcpy(to, buffer, n * sizeof(T));
}

// Calls full(i) for each whole vector of [begin, end) and then tail(i, count) once when elements are left.
// Lambdas passed here need HWY_ATTR.
template <class D, class Full, class Tail>
HWY_INLINE void ForVectors(D d, std::int64_t begin, std::int64_t end, Full&& full, Tail&& tail) {
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t i = begin;
  for (; i + lanes <= end; i += lanes) full(i);
  if (i < end) tail(i, static_cast<std::size_t>(end - i));
}

// y[i] = f(x[i]) in f32 for i in [begin, end); y may be x.
template <class X, class Y, class Function>
HWY_INLINE void Unary(const X* x, Y* y, std::int64_t begin, std::int64_t end, Function&& f) {
  const F32Tag d;
  ForVectors(
      d, begin, end, [&](std::int64_t i) HWY_ATTR { StoreF32(d, f(LoadF32(d, x + i)), y + i); },
      [&](std::int64_t i, std::size_t n)
          HWY_ATTR { StoreF32Partial(d, f(LoadF32Partial(d, x + i, n)), y + i, n); });
}

// y[i] = f(a[i], b[i]) in f32 for i in [begin, end); y may be a or b.
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

}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
