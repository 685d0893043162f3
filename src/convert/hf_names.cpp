#include "src/convert/hf_names.h"

#include <algorithm>
#include <utility>

#include "src/core/error.h"
#include "src/model/family.h"

namespace qt {

namespace {

using NamedLinear = std::pair<std::string_view, LinearRoles>;

class Table {
 public:
  Table(const ModelConfig& config, const ModelParams& model) : c_(config), m_(model) {}

  std::vector<HfTensor> make() {
    plain(names_.embedding, m_.roles.embedding);
    if (m_.roles.positions) plain(names_.positions, *m_.roles.positions);
    for (std::size_t i = 0; i < m_.roles.blocks.size(); ++i) {
      const BlockRoles& r = m_.roles.blocks[i];
      const std::string block = fmt::format("{}.{}.", names_.blocks, i);
      norm(block, names_.norm1, r.norm1);
      linears(block, {{names_.q, r.q}, {names_.k, r.k}, {names_.v, r.v}, {names_.proj, r.proj}});
      norm(block, names_.norm2, r.norm2);
      std::vector<NamedLinear> mlp = {{names_.fc, r.fc}, {names_.mlp_proj, r.mlp_proj}};
      if (r.gate) mlp.insert(mlp.begin(), {names_.gate, *r.gate});
      linears(block, mlp);
    }
    norm("", names_.final_norm, m_.roles.final_norm);
    if (!c_.tied_head) plain(names_.head, m_.roles.head);
    return std::move(tensors_);
  }

 private:
  const Param& param(std::size_t index) const { return m_.params[index]; }

  void plain(std::string_view name, std::size_t index) {
    tensors_.push_back({fmt::format("{}.weight", name), {param(index).N, param(index).K}, {index}, false});
  }

  // A bias or a norm's vector of `size` elements; zeros where the model has none.
  void vector(const std::string& name, std::int64_t size, const std::vector<ParamIndex>& parts) {
    HfTensor t{name, {size}, {}, false};
    for (const ParamIndex& part : parts) {
      if (part) t.params.push_back(*part);
    }
    tensors_.push_back(std::move(t));
  }

  void norm(const std::string& block, std::string_view part, const NormRoles& roles) {
    if (!roles.weight) return;
    const std::string name = fmt::format("{}{}", block, part);
    vector(name + ".weight", c_.n_embd, {roles.weight});
    if (roles.bias || hf_.always_biased) vector(name + ".bias", c_.n_embd, {roles.bias});
  }

  // Those of one name, one after the other, are one tensor.
  void linears(const std::string& block, const std::vector<NamedLinear>& parts) {
    for (auto part = parts.begin(); part != parts.end();) {
      const std::string_view name = part->first;
      const std::int64_t K = param(part->second.weight).K;
      std::int64_t N = 0;
      HfTensor t{fmt::format("{}{}.weight", block, name), {}, {}, hf_.transposed};
      std::vector<ParamIndex> biases;
      for (; part != parts.end() && part->first == name; ++part) {
        t.params.push_back(part->second.weight);
        N += param(part->second.weight).N;
        biases.push_back(part->second.bias);
      }
      t.shape = hf_.transposed ? std::vector{K, N} : std::vector{N, K};
      tensors_.push_back(std::move(t));
      if (biases.front() || hf_.always_biased) vector(fmt::format("{}{}.bias", block, name), N, biases);
    }
  }

  const ModelConfig& c_;
  const ModelParams& m_;
  const HfForm& hf_ = c_.family->hf;
  const TensorNames& names_ = hf_.names;
  std::vector<HfTensor> tensors_;
};

}  // namespace

std::string_view hf_class(const ModelConfig& config) {
  const HfForm& hf = config.family->hf;
  if (config.n_kv_head != config.n_head && !hf.shares_kv_heads) {
    throw ConfigError(
        fmt::format("{} has no shared key/value heads, this model does (--n-kv-head)", hf.class_name),
        fmt::format("only {} models with as many key/value heads as heads can be exported",
                    config.family->name));
  }
  return hf.class_name;
}

std::vector<HfTensor> hf_tensors(const ModelConfig& config, const ModelParams& model) {
  hf_class(config);
  return Table(config, model).make();
}

bool hf_ignored(const ModelConfig& config, std::string_view name) {
  const HfForm& hf = config.family->hf;
  return (config.tied_head && name == fmt::format("{}.weight", hf.names.head)) ||
         std::any_of(hf.ignored_endings.begin(), hf.ignored_endings.end(),
                     [&](std::string_view ending) { return name.ends_with(ending); });
}

}  // namespace qt
