// The oracles themselves: closed forms of gradients against complex step, and the error model against plain
// f32 code.
#include <cmath>
#include <random>
#include <span>

#include <gtest/gtest.h>

#include "tests/oracle/attention.h"
#include "tests/oracle/gelu.h"
#include "tests/oracle/gradient.h"
#include "tests/oracle/layernorm.h"
#include "tests/oracle/loss.h"
#include "tests/oracle/matmul.h"
#include "tests/oracle/norm.h"

namespace qt::oracle {
namespace {

constexpr double kClosedForm =
    1e-12;  // relative to the largest element: what double leaves after a few hundred operations

std::vector<double> normal(std::size_t n, unsigned seed) {
  std::mt19937_64 random(seed);
  std::normal_distribution<double> draw;
  std::vector<double> x(n);
  for (double& v : x) v = draw(random);
  return x;
}

std::vector<Complex> constants(std::span<const double> x) { return {x.begin(), x.end()}; }

// Largest difference over largest magnitude.
double distance(std::span<const double> a, std::span<const double> b) {
  EXPECT_EQ(a.size(), b.size());
  double top = 0, off = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    top = std::max(top, std::abs(b[i]));
    off = std::max(off, std::abs(a[i] - b[i]));
  }
  EXPECT_GT(top, 0);
  return off / top;
}

TEST(ClosedForm, OfRmsNormBackwardIsTheDerivativeOfForward) {
  const std::size_t C = 13;
  const auto x = normal(3 * C, 1), dy = normal(3 * C, 2);
  const double eps = 0.01;
  const auto exact = complex_step(x, [&](const std::vector<Complex>& z) {
    return weighted_sum(rmsnorm<Complex>(z, C, eps, DType::f32).y, dy);
  });
  const auto forward = rmsnorm<double>(x, C, eps, DType::f32);
  EXPECT_LT(distance(rmsnorm_backward<double>(forward.y, forward.rstd, dy, C), exact), kClosedForm);
}

TEST(ClosedForm, OfRopeAndNormBackwardIsTheDerivativeOfForward) {
  const std::size_t H = 2, D = 6, T = 4, N = 2 * T;
  const auto x = normal(N * H * D, 3), dy = normal(N * H * D, 4);
  std::vector<double> cos, sin;
  for (std::size_t i = 0; i < (T + 1) * D / 2; ++i)
    cos.push_back(std::cos(0.3 * static_cast<double>(i))),
        sin.push_back(std::sin(0.3 * static_cast<double>(i)));
  const auto exact = complex_step(x, [&](const std::vector<Complex>& z) {
    return weighted_sum(rmsnorm<Complex>(rotate<Complex>(z, H, D, T, 0, cos, sin), D, 0.01, DType::f32).y,
                        dy);
  });
  const auto forward = rmsnorm<double>(rotate<double>(x, H, D, T, 0, cos, sin), D, 0.01, DType::f32);
  const auto dr = rmsnorm_backward<double>(forward.y, forward.rstd, dy, D);
  EXPECT_LT(distance(rotate<double>(dr, H, D, T, 0, cos, sin, {.direction = 1}), exact), kClosedForm);
}

TEST(ClosedForm, OfReluSquaredIsItsDerivative) {
  const auto x = normal(50, 5), dy = normal(50, 6);  // none of them at the kink
  const auto exact = complex_step(x, [&](const std::vector<Complex>& z) {
    std::vector<Complex> y;
    for (const Complex& v : z) y.push_back(relu2(v));
    return weighted_sum(y, dy);
  });
  std::vector<double> dx;
  for (std::size_t i = 0; i < x.size(); ++i) dx.push_back(relu2_backward(x[i], dy[i]));
  EXPECT_LT(distance(dx, exact), kClosedForm);
}

TEST(ClosedForm, OfTheExactGeluIsItsDerivative) {
  std::vector<double> x, dy = normal(50, 30);
  for (int i = 0; i < 50; ++i) x.push_back(-2.5 + 0.1 * i);
  const auto exact = complex_step(x, [&](const std::vector<Complex>& z) {
    std::vector<Complex> y;
    for (const Complex& v : z) y.push_back(gelu(v));
    return weighted_sum(y, dy);
  });
  std::vector<double> dx, without_slope;
  for (std::size_t i = 0; i < x.size(); ++i) {
    dx.push_back(gelu_backward(x[i], dy[i]));
    without_slope.push_back(dy[i] * normal_cdf(x[i]));
    EXPECT_NEAR(gelu(Complex(x[i])).real(), gelu(x[i]), 1e-14);  // series and library agree
  }
  EXPECT_LT(distance(dx, exact), kClosedForm);
  EXPECT_GT(distance(without_slope, exact), 1e-2);  // complex step would have told
}

TEST(ClosedForm, OfLayerNormBackwardIsTheDerivativeOfForward) {
  const std::size_t C = 13, N = 3;
  const auto x = normal(N * C, 31), weight = normal(C, 32), bias = normal(C, 33), dy = normal(N * C, 34);
  const double eps = 0.01;
  for (const bool centred : {true, false}) {
    const auto loss = [&](std::span<const Complex> a, std::span<const Complex> w,
                          std::span<const Complex> b) {
      return weighted_sum(layernorm<Complex>(a, w, b, eps, DType::f32, {}, centred).y, dy);
    };
    const auto x_C = constants(x), weight_C = constants(weight), bias_C = constants(bias);
    const auto forward = layernorm<double>(x, weight, bias, eps, DType::f32, {}, centred);
    const auto got = layernorm_backward<double>(x, forward.mean, forward.rstd, weight, dy, {}, centred);
    using Z = const std::vector<Complex>&;
    EXPECT_LT(distance(got.dx, complex_step(x, [&](Z z) { return loss(z, weight_C, bias_C); })), kClosedForm);
    EXPECT_LT(distance(got.dweight, complex_step(weight, [&](Z z) { return loss(x_C, z, bias_C); })),
              kClosedForm);
    EXPECT_LT(distance(got.dbias, complex_step(bias, [&](Z z) { return loss(x_C, weight_C, z); })),
              kClosedForm);
  }
}

TEST(ClosedForm, OfLearnedPositionsIsTheirDerivative) {
  const std::size_t C = 3, T = 4, P = 6;
  const auto tokens = normal(2 * T * C, 35), positions = normal(P * C, 36), dy = normal(2 * T * C, 37);
  const auto exact = complex_step(positions, [&](const std::vector<Complex>& z) {
    return weighted_sum(add_positions<Complex>(constants(tokens), z, C, T, 0), dy);
  });
  auto got = positions_backward<double>(dy, C, T);
  got.resize(P * C, 0);  // positions that no token stands at
  EXPECT_LT(distance(got, exact), kClosedForm);
  // A bias is a position that every token stands at.
  const auto bias_exact = complex_step(normal(C, 38), [&](const std::vector<Complex>& z) {
    return weighted_sum(add_positions<Complex>(constants(tokens), z, C, 1, 0), dy);
  });
  EXPECT_LT(distance(column_sum<double>(dy, C), bias_exact), kClosedForm);
}

TEST(ClosedForm, OfTheEmbeddingIsItsDerivative) {
  const std::vector<std::int32_t> ids = {2, 0, 2, 3, 2};
  const std::size_t C = 3, V = 5;
  const auto table = normal(V * C, 7), dy = normal(ids.size() * C, 8);
  const auto exact = complex_step(
      table, [&](const std::vector<Complex>& z) { return weighted_sum(embedding<Complex>(ids, z, C), dy); });
  EXPECT_LT(distance(embedding_backward<double>(ids, dy, std::vector<double>(V * C, 0), C), exact),
            kClosedForm);
}

TEST(ClosedForm, OfMatrixProductsAreTheirDerivatives) {
  const std::size_t M = 4, N = 3, K = 5;
  const auto x = normal(M * K, 9), w = normal(N * K, 10), dy = normal(M * N, 11);
  const auto exact_dx = complex_step(x, [&](const std::vector<Complex>& z) {
    return weighted_sum(matmul<Complex>(GemmLayout::nt, z, constants(w), M, N, K), dy);
  });
  EXPECT_LT(distance(matmul<double>(GemmLayout::nn, dy, w, M, K, N), exact_dx), kClosedForm);
  const auto exact_dw = complex_step(w, [&](const std::vector<Complex>& z) {
    return weighted_sum(matmul<Complex>(GemmLayout::nt, constants(x), z, M, N, K), dy);
  });
  EXPECT_LT(distance(matmul<double>(GemmLayout::tn, dy, x, N, K, M), exact_dw), kClosedForm);
}

TEST(ClosedForm, OfAttentionBackwardIsTheDerivativeOfForward) {
  for (const std::size_t G : {1, 2, 4}) {
    AttentionShape s{.B = 2, .Tq = 5, .Tk = 5, .H = 4, .G = G, .D = 3, .scale = 0.7};
    for (std::size_t i = 0; G == 2 && i < s.B * s.H * s.Tq * s.Tk; ++i)
      s.dropout.push_back(i % 3 == 0 ? 0 : 1.5);
    const std::size_t nq = s.B * s.Tq * s.H * s.D, nk = s.B * s.Tk * G * s.D;
    const auto q = normal(nq, 12), k = normal(nk, 13), v = normal(nk, 14), dy = normal(nq, 15);
    const auto forward = attention<double>(s, q, k, v);
    const auto got = attention_backward<double>(s, q, k, v, forward.y, forward.lse, dy);
    const auto loss = [&](std::span<const Complex> a, std::span<const Complex> b,
                          std::span<const Complex> c) {
      return weighted_sum(attention<Complex>(s, a, b, c).y, dy);
    };
    const auto q_C = constants(q), k_C = constants(k), v_C = constants(v);
    EXPECT_LT(
        distance(got.dq, complex_step(q, [&](const std::vector<Complex>& z) { return loss(z, k_C, v_C); })),
        kClosedForm);
    EXPECT_LT(
        distance(got.dk, complex_step(k, [&](const std::vector<Complex>& z) { return loss(q_C, z, v_C); })),
        kClosedForm);
    EXPECT_LT(
        distance(got.dv, complex_step(v, [&](const std::vector<Complex>& z) { return loss(q_C, k_C, z); })),
        kClosedForm);
  }
}

TEST(ClosedForm, OfTheLossGradientIsTheDerivativeOfTheLoss) {
  for (const double cap : {15.0, 0.0, 2.0}) {
    const auto logits = normal(11, 16);
    const int target = 4;
    const auto exact = complex_step(logits, [&](const std::vector<Complex>& z) {
      return 0.3 * cross_entropy<Complex>(z, target, cap).nll;
    });
    const auto row = cross_entropy<double>(logits, target, cap);
    EXPECT_LT(distance(cross_entropy_gradient(row, target, cap, 0.3), exact), kClosedForm);
    const auto wrong = cross_entropy_gradient(row, target, cap, 0.3, {.cap_has_slope = false});
    if (cap != 0) {
      EXPECT_GT(distance(wrong, exact), 1e-4);  // complex step would have told
    }
  }
}

TEST(ErrorModel, CoversPlainF32ArithmeticAndIsNotMuchWider) {
  // A sum of products in the plainest order: the bound must cover its error for every draw; over many draws
  // the worst comes near it, as far as random signs let it.
  double worst = 0;
  for (unsigned seed = 0; seed < 2000; ++seed) {
    const auto a = normal(3, 100 + seed), b = normal(3, 5000 + seed);
    float sum = 0;
    Sum<Tracked> bound;
    for (std::size_t i = 0; i < a.size(); ++i) {
      const float x = static_cast<float>(a[i]), y = static_cast<float>(b[i]);
      sum += x * y;
      bound.add(Tracked(static_cast<double>(x)) * Tracked(static_cast<double>(y)));
    }
    worst = std::max(worst, std::abs(static_cast<double>(sum) - bound.value().value) / bound.value().error);
  }
  EXPECT_LE(worst, 1);
  EXPECT_GT(worst, 0.2);
}

// What tensor cores do to a group of products and the running sum.
double add_group(double sum, std::span<const double> products) {
  double largest = std::abs(sum);
  for (const double x : products) largest = std::max(largest, std::abs(x));
  if (largest == 0) return 0;
  const auto cut = [](double x, double like) {
    const double unit = std::ldexp(1.0, std::ilogb(like) - 23);
    return std::trunc(x / unit) * unit;
  };
  double total = cut(sum, largest);
  for (const double x : products) total += cut(x, largest);
  return total == 0 ? 0 : cut(total, total);
}

TEST(ErrorModel, CoversSumsThatAreCutOffInGroupsWhichTheBoundForRoundingDoesNot) {
  for (const std::size_t n : {1, 2, 3, 4, 5, 8, 9, 64}) {
    for (unsigned seed = 0; seed < 500; ++seed) {
      const auto a = normal(n, 100 + seed), b = normal(n, 9000 + seed);
      std::vector<double> products;
      Sum<Tracked> bound;
      for (std::size_t i = 0; i < n; ++i) {
        // Of 16 bits each: exact.
        products.push_back(round_to(a[i], DType::bf16) * round_to(std::exp(3 * b[i]), DType::bf16));
        bound.add(Tracked(products.back()));
      }
      double sum = 0;
      for (std::size_t i = 0; i < n; i += 4)
        sum = add_group(sum, std::span(products).subspan(i, std::min<std::size_t>(4, n - i)));
      const Tracked want = bound.value(Adding::truncated);
      ASSERT_LE(std::abs(sum - want.value), want.error) << n << " products, seed " << seed;
    }
  }
  const std::vector<double> lost = {1, 0x1p-23 - 0x1p-31};  // the second lies below the last bit of the first
  Sum<Tracked> bound;
  for (const double x : lost) bound.add(Tracked(x));
  const double error = std::abs(add_group(0, lost) - bound.value().value);
  EXPECT_GT(error, bound.value(Adding::rounded).error);
  EXPECT_LE(error, bound.value(Adding::truncated).error);
}

TEST(ErrorModel, TrackedAndDoubleSeeTheSameValue) {
  const AttentionShape s{.B = 1, .Tq = 4, .Tk = 6, .H = 2, .G = 1, .D = 4, .scale = 0.5};
  const auto q = normal(32, 20), k = normal(24, 21), v = normal(24, 22);
  const auto plain = attention<double>(s, q, k, v);
  const std::vector<Tracked> q_T(q.begin(), q.end()), k_T(k.begin(), k.end()), v_T(v.begin(), v.end());
  const auto tracked = attention<Tracked>(s, q_T, k_T, v_T);
  for (std::size_t i = 0; i < plain.y.size(); ++i) {
    EXPECT_NEAR(tracked.y[i].value, plain.y[i], 1e-14);
    EXPECT_GT(tracked.y[i].error, 0);
  }
}

TEST(ErrorModel, RoundingByArithmeticEqualsRoundingByBits) {
  std::mt19937 random(1);
  for (int i = 0; i < 200'000; ++i) {
    const auto bits = static_cast<std::uint32_t>(random());
    const float x = std::bit_cast<float>(bits);
    if (std::isnan(x)) continue;
    ASSERT_EQ(round_to(static_cast<double>(x), DType::bf16), static_cast<double>(to_float(to_bf16(x))))
        << std::hex << bits;
    // Exponents near those of f16: most floats are far outside.
    const float y =
        std::ldexp(1 + static_cast<float>(bits >> 9) * 0x1p-23f, static_cast<int>(bits % 48) - 28);
    ASSERT_EQ(round_to(static_cast<double>(y), DType::f16), static_cast<double>(to_float(to_f16(y)))) << y;
  }
}

}  // namespace
}  // namespace qt::oracle
