#include "src/convert/export_check.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "src/core/error.h"

namespace qt {

namespace {

constexpr std::int64_t kStripElems = 256 * 1024;
// Accumulators of a product: few enough for the registers, enough to hide the latency of a sum.
constexpr std::int64_t kSums = 16;

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

// kLanes: tokens at most.
template <std::size_t kLanes>
class Forward {
  // One channel of all tokens: the products run over tokens side by side, each token's sum in its own order.
  using Lanes = std::array<float, kLanes>;
  using Channels = std::vector<Lanes>;

 public:
  Forward(const ModelConfig& config, const ModelParams& model, ParamSource& source)
      : c_(config), m_(model), source_(source) {}

  std::vector<float> run(std::span<const std::int32_t> ids) {
    tokens_ = ids.size();
    embed(ids);
    if (c_.embedding_norm) x_ = normed(x_, {});
    for (const BlockRoles& block : m_.roles.blocks) {
      const Channels a = normed(x_, block.norm1);
      add(linear(block.proj, attention(block, a)));
      add(mlp(block, normed(x_, block.norm2)));
    }
    const Channels out = linear({m_.roles.head, {}}, normed(x_, m_.roles.final_norm));
    std::vector<float> logits(tokens_ * out.size());
    for (std::size_t v = 0; v < out.size(); ++v) {
      for (std::size_t t = 0; t < tokens_; ++t) {
        const float z = out[v][t];
        logits[t * out.size() + v] =
            c_.logit_softcap > 0 ? c_.logit_softcap * std::tanh(z / c_.logit_softcap) : z;
      }
    }
    return logits;
  }

 private:
  void embed(std::span<const std::int32_t> ids) {
    x_.assign(at(c_.n_embd), Lanes{});
    std::vector<float> row(at(c_.n_embd));
    const auto add_row = [&](std::size_t table, std::int64_t index, std::size_t t) {
      source_.read(table, index * c_.n_embd, row);
      for (std::size_t i = 0; i < row.size(); ++i) x_[i][t] += row[i];
    };
    for (std::size_t t = 0; t < ids.size(); ++t) {
      add_row(m_.roles.embedding, ids[t], t);
      if (m_.roles.positions) add_row(*m_.roles.positions, static_cast<std::int64_t>(t), t);
    }
  }

  std::vector<float> vector_of(const ParamIndex& index) {
    std::vector<float> values;
    if (index) {
      values.resize(at(m_.params[*index].K));
      source_.read(*index, 0, values);
    }
    return values;
  }

  static constexpr std::int64_t kRows = kSums / static_cast<std::int64_t>(kLanes);

  // y[r] = sum over k of weights[r, k] x[k]
  template <std::int64_t kCount>
  static void multiply(const Channels& x, const float* weights, std::int64_t K, Lanes* y) {
    std::array<Lanes, static_cast<std::size_t>(kCount)> sums{};
    for (std::int64_t k = 0; k < K; ++k) {
      const Lanes& in = x[at(k)];
      for (std::int64_t r = 0; r < kCount; ++r) {
        const float weight = weights[r * K + k];
        for (std::size_t t = 0; t < kLanes; ++t) sums[at(r)][t] += weight * in[t];
      }
    }
    std::copy(sums.begin(), sums.end(), y);
  }

  Channels linear(const LinearRoles& roles, const Channels& x) {
    const Param& w = m_.params[roles.weight];
    const std::vector<float> bias = vector_of(roles.bias);
    Channels y(at(w.N));
    const std::int64_t strip_rows = std::max<std::int64_t>(1, kStripElems / w.K);
    std::vector<float> strip;
    for (std::int64_t first = 0; first < w.N; first += strip_rows) {
      const std::int64_t rows = std::min(strip_rows, w.N - first);
      strip.resize(at(rows * w.K));
      source_.read(roles.weight, first * w.K, strip);
      std::int64_t r = 0;
      for (; r + kRows <= rows; r += kRows) multiply<kRows>(x, &strip[at(r * w.K)], w.K, &y[at(first + r)]);
      for (; r < rows; ++r) multiply<1>(x, &strip[at(r * w.K)], w.K, &y[at(first + r)]);
    }
    for (std::size_t n = 0; n < bias.size(); ++n) {
      for (float& v : y[n]) v += bias[n];
    }
    return y;
  }

  Channels normed(const Channels& x, const NormRoles& roles) {
    const std::vector<float> weight = vector_of(roles.weight), bias = vector_of(roles.bias);
    Channels y = x;
    for (std::size_t t = 0; t < tokens_; ++t) {
      double mean = 0;
      switch (c_.norm) {
        case NormKind::rms:
        case NormKind::weighted_rms: break;
        case NormKind::layer:
          for (const Lanes& lanes : x) mean += lanes[t];
          mean /= static_cast<double>(x.size());
      }
      double square = 0;
      for (const Lanes& lanes : x) square += (lanes[t] - mean) * (lanes[t] - mean);
      const double scale = 1.0 / std::sqrt(square / static_cast<double>(x.size()) + c_.norm_eps);
      for (std::size_t i = 0; i < x.size(); ++i) {
        double v = (x[i][t] - mean) * scale;
        if (!weight.empty()) v *= weight[i];
        if (!bias.empty()) v += bias[i];
        y[i][t] = static_cast<float>(v);
      }
    }
    return y;
  }

