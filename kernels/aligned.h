// Whether an address is one that wide accesses may go to.
#pragma once

#include <cstdint>

#include "src/core/device.h"

namespace qt {

template <int kBytes>
QT_HOST_DEVICE inline bool is_aligned(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p) % kBytes == 0;
}
QT_HOST_DEVICE inline bool is_aligned16(const void* p) { return is_aligned<16>(p); }

}  // namespace qt
