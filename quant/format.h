// The one list of weight formats, and what can be asked of a format by its id.
//
// Adding a format: an id in quant/format_id.h, its own header, its type in `WeightFormats`. The registry,
// the sizes that plans are made of, the kernels of every backend and the typed tests take everything from there;
// tests/quant/test_two_planes.cpp adds one in this way alone.
#pragma once

#include <concepts>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <utility>

#include "quant/format_id.h"
#include "quant/nf4.h"
#include "src/core/device.h"
#include "src/core/error.h"
#include "src/core/tensor.h"

namespace qt {

// What a format type offers. Contracts of the functions: see Nf4. A block has one scale, of the format's own type
// `Scale`: one that dtype_of() knows, and the dtype of the scales in files and in views. `scale_of` makes it of the
// block's largest magnitude; `value_of` gives its value back: 0, or positive and finite. That value, and not the
// largest magnitude, is what the elements are divided by before `encode` and what code points are multiplied by. A
// block of value 0 has zero codes.
template <class F>
concept WeightFormat = requires(std::span<const float> src, std::span<const bf16> src_bf16,
                                std::span<const f16> src_f16, std::span<float> out_f32,
                                std::span<bf16> out_bf16, std::uint8_t* codes, typename F::Scale* scales,
                                std::int64_t first, std::uint8_t code, float y, int i) {
  { F::kId } -> std::convertible_to<FormatId>;
  { F::kName } -> std::convertible_to<std::string_view>;
  { F::kBlockElems } -> std::convertible_to<int>;  // elements that share one scale
  { F::kCodeBits } -> std::convertible_to<int>;
  {
    F::kGroupElems
    } -> std::convertible_to<int>;  // the fewest elements in a row with codes that fill whole bytes
  { F::kZeroCode } -> std::convertible_to<std::uint8_t>;
  std::span<const float>(F::kCodebook);
  { F::quantize(src, codes, scales) } -> std::same_as<std::optional<std::int64_t>>;
  { F::quantize(src_bf16, codes, scales) } -> std::same_as<std::optional<std::int64_t>>;
  { F::quantize(src_f16, codes, scales) } -> std::same_as<std::optional<std::int64_t>>;
  F::dequantize(codes, scales, first, out_bf16);
  F::dequantize(codes, scales, first, out_f32);
  F::dequantize_unrounded(codes, scales, first, out_f32);
  // What kernels on a card are made of, QT_HOST_DEVICE. Eight is an unsigned integer.
  { F::scale_of(y) } -> std::same_as<typename F::Scale>;
  { F::value_of(*scales) } -> std::same_as<float>;
  { F::encode(y) } -> std::same_as<std::uint8_t>;
  { F::code_at(codes, first) } -> std::same_as<std::uint8_t>;
  { F::code_of(typename F::Eight{}, i) } -> std::same_as<std::uint8_t>;
  { F::eight_of(code, i) } -> std::same_as<typename F::Eight>;
}
// Eight codes of n bits are n bytes: sizeof(Eight) >= kCodeBits.
&&(8 % F::kGroupElems == 0) && (F::kGroupElems * F::kCodeBits % 8 == 0) && (F::kBlockElems % 8 == 0) &&
    (sizeof(typename F::Eight) >= F::kCodeBits) && (F::kCodebook.size() == std::size_t{1} << F::kCodeBits);

// The byte at which the codes of element i begin; i is a multiple of F::kGroupElems. Bit planes lie within a
// group (a byte of each plane for eight elements), so that offsets are linear for them too.
template <class F>
QT_HOST_DEVICE constexpr std::int64_t code_offset(std::int64_t i) {
  constexpr std::uint64_t kGroupBytes = F::kGroupElems * F::kCodeBits / 8;
  return static_cast<std::int64_t>(static_cast<std::uint64_t>(i) / F::kGroupElems * kGroupBytes);
}

template <WeightFormat... F>
struct FormatList {
  static constexpr int kCount = sizeof...(F);
};

#ifndef QTRAIN_WEIGHT_FORMATS
using WeightFormats = FormatList<Nf4>;
#else  // a test names the file that has the list, with a format of its own
}  // namespace qt
#include QTRAIN_WEIGHT_FORMATS
namespace qt {
#endif

struct FormatInfo {
  FormatId id = FormatId::none;
  std::string_view name;           // the word of --quant and of files
  int block_elems = 0;             // elements that share one scale; 0 for none
  int code_bits = 0;               // 0 for none
  int group_elems = 1;             // the fewest elements in a row with codes that fill whole bytes
  std::uint8_t zero_code = 0;      // the code of 0.0
  DType scale_dtype = DType::f32;  // of one element for each block, in files and in views
  double bits_per_weight = 0;      // codes and scales of whole blocks; 0 for none: the compute dtype decides
};

// Every known format in the order of its id, `none` first.
std::span<const FormatInfo> all_formats();
// Throws DataError for a number that is no format: ids also come from files.
const FormatInfo& format_info(FormatId id);
// Throws ConfigError listing the known names, with the nearest one as hint.
FormatId format_from_name(std::string_view name);

// Bytes and counts of a packed tensor of `elems` elements; 0 for FormatId::none. elems >= 0.
std::int64_t code_bytes(FormatId id, std::int64_t elems);   // a last partial group counts whole
std::int64_t scale_count(FormatId id, std::int64_t elems);  // a last partial block counts one
std::int64_t packed_bytes(FormatId id, std::int64_t elems);

// Calls f.template operator()<F>() with the format type of `id` and returns what it returns. Throws
// DataError for `none` and for unknown ids.
template <class Function>
decltype(auto) dispatch_format(FormatId id, Function&& f);

namespace detail {

[[noreturn]] void throw_no_packed_format(FormatId id);

template <class Function, WeightFormat First, WeightFormat... Rest>
decltype(auto) dispatch_in(FormatList<First, Rest...>, FormatId id, Function&& f) {
  if (id == First::kId) return f.template operator()<First>();
  if constexpr (sizeof...(Rest) > 0) {
    return dispatch_in(FormatList<Rest...>{}, id, std::forward<Function>(f));
  } else {
    throw_no_packed_format(id);
  }
}

}  // namespace detail

template <class Function>
decltype(auto) dispatch_format(FormatId id, Function&& f) {
  return detail::dispatch_in(WeightFormats{}, id, std::forward<Function>(f));
}

}  // namespace qt
