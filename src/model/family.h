// A model family: all that differs between families, nanochat's and GPT-2's among them, as one row for each.
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
  std::int64_t head_width = 0, n_inner = 0;  // as in ModelConfig
};

// Names of tensors, in our files or in another program's, without ".weight" and ".bias" at their ends. Names in a
// block also lack its beginning, "<blocks>.<index>.". Linear layers of one name share a tensor: the rows of one
// follow those of the other. A name may be empty where no model of the family has the tensor.
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

// Standard deviations of the normal distributions that weights are drawn from. Biases begin at 0, norm weights at 1.
struct Inits {
  float embedding = 0, head = 0;  // `embedding` of positions, too
  // Of the matrices [fan_out, fan_in] that feed attention and the MLP.
  float (*inner)(std::int64_t fan_out, std::int64_t fan_in) = nullptr;
  // Of the matrices that project back into the residual stream.
  float (*residual)(const ModelConfig& config) = nullptr;
};

// --- Hugging Face ---

enum class HfUse : std::uint8_t {
  needed,    // a file without it is refused
  optional,  // may be absent or null
  unread,    // written, and of no consequence
};
struct HfRope {};  // {"rope_type": "default", "rope_theta": ModelConfig::rope_base}
// A constant, or the member of ModelConfig that has the value. A file may set the dimensions, norm_eps and bias;
// any other value that differs from the family's is refused. Fields that HfForm::fields does not list are ignored.
using HfValue =
    std::variant<bool, double, std::string_view, HfRope, std::int64_t ModelConfig::*, float ModelConfig::*,
                 bool ModelConfig::*, std::int64_t (ModelConfig::*)() const>;

// A field of config.json.
struct HfField {
  const char* key;
  HfValue value;
  HfUse use = HfUse::optional;
  // The value that transformers takes where the field is absent; none: the family's own. Of two fields for one
  // dimension the first that a file has counts.
  std::variant<std::monostate, bool, double, std::string_view> absent = {};
  // Values that are read as `value`, with a warning in which {} stands for them.
  std::span<const std::string_view> near = {};
  std::string_view near_warning = {};
};

// The class of the transformers library that computes the same model, and the layout of its files.
struct HfForm {
  std::string_view class_name;      // "GPT2LMHeadModel"
  std::string_view model_type;      // of config.json
  std::span<const HfField> fields;  // in the order in which they are written
  TensorNames names;
  bool shares_kv_heads = true;
  bool transposed = false;           // linear weights are stored [in, out], ours are [out, in]
  bool always_biased = false;        // biases that a model does not have are stored as zeros
  std::string_view optional_prefix;  // of tensor names; some files lack it
  std::span<const std::string_view> ignored_endings;  // of tensors that no model needs
};

// --- training ---

// Values of options, as they are typed, for models of the family where no source of options gives one.
struct TrainingDefaults {
  struct Option {
    const char* name;
    const char* text;
  };
  std::span<const Option> options;
  // Of every group of params, unless the rate of one group is given; null: the defaults of the table of options.
  const char* learning_rate = nullptr;
};

struct Family {
  std::string_view name;  // "gpt": in logs, and the word of --model for a shape of one's own
  std::string_view noun;  // "GPT", as in "holds a GPT"

  // --- models ---
  std::span<const NamedShape> shapes;
  std::string_view shapes_text;        // the names of `shapes`, as messages list them
  std::string_view own_shape_example;  // after "for example"
  // The word for what fixes the shape of a named model, "its depth", and the hint to get another shape. Empty:
  // options may change the shape.
  std::string_view fixed_by, fixed_hint;
  // The message for a name that is made like those of `shapes` but is none; empty for any other name. May be null.
  std::string (*explain_unknown)(std::string_view name) = nullptr;

  ModelSwitches switches;
  bool has_bias_and_dropout = false;  // takes --bias and --dropout
  std::int64_t vocab_size = 0;        // where neither an option nor a tokenizer gives one
  std::int64_t seq_len = 0;           // where no option gives one
  // Vocabularies of this size and more are padded to a multiple of `pad_vocab_to`.
  std::int64_t pad_vocab_from = 0, pad_vocab_to = 1;
  // The count of params that the family's published FLOP count leaves out: a lookup multiplies nothing.
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

// Rows in the order of messages. Each is defined in the file of its name, src/model/<name>.cpp.
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
