// The inputs that golden vectors are stated for, and how their digests are written.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "tests/support/sha256.h"

namespace qt::test {

// s <- 1664525 s + 1013904223 (mod 2^32), advanced first; x = (s >> 8) / 2^23 - 1, exact in f32.
inline std::vector<float> lcg(std::uint32_t seed, std::size_t count) {
  std::vector<float> x(count);
  std::uint32_t s = seed;
  for (float& value : x) {
    s = 1664525u * s + 1013904223u;
    value = static_cast<float>(static_cast<std::int32_t>(s >> 8) - 8388608) / 8388608.0f;
  }
  return x;
}

inline std::string hex(std::span<const std::uint8_t> bytes) {
  std::string text;
  for (const std::uint8_t b : bytes) text += fmt::format("{:02x}", b);
  return text;
}

}  // namespace qt::test
