// Nested ("double") quantization: the f32 scales of a weight format, stored in 8 bits. The mean of all
// scales is subtracted, the rest is encoded with the signed map of quant/q8.h in blocks of 256.
//
//   scale_i = f32(f32(map[code_i] * nested_absmax[i / 256]) + offset)
//
// For 64-element blocks this turns 32/64 bits per weight into 8/64 + 32/(64 * 256) = 0.127. The layout is
// bitsandbytes'. Weights are encoded with the original scales, not with the reconstructed ones.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "quant/q8.h"

namespace qt {

constexpr std::int64_t nested_scale_count(std::int64_t scales) { return q8_scale_count(scales); }

// scales: >= 0, all scales of one tensor (the offset is their mean).
//   codes         out [scales.size()]
//   nested_absmax out [nested_scale_count(scales.size())]
//   offset        out, one value
// A scale that would be read back as <= 0 takes the smallest code whose value is > 0: a negative scale would
// flip the signs of its whole block. The mean is summed in double, first within blocks of 256, then over
// the blocks, each in order: a fixed tree that blocks can be computed in parallel for.
// Returns the index of the first NaN or Inf, if any; the outputs are then unspecified.
std::optional<std::int64_t> nest_scales(std::span<const float> scales, std::uint8_t* codes,
                                        float* nested_absmax, float* offset);

inline float unnest_scale(std::uint8_t code, float nested_absmax, float offset) {
  return kQ8Signed[code] * nested_absmax + offset;  // two roundings
}

// out: all scales of the tensor.
void unnest_scales(const std::uint8_t* codes, const float* nested_absmax, float offset, std::span<float> out);

}  // namespace qt
