// A weight format of two bits in two planes, for tests alone: what a format other than NF4 needs is in this file
// and nowhere else. quant/format.h includes it where QTRAIN_WEIGHT_FORMATS names it; it is included in no other way.
//
//   group of 8 elements    byte 0: the low bits of their codes, byte 1: the high bits; element i at bit i
//   scales                 one byte per 64 elements: the biased exponent of a power of two, 0 for 0
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

#include "quant/block.h"
#include "quant/format_id.h"
#include "src/core/device.h"
#include "src/core/half.h"

namespace qt::test {

struct TwoPlanes {
  static constexpr FormatId kId = static_cast<FormatId>(static_cast<int>(FormatId::nf4) + 1);
  static constexpr std::string_view kName = "two-planes";
  static constexpr int kBlockElems = 64;
  static constexpr int kCodeBits = 2;
  static constexpr int kGroupElems = 8;
  static constexpr std::uint8_t kZeroCode = 1;
  static constexpr std::array<float, 4> kCodebook = {-1.0f, 0.0f, 0.5f, 1.0f};

  // The smallest power of two that is not below absmax, 2^-126 at least; above 2^127 the largest one.
  using Scale = std::uint8_t;
  QT_HOST_DEVICE static constexpr Scale scale_of(float absmax) {
    const std::uint32_t exponent = (magnitude_bits(absmax) + 0x007FFFFFu) >> 23;
    return static_cast<Scale>(exponent < 254 ? exponent : 254);
  }
  QT_HOST_DEVICE static constexpr float value_of(Scale scale) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(scale) << 23);
  }

  QT_HOST_DEVICE static constexpr std::uint8_t encode(float y) {
    return static_cast<std::uint8_t>((y > -0.5f ? 1 : 0) + (y > 0.25f ? 1 : 0) + (y > 0.75f ? 1 : 0));
  }

  using Eight = std::uint16_t;
  QT_HOST_DEVICE static constexpr std::uint8_t code_of(Eight codes, int i) {
    return static_cast<std::uint8_t>((codes >> i & 1) | (codes >> (8 + i) & 1) << 1);
  }
  QT_HOST_DEVICE static constexpr Eight eight_of(std::uint8_t code, int i) {
    return static_cast<Eight>((code & 1) << i | code >> 1 << (8 + i));
  }
  QT_HOST_DEVICE static constexpr std::uint8_t code_at(const std::uint8_t* codes, std::int64_t i) {
    const std::uint8_t* const planes = codes + i / 8 * 2;
    return code_of(static_cast<Eight>(planes[0] | planes[1] << 8), static_cast<int>(i % 8));
  }

  template <class T>
  static std::optional<std::int64_t> quantize(std::span<const T> src, std::uint8_t* codes, Scale* scales) {
    for (std::size_t first = 0; first < src.size(); first += kBlockElems) {
      const auto x = src.subspan(first, std::min<std::size_t>(kBlockElems, src.size() - first));
      const std::uint32_t top = max_magnitude_bits(x);
      if (top >= kInfinityBits) return static_cast<std::int64_t>(first) + *first_non_finite(x);
      const Scale scale = scales[first / kBlockElems] = scale_of(std::bit_cast<float>(top));
      for (std::size_t i = 0; i < x.size(); i += 8) {
        Eight eight = 0;
        for (std::size_t j = 0; j < 8; ++j) {
          std::uint8_t code = kZeroCode;
          if (scale != 0 && i + j < x.size()) code = encode(Normaliser(value_of(scale))(to_float(x[i + j])));
          eight = static_cast<Eight>(eight | eight_of(code, static_cast<int>(j)));
        }
        codes[(first + i) / 4] = static_cast<std::uint8_t>(eight & 0xFF);
        codes[(first + i) / 4 + 1] = static_cast<std::uint8_t>(eight >> 8);
      }
    }
    return std::nullopt;
  }

  static float unrounded(const std::uint8_t* codes, const Scale* scales, std::int64_t i) {
    return kCodebook[code_at(codes, i)] * value_of(scales[i / kBlockElems]);
  }
  template <class T>
  static void dequantize(const std::uint8_t* codes, const Scale* scales, std::int64_t first,
                         std::span<T> dst) {
    for (T& to : dst) to = from_float<T>(to_float(to_bf16(unrounded(codes, scales, first++))));
  }
  static void dequantize_unrounded(const std::uint8_t* codes, const Scale* scales, std::int64_t first,
                                   std::span<float> dst) {
    for (float& to : dst) to = unrounded(codes, scales, first++);
  }
};

}  // namespace qt::test

namespace qt {
using WeightFormats = FormatList<Nf4, test::TwoPlanes>;
}  // namespace qt