  // RoPE by -theta, then the norm over the head where there is one, in place.
  void rotate_and_norm(Channels& x, std::int64_t heads) const {
    const std::int64_t D = c_.head_dim(), half = D / 2;
    for (std::int64_t head = 0; head < heads; ++head) {
      for (std::size_t t = 0; t < tokens_; ++t) {
        double square = 0;
        for (std::int64_t i = 0; i < half; ++i) {
          const double angle =
              static_cast<double>(t) * std::pow(static_cast<double>(c_.rope_base),
                                                -2.0 * static_cast<double>(i) / static_cast<double>(D));
          const double c = std::cos(angle), s = std::sin(angle);
          float &a = x[at(head * D + i)][t], &b = x[at(head * D + half + i)][t];
          const double low = a * c + b * s, high = b * c - a * s;
          a = static_cast<float>(low);
          b = static_cast<float>(high);
          square += low * low + high * high;
        }
        if (!c_.qk_norm) continue;
        const double scale = 1.0 / std::sqrt(square / static_cast<double>(D) + c_.norm_eps);
        for (std::int64_t i = 0; i < D; ++i) {
          float& v = x[at(head * D + i)][t];
          v = static_cast<float>(v * scale);
        }
      }
    }
  }

  Channels attention(const BlockRoles& block, const Channels& a) {
    Channels q = linear(block.q, a), k = linear(block.k, a);
    const Channels v = linear(block.v, a);
    switch (c_.positions) {
      case Positions::rope:
        rotate_and_norm(q, c_.n_head);
        rotate_and_norm(k, c_.n_kv_head);
        break;
      case Positions::learned: break;  // embed()
    }
    const std::int64_t D = c_.head_dim(), shared = c_.n_head / c_.n_kv_head;
    Channels y(q.size(), Lanes{});
    for (std::int64_t head = 0; head < c_.n_head; ++head) {
      const std::int64_t qh = head * D, kh = head / shared * D;
      for (std::size_t t = 0; t < tokens_; ++t) {
        std::array<double, kLanes> weight{};
        double most = -INFINITY, sum = 0;
        for (std::size_t s = 0; s <= t; ++s) {
          double score = 0;
          for (std::int64_t i = 0; i < D; ++i)
            score += static_cast<double>(q[at(qh + i)][t]) * static_cast<double>(k[at(kh + i)][s]);
          weight[s] = score / std::sqrt(static_cast<double>(D));
          most = std::max(most, weight[s]);
        }
        for (std::size_t s = 0; s <= t; ++s) sum += weight[s] = std::exp(weight[s] - most);
        for (std::int64_t i = 0; i < D; ++i) {
          double mixed = 0;
          for (std::size_t s = 0; s <= t; ++s) mixed += weight[s] * static_cast<double>(v[at(kh + i)][s]);
          y[at(qh + i)][t] = static_cast<float>(mixed / sum);
        }
      }
    }
    return y;
  }

  Channels mlp(const BlockRoles& block, const Channels& m) {
    Channels h = linear(block.gate.value_or(block.fc), m);
    for (Lanes& lanes : h) {
      for (float& v : lanes) v = activated(v);
    }
    if (block.gate) {
      const Channels up = linear(block.fc, m);
      for (std::size_t i = 0; i < h.size(); ++i) {
        for (std::size_t t = 0; t < kLanes; ++t) h[i][t] *= up[i][t];
      }
    }
    return linear(block.mlp_proj, h);
  }

  float activated(float x) const {
    switch (c_.activation) {
      case Activation::relu2: return x > 0 ? x * x : 0.0f;
      case Activation::gelu: break;
    }
    return static_cast<float>(0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0))));
  }

  void add(const Channels& y) {
    for (std::size_t i = 0; i < x_.size(); ++i) {
      for (std::size_t t = 0; t < kLanes; ++t) x_[i][t] += y[i][t];
    }
  }

  const ModelConfig& c_;
  const ModelParams& m_;
  ParamSource& source_;
  std::size_t tokens_ = 0;
  Channels x_;  // the residual stream [C]
};

}  // namespace

std::vector<float> streamed_logits(const ModelConfig& config, const ModelParams& model, ParamSource& source,
                                   std::span<const std::int32_t> ids) {
  QT_CHECK(!ids.empty() && static_cast<std::int64_t>(ids.size()) <= kStreamedTokens &&
               static_cast<std::int64_t>(ids.size()) <= config.seq_len,
           ShapeError, "a streamed forward pass takes 1 to {} tokens, not {}",
           std::min(kStreamedTokens, config.seq_len), ids.size());
  constexpr std::size_t kFew = 4;
  if (ids.size() <= kFew) return Forward<kFew>(config, model, source).run(ids);
  return Forward<static_cast<std::size_t>(kStreamedTokens)>(config, model, source).run(ids);
}

}  // namespace qt
