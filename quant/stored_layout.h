// StoredLayout: the order that one part of a packed matrix lies in, and the way to and from the order of files.
//
// A file has the format's own order, row-major over the matrix; so has the cpu. A card may have tiles
// (quant/tiles.h). Rows that are one piece of memory in both orders are a strip: parts are laid out anew strip
// by strip, so that no second copy of a matrix is made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace qt {

// flat: as files have it. tiles: of 64 x 64, which kernels for a card read.
enum class PackedLayout : std::uint8_t { flat, tiles };

enum class PackedPart : std::uint8_t { codes, scales };

struct StoredLayout {
  PackedLayout order = PackedLayout::flat;
  PackedPart part = PackedPart::codes;  // tiles: which of the two
  std::int64_t K = 0;                   // tiles: columns of the matrix
  std::int64_t strip_elems = 0;         // tiles: elements of this part in a strip

  bool as_in_files() const { return order == PackedLayout::flat; }

  // The bytes of one strip, strip_elems elements on both sides, which may not overlap and begin where an element
  // may; only where not as_in_files(). Throw ShapeError where a size does not fit.
  void to_files(std::span<const std::byte> strip, std::span<std::byte> file_strip) const;
  void from_files(std::span<const std::byte> file_strip, std::span<std::byte> strip) const;
};

}  // namespace qt
