// ModelConfig: the dimensions and switches of one architecture, and the table of names that users type.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qt {

// nanochat as of October 2025 (the architecture of d32 and of Hugging Face's NanoChatForCausalLM): pre-norm
// blocks without learned norm weights, RoPE by -theta with QK-norm after it, relu^2, softcapped logits,
// untied head.
struct ModelConfig {
  std::string arch = "nanochat";
  std::string name;  // "d4"; free-form for shapes that have no name
  std::int64_t n_layer = 0;
  std::int64_t n_head = 0;
  std::int64_t n_kv_head = 0;
  std::int64_t n_embd = 0;
  std::int64_t vocab_size = 65536;
  std::int64_t seq_len = 2048;
  float norm_eps = 0x1p-23f;  // what F.rms_norm uses when it is given none
  float rope_base = 10000.0f;
  float logit_softcap = 15.0f;

  std::int64_t head_dim() const { return n_embd / n_head; }
  std::int64_t kv_width() const { return n_kv_head * head_dim(); }
  std::int64_t mlp_width() const { return 4 * n_embd; }
  std::int64_t matrix_params() const;  // block matrices alone: what --quant packs
  std::int64_t param_count() const;

  // nanochat's own count: 6 (N - wte) + 12 L H D T, attention as a full square, no recompute.
  double model_flops_per_token() const;

  // Throws ConfigError naming the dimension that does not work.
  void validate() const;
};

struct ModelOverrides {
  std::int64_t vocab_size = 0;  // 0: the model's own
  std::int64_t seq_len = 0;
  std::int64_t n_kv_head = 0;
};

// "d2" .. "d34" with even depth: n_embd = 64 depth, heads of 128. Throws ConfigError explaining what exists.
ModelConfig model_by_name(std::string_view name, const ModelOverrides& overrides = {});
std::vector<std::string> model_names();

}  // namespace qt
