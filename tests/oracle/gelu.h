// The exact GELU and its derivative, as kernels/ops.h defines them, from the normal distribution.
#pragma once

#include <cmath>
#include <complex>
#include <numbers>

#include "tests/oracle/scalar.h"

namespace qt::oracle {

// Worst relative error of a backend's normal tail Phi(-a), in f32 roundoffs, before that of rounding a^2: a
// division, an exponential, and a polynomial of alternating terms.
inline constexpr double kTailRoundoffs = 12;
// Where the exponential has come down to it, backends may give 0.
inline constexpr double kTailUnderflow = 0x1p-125;

// Phi(x), the normal distribution function.
inline double normal_cdf(double x) { return std::erfc(-x / std::numbers::sqrt2) / 2; }

// By its power series, which knows nothing of the density: for complex step. Good for |x| < 3, where its
// terms do not cancel more than three digits.
inline std::complex<double> normal_cdf(const std::complex<double>& x) {
  std::complex<double> power = x, sum = x;
  for (int n = 1; n < 120; ++n) {
    power *= -x * x / (2.0 * n);
    sum += power / (2.0 * n + 1);
  }
  return 0.5 + sum / std::sqrt(2 * std::numbers::pi);
}

inline Tracked normal_cdf(const Tracked& x) {
  const double u = kF32Roundoff, cdf = normal_cdf(x.value), tail = normal_cdf(-std::abs(x.value));
  const double tail_error = tail * (kTailRoundoffs + x.value * x.value / 2) * u + kTailUnderflow;
  const double slope = 0.4;  // the density at its largest
  return {cdf, slope * x.error + tail_error + (x.value < 0 ? 0 : u * cdf)};
}

// The normal density.
template <class T>
T normal_density(const T& x) {
  using std::exp;
  return exp(T(-0.5) * x * x) * T(1 / std::sqrt(2 * std::numbers::pi));
}
inline Tracked normal_density(const Tracked& x) {
  const Tracked square = x * x;
  Tracked bell = exp(Tracked(-square.value / 2, square.error / 2));
  bell.error += kTailUnderflow;
  return bell * Tracked(1 / std::sqrt(2 * std::numbers::pi)).rounded();
}

template <class T>
T gelu(const T& x) {
  return x * normal_cdf(x);
}
template <class T>
T gelu_backward(const T& x, const T& dy) {
  return dy * (normal_cdf(x) + x * normal_density(x));
}

}  // namespace qt::oracle
