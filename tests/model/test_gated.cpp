// Switches of ModelConfig that no named model has: a gated MLP, an MLP of another width, heads that do not divide
// the width, RMSNorm with a weight, RoPE without QK-norm. Logits, loss and every gradient against the definition in complex double, with derivatives by complex
// step; checkpointing, the decoder, and counts of parameters and work. Mistakes that a port makes must break the
// same bounds.
#include <algorithm>
#include <cmath>
#include <functional>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "src/model/decoder.h"
#include "tests/oracle/attention.h"
#include "tests/oracle/gelu.h"
#include "tests/oracle/gradient.h"
#include "tests/oracle/layernorm.h"
#include "tests/oracle/loss.h"
#include "tests/oracle/matmul.h"
#include "tests/oracle/norm.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/model_golden.h"

namespace qt::test {
namespace {

constexpr double kF32Share = 1e-5;  // of the max-norm, as in test_model_golden.cpp

using oracle::Complex;
using Numbers = std::vector<Complex>;
using Weights = std::map<std::string, Numbers>;

enum class Mistake : std::uint8_t { none, gate_and_fc_swapped, gate_without_activation, no_gate };

std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

// The model from its definition. Weights by name; a tensor that is not there is a bias that the model has not.
class Reference {
 public:
  Reference(const ModelConfig& config, Weights weights, Mistake mistake = Mistake::none)
      : c_(config), weights_(std::move(weights)), mistake_(mistake) {}

  Weights& weights() { return weights_; }

  Numbers logits(std::span<const std::int32_t> ids) const {
    const std::size_t C = index(c_.n_embd), T = index(c_.seq_len);
    Numbers x = oracle::embedding<Complex>(ids, at("transformer.wte.weight"), C);
    if (c_.positions == Positions::learned)
      x = oracle::add_positions<Complex>(x, at("transformer.wpe.weight"), C, T, 0);
    if (c_.embedding_norm) x = norm("", x);
    for (std::int64_t l = 0; l < c_.n_layer; ++l) {
      const std::string block = fmt::format("transformer.h.{}.", l);
      add(x, attention(block + "attn.", norm(block + "ln_1", x)));
      add(x, mlp(block + "mlp.", norm(block + "ln_2", x)));
    }
    Numbers z = linear(c_.tied_head ? "transformer.wte" : "lm_head", norm("transformer.ln_f", x), C);
    for (Complex& v : z) v = oracle::softcap(v, static_cast<double>(c_.logit_softcap));
    return z;
  }

  // The mean over the targets.
  Complex loss(std::span<const std::int32_t> ids, std::span<const std::int32_t> targets) const {
    const Numbers z = logits(ids);
    const std::size_t V = index(c_.vocab_size);
    Complex sum = 0;
    for (std::size_t n = 0; n < targets.size(); ++n)
      sum += oracle::cross_entropy<Complex>(std::span(z).subspan(n * V, V), targets[n], 0).nll;
    return sum / static_cast<double>(targets.size());
  }

