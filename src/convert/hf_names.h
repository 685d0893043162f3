// The one table between our tensors and those of the family's class at Hugging Face (HfForm of
// src/model/family.h): names, and how each of theirs is made of ours. Export writes by it, import reads by it;
// config.json is src/convert/hf_config.h.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "src/model/params.h"

namespace qt {

// One tensor of theirs.
struct HfTensor {
  std::string name;                 // "model.layers.0.self_attn.q_proj.weight"
  std::vector<std::int64_t> shape;  // as their file has it
  // Indices of the params in it: it holds their rows, one after the other. Empty: all zero, a bias that a model
  // without biases does not have.
  std::vector<std::size_t> params;
  bool transposed = false;  // stored [in, out], as GPT-2's Conv1D has it; ours are [out, in]

  bool is_zero() const { return params.empty(); }
  std::int64_t elems() const {
    std::int64_t n = 1;
    for (const std::int64_t size : shape) n *= size;
    return n;
  }
};

// Their class for this architecture. ConfigError for a model that it cannot represent: a gpt with shared
// key/value heads.
std::string_view hf_class(const ModelConfig& config);

// In the order in which they are written. Every param of `model` is in exactly one of them; a tied head is
// not there.
std::vector<HfTensor> hf_tensors(const ModelConfig& config, const ModelParams& model);

// Further tensors that their files may hold and no model needs: GPT-2's mask buffers and a tied head.
bool hf_ignored(const ModelConfig& config, std::string_view name);

}  // namespace qt
