// Dynamic loss scaling for 16-bit floats: gradients are multiplied on their way through fp16 so that small
// ones do not vanish, and the factor follows what overflows. The rule of PyTorch's GradScaler: 2^16 to start,
// halved and the step left out when a gradient is not finite, doubled after 2,000 steps in a row without
// that.
#pragma once

#include <cstdint>

namespace qt {

struct LossScale {
  static constexpr double kInitial = 65536.0;
  static constexpr std::int64_t kGrowthInterval = 2000;
  static constexpr double kLargest = 0x1p40;  // far beyond any that does not overflow

  double scale = kInitial;
  std::int64_t clean_steps = 0;  // since the last change

  // After a window with finite gradients alone.
  void succeed() {
    if (++clean_steps < kGrowthInterval) return;
    clean_steps = 0;
    if (scale < kLargest) scale *= 2;
  }
  // After an overflow. False when the scale is 1 already: then it is not the scale that overflows.
  bool back_off() {
    clean_steps = 0;
    if (scale <= 1) return false;
    scale /= 2;
    return true;
  }
};

}  // namespace qt
