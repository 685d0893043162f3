// What every block-wise code shares: the largest magnitude of a block, the search for NaN and Inf, and the
// normalisation by the block's scale. Header-only, so that kernels inline the same arithmetic.
//
// All arithmetic is single IEEE f32 operations, each rounded on its own (no contraction): the bits are part
// of the contract between backends.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "src/core/half.h"

namespace qt {

inline constexpr std::uint32_t kInfinityBits = 0x7F800000u;
inline constexpr std::uint32_t kMinNormalBits = 0x00800000u;

// |x| as an unsigned integer. It orders like |x|, with Inf above every finite value and NaN above Inf, so
// that one integer maximum finds both the scale of a block and whether the block is finite. Being a
// maximum, it does not depend on the order of the elements.
constexpr std::uint32_t magnitude_bits(float x) { return std::bit_cast<std::uint32_t>(x) & 0x7FFFFFFFu; }

// x: f32, bf16 or f16, widened exactly. 0 for an empty range.
template <class T>
std::uint32_t max_magnitude_bits(std::span<const T> x) {
  std::uint32_t top = 0;
  for (const T value : x) top = std::max(top, magnitude_bits(to_float(value)));
  return top;
}

// Index of the first NaN or Inf, if there is one.
template <class T>
std::optional<std::int64_t> first_non_finite(std::span<const T> x) {
  for (std::size_t i = 0; i < x.size(); ++i) {
    if (magnitude_bits(to_float(x[i])) >= kInfinityBits) return static_cast<std::int64_t>(i);
  }
  return std::nullopt;
}

// y = x / absmax, computed as x * (1 / absmax) wherever that reciprocal is a normal number. It is infinite
// for absmax below about 2.94e-39 and subnormal for absmax above 2^126; there we divide, because the
// product would be NaN or would have lost its low bits.
class Normaliser {
 public:
  // absmax: finite and > 0.
  explicit constexpr Normaliser(float absmax) : absmax_(absmax), reciprocal_(1.0f / absmax) {
    const std::uint32_t bits = magnitude_bits(reciprocal_);
    divides_ = bits >= kInfinityBits || bits < kMinNormalBits;
  }

  constexpr float operator()(float x) const { return divides_ ? x / absmax_ : x * reciprocal_; }

  constexpr bool divides() const { return divides_; }
  constexpr float absmax() const { return absmax_; }
  constexpr float reciprocal() const { return reciprocal_; }

 private:
  float absmax_;
  float reciprocal_;
  bool divides_ = false;
};

// Throws DataError naming the tensor and the flat index of the value. For callers that got the index from a
// quantize function; `index` counts from the first element of the tensor.
[[noreturn]] void throw_non_finite(std::string_view tensor, std::int64_t index, float value);

// Throws DataError when x holds a NaN or Inf. `first` is the flat index of x[0] in the tensor.
void require_finite(std::span<const float> x, std::string_view tensor, std::int64_t first = 0);
void require_finite(std::span<const bf16> x, std::string_view tensor, std::int64_t first = 0);
void require_finite(std::span<const f16> x, std::string_view tensor, std::int64_t first = 0);

}  // namespace qt
