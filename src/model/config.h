// ModelConfig: the dimensions and switches of one architecture, and the table of names that users type.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace qt {

enum class NormKind : std::uint8_t { rms, layer, weighted_rms };  // all but rms have learned weights
enum class Activation : std::uint8_t { relu2, gelu };             // of the MLP
enum class Positions : std::uint8_t { rope, learned };
enum class InitScheme : std::uint8_t { nanochat, gpt2 };  // src/model/params.cpp

// Two families:
//   nanochat  as of October 2025 (the architecture of d32 and of Hugging Face's NanoChatForCausalLM): pre-norm
//             blocks without learned norm weights, RoPE by -theta with QK-norm after it, relu^2, softcapped
//             logits, untied head.
//   gpt       GPT-2 as nanoGPT trains it: LayerNorm, learned positions, exact-erf GELU, tied head, biases and
//             dropout where asked for.
struct ModelConfig {
  std::string arch = "nanochat";
  std::string name;  // "d4"; free-form for shapes that have no name
  std::int64_t n_layer = 0;
  std::int64_t n_head = 0;
  std::int64_t n_kv_head = 0;
  std::int64_t n_embd = 0;
  std::int64_t head_width = 0;  // 0: n_embd / n_head
  std::int64_t n_inner = 0;     // width of the MLP; 0: 4 n_embd
  std::int64_t vocab_size = 65536;
  std::int64_t seq_len = 2048;
  NormKind norm = NormKind::rms;
  Activation activation = Activation::relu2;
  Positions positions = Positions::rope;
  InitScheme init = InitScheme::nanochat;
  bool qk_norm = true;         // RMSNorm of queries and keys after RoPE; nothing without RoPE
  bool gated_mlp = false;      // h = act(gate) * fc instead of h = act(fc)
  bool embedding_norm = true;  // a norm right after the embedding
  bool tied_head = false;      // the head is the embedding
  bool bias = false;           // of linear layers and LayerNorms
  double dropout = 0;          // of embedding, attention and both residual branches; in training only
  float norm_eps = 0x1p-23f;   // what F.rms_norm uses when it is given none
  float rope_base = 10000.0f;
  float logit_softcap = 15.0f;  // 0: none

  std::int64_t head_dim() const { return head_width > 0 ? head_width : n_embd / n_head; }
  std::int64_t q_width() const { return n_head * head_dim(); }
  std::int64_t kv_width() const { return n_kv_head * head_dim(); }
  std::int64_t mlp_width() const { return n_inner > 0 ? n_inner : 4 * n_embd; }
  std::int64_t matrix_params() const;    // block matrices alone: what --quant packs
  std::int64_t position_params() const;  // of the learned position table
  std::int64_t vector_params() const;    // norm weights and biases
  std::int64_t param_count() const;

  // As each family publishes it: 6 times the parameters that are multiplied with (nanochat leaves out the
  // embedding, nanoGPT the positions) + 12 L H D T, attention as a full square, no recompute.
  double model_flops_per_token() const;

  // Throws ConfigError naming the dimension that does not work.
  void validate() const;
};

// What options change in a named model; 0 or none: the model's own.
struct ModelOverrides {
  std::int64_t vocab_size = 0;
  std::int64_t seq_len = 0;
  std::int64_t n_kv_head = 0;
  std::int64_t n_layer = 0;  // this and the next two: not of d2 .. d34, whose depth tells them
  std::int64_t n_head = 0;
  std::int64_t n_embd = 0;
  double norm_eps = 0;
  std::optional<bool> bias;       // gpt family only
  std::optional<double> dropout;  // gpt family only
};

// "d2" .. "d34" with even depth: n_embd = 64 depth, heads of 128. "gpt2", "gpt2-medium", "gpt2-large",
// "gpt2-xl". "nanochat" and "gpt" for shapes of one's own. Throws ConfigError explaining what exists.
ModelConfig model_by_name(std::string_view name, const ModelOverrides& overrides = {});
std::vector<std::string> model_names();

// Tokens of a sequence where nobody says otherwise, by the family of the name.
std::int64_t default_seq_len(std::string_view model);

// Whether the name is one of the gpt family: its training defaults are nanoGPT's.
bool is_gpt_name(std::string_view name);

// The vocabulary that a model takes for a tokenizer's: the gpt family pads from 4,096 up to a multiple of 64,
// as nanoGPT makes 50,304 of 50,257.
std::int64_t model_vocab_size(std::string_view model, std::int64_t tokenizer_size);

}  // namespace qt
