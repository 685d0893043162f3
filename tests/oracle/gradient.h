// Derivatives by complex step: f(x + i h) = f(x) + i h f'(x) + O(h^2), so that f' is the imaginary part over
// h. Nothing is subtracted, and h^2 vanishes beside 1 in double precision: the result is exact to rounding.
#pragma once

#include <complex>
#include <span>
#include <vector>

namespace qt::oracle {

using Complex = std::complex<double>;

// d loss / d x[i] for every i. loss: std::vector<Complex> -> Complex, analytic at x.
template <class Loss>
std::vector<double> complex_step(std::span<const double> x, Loss&& loss) {
  constexpr double kStep = 1e-40;
  std::vector<Complex> z(x.begin(), x.end());
  std::vector<double> gradient(x.size());
  for (std::size_t i = 0; i < z.size(); ++i) {
    z[i] = Complex(x[i], kStep);
    gradient[i] = loss(z).imag() / kStep;
    z[i] = x[i];
  }
  return gradient;
}

// sum(weight * y): turns the gradient of a loss with respect to y into that loss.
inline Complex weighted_sum(std::span<const Complex> y, std::span<const double> weight) {
  Complex sum = 0;
  for (std::size_t i = 0; i < y.size(); ++i) sum += weight[i] * y[i];
  return sum;
}

}  // namespace qt::oracle
