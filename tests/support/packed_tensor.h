// What the tests of weight formats share: normal draws, and a packed tensor with guarded outputs.
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numbers>
#include <optional>
#include <span>
#include <vector>

#include <gtest/gtest.h>

#include "quant/format.h"
#include "src/core/rng.h"

namespace qt::test {

// Sizes around the block boundaries of 64.
inline const std::vector<std::int64_t> kAwkwardSizes = {1, 2, 63, 64, 65, 127, 128, 129, 4095, 4096, 4097};

// N(0, 1), the same draws for the same seed on every machine with the same rounding in libm.
inline std::vector<float> normal(std::size_t count, std::uint64_t seed) {
  std::vector<float> x(count);
  const RngStream stream{.seed = seed};
  for (std::size_t i = 0; i < count; ++i) {
    const auto bits = rng_block(stream, i);
    const double radius = std::sqrt(-2 * std::log(static_cast<double>(rng_unit(bits[0]))));
    x[i] =
        static_cast<float>(radius * std::cos(2 * std::numbers::pi * static_cast<double>(rng_unit(bits[1]))));
  }
  return x;
}

// A packed tensor with outputs that start as garbage and are fenced by guard bytes.
template <class F>
struct Packed {
  static constexpr std::int64_t kFence = 64;
  static constexpr std::uint8_t kGuard = 0xA5;
  static constexpr float kUnset = std::numeric_limits<float>::quiet_NaN();
  using Scale = typename F::Scale;
  std::int64_t elems;
  std::vector<std::uint8_t> code_memory;
  std::vector<Scale> absmax_memory;

  explicit Packed(std::int64_t n)
      : elems(n),
        code_memory(static_cast<std::size_t>(code_bytes(F::kId, n) + 2 * kFence), kGuard),
        absmax_memory(static_cast<std::size_t>(scale_count(F::kId, n) + 2 * kFence), guard_scale()) {}

  template <class T>
  Packed(const std::vector<T>& x, std::optional<std::int64_t> expect_bad = std::nullopt)
      : Packed(static_cast<std::int64_t>(x.size())) {
    EXPECT_EQ(F::quantize(std::span<const T>(x), codes(), absmax()), expect_bad);
  }

  // kGuard in every byte: no scale of a block of these tests.
  static Scale guard_scale() {
    std::array<std::uint8_t, sizeof(Scale)> bytes;
    bytes.fill(kGuard);
    return std::bit_cast<Scale>(bytes);
  }

  std::uint8_t* codes() { return code_memory.data() + kFence; }
  Scale* absmax() { return absmax_memory.data() + kFence; }
  std::span<const std::uint8_t> code_span() {
    return {codes(), static_cast<std::size_t>(code_bytes(F::kId, elems))};
  }
  std::span<const Scale> absmax_span() {
    return {absmax(), static_cast<std::size_t>(scale_count(F::kId, elems))};
  }
  std::span<const std::uint8_t> absmax_bytes() {
    return {reinterpret_cast<const std::uint8_t*>(absmax()), absmax_span().size_bytes()};
  }

  std::vector<float> weights(std::int64_t first = 0, std::int64_t count = -1) {
    std::vector<float> w(static_cast<std::size_t>(count < 0 ? elems - first : count), kUnset);
    F::dequantize(codes(), absmax(), first, std::span<float>(w));
    return w;
  }
  std::vector<bf16> weights_bf16() {
    std::vector<bf16> w(static_cast<std::size_t>(elems), bf16{0xFFFF});
    F::dequantize(codes(), absmax(), 0, std::span<bf16>(w));
    return w;
  }
  std::vector<float> unrounded() {
    std::vector<float> w(static_cast<std::size_t>(elems), kUnset);
    F::dequantize_unrounded(codes(), absmax(), 0, w);
    return w;
  }
  bool fences_intact() {
    bool ok = true;
    for (std::size_t i = 0; i < kFence; ++i) {
      ok = ok && code_memory[i] == kGuard && code_memory[code_memory.size() - 1 - i] == kGuard;
      ok = ok && absmax_memory[i] == guard_scale() &&
           absmax_memory[absmax_memory.size() - 1 - i] == guard_scale();
    }
    return ok;
  }
};

inline std::vector<std::uint32_t> bits_of(std::span<const float> x) {
  std::vector<std::uint32_t> bits;
  for (const float value : x) bits.push_back(std::bit_cast<std::uint32_t>(value));
  return bits;
}

}  // namespace qt::test
