#include "quant/packed.h"

#include <string>

#include "quant/format.h"
#include "quant/tiles.h"

namespace qt {

std::int64_t PackedView::bytes() const {
  return (codes.defined() ? codes.bytes() : 0) + (absmax.defined() ? absmax.bytes() : 0);
}

std::int64_t PackedView::strip_elems() const { return layout == PackedLayout::tiles ? kTileSide * K : 1; }

StoredLayout PackedView::codes_layout() const {
  if (layout == PackedLayout::flat) return {};
  return {
      .order = layout, .part = PackedPart::codes, .K = K, .strip_elems = code_bytes(format, strip_elems())};
}

StoredLayout PackedView::absmax_layout() const {
  if (layout == PackedLayout::flat) return {};
  return {
      .order = layout, .part = PackedPart::scales, .K = K, .strip_elems = scale_count(format, strip_elems())};
}

bool can_be_tiled(FormatId format, std::int64_t N, std::int64_t K) {
  return format != FormatId::none && can_be_tiled(N, K) &&
         dispatch_format(format, []<class F>() { return kFitsTiles<F>; });
}

void PackedView::check(std::string_view op, std::string_view field) const {
  QT_CHECK(format != FormatId::none, ShapeError, "{}: {} is a packed matrix without a format", op, field);
  QT_CHECK(N > 0 && K > 0, ShapeError, "{}: {} is a packed matrix of size [{}, {}]", op, field, N, K);
  if (layout == PackedLayout::tiles) {
    QT_CHECK(can_be_tiled(format, N, K), ShapeError,
             "{}: {} is a packed matrix of size [{}, {}] in tiles, which hold 64 x 64 codes of 4 bits", op,
             field, N, K);
  }
  const auto part = [&](const TensorView& view, std::string_view name, DType dtype, std::int64_t elems) {
    const std::string full = fmt::format("{}.{}", field, name);
    check_shape(view, {elems}, op, full);
    check_dtype(view, {dtype}, op, full);
  };
  part(codes, "codes", DType::u8, code_bytes(format, elems()));
  part(absmax, "absmax", format_info(format).scale_dtype, scale_count(format, elems()));
}

}  // namespace qt
