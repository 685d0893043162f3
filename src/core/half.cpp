#include "src/core/half.h"

namespace qt {

float to_float(f16 x) {
  const std::uint32_t sign = std::uint32_t{x.bits} >> 15 << 31;
  const std::uint32_t exponent = (x.bits >> 10) & 0x1Fu;
  const std::uint32_t mantissa = x.bits & 0x3FFu;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7F800000u | (mantissa << 13));
  if (exponent != 0) return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
  // Subnormal: mantissa * 2^-24 is exact in f32.
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<std::uint32_t>(magnitude));
}

f16 to_f16(float x) {
  const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
  const std::uint16_t sign = static_cast<std::uint16_t>(u >> 31 << 15);
  const std::uint32_t magnitude = u & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return f16{static_cast<std::uint16_t>(sign | 0x7E00u)};
  // 65520 is half way between the largest finite f16 and the next step; ties go to even, which is infinity.
  if (magnitude >= 0x477FF000u) return f16{static_cast<std::uint16_t>(sign | 0x7C00u)};
  if (magnitude < 0x38800000u) {
    // Below 2^-14 the result is subnormal. Adding 0.5 leaves the rounded multiple of 2^-24 in the low
    // mantissa bits, because 0.5 has an ulp of 2^-24: the hardware does the rounding to even.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    const std::uint32_t mantissa = std::bit_cast<std::uint32_t>(shifted) - 0x3F000000u;
    return f16{static_cast<std::uint16_t>(sign | mantissa)};
  }
  const std::uint32_t rounded = magnitude + 0xFFFu + ((magnitude >> 13) & 1u);
  return f16{static_cast<std::uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

}  // namespace qt
