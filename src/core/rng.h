// Philox4x32-10 (Salmon et al., SC'11): a counter-based generator. A draw is a pure function of
// (seed, stream, index), so nothing but the seed and the step ever has to be saved, and every backend and
// thread count draws the same bits.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

#include "src/core/device.h"

namespace qt {

// What a draw is for. Part of the key: two purposes never share a draw.
enum class RngPurpose : std::uint32_t {
  init = 1,
  data_order = 2,
  sample = 3,
  stochastic_rounding = 4,
  dropout = 5
};

struct RngStream {
  std::uint64_t seed = 0;
  RngPurpose purpose = RngPurpose::init;
  std::uint64_t stream = 0;  // tensor number at init, step while training
};

inline constexpr int kPhiloxRounds = 10;
inline constexpr std::uint32_t kPhiloxMultiplier0 = 0xD2511F53u, kPhiloxMultiplier1 = 0xCD9E8D57u;
inline constexpr std::uint32_t kPhiloxWeyl0 = 0x9E3779B9u, kPhiloxWeyl1 = 0xBB67AE85u;  // added to the key

QT_HOST_DEVICE inline std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                                              std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const std::uint64_t p0 = std::uint64_t{kPhiloxMultiplier0} * counter[0];
    const std::uint64_t p1 = std::uint64_t{kPhiloxMultiplier1} * counter[2];
    counter = {static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(p1),
               static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(p0)};
    key[0] += kPhiloxWeyl0;
    key[1] += kPhiloxWeyl1;
  }
  return counter;
}

QT_HOST_DEVICE inline std::array<std::uint32_t, 2> rng_key(const RngStream& s) {
  return {static_cast<std::uint32_t>(s.seed) ^ (static_cast<std::uint32_t>(s.purpose) * 0x85EBCA6Bu),
          static_cast<std::uint32_t>(s.seed >> 32)};
}

// Four 32-bit draws for block `index` (elements 4*index .. 4*index + 3) of a stream.
QT_HOST_DEVICE inline std::array<std::uint32_t, 4> rng_block(const RngStream& s, std::uint64_t index) {
  return philox4x32({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                     static_cast<std::uint32_t>(s.stream), static_cast<std::uint32_t>(s.stream >> 32)},
                    rng_key(s));
}

// Selected by comparisons: on a device an index would put the words into memory.
QT_HOST_DEVICE inline std::uint32_t rng_u32(const RngStream& s, std::uint64_t element) {
  const std::array<std::uint32_t, 4> words = rng_block(s, element / 4);
  const std::uint64_t word = element % 4;
  return word < 2 ? (word == 0 ? words[0] : words[1]) : (word == 2 ? words[2] : words[3]);
}

// Uniform in (0, 1): 23 bits, centred, never 0 or 1. One bit more and the half would need a 25th: the largest
// draw would round to 1, and the normal quantile of 1 is infinite.
QT_HOST_DEVICE inline float rng_unit(std::uint32_t bits) {
  return (static_cast<float>(bits >> 9) + 0.5f) * 0x1p-23f;
}

}  // namespace qt
