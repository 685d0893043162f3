// RMSNorm, RoPE with QK-norm, relu^2 and the embedding, as kernels/ops.h defines them. Legend: N tokens, C
// width, H heads, D head width, F MLP width, V vocabulary. T is a scalar type of oracle/scalar.h.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "tests/oracle/scalar.h"

namespace qt::oracle {

using Index = std::size_t;

template <class T>
struct Normed {
  std::vector<T> y;     // [rows, C]
  std::vector<T> rstd;  // [rows]
};

// y = x / sqrt(mean(x^2) + eps) for each row of C.
template <class T>
Normed<T> rmsnorm(std::span<const T> x, Index C, double eps, DType dtype) {
  using std::sqrt;
  Normed<T> out{.y = std::vector<T>(x.size()), .rstd = std::vector<T>(x.size() / C)};
  for (Index row = 0; row < out.rstd.size(); ++row) {
    Sum<T> squares;
    for (Index c = 0; c < C; ++c) squares.add(x[row * C + c] * x[row * C + c]);
    out.rstd[row] = T(1.0) / sqrt(squares.value() / T(static_cast<double>(C)) + T(eps));
    for (Index c = 0; c < C; ++c) out.y[row * C + c] = stored(T(x[row * C + c] * out.rstd[row]), dtype);
  }
  return out;
}

// dx = rstd (dy - y mean(dy y)), before any rounding to storage.
template <class T>
std::vector<T> rmsnorm_backward(std::span<const T> y, std::span<const T> rstd, std::span<const T> dy,
                                Index C) {
  std::vector<T> dx(y.size());
  for (Index row = 0; row < rstd.size(); ++row) {
    Sum<T> products;
    for (Index c = 0; c < C; ++c) products.add(dy[row * C + c] * y[row * C + c]);
    const T mean = products.value() / T(static_cast<double>(C));
    for (Index c = 0; c < C; ++c) dx[row * C + c] = rstd[row] * (dy[row * C + c] - y[row * C + c] * mean);
  }
  return dx;
}

// How RoPE lays out its pairs and which way it turns; the defaults are the contract, the rest are mistakes to
// catch.
struct RopeConvention {
  double direction = -1;     // of the angle: -1 turns by -theta
  bool interleaved = false;  // pairs (2i, 2i + 1) instead of (i, i + D/2)
};

// Rotates each head of x [N, H, D]; token n stands at position first + n % T. cos, sin: [P, D/2].
template <class T>
std::vector<T> rotate(std::span<const T> x, Index H, Index D, Index rows, Index first,
                      std::span<const double> cos, std::span<const double> sin,
                      RopeConvention convention = {}) {
  std::vector<T> r(x.size());
  for (Index head = 0; head < x.size() / D; ++head) {
    const Index position = first + (head / H) % rows;
    for (Index i = 0; i < D / 2; ++i) {
      const Index a = head * D + (convention.interleaved ? 2 * i : i);
      const Index b = convention.interleaved ? a + 1 : a + D / 2;
      const T c = T(cos[position * (D / 2) + i]), s = T(convention.direction * sin[position * (D / 2) + i]);
      // (c, s) turns by +theta: [a, b] -> [a c - b s, a s + b c]. Their sum is at most |a| + |b| and is
      // rounded once after the products: fused or not, that is what operator+ adds.
      r[a] = x[a] * c - x[b] * s;
      r[b] = x[a] * s + x[b] * c;
    }
  }
  return r;
}

// relu(x)^2 and its derivative times dy.
template <class T>
T relu2(const T& x) {
  return positive_part(x) * positive_part(x);
}
template <class T>
T relu2_backward(const T& x, const T& dy) {
  return T(2.0) * positive_part(x) * dy;
}

// Row ids[n] of table [V, C] for each n.
template <class T>
std::vector<T> embedding(std::span<const std::int32_t> ids, std::span<const T> table, Index C) {
  std::vector<T> y;
  for (const std::int32_t id : ids) {
    for (Index c = 0; c < C; ++c) y.push_back(table[static_cast<Index>(id) * C + c]);
  }
  return y;
}

// dtable [V, C] + the sums of dy over equal ids, before any rounding to storage. The sum of a row comes
// first, then one addition to what stands in the table.
template <class T>
std::vector<T> embedding_backward(std::span<const std::int32_t> ids, std::span<const T> dy,
                                  std::span<const T> dtable, Index C) {
  std::vector<T> out(dtable.begin(), dtable.end());
  for (Index id = 0; id < dtable.size() / C; ++id) {
    for (Index c = 0; c < C; ++c) {
      Sum<T> row;
      bool used = false;
      for (Index n = 0; n < ids.size(); ++n) {
        if (static_cast<Index>(ids[n]) != id) continue;
        row.add(dy[n * C + c]);
        used = true;
      }
      if (used) out[id * C + c] = dtable[id * C + c] + row.value();
    }
  }
  return out;
}

}  // namespace qt::oracle
