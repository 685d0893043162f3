// The vector code that unpacks. Formats with a table of sixteen code points and f32 scales are expanded by byte
// shuffles: a block's sixteen possible weights are computed once (multiply, round to bf16) and split into a table
// of low and a table of high bytes; then sixteen elements take two shuffles. Other formats use their reference.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/expand.cpp"
#include "kernels/cpu/expand.h"

#include <algorithm>

#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

#ifndef QTRAIN_KERNELS_CPU_EXPAND_ONCE_
#define QTRAIN_KERNELS_CPU_EXPAND_ONCE_
namespace qt::cpu {

// Two codes a byte, the first element in the high nibble.
struct NibbleBlocks {
  const float* codebook = nullptr;  // [16]
  const std::uint8_t* codes = nullptr;
  const float* absmax = nullptr;
  std::int64_t block_elems = 0;  // even
};

}  // namespace qt::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {

// The sixteen weights that a block can hold.
HWY_INLINE void BlockTable(const float* codebook, float absmax, bf16* table) {
  const hn::CappedTag<float, 16> d;
  const auto scale = hn::Set(d, absmax);
  for (std::size_t i = 0; i < 16; i += hn::Lanes(d))
    StoreF32(d, hn::Mul(hn::LoadU(d, codebook + i), scale), table + i);
}

#if HWY_TARGET != HWY_SCALAR  // which has no shuffles

using U8Tag = hn::FixedTag<std::uint8_t, 16>;
using U8Vec = hn::Vec<U8Tag>;

HWY_INLINE void StoreSixteen(U8Vec low, U8Vec high, bf16* to) {
  const U8Tag d;
  auto* const bytes = reinterpret_cast<std::uint8_t*>(to);
  hn::StoreU(hn::InterleaveLower(d, low, high), d, bytes);
  hn::StoreU(hn::InterleaveUpper(d, low, high), d, bytes + 16);
}

HWY_INLINE void StoreSixteen(U8Vec low, U8Vec high, float* to) {
  const U8Tag d;
  const hn::Repartition<std::uint16_t, U8Tag> d16;
  const auto zero = hn::Zero(d16);
  auto* const halves = reinterpret_cast<std::uint16_t*>(to);
  const auto first = hn::BitCast(d16, hn::InterleaveLower(d, low, high));
  const auto second = hn::BitCast(d16, hn::InterleaveUpper(d, low, high));
  hn::StoreU(hn::InterleaveLower(d16, zero, first), d16, halves);
  hn::StoreU(hn::InterleaveUpper(d16, zero, first), d16, halves + 8);
  hn::StoreU(hn::InterleaveLower(d16, zero, second), d16, halves + 16);
  hn::StoreU(hn::InterleaveUpper(d16, zero, second), d16, halves + 24);
}

// Expands the whole groups of 32 elements of [first, stop), which begins at an even index and lies in one
// block. Returns where it stopped.
template <class T>
HWY_INLINE std::int64_t ExpandGroups(const bf16* table, const std::uint8_t* codes, std::int64_t first,
                                     std::int64_t stop, T* to) {
  const U8Tag d;
  const hn::Repartition<std::uint16_t, U8Tag> d16;
  const hn::Repartition<std::uint64_t, U8Tag> d64;
  alignas(16) static constexpr std::uint8_t kEvenBytes[16] = {0, 2, 4, 6, 8, 10, 12, 14};
  alignas(16) static constexpr std::uint8_t kOddBytes[16] = {1, 3, 5, 7, 9, 11, 13, 15};
  const auto* const bytes = reinterpret_cast<const std::uint8_t*>(table);
  const U8Vec words0 = hn::LoadU(d, bytes), words1 = hn::LoadU(d, bytes + 16);
  // One byte of each entry: eight of the first half of the table, then eight of the second.
  const auto pick = [&](const std::uint8_t* which) HWY_ATTR {
    const U8Vec index = hn::Load(d, which);
    return hn::BitCast(d, hn::InterleaveLower(d64, hn::BitCast(d64, hn::TableLookupBytes(words0, index)),
                                              hn::BitCast(d64, hn::TableLookupBytes(words1, index))));
  };
  const U8Vec low_bytes = pick(kEvenBytes), high_bytes = pick(kOddBytes);
  const U8Vec low_nibble = hn::Set(d, 0x0F);
  std::int64_t i = first;
  for (; stop - i >= 32; i += 32, to += 32) {
    const U8Vec packed = hn::LoadU(d, codes + (i >> 1));
    const U8Vec seconds = hn::And(packed, low_nibble);
    const U8Vec firsts = hn::And(hn::BitCast(d, hn::ShiftRight<4>(hn::BitCast(d16, packed))), low_nibble);
    const U8Vec codes0 = hn::InterleaveLower(d, firsts, seconds),
                codes1 = hn::InterleaveUpper(d, firsts, seconds);
    StoreSixteen(hn::TableLookupBytes(low_bytes, codes0), hn::TableLookupBytes(high_bytes, codes0), to);
    StoreSixteen(hn::TableLookupBytes(low_bytes, codes1), hn::TableLookupBytes(high_bytes, codes1), to + 16);
  }
  return i;
}

