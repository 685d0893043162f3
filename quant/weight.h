// Weight: the copy of a parameter that forward and backward read, in the format of its own. Owns no memory.
#pragma once

#include <utility>

#include "quant/packed.h"
#include "src/core/tensor.h"

namespace qt {

// Exactly one of the two is defined once the weight is placed; neither before.
struct Weight {
  TensorView dense;   // [N, K] f32 | bf16 | f16
  PackedView packed;  // [N, K] in packed.format, laid out as packed.layout says

  // FormatId::none: dense.
  FormatId format() const { return packed.format; }
  bool is_packed() const { return packed.format != FormatId::none; }

  // use(packed) or use(dense), whichever is defined.
  template <class Use>
  decltype(auto) visit(Use&& use) const {
    if (is_packed()) return std::forward<Use>(use)(packed);
    return std::forward<Use>(use)(dense);
  }
};

}  // namespace qt
