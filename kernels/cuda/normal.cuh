// The normal distribution on the device, in f32. The arithmetic is written out, down to the exponential, so
// that a card gives the very bits of the host, where its error is measured.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/normal_tail.h"

namespace qt::cuda {

// exp(x) for x <= 0, within 1.1 ulp, and 0 below -87: against terms near 1 that is lost anyway. NaN stays
// NaN. Coefficients: Moshier's Cephes, expf.
__device__ inline float negative_exp(float x) {
  if (x < -87.0f) return 0.0f;
  // Added, 1.5 * 2^23 leaves the nearest integer in the lowest bits.
  constexpr float kRounder = 12582912.0f;
  const float shifted = fmaf(x, 1.44269504088896341f, kRounder);
  const float n = shifted - kRounder;
  // ln 2 in two parts, the first with few bits: its product with n is exact.
  float r = fmaf(n, -0.693359375f, x);
  r = fmaf(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = fmaf(p, r, 1.3981999507e-3f);
  p = fmaf(p, r, 8.3334519073e-3f);
  p = fmaf(p, r, 4.1665795894e-2f);
  p = fmaf(p, r, 1.6666665459e-1f);
  p = fmaf(p, r, 5.0000001201e-1f);
  p = fmaf(p, r * r, r) + 1.0f;
  const unsigned power = (__float_as_uint(shifted) + 127u) << 23;  // 2^n
  return p * __uint_as_float(power);
}

// Phi(x) = (1 + erf(x / sqrt(2))) / 2, and exp(-x^2 / 2), from which the density follows.
struct Normal {
  float cdf, bell;
};

// The tail is within 12 roundoffs (2^-24) and x^2 / 2 more, the error of rounding x^2 before the exponential.
__device__ inline Normal normal_of(float x) {
  const float bell = negative_exp(x * x * -0.5f);
  const float r = 1.0f / (fabsf(x) + NormalTail::kShift);
  const float q = fmaf(-2 * NormalTail::kShift, r, 1.0f);
  float s = NormalTail::kS9;
  s = fmaf(s, q, NormalTail::kS8);
  s = fmaf(s, q, NormalTail::kS7);
  s = fmaf(s, q, NormalTail::kS6);
  s = fmaf(s, q, NormalTail::kS5);
  s = fmaf(s, q, NormalTail::kS4);
  s = fmaf(s, q, NormalTail::kS3);
  s = fmaf(s, q, NormalTail::kS2);
  s = fmaf(s, q, NormalTail::kS1);
  s = fmaf(s, q, NormalTail::kS0);
  const float tail = bell * (s * r);
  return {x < 0.0f ? tail : 1.0f - tail, bell};
}

}  // namespace qt::cuda
