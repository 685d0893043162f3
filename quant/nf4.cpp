#include "quant/nf4.h"

#include <algorithm>
#include <bit>

#include "quant/block.h"

namespace qt {
namespace {

constexpr std::size_t kBlock = Nf4::kBlockElems;

template <class T>
std::optional<std::int64_t> quantize_range(std::span<const T> src, std::uint8_t* codes, float* absmax) {
  for (std::size_t first = 0; first < src.size(); first += kBlock) {
    const std::span<const T> x = src.subspan(first, std::min(kBlock, src.size() - first));
    const std::uint32_t top = max_magnitude_bits(x);
    if (top >= kInfinityBits) return static_cast<std::int64_t>(first) + *first_non_finite(x);

    std::array<std::uint8_t, kBlock> code;
    code.fill(Nf4::kZeroCode);  // stays so in a zero block, and beyond the last element
    if (top != 0) {
      const Normaliser normalise(std::bit_cast<float>(top));
      for (std::size_t i = 0; i < x.size(); ++i) code[i] = Nf4::encode(normalise(to_float(x[i])));
    }
    absmax[first / kBlock] = std::bit_cast<float>(top);
    std::uint8_t* out = codes + first / 2;
    for (std::size_t k = 0; k < (x.size() + 1) / 2; ++k) {
      out[k] = static_cast<std::uint8_t>(Nf4::eight_of(code[2 * k], 0) | Nf4::eight_of(code[2 * k + 1], 1));
    }
  }
  return std::nullopt;
}

// value(code, absmax) is evaluated once per code and block: a block has four times as many elements as codes.
template <class T, class Value>
void dequantize_range(const std::uint8_t* codes, const float* absmax, std::int64_t first, std::span<T> dst,
                      Value value) {
  const std::int64_t end = first + static_cast<std::int64_t>(dst.size());
  T* out = dst.data();
  for (std::int64_t i = first; i < end;) {
    const std::int64_t block = i / Nf4::kBlockElems;
    const std::int64_t block_end = std::min(end, (block + 1) * Nf4::kBlockElems);
    std::array<T, Nf4::kLevels> table;
    for (std::size_t c = 0; c < table.size(); ++c)
      table[c] = value(static_cast<std::uint8_t>(c), absmax[block]);
    for (; i < block_end; ++i) *out++ = table[Nf4::code_at(codes, i)];
  }
}

}  // namespace

std::optional<std::int64_t> Nf4::quantize(std::span<const float> src, std::uint8_t* codes, float* absmax) {
  return quantize_range(src, codes, absmax);
}
std::optional<std::int64_t> Nf4::quantize(std::span<const bf16> src, std::uint8_t* codes, float* absmax) {
  return quantize_range(src, codes, absmax);
}
std::optional<std::int64_t> Nf4::quantize(std::span<const f16> src, std::uint8_t* codes, float* absmax) {
  return quantize_range(src, codes, absmax);
}

void Nf4::dequantize(const std::uint8_t* codes, const float* absmax, std::int64_t first,
                     std::span<bf16> dst) {
  dequantize_range(codes, absmax, first, dst, decode);
}
void Nf4::dequantize(const std::uint8_t* codes, const float* absmax, std::int64_t first,
                     std::span<float> dst) {
  dequantize_range(codes, absmax, first, dst,
                   [](std::uint8_t c, float scale) { return to_float(decode(c, scale)); });
}
void Nf4::dequantize_unrounded(const std::uint8_t* codes, const float* absmax, std::int64_t first,
                               std::span<float> dst) {
  dequantize_range(codes, absmax, first, dst,
                   [](std::uint8_t c, float scale) { return kCodebook[c] * scale; });
}

}  // namespace qt
