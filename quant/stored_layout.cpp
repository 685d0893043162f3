#include "quant/stored_layout.h"

#include "quant/tiles.h"

namespace qt {

namespace {

template <class T>
std::span<T> elements(auto bytes) {
  return {reinterpret_cast<T*>(bytes.data()), bytes.size() / sizeof(T)};
}

}  // namespace

void StoredLayout::to_files(std::span<const std::byte> strip, std::span<std::byte> file_strip) const {
  if (part == PackedPart::codes)
    return tiles_to_flat(kTileSide, K, elements<const std::uint8_t>(strip),
                         elements<std::uint8_t>(file_strip));
  tiles_to_flat(kTileSide, K, elements<const TileScale>(strip), elements<TileScale>(file_strip));
}

void StoredLayout::from_files(std::span<const std::byte> file_strip, std::span<std::byte> strip) const {
  if (part == PackedPart::codes)
    return flat_to_tiles(kTileSide, K, elements<const std::uint8_t>(file_strip),
                         elements<std::uint8_t>(strip));
  flat_to_tiles(kTileSide, K, elements<const TileScale>(file_strip), elements<TileScale>(strip));
}

}  // namespace qt
