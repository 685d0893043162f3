#include "src/train/stored_form.h"

#include <algorithm>
#include <cstring>

#include "quant/tiles.h"

namespace qt {

namespace {

// Elements of a view of codes or scales that a strip of K columns has.
template <class T>
std::int64_t strip_elems(std::int64_t K) {
  return kTileSide * K / (sizeof(T) == 1 ? 2 : kTileSide);
}

}  // namespace

std::vector<NamedView> stored_weights(const ParamList& params) {
  std::vector<NamedView> list;
  for (const Param& p : params) {
    if (p.packed) {
      const std::int64_t tile_columns = p.layout == PackedLayout::tiles ? p.K : 0;
      list.push_back({p.name, p.codes, tile_columns});
      list.push_back({p.name + ".absmax", p.absmax, tile_columns});
    } else {
      list.push_back({p.name, p.compute});
    }
  }
  return list;
}

StoredForm::StoredForm(Backend& backend, std::span<const NamedView> views) : backend_(backend) {
  std::int64_t widest = 0;
  for (const NamedView& v : views) widest = std::max(widest, v.tile_columns);
  const auto room = [&]<class T>(Strip<T>& strip) {
    strip.tiles.resize(static_cast<std::size_t>(strip_elems<T>(widest)));
    strip.flat.resize(strip.tiles.size());
  };
  room(codes_);
  room(scales_);
}

void StoredForm::read(const NamedView& v, std::span<std::byte> staging, const TakePiece& use) {
  if (v.tile_columns > 0) {
    if (v.view.dtype == DType::u8) return read_strips(v, codes_, use);
    return read_strips(v, scales_, use);
  }
  const std::int64_t elem_bytes = dtype_bytes(v.view.dtype);
  const std::int64_t piece_elems = static_cast<std::int64_t>(staging.size()) / elem_bytes;
  for (std::int64_t first = 0; first < v.view.elems(); first += piece_elems) {
    const std::int64_t count = std::min(piece_elems, v.view.elems() - first);
    const std::span<std::byte> piece = staging.first(static_cast<std::size_t>(count * elem_bytes));
    backend_.download(v.view.flat(first, count), piece);
    use(piece);
  }
}

void StoredForm::write(const NamedView& v, std::span<const std::byte> stored) {
  QT_CHECK(static_cast<std::int64_t>(stored.size()) == v.view.bytes(), ShapeError,
           "{} stored bytes for '{}', which has {}", stored.size(), v.name, v.view.bytes());
  if (v.tile_columns == 0) return backend_.upload(stored, v.view.flat());
  if (v.view.dtype == DType::u8) return write_strips(v, stored, codes_);
  write_strips(v, stored, scales_);
}

template <class T>
void StoredForm::read_strips(const NamedView& v, Strip<T>& strip, const TakePiece& use) {
  const std::int64_t n = strip_elems<T>(v.tile_columns);
  const std::span<T> tiles = std::span(strip.tiles).first(static_cast<std::size_t>(n)),
                     flat = std::span(strip.flat).first(tiles.size());
  for (std::int64_t first = 0; first < v.view.elems(); first += n) {
    backend_.download(v.view.flat(first, n), std::as_writable_bytes(tiles));
    tiles_to_flat(kTileSide, v.tile_columns, tiles, flat);
    use(std::as_bytes(flat));
  }
}

template <class T>
void StoredForm::write_strips(const NamedView& v, std::span<const std::byte> stored, Strip<T>& strip) {
  const std::int64_t n = strip_elems<T>(v.tile_columns);
  const std::span<T> tiles = std::span(strip.tiles).first(static_cast<std::size_t>(n)),
                     flat = std::span(strip.flat).first(tiles.size());
  for (std::int64_t first = 0; first < v.view.elems(); first += n) {
    std::memcpy(flat.data(), stored.data(), flat.size_bytes());
    stored = stored.subspan(flat.size_bytes());
    flat_to_tiles(kTileSide, v.tile_columns, flat, tiles);
    backend_.upload(std::as_bytes(tiles), v.view.flat(first, n));
  }
}

}  // namespace qt
