#include "src/model/params.h"

#include <string>
#include <string_view>
#include <utility>

#include <fmt/format.h>

#include "src/model/family.h"

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
    if (!has_weight(c_.norm)) return roles;
    roles.weight = add(name + ".weight", ParamGroup::norm, 1, c_.n_embd, {.stddev = 0, .constant = 1});
    if (c_.bias && has_mean(c_.norm)) roles.bias = add(name + ".bias", ParamGroup::norm, 1, c_.n_embd, {});
    return roles;
  }

  LinearRoles linear(const std::string& name, std::int64_t N, std::int64_t K, float stddev) {
    LinearRoles roles;
    roles.weight = add(name + ".weight", ParamGroup::matrix, N, K, {.stddev = stddev});
    if (c_.bias) roles.bias = add(name + ".bias", ParamGroup::norm, 1, N, {});
    return roles;
  }

  void embedding() {
    const ParamInit init{.stddev = inits_.embedding};
    made_.roles.embedding =
        add(weight(names_.embedding), ParamGroup::embedding, c_.vocab_size, c_.n_embd, init);
    if (!are_rotations(c_.positions)) {
      made_.roles.positions =
          add(weight(names_.positions), ParamGroup::embedding, c_.seq_len, c_.n_embd, init);
    }
  }

  void block(std::int64_t index) {
    const std::int64_t C = c_.n_embd, Q = c_.q_width(), KV = c_.kv_width(), F = c_.mlp_width();
    const auto in_block = [&](std::string_view part) {
      return fmt::format("{}.{}.{}", names_.blocks, index, part);
    };
    const auto inner = [&](std::string_view part, std::int64_t N, std::int64_t K) {
      return linear(in_block(part), N, K, inits_.inner(N, K));
    };
    const auto residual = [&](std::string_view part, std::int64_t K) {
      return linear(in_block(part), C, K, inits_.residual(c_));
    };
    BlockRoles r;
    r.norm1 = norm(in_block(names_.norm1));
    r.q = inner(names_.q, Q, C);
    r.k = inner(names_.k, KV, C);
    r.v = inner(names_.v, KV, C);
    r.proj = residual(names_.proj, Q);
    r.norm2 = norm(in_block(names_.norm2));
    if (c_.gated_mlp) r.gate = inner(names_.gate, F, C);
    r.fc = inner(names_.fc, F, C);
    r.mlp_proj = residual(names_.mlp_proj, F);
    made_.roles.blocks.push_back(r);
  }

  void head() {
    made_.roles.final_norm = norm(std::string(names_.final_norm));
    made_.roles.head = c_.tied_head ? made_.roles.embedding
                                    : add(weight(names_.head), ParamGroup::head, c_.vocab_size, c_.n_embd,
                                          {.stddev = inits_.head});
  }

  ModelParams take() { return std::move(made_); }

 private:
  static std::string weight(std::string_view name) { return fmt::format("{}.weight", name); }

  const ModelConfig& c_;
  const TensorNames& names_ = c_.family->names;
  const Inits& inits_ = c_.family->inits;
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
