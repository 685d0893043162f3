#include "quant/q8.h"

namespace qt {

template <class Code>
std::optional<std::int64_t> q8_quantize(std::span<const float> x, std::uint8_t* codes, float* absmax) {
  constexpr std::size_t kBlock = kQ8BlockElems;
  for (std::size_t first = 0; first < x.size(); first += kBlock) {
    const std::span<const float> block = x.subspan(first, std::min(kBlock, x.size() - first));
    const std::uint32_t top = max_magnitude_bits(block);
    if (top >= kInfinityBits) return static_cast<std::int64_t>(first) + *first_non_finite(block);
    absmax[first / kBlock] = std::bit_cast<float>(top);
    if (top == 0) {
      std::fill_n(codes + first, block.size(), Code::kZeroCode);
      continue;
    }
    const Normaliser normalise(std::bit_cast<float>(top));
    for (std::size_t i = 0; i < block.size(); ++i)
      codes[first + i] = Code::encode(block[i], normalise(block[i]));
  }
  return std::nullopt;
}

template <class Code>
void q8_dequantize(const std::uint8_t* codes, const float* absmax, std::span<float> out) {
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = Code::kMap[codes[i]] * absmax[i / kQ8BlockElems];
}

#define QT_Q8_INSTANTIATE(Code)                                                                          \
  template std::optional<std::int64_t> q8_quantize<Code>(std::span<const float>, std::uint8_t*, float*); \
  template void q8_dequantize<Code>(const std::uint8_t*, const float*, std::span<float>)
QT_Q8_INSTANTIATE(Q8Signed);
QT_Q8_INSTANTIATE(Q8Unsigned);
QT_Q8_INSTANTIATE(FirstMoment);
QT_Q8_INSTANTIATE(SecondMoment);
#undef QT_Q8_INSTANTIATE

}  // namespace qt
