// The coefficients of the normal tail, for every backend: Phi(-a), a >= 0, is exp(-a^2 / 2) S(q) / (a + 3.5),
// q = (a - 3.5) / (a + 3.5). Scaled like that (the form is that of Shepherd and Laframboise, Math. Comp. 36,
// 1981) the tail is smooth enough for one polynomial. S is the minimax polynomial in relative error for
// 0 <= a <= 13.25, off by 5.3e-9 (tools/fit_normal_tail.py).
#pragma once

namespace qt {

struct NormalTail {
  static constexpr float kShift = 3.5f;
  static constexpr float kS0 = 7.44416075251e-1f;
  static constexpr float kS1 = -5.65561761131e-1f;
  static constexpr float kS2 = 3.15424958962e-1f;
  static constexpr float kS3 = -1.16052655425e-1f;
  static constexpr float kS4 = 1.74076444336e-2f;
  static constexpr float kS5 = 6.49116304715e-3f;
  static constexpr float kS6 = -3.18149525045e-3f;
  static constexpr float kS7 = -4.93803545109e-4f;
  static constexpr float kS8 = 4.31668260822e-4f;
  static constexpr float kS9 = 1.15899412901e-4f;
};

inline constexpr float kNormalDensityAt0 = 0.398942280401432678f;  // 1 / sqrt(2 pi)

}  // namespace qt
