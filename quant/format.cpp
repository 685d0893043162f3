#include "quant/format.h"

#include <array>
#include <string>

#include "src/core/suggest.h"

namespace qt {
namespace {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

template <WeightFormat... F>
constexpr auto make_table(FormatList<F...>) {
  return std::array<FormatInfo, sizeof...(F) + 1>{
      FormatInfo{.id = FormatId::none, .name = "none"},
      FormatInfo{.id = F::kId,
                 .name = F::kName,
                 .block_elems = F::kBlockElems,
                 .code_bits = F::kCodeBits,
                 .group_elems = F::kGroupElems,
                 .zero_code = F::kZeroCode,
                 .scale_dtype = dtype_of<typename F::Scale>(),
                 .bits_per_weight = F::kCodeBits + 8.0 * sizeof(typename F::Scale) / F::kBlockElems}...};
}

constexpr auto kFormats = make_table(WeightFormats{});

// format_info() indexes by id, and a format that is in the list twice would hide another.
static_assert(
    [] {
      for (std::size_t i = 0; i < kFormats.size(); ++i) {
        if (static_cast<std::size_t>(kFormats[i].id) != i) return false;
      }
      return true;
    }(),
    "WeightFormats must list the formats in the order of their ids, without gaps");

}  // namespace

std::span<const FormatInfo> all_formats() { return kFormats; }

const FormatInfo& format_info(FormatId id) {
  const auto index = static_cast<std::size_t>(id);
  QT_CHECK(index < kFormats.size(), DataError, "{} is not the number of a weight format (0 to {} are)", index,
           kFormats.size() - 1);
  return kFormats[index];
}

FormatId format_from_name(std::string_view name) {
  std::array<std::string_view, kFormats.size()> names;
  for (std::size_t i = 0; i < kFormats.size(); ++i) {
    if (kFormats[i].name == name) return kFormats[i].id;
    names[i] = kFormats[i].name;
  }
  const std::string_view similar = similar_name(name, names);
  throw ConfigError(
      fmt::format("there is no weight format '{}'; known formats: {}", name, fmt::join(names, ", ")),
      similar.empty() ? std::string() : fmt::format("did you mean '{}'?", similar));
}

std::int64_t code_bytes(FormatId id, std::int64_t elems) {
  const FormatInfo& info = format_info(id);
  return ceil_div(elems, info.group_elems) * (info.group_elems * info.code_bits / 8);
}

std::int64_t scale_count(FormatId id, std::int64_t elems) {
  const int block = format_info(id).block_elems;
  return block == 0 ? 0 : ceil_div(elems, block);
}

std::int64_t packed_bytes(FormatId id, std::int64_t elems) {
  return code_bytes(id, elems) + scale_count(id, elems) * dtype_bytes(format_info(id).scale_dtype);
}

void detail::throw_no_packed_format(FormatId id) {
  throw DataError(fmt::format("format '{}' has no packed weights", format_info(id).name));
}

}  // namespace qt
