// bf16 and fp16 as storage types: conversions round to nearest even, arithmetic happens in f32.
#pragma once

#include <bit>
#include <cstdint>

#include "src/core/device.h"

namespace qt {

struct bf16 {
  std::uint16_t bits = 0;
};

struct f16 {
  std::uint16_t bits = 0;
};

inline float to_float(float x) { return x; }

inline float to_float(bf16 x) { return std::bit_cast<float>(std::uint32_t{x.bits} << 16); }

// Round to nearest even. A NaN keeps its sign and stays a (quiet) NaN: the rounding add could otherwise
// carry it into infinity or zero.
inline bf16 to_bf16(float x) {
  const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
  if ((u & 0x7FFFFFFFu) > 0x7F800000u) return bf16{static_cast<std::uint16_t>((u >> 16) | 0x40u)};
  return bf16{static_cast<std::uint16_t>((u + 0x7FFFu + ((u >> 16) & 1u)) >> 16)};
}

// Stochastic rounding: to one of the two neighbours, to the one further from zero as often as what is cut off
// is large, so that the mean is x. The upper 16 bits of draw decide. A NaN stays one, an infinity itself;
// beyond the largest bf16 the neighbour is infinity, as in rounding to nearest.
QT_HOST_DEVICE inline bf16 to_bf16_stochastic(float x, std::uint32_t draw) {
  const std::uint32_t u = std::bit_cast<std::uint32_t>(x), magnitude = u & 0x7FFFFFFFu;
  if (magnitude >= 0x7F800000u) {
    return bf16{static_cast<std::uint16_t>((u >> 16) | (magnitude > 0x7F800000u ? 0x40u : 0u))};
  }
  return bf16{static_cast<std::uint16_t>((u + (draw >> 16)) >> 16)};
}

float to_float(f16 x);
f16 to_f16(float x);

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline bf16 from_float<bf16>(float x) {
  return to_bf16(x);
}
template <>
inline f16 from_float<f16>(float x) {
  return to_f16(x);
}

}  // namespace qt
