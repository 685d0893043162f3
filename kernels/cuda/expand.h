// Packed weights to the canonical weight on a card, a rectangle or a range at a time: the same bits as the
// format's own dequantize().
#pragma once

#include <cstdint>

#include "kernels/cuda/context.h"
#include "quant/packed.h"
#include "src/core/half.h"

namespace qt::cuda {

// Rows [first_row, first_row + rows) and columns [first_col, first_col + cols) of a matrix; both begin at
// multiples of 64.
struct Rectangle {
  std::int64_t first_row = 0, rows = 0;
  std::int64_t first_col = 0, cols = 0;
};

// The rectangle as a dense matrix [rows, cols]. w: of any layout, its codes at any address; `to` may share no
// byte with it. T: bf16 or f32, which widens the canonical bf16.
template <class T>
void expand(const PackedView& w, const Rectangle& rectangle, T* to, const Context& context);

// Elements [first, first + count) of w in flat row-major order, any range of any layout.
template <class T>
void expand(const PackedView& w, std::int64_t first, std::int64_t count, T* to, const Context& context);

}  // namespace qt::cuda
