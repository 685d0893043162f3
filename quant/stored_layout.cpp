#include "quant/stored_layout.h"

#include "quant/tiles.h"

namespace qt {

void StoredLayout::to_files(std::span<const std::uint8_t> codes, std::span<std::uint8_t> file_codes) const {
  tiles_to_flat(kTileSide, K, codes, file_codes);
}

void StoredLayout::to_files(std::span<const float> scales, std::span<float> file_scales) const {
  tiles_to_flat(kTileSide, K, scales, file_scales);
}

void StoredLayout::from_files(std::span<const std::uint8_t> file_codes, std::span<std::uint8_t> codes) const {
  flat_to_tiles(kTileSide, K, file_codes, codes);
}

void StoredLayout::from_files(std::span<const float> file_scales, std::span<float> scales) const {
  flat_to_tiles(kTileSide, K, file_scales, scales);
}

}  // namespace qt