 private:
  static void add(Numbers& x, const Numbers& y) {
    for (std::size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  std::span<const Complex> at(const std::string& name) const {
    const auto it = weights_.find(name);
    return it == weights_.end() ? std::span<const Complex>() : std::span<const Complex>(it->second);
  }

  Numbers norm(const std::string& name, const Numbers& x) const {
    const double eps = static_cast<double>(c_.norm_eps);
    if (c_.norm == NormKind::layer)
      return oracle::layernorm<Complex>(x, at(name + ".weight"), at(name + ".bias"), eps, DType::f32).y;
    Numbers y = oracle::rmsnorm<Complex>(x, index(c_.n_embd), eps, DType::f32).y;
    const auto weight = at(name + ".weight");
    for (std::size_t i = 0; i < y.size() && !weight.empty(); ++i) y[i] *= weight[i % weight.size()];
    return y;
  }

  Numbers linear(const std::string& name, const Numbers& x, std::size_t K) const {
    const auto w = at(name + ".weight"), bias = at(name + ".bias");
    Numbers y = oracle::matmul<Complex>(GemmLayout::nt, x, w, x.size() / K, w.size() / K, K);
    for (std::size_t i = 0; i < y.size() && !bias.empty(); ++i) y[i] += bias[i % bias.size()];
    return y;
  }

  Numbers rotated(const Numbers& x, std::size_t heads, std::size_t D) const {
    std::vector<double> cos, sin;
    for (std::int64_t t = 0; t < c_.seq_len; ++t) {
      for (std::size_t i = 0; i < D / 2; ++i) {
        const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(D);
        const double angle = static_cast<double>(t) * std::pow(static_cast<double>(c_.rope_base), exponent);
        cos.push_back(std::cos(angle)), sin.push_back(std::sin(angle));
      }
    }
    const Numbers r = oracle::rotate<Complex>(x, heads, D, index(c_.seq_len), 0, cos, sin);
    return c_.qk_norm ? oracle::rmsnorm<Complex>(r, D, static_cast<double>(c_.norm_eps), DType::f32).y : r;
  }

  Numbers attention(const std::string& prefix, const Numbers& a) const {
    const std::size_t C = index(c_.n_embd), D = index(c_.head_dim()), T = index(c_.seq_len);
    oracle::AttentionShape s;
    s.B = a.size() / C / T, s.Tq = T, s.Tk = T, s.H = index(c_.n_head), s.G = index(c_.n_kv_head), s.D = D;
    s.scale = 1 / std::sqrt(static_cast<double>(D));
    Numbers q = linear(prefix + "c_q", a, C), k = linear(prefix + "c_k", a, C);
    if (c_.positions == Positions::rope) q = rotated(q, s.H, D), k = rotated(k, s.G, D);
    return linear(prefix + "c_proj", oracle::attention<Complex>(s, q, k, linear(prefix + "c_v", a, C)).y,
                  s.H * D);
  }

  Numbers mlp(const std::string& prefix, const Numbers& m) const {
    Numbers h = linear(prefix + "c_fc", m, index(c_.n_embd)),
            g = linear(prefix + "c_gate", m, index(c_.n_embd));
    if (mistake_ == Mistake::gate_and_fc_swapped) std::swap(g, h);
    for (std::size_t i = 0; i < h.size(); ++i) {
      if (mistake_ != Mistake::gate_without_activation)
        g[i] = c_.activation == Activation::relu2 ? oracle::relu2(g[i]) : oracle::gelu(g[i]);
      h[i] = mistake_ == Mistake::no_gate ? g[i] : g[i] * h[i];
    }
    return linear(prefix + "c_proj", h, index(c_.mlp_width()));
  }

  const ModelConfig& c_;
  Weights weights_;
  Mistake mistake_;
};

// Norm weights around 1, so that scores differ and queries and keys matter.
Floats weights_of(const Param& p) {
  Floats w = lively_weights(p);
  if (p.group == ParamGroup::norm && p.name.ends_with(".weight")) {
    for (float& x : w) x += 1;
  }
  return w;
}

ModelConfig config_of(const std::string& kind) {
  ModelConfig c;
  if (kind == "gpt") {
    c = model_by_name("gpt", {.n_layer = 2, .n_head = 2, .n_embd = 6, .bias = true});
  } else {
    c.n_layer = 2, c.n_head = 2, c.n_kv_head = 1, c.n_embd = 6;
    c.head_width = 4;
    c.activation = kind == "relu2" ? Activation::relu2 : Activation::gelu;
    if (kind == "weighted") c.norm = NormKind::weighted_rms, c.embedding_norm = false, c.logit_softcap = 0;
    c.qk_norm = kind != "weighted";
  }
  c.name = kind;
  c.vocab_size = 11, c.seq_len = 5;
  c.gated_mlp = true;
  c.n_inner = 7;
  return c;
}

class Gated : public ::testing::TestWithParam<const char*> {
 protected:
  ModelConfig config = config_of(GetParam());
  std::vector<std::int32_t> ids = random_ids(10, config.vocab_size, 3),
                            targets = random_ids(10, config.vocab_size, 4);

  EngineOptions options() const {
    EngineOptions o;
    o.model = config;
    o.layout.micro_batch_rows = 2;
    o.with_logits = true;
    o.optim.rule = &rules::adamw;
    o.optim.max_norm = 0;
    return o;
  }

  struct Outcome {
    Floats logits;
    std::map<std::string, Floats> gradients;
    double loss = 0;
  };
  Outcome run(const EngineOptions& o) const {
    TestEngine engine(o);
    engine.set_masters(weights_of);
    Outcome out;
    out.logits = engine.logits(ids);
    engine->accumulate(fetch_from(ids, targets, o.micro_batch_tokens()), {});
    out.loss = engine->measure(1.0, 1).loss;
    out.gradients = engine.gradients();
    return out;
  }

  Reference reference(Mistake mistake = Mistake::none) const {
    Weights weights;
    for (const Param& p : make_params(config).params) {
      const Floats w = weights_of(p);
      weights[p.name] = Numbers(w.begin(), w.end());
    }
    return {config, std::move(weights), mistake};
  }
  static Floats real(const Numbers& x) {
    Floats y;
    for (const Complex& v : x) y.push_back(static_cast<float>(v.real()));
    return y;
  }
};

TEST_P(Gated, LogitsLossAndEveryGradientAreThoseOfTheDefinition) {
  Reference want = reference();
  const Floats logits = real(want.logits(ids));
  const double loss = want.loss(ids, targets).real();
  std::map<std::string, Floats> gradients;
  for (auto& [name, weight] : want.weights()) {
    const Numbers kept = weight;
    const Floats w = real(weight);
    const auto g = oracle::complex_step(std::vector<double>(w.begin(), w.end()), [&](const Numbers& z) {
      weight = z;
      return want.loss(ids, targets);
    });
    weight = kept;
    gradients[name] = Floats(g.begin(), g.end());
  }
  for (const bool checkpointed : {false, true}) {
    EngineOptions o = options();
    o.layout.checkpoint_activations = checkpointed;
    const Outcome got = run(o);
    expect_within("forward", "logits", DType::f32, max_norm_ratio(got.logits, logits, kF32Share));
    EXPECT_NEAR(got.loss, loss, kF32Share * loss);
    EXPECT_EQ(got.gradients.size(), gradients.size());
    for (const auto& [name, g] : got.gradients) {
      // A key's bias shifts all scores of a query alike: zero but for rounding.
      if (name.ends_with("attn.c_k.bias")) continue;
      expect_within("gradient", part_of(name), DType::f32, max_norm_ratio(g, gradients.at(name), kF32Share));
    }
  }
}

TEST_P(Gated, WouldCatchTheMistakesOfAPort) {
  const Floats got = run(options()).logits;
  for (const Mistake mistake :
       {Mistake::gate_and_fc_swapped, Mistake::gate_without_activation, Mistake::no_gate}) {
    const Ratio ratio = max_norm_ratio(got, real(reference(mistake).logits(ids)), kF32Share);
    EXPECT_GT(ratio.worst, 1000) << static_cast<int>(mistake);
  }
}

TEST_P(Gated, CheckpointingChangesNoBit) {
  for (const DType compute : {DType::f32, DType::bf16, DType::f16}) {
    EngineOptions o = options();
    o.layout.compute = compute;
    const Outcome plain = run(o);
    o.layout.checkpoint_activations = true;
    const Outcome again = run(o);
    EXPECT_EQ(plain.logits, again.logits);
    EXPECT_EQ(plain.gradients, again.gradients);
  }
}

TEST_P(Gated, DecodesWhatTheModelSays) {
  const Floats whole = run(options()).logits;
  for (const std::vector<std::size_t>& pieces : {std::vector<std::size_t>{5}, {1, 1, 1, 1, 1}, {2, 3}}) {
    std::vector<Floats> after;
    run_planned(config, {.gradients = false}, std::nullopt, [&](Parts& parts) {
      for (const Param& p : parts.model.params()) write_floats(parts.backend, p.weight.dense, weights_of(p));
      parts.model.prepare();
      const PhaseScope phase(parts.step, "sample");
      Decoder decoder(parts.model, config.seq_len);
      after.clear();
      std::span<const std::int32_t> left = std::span(ids).first(index(config.seq_len));
      for (const std::size_t n : pieces) {
        after.emplace_back(index(config.vocab_size));
        decoder.feed(left.first(n), after.back());
        left = left.subspan(n);
      }
    });
    auto end = whole.begin();
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      end += static_cast<std::ptrdiff_t>(pieces[i]) * config.vocab_size;
      expect_within("decoder", "logits", DType::f32,
                    max_norm_ratio(after[i], Floats(end - config.vocab_size, end), kF32Share));
    }
  }
}

TEST_P(Gated, ParametersAndWorkAreCounted) {
  const EngineOptions o = options();
  TestEngine engine(o);
  std::int64_t elems = 0, matrices = 0;
  for (const Param& p : engine->model().params()) {
    elems += p.elems();
    matrices += p.group == ParamGroup::matrix ? p.elems() : 0;
  }
  // q and projection, k and v, gate, fc and projection
  const std::int64_t block =
      std::string(GetParam()) == "gpt" ? 4 * 6 * 6 + 3 * 6 * 7 : 2 * 6 * 8 + 2 * 6 * 4 + 3 * 6 * 7;
  EXPECT_EQ(matrices, 2 * block);
  EXPECT_EQ(config.matrix_params(), matrices);
  EXPECT_EQ(config.param_count(), elems);

  engine->init_weights(1);
  engine->backend().reset_totals();
  engine->train_step(fetch_from(ids, targets, o.micro_batch_tokens()), {}, 1.0, 1);
  const BackendTotals done = engine->backend().totals();
  const BackendTotals planned = Engine::rehearse(o, test_target(2)).train_step(1);
  EXPECT_EQ(planned.model_flops, done.model_flops);
  EXPECT_EQ(planned.executed_flops, done.executed_flops);
  // The formula counts 6 a parameter; products have no use for vectors.
  const double counted = config.model_flops_per_token() - 6.0 * static_cast<double>(config.vector_params());
  EXPECT_EQ(done.model_flops / static_cast<double>(o.step_tokens()), counted);
}

INSTANTIATE_TEST_SUITE_P(Kinds, Gated, ::testing::Values("relu2", "gelu", "weighted", "gpt"),
                         [](const auto& test) { return std::string(test.param); });

}  // namespace
}  // namespace qt::test
