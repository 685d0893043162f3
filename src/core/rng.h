// Philox4x32-10 (Salmon et al., SC'11): a counter-based generator. A draw is a pure function of
// (seed, stream, index), so nothing but the seed and the step ever has to be saved, and every backend and
// thread count draws the same bits.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>

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
inline constexpr std::array<std::uint32_t, 2> kPhiloxMultipliers = {0xD2511F53u, 0xCD9E8D57u};
inline constexpr std::array<std::uint32_t, 2> kPhiloxWeyl = {0x9E3779B9u, 0xBB67AE85u};  // added to the key

inline std::array<std::uint32_t, 4> philox4x32(std::array<std::uint32_t, 4> counter,
                                               std::array<std::uint32_t, 2> key) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    const std::uint64_t p0 = std::uint64_t{kPhiloxMultipliers[0]} * counter[0];
    const std::uint64_t p1 = std::uint64_t{kPhiloxMultipliers[1]} * counter[2];
    counter = {static_cast<std::uint32_t>(p1 >> 32) ^ counter[1] ^ key[0], static_cast<std::uint32_t>(p1),
               static_cast<std::uint32_t>(p0 >> 32) ^ counter[3] ^ key[1], static_cast<std::uint32_t>(p0)};
    key[0] += kPhiloxWeyl[0];
    key[1] += kPhiloxWeyl[1];
  }
  return counter;
}

inline std::array<std::uint32_t, 2> rng_key(const RngStream& s) {
  return {static_cast<std::uint32_t>(s.seed) ^ (static_cast<std::uint32_t>(s.purpose) * 0x85EBCA6Bu),
          static_cast<std::uint32_t>(s.seed >> 32)};
}

// Four 32-bit draws for block `index` (elements 4*index .. 4*index + 3) of a stream.
inline std::array<std::uint32_t, 4> rng_block(const RngStream& s, std::uint64_t index) {
  return philox4x32({static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32),
                     static_cast<std::uint32_t>(s.stream), static_cast<std::uint32_t>(s.stream >> 32)},
                    rng_key(s));
}

inline std::uint32_t rng_u32(const RngStream& s, std::uint64_t element) {
  return rng_block(s, element / 4)[element % 4];
}

// Uniform in (0, 1): 23 bits, centred, never 0 or 1. One bit more and the half would need a 25th: the largest
// draw would round to 1, whose normal quantile is infinite.
inline float rng_unit(std::uint32_t bits) { return (static_cast<float>(bits >> 9) + 0.5f) * 0x1p-23f; }

}  // namespace qt
