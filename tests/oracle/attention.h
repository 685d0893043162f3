// Causal grouped-query attention and its gradient, as kernels/ops.h defines them: the whole matrix of scores,
// no tiles. Legend: B rows, Tq queries and Tk keys of a row, H query heads, G key heads, D head width.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "tests/oracle/scalar.h"

namespace qt::oracle {

// Sizes and conventions; the mistakes are there for the tests that must catch them.
struct AttentionShape {
  std::size_t B = 1, Tq = 1, Tk = 1, H = 1, G = 1, D = 1;
  double scale = 1;
  DType dtype = DType::f32;
  Adding adding = Adding::rounded;  // of the products, which tensor cores may make

  // Factor of each probability after the softmax, [B, H, Tq, Tk]: 0 or 1 / (1 - dropout). Empty: 1.
  std::vector<double> dropout = {};

  bool mask_off_by_one = false;    // the query misses the key at its own position
  bool heads_interleaved = false;  // query head h reads key head h % G
  bool queries_at_start = false;   // query i stands at position i although a cache precedes it

  std::size_t q_at(std::size_t b, std::size_t t, std::size_t h) const { return ((b * Tq + t) * H + h) * D; }
  std::size_t k_at(std::size_t b, std::size_t t, std::size_t g) const { return ((b * Tk + t) * G + g) * D; }
  double kept(std::size_t b, std::size_t h, std::size_t i, std::size_t j) const {
    return dropout.empty() ? 1 : dropout[((b * H + h) * Tq + i) * Tk + j];
  }
  // What is kept counts that much: applied once to a sum, which rounds once, or to each of its terms.
  double keep_scale() const {
    return dropout.empty() ? 1 : *std::max_element(dropout.begin(), dropout.end());
  }
  std::size_t key_head(std::size_t h) const { return heads_interleaved ? h % G : h / (H / G); }
  // Number of keys that query i sees; at least one, so that a mistaken mask stays finite.
  std::size_t visible(std::size_t i) const {
    const std::size_t position = queries_at_start ? i : i + Tk - Tq;
    return std::max<std::size_t>(1, position + (mask_off_by_one ? 0 : 1));
  }
};

// scale * q.k for all visible keys of one query. Implementations may fold log2(e) into the scale: one more
// rounding.
template <class T>
std::vector<T> attention_scores(const AttentionShape& s, std::span<const T> q, std::span<const T> k,
                                std::size_t b, std::size_t i, std::size_t h) {
  std::vector<T> scores;
  for (std::size_t j = 0; j < s.visible(i); ++j) {
    Sum<T> dot;
    for (std::size_t d = 0; d < s.D; ++d)
      dot.add(q[s.q_at(b, i, h) + d] * k[s.k_at(b, j, s.key_head(h)) + d]);
    scores.push_back(T(s.scale) * dot.value(s.adding) * T(1.0));
  }
  return scores;
}

// What a streaming softmax adds to a term: for each tile of keys (at least 16 wide) one factor exp(old - new
// maximum) and one product; the differences add up to at most the range of the scores, each rounded once.
template <class T>
T rescaled(const T& x, std::size_t, double) {
  return x;
}
inline Tracked rescaled(const Tracked& x, std::size_t keys, double range) {
  const double tiles = static_cast<double>((keys + 15) / 16);
  return x.rounded(tiles * (2 * kExpUlps + 1) + range);
}

template <class T>
struct Attended {
  std::vector<T> y;    // [B, Tq, H, D]
  std::vector<T> lse;  // [B, H, Tq]
};

template <class T>
Attended<T> attention(const AttentionShape& s, std::span<const T> q, std::span<const T> k,
                      std::span<const T> v) {
  using std::exp;
  using std::log;
  Attended<T> out{.y = std::vector<T>(s.B * s.Tq * s.H * s.D), .lse = std::vector<T>(s.B * s.H * s.Tq)};
  for (std::size_t b = 0; b < s.B; ++b) {
    for (std::size_t h = 0; h < s.H; ++h) {
      for (std::size_t i = 0; i < s.Tq; ++i) {
        const std::vector<T> scores = attention_scores(s, q, k, b, i, h);
        double top = -INFINITY,
               bottom = INFINITY;  // constants: the real parts alone, so that complex step stays exact
        for (const T& x : scores) {
          top = std::max(top, real_part(x));
          bottom = std::min(bottom, real_part(x));
        }
        std::vector<T> p;
        Sum<T> total;
        for (const T& x : scores) {
          p.push_back(rescaled(T(exp(x - T(top))), scores.size(), top - bottom));
          total.add(p.back());
        }
        out.lse[(b * s.H + h) * s.Tq + i] = T(top) + log(total.value());
        for (std::size_t d = 0; d < s.D; ++d) {
          Sum<T> y;
          for (std::size_t j = 0; j < p.size(); ++j) {
            if (s.kept(b, h, i, j) != 0) y.add(stored(p[j], s.dtype) * v[s.k_at(b, j, s.key_head(h)) + d]);
          }
          // A multiplication by the reciprocal rounds once more than a division.
          out.y[s.q_at(b, i, h) + d] =
              stored(T(y.value(s.adding) / total.value() * T(s.keep_scale())), s.dtype);
        }
      }
    }
  }
  return out;
}

template <class T>
struct AttentionGradient {
  std::vector<T> dq, dk, dv;
};

// From the saved y and lse. p and ds may be rounded to the dtype before they meet the other operand of their
// products. `with_delta` and `with_scale` are parts of the contract that mutants drop.
template <class T>
AttentionGradient<T> attention_backward(const AttentionShape& s, std::span<const T> q, std::span<const T> k,
                                        std::span<const T> v, std::span<const T> y, std::span<const T> lse,
                                        std::span<const T> dy, bool with_delta = true,
                                        bool with_scale = true) {
  using std::exp;
  std::vector<Sum<T>> dq(q.size()), dk(k.size()), dv(v.size());
  for (std::size_t b = 0; b < s.B; ++b) {
    for (std::size_t h = 0; h < s.H; ++h) {
      const std::size_t g = s.key_head(h);
      for (std::size_t i = 0; i < s.Tq; ++i) {
        const std::size_t row = s.q_at(b, i, h);
        Sum<T> delta;
        for (std::size_t d = 0; d < s.D; ++d) delta.add(dy[row + d] * y[row + d]);
        const std::vector<T> scores = attention_scores(s, q, k, b, i, h);
        for (std::size_t j = 0; j < scores.size(); ++j) {
          const std::size_t col = s.k_at(b, j, g);
          const T p = exp(scores[j] - lse[(b * s.H + h) * s.Tq + i]);
          Sum<T> dp;
          for (std::size_t d = 0; d < s.D; ++d) dp.add(dy[row + d] * v[col + d]);
          const bool kept = s.kept(b, h, i, j) != 0;
          const T dp_kept = kept ? T(dp.value(s.adding) * T(s.keep_scale())) : T{};
          const T slope = with_delta ? T(dp_kept - delta.value()) : dp_kept;
          const T ds = stored(T(p * slope * T(with_scale ? s.scale : 1.0)), s.dtype);
          const T p_stored = stored(p, s.dtype);
          for (std::size_t d = 0; d < s.D; ++d) {
            dq[row + d].add(ds * k[col + d]);
            dk[col + d].add(ds * q[row + d]);
            if (kept) dv[col + d].add(p_stored * dy[row + d]);
          }
        }
      }
    }
  }
  const auto values = [&](const std::vector<Sum<T>>& sums) {
    std::vector<T> out;
    for (const Sum<T>& sum : sums) out.push_back(stored(sum.value(s.adding), s.dtype));
    return out;
  };
  std::vector<T> dv_scaled;
  for (const Sum<T>& sum : dv)
    dv_scaled.push_back(stored(T(sum.value(s.adding) * T(s.keep_scale())), s.dtype));
  return {.dq = values(dq), .dk = values(dk), .dv = dv_scaled};
}

}  // namespace qt::oracle
