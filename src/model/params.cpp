#include "src/model/params.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include <fmt/format.h>

namespace qt {

namespace {

class Lister {
 public:
  explicit Lister(const ModelConfig& config) : c_(config) {}

  std::size_t add(std::string name, ParamGroup group, std::int64_t N, std::int64_t K, ParamInit init) {
    Param p;
    p.name = std::move(name);
    p.group = group;
    p.N = N;
    p.K = K;
    p.init = init;
    p.rng_stream = made_.params.size();
    made_.params.push_back(std::move(p));
    return made_.params.size() - 1;
  }

  NormRoles norm(const std::string& name) {
    NormRoles roles;
    if (c_.norm == NormKind::rms) return roles;
    roles.weight = add(name + ".weight", ParamGroup::norm, 1, c_.n_embd, {.stddev = 0, .constant = 1});
    if (c_.bias && c_.norm == NormKind::layer)
      roles.bias = add(name + ".bias", ParamGroup::norm, 1, c_.n_embd, {});
    return roles;
  }

  LinearRoles linear(const std::string& name, std::int64_t N, std::int64_t K, float stddev) {
    LinearRoles roles;
    roles.weight = add(name + ".weight", ParamGroup::matrix, N, K, {.stddev = stddev});
    if (c_.bias) roles.bias = add(name + ".bias", ParamGroup::norm, 1, N, {});
    return roles;
  }

  void embedding() {
    const bool gpt2 = c_.init == InitScheme::gpt2;
    made_.roles.embedding = add("transformer.wte.weight", ParamGroup::embedding, c_.vocab_size, c_.n_embd,
                                {.stddev = gpt2 ? kGpt2Stddev : 1.0f});
    if (c_.positions == Positions::learned) {
      made_.roles.positions = add("transformer.wpe.weight", ParamGroup::embedding, c_.seq_len, c_.n_embd,
                                  {.stddev = kGpt2Stddev});
    }
  }

  void block(std::int64_t index) {
    const std::int64_t C = c_.n_embd, Q = c_.q_width(), KV = c_.kv_width(), F = c_.mlp_width();
    const std::string prefix = fmt::format("transformer.h.{}.", index);
    BlockRoles r;
    r.norm1 = norm(prefix + "ln_1");
    r.q = linear(prefix + "attn.c_q", Q, C, inner_stddev(Q, C));
    r.k = linear(prefix + "attn.c_k", KV, C, inner_stddev(KV, C));
    r.v = linear(prefix + "attn.c_v", KV, C, inner_stddev(KV, C));
    r.proj = linear(prefix + "attn.c_proj", C, Q, residual_stddev());
    r.norm2 = norm(prefix + "ln_2");
    if (c_.gated_mlp) r.gate = linear(prefix + "mlp.c_gate", F, C, inner_stddev(F, C));
    r.fc = linear(prefix + "mlp.c_fc", F, C, inner_stddev(F, C));
    r.mlp_proj = linear(prefix + "mlp.c_proj", C, F, residual_stddev());
    made_.roles.blocks.push_back(r);
  }

  void head() {
    made_.roles.final_norm = norm("transformer.ln_f");
    made_.roles.head = c_.tied_head ? made_.roles.embedding
                                    : add("lm_head.weight", ParamGroup::head, c_.vocab_size, c_.n_embd, {});
  }

  ModelParams take() { return std::move(made_); }

 private:
  static constexpr float kGpt2Stddev = 0.02f;

  float inner_stddev(std::int64_t fan_out, std::int64_t fan_in) const {
    if (c_.init == InitScheme::gpt2) return kGpt2Stddev;
    const double in = static_cast<double>(fan_in), out = static_cast<double>(fan_out);
    return static_cast<float>(1.0 / std::sqrt(in) * std::min(1.0, std::sqrt(out / in)));
  }
  float residual_stddev() const {
    if (c_.init == InitScheme::nanochat) return 0.0f;
    return static_cast<float>(0.02 / std::sqrt(2.0 * static_cast<double>(c_.n_layer)));
  }

  const ModelConfig& c_;
  ModelParams made_;
};

}  // namespace

ModelParams make_params(const ModelConfig& config) {
  Lister lister(config);
  lister.embedding();
  for (std::int64_t i = 0; i < config.n_layer; ++i) lister.block(i);
  lister.head();
  return lister.take();
}

}  // namespace qt
