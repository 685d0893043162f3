// The scalars of an optimizer step from the sums over a window: what PrepareStep computes, in the one
// arithmetic of all backends.
#pragma once

#include <cmath>

#include "src/core/device.h"

namespace qt {

// PyTorch's clip_grad_norm_ adds it to the norm.
inline constexpr double kClipEpsilon = 1e-6;

struct StepSums {
  double grad_sumsq = 0;
  double loss = 0;
  double targets = 0;
};

struct StepScalars {
  double loss = 0;      // nats per token
  double norm = 0;      // of the gradient, before clipping
  float factor = 0;     // on every gradient
  bool finite = false;  // loss, and norm as f32
  bool skip = true;     // the step
};

// max_norm and gradient_tokens as in PrepareStep. Without a single target there is no loss to speak of: loss,
// norm and factor are 0, and the step is skipped.
QT_HOST_DEVICE inline StepScalars step_scalars(const StepSums& sums, double max_norm,
                                               double gradient_tokens) {
  const bool any = sums.targets > 0;
  const double rescale = any ? gradient_tokens / sums.targets : 0.0;  // they were divided by gradient_tokens
  StepScalars s;
  s.loss = any ? sums.loss / sums.targets : sums.loss * 0.0;
  s.norm = std::sqrt(sums.grad_sumsq) * rescale;
  s.finite = std::isfinite(s.loss) && std::isfinite(static_cast<float>(s.norm));  // the update is f32
  double factor = rescale;
  if (max_norm > 0) {
    const double clip = max_norm / (s.norm + kClipEpsilon);
    factor *= clip < 1.0 ? clip : 1.0;
  }
  s.factor = s.finite ? static_cast<float>(factor) : 0.0f;
  s.skip = !s.finite || !any;
  return s;
}

}  // namespace qt
