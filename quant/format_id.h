// The identity of a weight format: what a Param, a plan or a checkpoint stores. What an id means is in
// quant/format.h.
#pragma once

#include <cstdint>

namespace qt {

// Numbers are written to checkpoints: never reuse or reorder them.
enum class FormatId : std::uint8_t {
  none = 0,  // weights stay in the compute dtype
  nf4 = 1,
};

}  // namespace qt
