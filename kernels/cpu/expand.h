// Packed weights to the canonical weight, a rectangle at a time: the same bits as the format's own
// dequantize().
#pragma once

#include <cstdint>

#include "quant/packed.h"
#include "src/core/half.h"

namespace qt::cpu {

// Elements [first, first + count) of w in flat row-major order; any range. The f32 form widens the canonical
// bf16.
void expand(const PackedView& w, std::int64_t first, std::int64_t count, bf16* to);
void expand(const PackedView& w, std::int64_t first, std::int64_t count, float* to);

}  // namespace qt::cpu
