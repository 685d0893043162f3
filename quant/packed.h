// PackedView: a matrix in a weight format, as the views of its parts. Owns nothing.
#pragma once

#include <cstdint>
#include <string_view>

#include "quant/format.h"
#include "quant/param.h"
#include "src/core/tensor.h"

namespace qt {

// Blocks run over the flat row-major order of [N, K], see the format's header. Exactly one of two scale
// forms is present: `absmax`, or the three nested views (quant/nested.h).
struct PackedView {
  FormatId format = FormatId::none;
  std::int64_t N = 0;                        // rows (output features)
  std::int64_t K = 0;                        // columns (input features)
  PackedLayout layout = PackedLayout::flat;  // tiles: N and K are multiples of 64, scales are plain
  TensorView codes;                          // u8 [code_bytes(format, N * K)]
  TensorView absmax;                         // f32 [blocks], blocks = scale_count(format, N * K)

  TensorView nested_codes;   // u8 [blocks]
  TensorView nested_absmax;  // f32 [ceil(blocks / 256)]
  TensorView nested_offset;  // f32 [1]

  TensorView codebook;  // f32 [levels]: only a format whose code points are learned; else undefined

  bool defined() const { return codes.defined(); }
  bool nested() const { return nested_codes.defined(); }
  std::int64_t elems() const { return N * K; }
  std::int64_t bytes() const;  // of all defined parts

  // Throws ShapeError or DTypeError naming op, field and part when the parts do not fit N, K and the format.
  void check(std::string_view op, std::string_view field) const;
};

// The packed copy of a param as one view. The param must have been placed with `packed` set.
inline PackedView packed_view(const Param& param, FormatId format) {
  PackedView w;
  w.format = format;
  w.N = param.N;
  w.K = param.K;
  w.layout = param.layout;
  w.codes = param.codes;
  w.absmax = param.absmax;
  return w;
}

}  // namespace qt
