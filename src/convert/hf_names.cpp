#include "src/convert/hf_names.h"

#include <utility>

#include "src/core/error.h"
#include "src/model/family.h"

namespace qt {

namespace {

class Table {
 public:
  Table(const ModelConfig& config, const ModelParams& model) : c_(config), m_(model) {}

  std::vector<HfTensor> nanochat() {
    plain("model.embed_tokens.weight", m_.roles.embedding);
    for (std::size_t i = 0; i < m_.roles.blocks.size(); ++i) {
      const BlockRoles& r = m_.roles.blocks[i];
      const std::string layer = fmt::format("model.layers.{}.", i);
      plain(layer + "self_attn.q_proj.weight", r.q.weight);
      plain(layer + "self_attn.k_proj.weight", r.k.weight);
      plain(layer + "self_attn.v_proj.weight", r.v.weight);
      plain(layer + "self_attn.o_proj.weight", r.proj.weight);
      plain(layer + "mlp.fc1.weight", r.fc.weight);
      plain(layer + "mlp.fc2.weight", r.mlp_proj.weight);
    }
    plain("lm_head.weight", m_.roles.head);
    return std::move(tensors_);
  }

  std::vector<HfTensor> gpt2() {
    plain("transformer.wte.weight", m_.roles.embedding);
    plain("transformer.wpe.weight", *m_.roles.positions);
    for (std::size_t i = 0; i < m_.roles.blocks.size(); ++i) {
      const BlockRoles& r = m_.roles.blocks[i];
      const std::string layer = fmt::format("transformer.h.{}.", i);
      norm(layer + "ln_1", r.norm1);
      conv(layer + "attn.c_attn", {r.q, r.k, r.v});
      conv(layer + "attn.c_proj", {r.proj});
      norm(layer + "ln_2", r.norm2);
      conv(layer + "mlp.c_fc", {r.fc});
      conv(layer + "mlp.c_proj", {r.mlp_proj});
    }
    norm("transformer.ln_f", m_.roles.final_norm);
    return std::move(tensors_);
  }

 private:
  const Param& param(std::size_t index) const { return m_.params[index]; }

  void plain(const std::string& name, std::size_t index) {
    tensors_.push_back({name, {param(index).N, param(index).K}, {index}, false});
  }

  // A bias or a norm's vector of `size` elements; zeros where the model has none.
  void vector(const std::string& name, std::int64_t size, const std::vector<ParamIndex>& parts) {
    HfTensor t{name, {size}, {}, false};
    for (const ParamIndex& part : parts) {
      if (part) t.params.push_back(*part);
    }
    tensors_.push_back(std::move(t));
  }

  void norm(const std::string& name, const NormRoles& roles) {
    vector(name + ".weight", c_.n_embd, {roles.weight});
    vector(name + ".bias", c_.n_embd, {roles.bias});
  }

  void conv(const std::string& name, const std::vector<LinearRoles>& parts) {
    HfTensor t{name + ".weight", {param(parts.front().weight).K, 0}, {}, true};
    std::vector<ParamIndex> biases;
    for (const LinearRoles& part : parts) {
      t.params.push_back(part.weight);
      t.shape[1] += param(part.weight).N;
      biases.push_back(part.bias);
    }
    const std::int64_t rows = t.shape[1];
    tensors_.push_back(std::move(t));
    vector(name + ".bias", rows, biases);
  }

  const ModelConfig& c_;
  const ModelParams& m_;
  std::vector<HfTensor> tensors_;
};

bool is_gpt(const ModelConfig& config) { return config.family == &families::gpt; }

}  // namespace

std::string_view hf_class(const ModelConfig& config) {
  if (!is_gpt(config)) return "NanoChatForCausalLM";
  if (config.n_kv_head != config.n_head) {
    throw ConfigError("GPT2LMHeadModel has no shared key/value heads, this model does (--n-kv-head)",
                      "only gpt models with as many key/value heads as heads can be exported");
  }
  return "GPT2LMHeadModel";
}

std::vector<HfTensor> hf_tensors(const ModelConfig& config, const ModelParams& model) {
  hf_class(config);
  Table table(config, model);
  return is_gpt(config) ? table.gpt2() : table.nanochat();
}

bool hf_ignored(const ModelConfig& config, std::string_view name) {
  return is_gpt(config) &&
         (name == "lm_head.weight" || name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"));
}

}  // namespace qt
