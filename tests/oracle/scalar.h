// The scalar types that oracles are written over, and the error model behind every tolerance.
//
//   double                 the value
//   std::complex<double>   the value and, by complex step, one derivative (oracle/gradient.h)
//   Tracked                the value and a bound on what f32 arithmetic may do to it
//
// Tracked is running error analysis (Wilkinson): each operation propagates the bounds of its operands and
// adds the rounding of its own result. Every tolerance in the op tests is the `error` of a Tracked: derived
// from the formula and the data, never tuned.
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>

#include "src/core/tensor.h"

namespace qt::oracle {

// Unit roundoff, round to nearest even: f32 keeps 24 significant bits, bf16 keeps 8, f16 keeps 11.
inline constexpr double kF32Roundoff = 0x1p-24;
inline constexpr double kBf16Roundoff = 0x1p-8;
inline constexpr double kF16Roundoff = 0x1p-11;
// Half the smallest denormal, for results that underflow.
inline constexpr double kF32Underflow = 0x1p-150;
inline constexpr double kBf16Underflow = 0x1p-134;
inline constexpr double kF16Underflow = 0x1p-25;

// Worst errors of the vector math that backends use, in units in the last place (at most 2 roundoffs each),
// as Highway 1.0 documents them; CUDA's exp, log and tanh stay within the same figures.
inline constexpr double kExpUlps = 2;
inline constexpr double kLogUlps = 2;
inline constexpr double kTanhUlps = 4;

struct Tracked {
  double value = 0;
  double error = 0;  // bound on |computed - value|

  Tracked() = default;
  Tracked(double exact)
      : value(exact) {}  // NOLINT: constants and inputs are exact, and formulas stay readable
  Tracked(double v, double e) : value(v), error(e) {}

  // The same value after one more f32 rounding.
  Tracked rounded(double roundings = 1) const {
    return {value, error + roundings * kF32Roundoff * (std::abs(value) + error) + kF32Underflow};
  }
};

inline Tracked operator-(const Tracked& a) { return {-a.value, a.error}; }
inline Tracked operator+(const Tracked& a, const Tracked& b) {
  return Tracked(a.value + b.value, a.error + b.error).rounded();
}
inline Tracked operator-(const Tracked& a, const Tracked& b) { return a + (-b); }
inline Tracked operator*(const Tracked& a, const Tracked& b) {
  return Tracked(a.value * b.value,
                 std::abs(a.value) * b.error + std::abs(b.value) * a.error + a.error * b.error)
      .rounded();
}
inline Tracked operator/(const Tracked& a, const Tracked& b) {
  const double quotient = a.value / b.value;
  const double smallest = std::abs(b.value) - b.error;  // of the divisor
  const double error = smallest > 0 ? (a.error + std::abs(quotient) * b.error) / smallest : INFINITY;
  return Tracked(quotient, error).rounded();
}
inline Tracked sqrt(const Tracked& a) {
  const double root = std::sqrt(a.value);
  const double sum = root + std::sqrt(std::max(0.0, a.value - a.error));
  return Tracked(root, sum > 0 ? a.error / sum : std::sqrt(a.error)).rounded();
}
inline Tracked exp(const Tracked& a) {
  return Tracked(std::exp(a.value), std::exp(a.value) * std::expm1(a.error)).rounded(2 * kExpUlps);
}
inline Tracked log(const Tracked& a) {
  const double relative = a.error / a.value;
  return Tracked(std::log(a.value), relative < 1 ? -std::log1p(-relative) : INFINITY).rounded(2 * kLogUlps);
}
inline Tracked tanh(const Tracked& a) {
  // The derivative is largest at the end of the interval nearest 0.
  const double sech = 1 / std::cosh(std::max(0.0, std::abs(a.value) - a.error));
  return Tracked(std::tanh(a.value), a.error * sech * sech).rounded(2 * kTanhUlps);
}

inline double real_part(double x) { return x; }
inline double real_part(const std::complex<double>& x) { return x.real(); }
inline double real_part(const Tracked& x) { return x.value; }

// max(x, 0): not analytic at 0, so complex-step tests stay away from there.
template <class T>
T positive_part(const T& x) {
  return real_part(x) > 0 ? x : T{};
}

// What f32 arithmetic leaves when it is stored as `dtype`.
template <class T>
T stored(const T& x, DType) {
  return x;
}
inline Tracked stored(const Tracked& x, DType dtype) {
  if (dtype == DType::f32) return x;
  const bool bf16 = dtype == DType::bf16;
  const double roundoff = bf16 ? kBf16Roundoff : kF16Roundoff;
  const double underflow = bf16 ? kBf16Underflow : kF16Underflow;
  return {x.value, x.error + roundoff * (std::abs(x.value) + x.error) + underflow};
}

// How the additions of a sum of products cut what f32 does not hold: each rounds to nearest, or they are
// those of a card's tensor cores.
enum class Adding : std::uint8_t { rounded, truncated };

// A sum of f32 terms in any order and any grouping.
//   rounded     n terms meet n - 1 roundings at most, each of at most a roundoff times the sum of the
//   magnitudes truncated   a group of k >= 4 terms and the running sum are aligned to the largest exponent
//   and cut off
//               behind its 24 bits, all but the largest; so is the result: k + 1 cuts of 2 roundoffs at most
template <class T>
class Sum {
 public:
  void add(const T& term) { value_ += term; }
  T value(Adding = Adding::rounded) const { return value_; }

 private:
  T value_{};
};
template <>
class Sum<Tracked> {
 public:
  void add(const Tracked& term) {
    value_ += term.value;
    error_ += term.error;
    magnitude_ += std::abs(term.value) + term.error;
    ++terms_;
  }
  Tracked value(Adding adding = Adding::rounded) const {
    const std::int64_t roundoffs =
        adding == Adding::rounded ? std::max<std::int64_t>(0, terms_ - 1) : 2 * (terms_ + (terms_ + 3) / 4);
    const double n = static_cast<double>(roundoffs) * kF32Roundoff;
    return {value_, error_ + n / (1 - n) * magnitude_};
  }

 private:
  double value_ = 0, error_ = 0, magnitude_ = 0;
  std::int64_t terms_ = 0;
};

// x rounded to the dtype, to nearest even, by arithmetic on doubles instead of bits: the oracle of the
// conversions.
inline double round_to(double x, DType dtype) {
  if (dtype == DType::f32) return static_cast<double>(static_cast<float>(x));
  if (x == 0 || !std::isfinite(x)) return x;
  // Of the last of bf16's 8 or f16's 11 bits; below the smallest normal number the last bit stays where it
  // is.
  const bool bf16 = dtype == DType::bf16;
  const int exponent = bf16 ? std::max(std::ilogb(x), -126) - 7 : std::max(std::ilogb(x), -14) - 10;
  const double unit = std::ldexp(1.0, exponent);
  const double result = std::nearbyint(x / unit) * unit;
  return std::abs(result) < (bf16 ? 0x1p128 : 0x1p16) ? result : std::copysign(INFINITY, x);
}

}  // namespace qt::oracle
