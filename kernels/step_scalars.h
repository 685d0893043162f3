// The scalars of an optimizer step from the sums over a window: what PrepareStep computes, in the one
// arithmetic of all backends.
#pragma once

#include <cmath>

#include "kernels/ops.h"
#include "quant/adam_math.h"
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

// ---- PrepareStep::params and stats, as those who fill and read them see them: kernels/ops.h tells the
// layout ----

QT_HOST_DEVICE inline void write_scalars(const StepScalars& step, double targets, float* params,
                                         double* stats) {
  params[0] = step.factor;
  params[1] = step.skip ? 1.0f : 0.0f;
  params[2] = static_cast<float>(step.norm);
  params[3] = 0.0f;
  stats[0] = step.loss;
  stats[1] = step.norm;
  stats[2] = step.finite ? 0.0 : 1.0;
  stats[3] = targets;
}
QT_HOST_DEVICE inline void write_hyper(const AdamHyper& h, int group, float* params) {
  float* const out = params + kStepScalarFloats + kHyperFloats * group;
  out[0] = h.s;
  out[1] = h.ceps;
  out[2] = h.decay;
  out[3] = h.beta1;
  out[4] = h.one_minus_beta1;
  out[5] = h.beta2;
  out[6] = h.one_minus_beta2;
  out[7] = 0.0f;
}

QT_HOST_DEVICE inline float gradient_factor(const float* params) { return params[0]; }
QT_HOST_DEVICE inline bool step_is_skipped(const float* params) { return params[1] != 0; }
QT_HOST_DEVICE inline AdamHyper read_hyper(const float* params, int group) {
  const float* const h = params + kStepScalarFloats + kHyperFloats * group;
  AdamHyper hyper;
  hyper.s = h[0];
  hyper.ceps = h[1];
  hyper.decay = h[2];
  hyper.beta1 = h[3];
  hyper.one_minus_beta1 = h[4];
  hyper.beta2 = h[5];
  hyper.one_minus_beta2 = h[6];
  return hyper;
}

}  // namespace qt
