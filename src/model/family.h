// A model family: all that differs between nanochat, GPT-2 and the next, as one row.
//
// Adding a family: a file in src/model that defines its row, and its name in QT_FOR_EACH_FAMILY.
// tests/model/test_toy_family.cpp adds one in this way alone.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <variant>

#include "src/model/config.h"

namespace qt {

// A model with a name: d20, gpt2.
struct NamedShape {
  std::string_view name;
  std::int64_t n_layer, n_head, n_embd;
};

// Names of a model's tensors, ours or another program's, without the ".weight" and ".bias" at their ends; those of
// a block without its beginning, "<blocks>.<index>.". Of linear layers that share a name the rows lie in one
// tensor, one after the other.
struct TensorNames {
  std::string_view embedding, positions, blocks;
  std::string_view norm1, q, k, v, proj, norm2, gate, fc, mlp_proj;
  std::string_view final_norm, head;
};

// nanoGPT's, which nanochat uses too, but for c_attn: here it is three matrices c_q, c_k, c_v; c_attn holds their rows
// in this order. Neither program has a c_gate.
inline constexpr TensorNames kNanogptNames = {.embedding = "transformer.wte",
                                              .positions = "transformer.wpe",
                                              .blocks = "transformer.h",
                                              .norm1 = "ln_1",
                                              .q = "attn.c_q",
                                              .k = "attn.c_k",
                                              .v = "attn.c_v",
                                              .proj = "attn.c_proj",
                                              .norm2 = "ln_2",
                                              .gate = "mlp.c_gate",
                                              .fc = "mlp.c_fc",
                                              .mlp_proj = "mlp.c_proj",
                                              .final_norm = "transformer.ln_f",
                                              .head = "lm_head"};

// Standard deviations that weights are drawn with; biases begin at 0, norm weights at 1.
struct Inits {
  float embedding = 0, head = 0;  // `embedding` of positions, too
  // Of what feeds attention and the MLP, [fan_out, fan_in].
  float (*inner)(std::int64_t fan_out, std::int64_t fan_in) = nullptr;
  // Of the projections back into the residual stream.
  float (*residual)(const ModelConfig& config) = nullptr;
};

// --- Hugging Face ---

enum class HfUse : std::uint8_t {
  needed,    // a file without it is refused
  optional,  // may be absent or null
  unread,    // written, and of no consequence
};
struct HfRope {};  // {"rope_type": "default", "rope_theta": ModelConfig::rope_base}
// A constant, or what tells it. A file may set dimensions, norm_eps and bias; all else must be as written.
using HfValue =
    std::variant<bool, double, std::string_view, HfRope, std::int64_t ModelConfig::*, float ModelConfig::*,
                 bool ModelConfig::*, std::int64_t (ModelConfig::*)() const>;

// A field of config.json.
struct HfField {
  const char* key;
  HfValue value;
  HfUse use = HfUse::optional;
  // What the class takes where the field is absent; none: the family's own. Of two fields for one dimension
  // the first that is there counts.
  std::variant<std::monostate, bool, double, std::string_view> absent = {};
  // Values that are taken for `value`, with this warning, which has {} for them.
  std::span<const std::string_view> near = {};
  std::string_view near_warning = {};
};

// The class of the transformers library that computes the same, and how its files are laid out.
struct HfForm {
  std::string_view class_name;      // "GPT2LMHeadModel"
  std::string_view model_type;      // of config.json
  std::span<const HfField> fields;  // in the order in which they are written
  TensorNames names;
  bool shares_kv_heads = true;
  bool transposed = false;           // linear weights are stored [in, out], ours are [out, in]
  bool always_biased = false;        // biases that a model does not have are there all the same, zero
  std::string_view optional_prefix;  // of tensor names, which some files lack
  std::span<const std::string_view> ignored_endings;  // of tensors that nobody needs
};

// --- training ---

// Options that a family trains with where nobody says otherwise, as they are typed.
struct TrainingDefaults {
  struct Option {
    const char* name;
    const char* text;
  };
  std::span<const Option> options;
  const char* learning_rate = nullptr;  // of every group of params; null: as for nanochat
};

struct Family {
  std::string_view name;  // "gpt": in logs, and the word of --model for a shape of one's own
  std::string_view noun;  // "GPT", as in "holds a GPT"

  // --- models ---
  std::span<const NamedShape> shapes;
  std::string_view shapes_text;        // the names of `shapes`, as messages list them
  std::string_view own_shape_example;  // after "for example"
  // What fixes the shape of a name, "its depth", and what to do for another one. Empty: options may change it.
  std::string_view fixed_by, fixed_hint;
  // What to say of a name that `shapes` lacks but that is made like one of them; empty: nothing. May be null.
  std::string (*explain_unknown)(std::string_view name) = nullptr;

  ModelSwitches switches;
  bool has_bias_and_dropout = false;  // takes --bias and --dropout
  std::int64_t vocab_size = 0;        // where neither an option nor a tokenizer says otherwise
  std::int64_t seq_len = 0;           // likewise
  // Vocabularies of this size and more are padded to a multiple of `pad_vocab_to`.
  std::int64_t pad_vocab_from = 0, pad_vocab_to = 1;
  // Params that the family's published FLOP count leaves out: a lookup multiplies nothing.
  std::int64_t (*idle_params)(const ModelConfig& config) = nullptr;

  // --- parameters ---
  TensorNames names;
  Inits inits;

  HfForm hf;
  TrainingDefaults training;

  // --- estimate --compare ---
  std::span<const std::string_view> compared;  // shapes to consider instead of a larger one, smallest first
  std::span<const std::string_view> compare_notes;  // lines below the table

  bool has_fixed_shapes() const { return !fixed_by.empty(); }
  const NamedShape* find_shape(std::string_view model) const;  // nullptr: no such name
};

// Rows in the order of messages; each is defined in the file of its name, src/model/<name>.cpp.
#ifndef QTRAIN_FAMILIES
#define QT_FOR_EACH_FAMILY(X) X(nanochat) X(gpt)
#else  // a test names the file that has the list, with a family of its own
}  // namespace qt
#include QTRAIN_FAMILIES
namespace qt {
#endif

namespace families {
#define QT_DECLARE_FAMILY(name) extern const Family name;
QT_FOR_EACH_FAMILY(QT_DECLARE_FAMILY)
#undef QT_DECLARE_FAMILY
}  // namespace families

std::span<const Family* const> all_families();

// The family of a --model name; nullptr for a name that does not exist.
const Family* find_family(std::string_view model);

}  // namespace qt
