// NF4: sixteen code points, quantiles of a normal distribution with an exact zero and both ends.
//
//   byte k of the codes    bit  7 6 5 4 | 3 2 1 0          first element in the high nibble
//                               w[2k]   | w[2k+1]
//   scales                 one f32 per 64 elements: the largest magnitude of the block
//   together               4 + 32/64 = 4.5 bits per weight
//
// This is bitsandbytes' layout. Blocks run over the flat row-major order of a matrix and cross its rows
// when K is no multiple of 64; the last block may be partial. Matrices never share blocks.
//
// This file is the reference that every backend must equal bit for bit; it is scalar and single-threaded. The
// order of the codes in memory is written here once (`shift_of`): host and card take it from `code_at`,
// `code_of` and `eight_of`. Only the vector code of kernels/cpu spells it in shuffles.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "quant/format_id.h"
#include "src/core/device.h"
#include "src/core/half.h"

namespace qt {

struct Nf4 {
  static constexpr FormatId kId = FormatId::nf4;
  static constexpr std::string_view kName = "nf4";
  static constexpr int kBlockElems = 64;
  static constexpr int kCodeBits = 4;
  static constexpr int kGroupElems = 2;  // the two codes of a byte
  static constexpr int kLevels = 16;
  static constexpr std::uint8_t kZeroCode = 7;  // decodes to exactly 0; also pads an odd last nibble

  // Dettmers et al., QLoRA (arXiv 2305.14314), with the values of bitsandbytes: the paper's printed formula
  // has no exact zero and is not what any implementation uses.
  static constexpr std::array<float, kLevels> kCodebook = {
      -1.0f,
      -0.6961928009986877f,
      -0.5250730514526367f,
      -0.39491748809814453f,
      -0.28444138169288635f,
      -0.18477343022823334f,
      -0.09105003625154495f,
      0.0f,
      0.07958029955625534f,
      0.16093020141124725f,
      0.24611230194568634f,
      0.33791524171829224f,
      0.44070982933044434f,
      0.5626170039176941f,
      0.7229568362236023f,
      1.0f,
  };

  // Threshold c lies between codes c and c + 1: the midpoint, rounded to f32 (to even at the four that are
  // ties: 0, 8, 12, 14). Decimal literals, as in bitsandbytes' CUDA kernel, land one ulp away there.
  static constexpr std::array<float, kLevels - 1> kThresholds = [] {
    std::array<float, kLevels - 1> t{};
    for (std::size_t c = 0; c < t.size(); ++c) {
      t[c] =
          static_cast<float>((static_cast<double>(kCodebook[c]) + static_cast<double>(kCodebook[c + 1])) / 2);
    }
    return t;
  }();

  // The code of a normalised value: the number of thresholds below y. A tie takes the lower code.
  // Without branches, so that loops over it vectorise, and without an array, which a device would not reach.
  QT_HOST_DEVICE static constexpr std::uint8_t encode(float y) {
    return count_below(y, std::make_index_sequence<kLevels - 1>());
  }

  // Code of element i of the tensor that `codes` begins with.
  QT_HOST_DEVICE static constexpr std::uint8_t code_at(const std::uint8_t* codes, std::int64_t i) {
    return static_cast<std::uint8_t>(codes[i >> 1] >> shift_of(static_cast<int>(i & 1)) & 0xF);
  }

  // What a block keeps beside its codes: its largest magnitude as it is.
  using Scale = float;
  QT_HOST_DEVICE static constexpr Scale scale_of(float absmax) { return absmax; }
  QT_HOST_DEVICE static constexpr float value_of(Scale scale) { return scale; }

  // The codes of eight elements in a row, from an even one on: their bytes, the first in memory lowest.
  using Eight = std::uint32_t;
  // Code i of the eight.
  QT_HOST_DEVICE static constexpr std::uint8_t code_of(Eight codes, int i) {
    return static_cast<std::uint8_t>(codes >> shift_of(i) & 0xF);
  }
  // Eight codes of which the i-th is `code` and the others are 0: the bits of a whole are those of its parts.
  QT_HOST_DEVICE static constexpr Eight eight_of(std::uint8_t code, int i) {
    return static_cast<Eight>(code) << shift_of(i);
  }

  // The canonical weight of one element: every route to it must give these bits. Infinite only where the
  // product exceeds the largest bf16, 3.39e38.
  static bf16 decode(std::uint8_t code, float absmax) { return to_bf16(kCodebook[code] * absmax); }

  // Packs a range that begins at a block boundary of its tensor and ends at one, or with the tensor.
  //   codes   out  [ceil(src.size() / 2)] bytes
  //   absmax  out  [ceil(src.size() / 64)]
  // An all-zero block gets absmax +0 and zero codes; -0 in a block decodes to +0.
  // Returns the index in src of the first NaN or Inf, if any: then the blocks before it are written and
  // nothing else is. Ranges of one tensor may be packed in any order and by any number of threads.
  static std::optional<std::int64_t> quantize(std::span<const float> src, std::uint8_t* codes, float* absmax);
  static std::optional<std::int64_t> quantize(std::span<const bf16> src, std::uint8_t* codes, float* absmax);
  static std::optional<std::int64_t> quantize(std::span<const f16> src, std::uint8_t* codes, float* absmax);

  // Unpacks elements [first, first + dst.size()) of the tensor that `codes` and `absmax` begin with; `first`
  // need not lie at a block boundary, nor be even. The f32 form widens the canonical weight.
  static void dequantize(const std::uint8_t* codes, const float* absmax, std::int64_t first,
                         std::span<bf16> dst);
  static void dequantize(const std::uint8_t* codes, const float* absmax, std::int64_t first,
                         std::span<float> dst);

  // The product before its rounding to bf16: what other programs mean by the f32 value of their files.
  // Not a weight of ours.
  static void dequantize_unrounded(const std::uint8_t* codes, const float* absmax, std::int64_t first,
                                   std::span<float> dst);

 private:
  // Where the code of element i lies in the bytes of a group, or of several.
  QT_HOST_DEVICE static constexpr int shift_of(int i) { return 8 * (i / 2) + (i % 2 == 0 ? 4 : 0); }

  template <std::size_t c>
  static constexpr float kThreshold = kThresholds[c];
  template <std::size_t... c>
  QT_HOST_DEVICE static constexpr std::uint8_t count_below(float y, std::index_sequence<c...>) {
    return static_cast<std::uint8_t>(((y > kThreshold<c> ? 1 : 0) + ...));
  }
};

}  // namespace qt