#endif  // HWY_TARGET != HWY_SCALAR

template <class T>
void ExpandNibblesTo(const NibbleBlocks& w, std::int64_t first, std::int64_t count, T* to) {
  const std::int64_t end = first + count;
  for (std::int64_t i = first; i < end;) {
    const std::int64_t block = i / w.block_elems;
    const std::int64_t stop = std::min(end, (block + 1) * w.block_elems);
    alignas(32) bf16 table[16];
    BlockTable(w.codebook, w.absmax[block], table);
    const auto one = [&]() {
      const std::uint8_t byte = w.codes[i >> 1];
      to[i - first] = from_float<T>(to_float(table[(i & 1) == 0 ? byte >> 4 : byte & 0xF]));
      ++i;
    };
    if ((i & 1) != 0) one();
#if HWY_TARGET != HWY_SCALAR
    i = ExpandGroups(table, w.codes, i, stop, to + (i - first));
#endif
    while (i < stop) one();
  }
}

void ExpandNibblesBf16(const NibbleBlocks& w, std::int64_t first, std::int64_t count, bf16* to) {
  ExpandNibblesTo(w, first, count, to);
}
void ExpandNibblesF32(const NibbleBlocks& w, std::int64_t first, std::int64_t count, float* to) {
  ExpandNibblesTo(w, first, count, to);
}

}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <span>
#include <type_traits>

namespace qt::cpu {

HWY_EXPORT(ExpandNibblesBf16);
HWY_EXPORT(ExpandNibblesF32);

namespace {

// Whether codes and scales lie as NibbleBlocks has them.
template <class F>
constexpr bool kInNibbleBlocks = F::kCodeBits == 4 && F::kGroupElems == 2 && F::kBlockElems % 2 == 0 &&
                                 F::eight_of(1, 0) == 0x10 && std::is_same_v<typename F::Scale, float>;

template <class T>
void expand_to(const PackedView& w, std::int64_t first, std::int64_t count, T* to) {
  const auto* codes = w.codes.as<std::uint8_t>();
  dispatch_format(w.format, [&]<class F>() {
    const auto* scales = w.absmax.as<typename F::Scale>();
    if constexpr (kInNibbleBlocks<F>) {
      const NibbleBlocks blocks{
          .codebook = F::kCodebook.data(), .codes = codes, .absmax = scales, .block_elems = F::kBlockElems};
      if constexpr (std::is_same_v<T, float>) {
        HWY_DYNAMIC_DISPATCH(ExpandNibblesF32)(blocks, first, count, to);
      } else {
        HWY_DYNAMIC_DISPATCH(ExpandNibblesBf16)(blocks, first, count, to);
      }
    } else {
      F::dequantize(codes, scales, first, std::span<T>(to, static_cast<std::size_t>(count)));
    }
  });
}

}  // namespace

void expand(const PackedView& w, std::int64_t first, std::int64_t count, bf16* to) {
  expand_to(w, first, count, to);
}
void expand(const PackedView& w, std::int64_t first, std::int64_t count, float* to) {
  expand_to(w, first, count, to);
}

}  // namespace qt::cpu

#endif  // HWY_ONCE
