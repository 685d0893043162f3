// Softcap, cross-entropy and their gradient for one row of logits, as kernels/ops.h defines them.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "tests/oracle/scalar.h"

namespace qt::oracle {

template <class T>
T softcap(const T& x, double cap) {
  using std::tanh;
  return cap == 0 ? x : T(T(cap) * tanh(T(x / T(cap))));
}

template <class T>
struct RowLoss {
  T nll{};
  std::vector<T> z;  // capped logits
  std::vector<T> p;  // softmax(z)
};

// Instead of the maximum a backend may subtract any constant up to the cap, or nothing: the difference rounds
// at another magnitude, and the logarithm of the sum is the whole log-sum-exp then.
template <class T>
T shifted_anyhow(const T& x, double) {
  return x;
}
inline Tracked shifted_anyhow(const Tracked& x, double cap) {
  return {x.value, x.error + kF32Roundoff * cap};
}
template <class T>
T as_log(const T& x) {
  return x;
}
inline Tracked as_log(const Tracked& x) { return x.rounded(2 * kLogUlps); }

// -log softmax(softcap(logits))[target]. target < 0: ignored, loss 0.
template <class T>
RowLoss<T> cross_entropy(std::span<const T> logits, int target, double cap) {
  using std::exp;
  using std::log;
  RowLoss<T> row;
  double top = -INFINITY;  // a constant shift: the real part alone
  for (const T& x : logits) {
    row.z.push_back(softcap(x, cap));
    top = std::max(top, real_part(row.z.back()));
  }
  Sum<T> total;
  for (const T& z : row.z) {
    row.p.push_back(exp(shifted_anyhow(T(z - T(top)), cap)));
    total.add(row.p.back());
  }
  if (target >= 0) row.nll = as_log(T(log(total.value()) + T(top))) - row.z[static_cast<std::size_t>(target)];
  for (T& p : row.p) p = p / total.value();
  return row;
}

// What cross_entropy_gradient can be told to forget.
struct LossRule {
  bool cap_has_slope = true;
  bool slope_squares = true;
  bool ignores_negative_targets = true;
};

// grad_scale (softmax(z) - onehot) (1 - (z / cap)^2), zero for an ignored row; before rounding to storage.
template <class T>
std::vector<T> cross_entropy_gradient(const RowLoss<T>& row, int target, double cap, double grad_scale,
                                      LossRule rule = {}) {
  std::vector<T> d(row.z.size());
  if (target < 0 && rule.ignores_negative_targets) return d;
  for (std::size_t i = 0; i < d.size(); ++i) {
    const T error = static_cast<int>(i) == target ? T(row.p[i] - T(1.0)) : row.p[i];
    const T t = cap == 0 ? T{} : T(row.z[i] / T(cap));
    const T slope = !rule.cap_has_slope ? T(1.0) : rule.slope_squares ? T(T(1.0) - t * t) : T(T(1.0) - t);
    d[i] = T(grad_scale) * error * slope;
  }
  return d;
}

}  // namespace qt::oracle
