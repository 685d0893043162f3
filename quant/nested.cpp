#include "quant/nested.h"

#include <algorithm>
#include <array>

namespace qt {
namespace {

constexpr std::size_t kBlock = kQ8BlockElems;

double sum_in_order(std::span<const float> x) {
  double sum = 0;
  for (const float value : x) sum += value;
  return sum;
}

}  // namespace

std::optional<std::int64_t> nest_scales(std::span<const float> scales, std::uint8_t* codes,
                                        float* nested_absmax, float* offset) {
  if (const auto bad = first_non_finite(scales)) return bad;
  double total = 0;
  for (std::size_t first = 0; first < scales.size(); first += kBlock) {
    total += sum_in_order(scales.subspan(first, std::min(kBlock, scales.size() - first)));
  }
  const float mean = scales.empty() ? 0.0f : static_cast<float>(total / static_cast<double>(scales.size()));
  *offset = mean;

  std::array<float, kBlock> centred;
  for (std::size_t first = 0; first < scales.size(); first += kBlock) {
    const std::size_t count = std::min(kBlock, scales.size() - first);
    for (std::size_t i = 0; i < count; ++i) centred[i] = scales[first + i] - mean;
    float& absmax = nested_absmax[first / kBlock];
    std::uint8_t* block = codes + first;
    q8_quantize<Q8Signed>(std::span(centred).first(count), block, &absmax);
    for (std::size_t i = 0; i < count; ++i) {
      // The zero code gives the mean itself, which is > 0 unless all scales are 0.
      while (block[i] < Q8Signed::kZeroCode && unnest_scale(block[i], absmax, mean) <= 0) ++block[i];
    }
  }
  return std::nullopt;
}

void unnest_scales(const std::uint8_t* codes, const float* nested_absmax, float offset,
                   std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = unnest_scale(codes[i], nested_absmax[i / kBlock], offset);
}

}  // namespace qt
