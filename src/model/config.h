// ModelConfig: the dimensions and switches of one model, and making it from the name that users type.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace qt {

// All but rms have learned weights; weighted_rms runs LayerNormFwd without a mean.
enum class NormKind : std::uint8_t { rms, layer, weighted_rms };
enum class Activation : std::uint8_t { relu2, gelu };  // of the MLP
enum class Positions : std::uint8_t { rope, learned };

// What the code asks of a kind. Each switch lists all enumerators: a new one does not compile until each has an answer.
constexpr bool has_weight(NormKind kind) {
  switch (kind) {
    case NormKind::rms: return false;
    case NormKind::layer:
    case NormKind::weighted_rms: break;
  }
  return true;
}
constexpr bool has_mean(NormKind kind) {  // and a bias, where the model has biases
  switch (kind) {
    case NormKind::layer: return true;
    case NormKind::rms:
    case NormKind::weighted_rms: break;
  }
  return false;
}
constexpr bool are_rotations(
    Positions positions) {  // of queries and keys; otherwise rows of a table of parameters
  switch (positions) {
    case Positions::rope: return true;
    case Positions::learned: break;
  }
  return false;
}

// The parts of an architecture. The defaults are nanochat's.
struct ModelSwitches {
  NormKind norm = NormKind::rms;
  Activation activation = Activation::relu2;
  Positions positions = Positions::rope;
  // RMSNorm of queries and keys after RoPE; nothing without RoPE. false: RopeNormFwd runs without rstd.
  bool qk_norm = true;
  bool gated_mlp = false;      // h = act(gate) * fc instead of h = act(fc)
  bool embedding_norm = true;  // a norm right after the embedding
  bool tied_head = false;      // the head is the embedding
  float norm_eps = 0x1p-23f;   // what F.rms_norm uses when it is given none
  float rope_base = 10000.0f;
  float logit_softcap = 15.0f;  // 0: none
};

struct Family;  // src/model/family.h
namespace families {
extern const Family nanochat;
}

struct ModelConfig : ModelSwitches {
  const Family* family = &families::nanochat;
  std::string name;  // "d4"; free-form for shapes that have no name
  std::int64_t n_layer = 0;
  std::int64_t n_head = 0;
  std::int64_t n_kv_head = 0;
  std::int64_t n_embd = 0;
  std::int64_t head_width = 0;  // 0: n_embd / n_head
  std::int64_t n_inner = 0;     // width of the MLP; 0: 4 n_embd
  std::int64_t vocab_size = 65536;
  std::int64_t seq_len = 2048;
  bool bias = false;   // of linear layers and LayerNorms
  double dropout = 0;  // of embedding, attention and both residual branches; in training only

  std::int64_t head_dim() const { return head_width > 0 ? head_width : n_embd / n_head; }
  std::int64_t q_width() const { return n_head * head_dim(); }
  std::int64_t kv_width() const { return n_kv_head * head_dim(); }
  std::int64_t mlp_width() const { return n_inner > 0 ? n_inner : 4 * n_embd; }
  std::int64_t matrix_params() const;    // block matrices alone: what --quant packs
  std::int64_t position_params() const;  // of the learned position table
  std::int64_t vector_params() const;    // norm weights and biases
  std::int64_t param_count() const;

  // As each family publishes it: 6 times the parameters but Family::idle_params + 12 L H D T, attention as a
  // full square, no recompute.
  double model_flops_per_token() const;

  // Throws ConfigError naming the dimension that does not work.
  void validate() const;
};

// What options say of a model by name; 0: the model's own.
struct ModelShape {
  std::int64_t vocab_size = 0;
  std::int64_t seq_len = 0;
  std::int64_t n_kv_head = 0;  // 0: as many as heads
  std::int64_t n_layer = 0;    // this and the next two: not where a name fixes them
  std::int64_t n_head = 0;
  std::int64_t n_embd = 0;
  double norm_eps = 0;
  bool bias = false;   // of linear layers and norms
  double dropout = 0;  // share of activations

  // All of shape_dimensions().
  void copy_dimensions(const ModelShape& from);
  void copy_dimensions(const ModelConfig& from);
  void clear_dimensions();  // to the model's own
  void leave_to_name();     // clears the dimensions that a name may fix
  // Takes from `model`: vocabulary, tokens of a sequence, and the dimensions, but for those that a name of its
  // family fixes. norm_eps, bias and dropout stay.
  void resolve(const ModelConfig& model);
};

// A dimension of the blocks that is a field of ModelShape and of ModelConfig.
struct ShapeDimension {
  std::int64_t ModelShape::*asked;
  std::int64_t ModelConfig::*made;
  bool of_name;              // NamedShape has it, too
  const char* option;        // "--n-layer"
  std::int64_t most_option;  // of the option: no run needs more, and no product of two overflows
};
std::span<const ShapeDimension> shape_dimensions();

// A name of src/model/family.h: a shape's, or a family's for a shape of one's own. Throws ConfigError
// explaining what exists.
ModelConfig model_by_name(std::string_view name, const ModelShape& shape = {});

// Tokens of a sequence where no option gives them, by the family of the name.
std::int64_t default_seq_len(std::string_view model);

// The vocabulary that a model takes for a tokenizer's: some families pad it.
std::int64_t model_vocab_size(std::string_view model, std::int64_t tokenizer_size);

}  // namespace qt
