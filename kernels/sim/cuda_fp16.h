// The part of CUDA's half-precision header that kernels/cuda uses.
#pragma once

#include <cstdint>

#include "src/core/half.h"

struct __half {
  std::uint16_t bits;
};
inline __half __ushort_as_half(unsigned short bits) { return {bits}; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline float __half2float(__half x) { return qt::to_float(qt::f16{x.bits}); }
inline __half __float2half_rn(float x) { return {qt::to_f16(x).bits}; }
