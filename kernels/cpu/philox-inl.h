// The generator of src/core/rng.h in vectors: the same words, a block of four to a lane.
//
// Include it after hwy/highway.h in a file that is compiled once per instruction set (hwy/foreach_target.h).

// Per-target include guard: the file is read again for each instruction set.
#if defined(QTRAIN_KERNELS_CPU_PHILOX_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef QTRAIN_KERNELS_CPU_PHILOX_INL_H_
#undef QTRAIN_KERNELS_CPU_PHILOX_INL_H_
#else
#define QTRAIN_KERNELS_CPU_PHILOX_INL_H_
#endif

#include <cstdint>

#include <hwy/highway.h>

#include "src/core/rng.h"

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET != HWY_SCALAR  // which has no lanes to pair

using WordTag = hn::ScalableTag<std::uint32_t>;
using WordVec = hn::Vec<WordTag>;

struct WideProduct {
  WordVec high, low;
};

// 32 x 32 = 64 bits in every lane: the instructions multiply every other one.
HWY_INLINE WideProduct MultiplyWide(WordVec a, WordVec b) {
  const WordTag d;
  const hn::RepartitionToWide<WordTag> d64;
  const auto even = hn::MulEven(a, b);
  const auto odd = hn::MulEven(hn::BitCast(d, hn::ShiftRight<32>(hn::BitCast(d64, a))), b);
  return {hn::OddEven(hn::BitCast(d, odd), hn::BitCast(d, hn::ShiftRight<32>(even))),
          hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(odd)), hn::BitCast(d, even))};
}

#endif

// Blocks [first, first + count) of the stream: 4 * count words in the order of their elements.
inline void RandomWords(const RngStream& rng, std::uint64_t first, std::int64_t count, std::uint32_t* to) {
  std::int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
  const WordTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const auto key = rng_key(rng);
  const WordVec m0 = hn::Set(d, kPhiloxMultiplier0), m1 = hn::Set(d, kPhiloxMultiplier1);
  for (; i + lanes <= count; i += lanes) {
    const std::uint64_t block = first + static_cast<std::uint64_t>(i);
    // The upper half of the counter is one number for all lanes, but where the lower half wraps.
    if ((block >> 32) != ((block + static_cast<std::uint64_t>(lanes) - 1) >> 32)) break;
    WordVec c0 = hn::Iota(d, static_cast<std::uint32_t>(block));
    WordVec c1 = hn::Set(d, static_cast<std::uint32_t>(block >> 32));
    WordVec c2 = hn::Set(d, static_cast<std::uint32_t>(rng.stream));
    WordVec c3 = hn::Set(d, static_cast<std::uint32_t>(rng.stream >> 32));
    std::uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < kPhiloxRounds; ++round) {
      const WideProduct p0 = MultiplyWide(c0, m0), p1 = MultiplyWide(c2, m1);
      c0 = hn::Xor(hn::Xor(p1.high, c1), hn::Set(d, k0));
      c1 = p1.low;
      c2 = hn::Xor(hn::Xor(p0.high, c3), hn::Set(d, k1));
      c3 = p0.low;
      k0 += kPhiloxWeyl0;
      k1 += kPhiloxWeyl1;
    }
    hn::StoreInterleaved4(c0, c1, c2, c3, d, to + 4 * i);
  }
#endif
  for (; i < count; ++i) {
    const auto words = rng_block(rng, first + static_cast<std::uint64_t>(i));
    for (int w = 0; w < 4; ++w) to[4 * i + w] = words[static_cast<std::size_t>(w)];
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
