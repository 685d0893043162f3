// AdamW from its textbook constants: learning rate, betas, epsilon, decay and step, not the prepared ones
// that the op reads. The order of operations is that of quant/adam_math.h, so that Tracked bounds what f32
// makes of it.
#pragma once

#include <cmath>

#include "tests/oracle/scalar.h"

namespace qt::oracle {

// What the tests can be asked to get wrong.
struct AdamMistakes {
  bool decays_after = false;
  bool no_bias_correction = false;
  bool eps_unscaled = false;  // eps beside sqrt(v) without the bias correction
  bool eps_inside_root = false;
  bool old_moments = false;  // the update reads the moments of the step before
};

struct AdamSettings {
  double lr = 0, beta1 = 0, beta2 = 0, eps = 0, weight_decay = 0;
  int step = 1;
};

struct AdamState {
  Tracked p, m, v;
};

// A constant computed in double and rounded to f32 once.
inline Tracked constant(double x) { return Tracked(x).rounded(); }
// 1 - beta where beta was rounded to f32 first.
inline Tracked one_minus(double beta) { return Tracked(1.0) - constant(beta); }

// s holds the state before, g the gradient with its factor.
inline AdamState adamw(AdamState s, const Tracked& g, const AdamSettings& a, const AdamMistakes& wrong = {}) {
  const double c1 = wrong.no_bias_correction ? 1 : 1 - std::pow(a.beta1, a.step);
  const double c2 = wrong.no_bias_correction ? 1 : std::sqrt(1 - std::pow(a.beta2, a.step));
  AdamState next;
  next.v = s.v * constant(a.beta2) + one_minus(a.beta2) * g * g;
  next.m = s.m * constant(a.beta1) + one_minus(a.beta1) * g;
  const Tracked m = wrong.old_moments ? s.m : next.m, v = wrong.old_moments ? s.v : next.v;
  const Tracked eps = constant(wrong.eps_unscaled ? 1.0 : c2) * constant(a.eps);
  const Tracked root = wrong.eps_inside_root ? sqrt(v + eps * eps) : sqrt(v) + eps;
  const Tracked update = constant(-a.lr * c2 / c1) * (m / root);
  const Tracked decay = constant(1 - a.lr * a.weight_decay);
  next.p = wrong.decays_after ? (s.p + update) * decay : s.p * decay + update;
  return next;
}

}  // namespace qt::oracle
