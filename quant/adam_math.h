// AdamW for one element, in the one arithmetic that plain f32 moments, 8-bit moments and every backend
// share: each product, sum, root and quotient is an f32 operation rounded on its own, in the order written.
//
// Weight decay is decoupled (Loshchilov & Hutter, arXiv 1711.05101) and applied before the update. Epsilon
// stands beside sqrt(v) after scaling by the bias correction, which is algebraically
// lr * mhat / (sqrt(vhat) + eps).
#pragma once

#include <cmath>
#include <cstdint>

#include "src/core/device.h"

namespace qt {

// The constants of one step.
struct AdamHyper {
  float s = 0;      // -lr * c2 / c1, with c1 = 1 - beta1^t and c2 = sqrt(1 - beta2^t)
  float ceps = 0;   // c2 * eps
  float decay = 1;  // 1 - lr * weight_decay
  float beta1 = 0;
  float one_minus_beta1 = 0;
  float beta2 = 0;
  float one_minus_beta2 = 0;
};

// beta^t by squaring. Not std::pow: its last bit differs between C libraries and devices, these products
// do not.
constexpr double int_power(double beta, std::int64_t t) {
  double power = 1;
  for (double square = beta; t > 0; t /= 2, square *= square) {
    if (t % 2 != 0) power *= square;
  }
  return power;
}

// t counts optimizer steps from 1. Bias corrections, s and decay are evaluated in double and then rounded.
inline AdamHyper adam_hyper(double lr, double beta1, double beta2, double eps, double weight_decay,
                            std::int64_t t) {
  const double c1 = 1 - int_power(beta1, t);
  const double c2 = std::sqrt(1 - int_power(beta2, t));
  const float b1 = static_cast<float>(beta1), b2 = static_cast<float>(beta2);
  return AdamHyper{.s = static_cast<float>(-lr * c2 / c1),
                   .ceps = static_cast<float>(c2) * static_cast<float>(eps),
                   .decay = static_cast<float>(1 - lr * weight_decay),
                   .beta1 = b1,
                   .one_minus_beta1 = 1.0f - b1,
                   .beta2 = b2,
                   .one_minus_beta2 = 1.0f - b2};
}

// Updates parameter p and moments m, v with gradient g. The update uses the new moments before any
// re-encoding to 8 bits.
QT_HOST_DEVICE inline void adam_update(float& p, float g, float& m, float& v, const AdamHyper& h) {
  v = v * h.beta2 + h.one_minus_beta2 * g * g;
  m = m * h.beta1 + h.one_minus_beta1 * g;
  p = p * h.decay + h.s * (m / (std::sqrt(v) + h.ceps));
}

}  // namespace qt
