// Rows of any length and alignment; vectors through simd-inl.h, the last elements of a row without touching
// what lies beyond them.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/row_ops.cpp"
#include "kernels/cpu/row_ops.h"

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {

template <class T>
void WidenRowsTyped(const T* from, std::int64_t from_pitch, std::int64_t rows, std::int64_t cols, float* to,
                    std::int64_t to_pitch) {
  const F32Tag d;
  for (std::int64_t row = 0; row < rows; ++row) {
    const T* src = from + row * from_pitch;
    float* dst = to + row * to_pitch;
    ForVectors(
        d, 0, cols, [&](std::int64_t i) HWY_ATTR { StoreF32(d, LoadF32(d, src + i), dst + i); },
        [&](std::int64_t i, std::size_t n)
            HWY_ATTR { StoreF32Partial(d, LoadF32Partial(d, src + i, n), dst + i, n); });
  }
}

void WidenBf16(const bf16* from, std::int64_t from_pitch, std::int64_t rows, std::int64_t cols, float* to,
               std::int64_t to_pitch) {
  WidenRowsTyped(from, from_pitch, rows, cols, to, to_pitch);
}
void WidenF16(const f16* from, std::int64_t from_pitch, std::int64_t rows, std::int64_t cols, float* to,
              std::int64_t to_pitch) {
  WidenRowsTyped(from, from_pitch, rows, cols, to, to_pitch);
}

// What the sum of the pieces meets.
enum class With { nothing, old, bias };

template <class T, With kWith>
void StoreSumTyped(const PieceSum& s) {
  const F32Tag d;
  for (std::int64_t row = 0; row < s.rows; ++row) {
    const float* src = s.pieces + row * s.pitch;
    T* dst = reinterpret_cast<T*>(s.to) + row * s.to_pitch;
    const auto result = [&](auto load_piece, auto load_old, auto load_bias) HWY_ATTR {
      F32Vec sum = load_piece(src);
      for (std::int64_t p = 1; p < s.piece_count; ++p)
        sum = hn::Add(sum, load_piece(src + p * s.piece_stride));
      if constexpr (kWith == With::old) sum = hn::Add(load_old(), sum);
      if constexpr (kWith == With::bias) sum = hn::Add(sum, load_bias());
      return sum;
    };
    ForVectors(
        d, 0, s.cols,
        [&](std::int64_t i) HWY_ATTR {
          StoreF32(d,
                   result([&](const float* piece) HWY_ATTR { return LoadF32(d, piece + i); },
                          [&]() HWY_ATTR { return LoadF32(d, dst + i); },
                          [&]() HWY_ATTR { return LoadF32(d, s.bias + i); }),
                   dst + i);
        },
        [&](std::int64_t i, std::size_t n) HWY_ATTR {
          StoreF32Partial(d,
                          result([&](const float* piece) HWY_ATTR { return LoadF32Partial(d, piece + i, n); },
                                 [&]() HWY_ATTR { return LoadF32Partial(d, dst + i, n); },
                                 [&]() HWY_ATTR { return LoadF32Partial(d, s.bias + i, n); }),
                          dst + i, n);
        });
  }
}

template <class T>
void StoreSumOf(const PieceSum& s) {
  s.accumulate        ? StoreSumTyped<T, With::old>(s)
  : s.bias != nullptr ? StoreSumTyped<T, With::bias>(s)
                      : StoreSumTyped<T, With::nothing>(s);
}

void StoreSum(const PieceSum& s) {
  with_float(s.to_dtype, [&]<class T>() { StoreSumOf<T>(s); });
}

}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace qt::cpu {

HWY_EXPORT(WidenBf16);
HWY_EXPORT(WidenF16);
HWY_EXPORT(StoreSum);

void widen_rows(const bf16* from, std::int64_t from_pitch, std::int64_t rows, std::int64_t cols, float* to,
                std::int64_t to_pitch) {
  HWY_DYNAMIC_DISPATCH(WidenBf16)(from, from_pitch, rows, cols, to, to_pitch);
}
void widen_rows(const f16* from, std::int64_t from_pitch, std::int64_t rows, std::int64_t cols, float* to,
                std::int64_t to_pitch) {
  HWY_DYNAMIC_DISPATCH(WidenF16)(from, from_pitch, rows, cols, to, to_pitch);
}

void store_sum(const PieceSum& sum) { HWY_DYNAMIC_DISPATCH(StoreSum)(sum); }

void add_blocks(Context& ctx, const float* sums, std::int64_t blocks, std::int64_t stride, std::int64_t C,
                float* to) {
  constexpr std::int64_t kColumnsPerTask = 512;
  parallel_ranges(ctx, C, kColumnsPerTask, [&](std::int64_t begin, std::int64_t end, int) {
    store_sum({.pieces = sums + begin,
               .piece_count = blocks,
               .piece_stride = stride,
               .to = reinterpret_cast<std::byte*>(to + begin),
               .rows = 1,
               .cols = end - begin,
               .accumulate = true});
  });
}

}  // namespace qt::cpu

#endif  // HWY_ONCE
