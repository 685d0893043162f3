// PackedView: a matrix in a weight format, as the views of its parts. Owns nothing.
#pragma once

#include <cstdint>
#include <string_view>

#include "quant/format.h"
#include "quant/stored_layout.h"
#include "src/core/tensor.h"

namespace qt {

// Blocks run over the flat row-major order of [N, K], see the format's header.
struct PackedView {
  FormatId format = FormatId::none;
  std::int64_t N = 0;                        // rows (output features)
  std::int64_t K = 0;                        // columns (input features)
  PackedLayout layout = PackedLayout::flat;  // tiles: N and K are multiples of 64
  TensorView codes;                          // u8 [code_bytes(format, N * K)]
  TensorView absmax;  // [scale_count(format, N * K)] in the format's scale_dtype: the scales of the blocks

  bool defined() const { return codes.defined(); }
  std::int64_t elems() const { return N * K; }
  std::int64_t bytes() const;  // of the parts that are defined

  // Weights in a strip (quant/stored_layout.h): the first weight of a strip is the first of a piece of memory in
  // every part. 1 where the layout is that of files.
  std::int64_t strip_elems() const;
  StoredLayout codes_layout() const;
  StoredLayout absmax_layout() const;

  // Throws ShapeError or DTypeError naming op, field and part when the parts do not fit N, K and the format.
  void check(std::string_view op, std::string_view field) const;
};

// Whether a matrix [N, K] of a format can lie in tiles: whole tiles of codes of 4 bits, one scale for each row
// of a tile.
bool can_be_tiled(FormatId format, std::int64_t N, std::int64_t K);

}  // namespace qt
