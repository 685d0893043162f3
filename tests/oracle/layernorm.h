// LayerNorm and sums over rows, as kernels/ops.h defines them. Legend: N tokens, C width, T tokens of a row
// of the batch. T is also a scalar type of oracle/scalar.h.
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include "tests/oracle/scalar.h"

namespace qt::oracle {

// What the tests can be asked to get wrong.
struct LayerNormMistakes {
  bool unbiased = false;    // the variance is divided by C - 1
  bool keeps_mean = false;  // the mean is not subtracted
  bool drops_weight = false;
  bool drops_bias = false;
  bool drops_mean_term = false;   // of the gradient: mean(g)
  bool drops_slope_term = false;  // of the gradient: h mean(g h)
};

template <class T>
struct LayerNormed {
  std::vector<T> y;           // [N, C]
  std::vector<T> mean, rstd;  // [N]
};

// y = (x - mean) / sqrt(var + eps) * weight + bias for each row of C; not centred: mean = 0, RMSNorm.
template <class T>
LayerNormed<T> layernorm(std::span<const T> x, std::span<const T> weight, std::span<const T> bias, double eps,
                         DType dtype, const LayerNormMistakes& wrong = {}, bool centred = true) {
  using std::sqrt;
  const std::size_t C = weight.size(), N = x.size() / C;
  LayerNormed<T> out{.y = std::vector<T>(x.size()), .mean = std::vector<T>(N), .rstd = std::vector<T>(N)};
  for (std::size_t row = 0; row < N; ++row) {
    Sum<T> sum, squares;
    for (std::size_t c = 0; c < C; ++c) sum.add(x[row * C + c]);
    const T mean = centred ? T(sum.value() / T(static_cast<double>(C))) : T(0.0);
    for (std::size_t c = 0; c < C; ++c) {
      const T off = x[row * C + c] - mean;
      squares.add(off * off);
    }
    const double count = static_cast<double>(wrong.unbiased ? C - 1 : C);
    const T rstd = T(1.0) / sqrt(T(squares.value() / T(count) + T(eps)));
    for (std::size_t c = 0; c < C; ++c) {
      T y = (wrong.keeps_mean ? x[row * C + c] : T(x[row * C + c] - mean)) * rstd;
      if (!wrong.drops_weight) y = y * weight[c];
      if (!bias.empty() && !wrong.drops_bias) y = y + bias[c];
      out.y[row * C + c] = stored(y, dtype);
    }
    out.mean[row] = mean;
    out.rstd[row] = rstd;
  }
  return out;
}

template <class T>
struct LayerNormGradient {
  std::vector<T> dx;              // [N, C], before any rounding to storage
  std::vector<T> dweight, dbias;  // [C], what is added to the gradients
};

template <class T>
LayerNormGradient<T> layernorm_backward(std::span<const T> x, std::span<const T> mean,
                                        std::span<const T> rstd, std::span<const T> weight,
                                        std::span<const T> dy, const LayerNormMistakes& wrong = {},
                                        bool centred = true) {
  const std::size_t C = weight.size(), N = mean.size();
  LayerNormGradient<T> out;
  out.dx.resize(x.size());
  std::vector<Sum<T>> dweight(C), dbias(C);
  for (std::size_t row = 0; row < N; ++row) {
    Sum<T> g_sum, gh_sum;
    std::vector<T> g, h;
    for (std::size_t c = 0; c < C; ++c) {
      const std::size_t at = row * C + c;
      h.push_back(T(x[at] - mean[row]) * rstd[row]);
      g.push_back(wrong.drops_weight ? dy[at] : T(dy[at] * weight[c]));
      g_sum.add(g[c]);
      gh_sum.add(g[c] * h[c]);
      dweight[c].add(dy[at] * h[c]);
      dbias[c].add(dy[at]);
    }
    const T mean_g = g_sum.value() / T(static_cast<double>(C)),
            mean_gh = gh_sum.value() / T(static_cast<double>(C));
    for (std::size_t c = 0; c < C; ++c) {
      T inner = g[c];
      if (centred && !wrong.drops_mean_term) inner = inner - mean_g;
      if (!wrong.drops_slope_term) inner = inner - h[c] * mean_gh;
      out.dx[row * C + c] = rstd[row] * inner;
    }
  }
  for (std::size_t c = 0; c < C; ++c) {
    out.dweight.push_back(dweight[c].value());
    out.dbias.push_back(dbias[c].value());
  }
  return out;
}

// The sum of every column of x [M, N].
template <class T>
std::vector<T> column_sum(std::span<const T> x, std::size_t N) {
  std::vector<Sum<T>> sums(N);
  for (std::size_t i = 0; i < x.size(); ++i) sums[i % N].add(x[i]);
  std::vector<T> out;
  for (const Sum<T>& sum : sums) out.push_back(sum.value());
  return out;
}

// y[n] + positions[first + n % T], before rounding to storage; and for each position t the sum of dy over the
// rows of the batch.
template <class T>
std::vector<T> add_positions(std::span<const T> y, std::span<const T> positions, std::size_t C,
                             std::size_t rows, std::size_t first) {
  std::vector<T> out;
  for (std::size_t i = 0; i < y.size(); ++i)
    out.push_back(y[i] + positions[(first + i / C % rows) * C + i % C]);
  return out;
}
template <class T>
std::vector<T> positions_backward(std::span<const T> dy, std::size_t C, std::size_t rows) {
  std::vector<Sum<T>> sums(rows * C);
  for (std::size_t i = 0; i < dy.size(); ++i) sums[i % (rows * C)].add(dy[i]);
  std::vector<T> out;
  for (const Sum<T>& sum : sums) out.push_back(sum.value());
  return out;
}

}  // namespace qt::oracle
