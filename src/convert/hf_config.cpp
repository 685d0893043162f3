#include "src/convert/hf_config.h"

#include <cmath>

#include "src/convert/hf_names.h"
#include "src/core/error.h"
#include "src/core/log.h"
#include "src/io/file.h"
#include "src/io/json.h"
#include "src/model/family.h"
#include "src/plan/planner.h"

namespace qt {

namespace {

namespace fs = std::filesystem;

using Ordered = nlohmann::ordered_json;

constexpr double kRopeBase = 10000.0;
constexpr double kSoftcap = 15.0;

// The shortest decimal that is the same float, as people write it; a power of two with all its digits, as
// upstream does.
double as_written(float x) {
  int exponent = 0;
  if (std::frexp(x, &exponent) == 0.5f) return static_cast<double>(x);
  return std::stod(fmt::format("{}", x));
}

Ordered id_or_null(std::int32_t id) { return id < 0 ? Ordered(nullptr) : Ordered(id); }

void add_ids(Ordered& json, const HfSpecialIds& ids) {
  json["bos_token_id"] = id_or_null(ids.bos);
  json["eos_token_id"] = id_or_null(ids.eos);
  json["pad_token_id"] = id_or_null(ids.pad);
}

const char* torch_name(DType type) {
  return type == DType::bf16 ? "bfloat16" : type == DType::f16 ? "float16" : "float32";
}

Ordered nanochat_json(const ModelConfig& c) {
  Ordered json;
  json["model_type"] = "nanochat";
  json["vocab_size"] = c.vocab_size;
  json["hidden_size"] = c.n_embd;
  json["intermediate_size"] = c.mlp_width();
  json["num_hidden_layers"] = c.n_layer;
  json["num_attention_heads"] = c.n_head;
  json["num_key_value_heads"] = c.n_kv_head;
  json["max_position_embeddings"] = c.seq_len;
  json["hidden_act"] = "relu2";
  json["attention_bias"] = false;
  json["attention_dropout"] = 0.0;
  json["rms_norm_eps"] = as_written(c.norm_eps);
  json["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", static_cast<double>(c.rope_base)}};
  json["final_logit_softcapping"] = static_cast<double>(c.logit_softcap);
  json["initializer_range"] = 0.02;
  json["tie_word_embeddings"] = false;
  return json;
}

Ordered gpt2_json(const ModelConfig& c) {
  Ordered json;
  json["model_type"] = "gpt2";
  json["vocab_size"] = c.vocab_size;
  json["n_positions"] = c.seq_len;
  json["n_ctx"] = c.seq_len;
  json["n_embd"] = c.n_embd;
  json["n_layer"] = c.n_layer;
  json["n_head"] = c.n_head;
  json["n_inner"] = c.mlp_width();
  json["activation_function"] = "gelu";  // the exact one
  json["layer_norm_epsilon"] = as_written(c.norm_eps);
  for (const char* dropout : {"resid_pdrop", "embd_pdrop", "attn_pdrop"}) json[dropout] = 0.0;
  json["initializer_range"] = 0.02;
  json["scale_attn_weights"] = true;
  json["scale_attn_by_inverse_layer_idx"] = false;
  json["reorder_and_upcast_attn"] = false;
  json["add_cross_attention"] = false;
  json["tie_word_embeddings"] = true;
  // Not transformers': its GPT-2 always has biases, and those of a model without are zero.
  json["bias"] = c.bias;
  return json;
}

// Reads fields that may be absent or null, and refuses those that name another architecture.
class Fields {
 public:
  Fields(const Json& json, std::string origin) : json_(json), origin_(std::move(origin)) {}

  bool has(const char* field) const { return json_has(json_, field) && !json_[field].is_null(); }
  std::int64_t count(const char* field) const { return json_int(json_, field, origin_, 1, 1 << 30); }
  std::int64_t count(const char* field, std::int64_t otherwise) const {
    return has(field) ? count(field) : otherwise;
  }
  double number(const char* field, double otherwise) const {
    return has(field) ? json_number(json_, field, origin_) : otherwise;
  }
  bool flag(const char* field, bool otherwise) const {
    return has(field) ? json_bool(json_, field, origin_) : otherwise;
  }
  std::string text(const char* field, const std::string& otherwise) const {
    return has(field) ? json_string(json_, field, origin_) : otherwise;
  }
  template <class T>
  void require(const char* field, const T& value, const T& wanted) const {
    if (value == wanted) return;
    throw DataError(
        fmt::format("{}: field '{}' is {}, this program computes {} only", origin_, field, value, wanted),
        "models that were changed in this place cannot be read");
  }
  const Json& json() const { return json_; }
  const std::string& origin() const { return origin_; }

 private:
  const Json& json_;
  std::string origin_;
};

double eps_option(double eps, const ModelConfig& own, const Fields& f, const char* field) {
  QT_CHECK(eps > 0 && eps < 1, DataError, "{}: field '{}' is {}, not between 0 and 1", f.origin(), field,
           eps);
  return static_cast<float>(eps) == own.norm_eps ? 0.0 : eps;
}

void set_nanochat(const Fields& f, Options& o) {
  o.n_layer = f.count("num_hidden_layers");
  o.n_embd = f.count("hidden_size");
  o.n_head = f.count("num_attention_heads");
  o.n_kv_head = f.count("num_key_value_heads", o.n_head);
  o.vocab_size = f.count("vocab_size");
  o.bias = false;
  o.dropout = 0;
  f.require("intermediate_size", f.count("intermediate_size"), 4 * o.n_embd);
  f.require("hidden_act", f.text("hidden_act", "relu2"), std::string("relu2"));
  f.require("attention_bias", f.flag("attention_bias", false), false);
  f.require("tie_word_embeddings", f.flag("tie_word_embeddings", false), false);
  const bool capped = !json_has(f.json(), "final_logit_softcapping") || f.has("final_logit_softcapping");
  f.require("final_logit_softcapping", capped ? f.number("final_logit_softcapping", kSoftcap) : 0.0,
            kSoftcap);
  double theta = f.number("rope_theta", kRopeBase);
  if (f.has("rope_parameters")) {
    const Fields rope(json_object(f.json(), "rope_parameters", f.origin()), f.origin() + ": rope_parameters");
    rope.require("rope_type", rope.text("rope_type", "default"), std::string("default"));
    theta = rope.number("rope_theta", theta);
  }
  f.require("rope_theta", theta, kRopeBase);
  o.norm_eps = eps_option(f.number("rms_norm_eps", 1e-6), ModelConfig(), f, "rms_norm_eps");
  if (o.seq_len == 0) o.seq_len = f.count("max_position_embeddings");
  // A depth that has a name takes it: its run then is the same as one that was begun here.
  o.model = fmt::format("d{}", o.n_layer);
  try {
    const ModelConfig named = model_by_name(o.model);
    if (named.n_embd == o.n_embd && named.n_head == o.n_head) {
      o.n_layer = o.n_embd = o.n_head = 0;
      return;
    }
  } catch (const ConfigError&) {  // no such depth
  }
  o.model = "nanochat";
}

void set_gpt2(const Fields& f, Options& o) {
  o.n_layer = f.count("n_layer");
  o.n_embd = f.count("n_embd");
  o.n_head = f.count("n_head");
  o.n_kv_head = 0;
  o.vocab_size = f.count("vocab_size");
  o.bias = f.flag("bias", true);
  f.require("n_inner", f.count("n_inner", 4 * o.n_embd), 4 * o.n_embd);
  f.require("tie_word_embeddings", f.flag("tie_word_embeddings", true), true);
  f.require("scale_attn_weights", f.flag("scale_attn_weights", true), true);
  f.require("scale_attn_by_inverse_layer_idx", f.flag("scale_attn_by_inverse_layer_idx", false), false);
  f.require("add_cross_attention", f.flag("add_cross_attention", false), false);
  const std::string gelu = f.text("activation_function", "gelu_new");
  if (gelu == "gelu_new" || gelu == "gelu_pytorch_tanh") {
    log_warning(
        "{}: trained with the tanh form of GELU ({}); the exact one is computed here, which changes "
        "logits a little",
        f.origin(), gelu);
  } else {
    f.require("activation_function", gelu, std::string("gelu"));
  }
  if (find_family(o.model) != &families::gpt) o.model = "gpt";
  const std::int64_t positions = f.count("n_positions", f.count("n_ctx", default_seq_len("gpt")));
  if (o.seq_len == 0) o.seq_len = positions;
  const ModelConfig own = model_by_name("gpt2");
  o.norm_eps = eps_option(f.number("layer_norm_epsilon", 1e-5), own, f, "layer_norm_epsilon");
}

}  // namespace

std::string hf_config_json(const ModelConfig& config, const HfSpecialIds& ids, DType type) {
  Ordered json;
  json["architectures"] = {hf_class(config)};
  json.update(config.family == &families::gpt ? gpt2_json(config) : nanochat_json(config));
  add_ids(json, ids);
  json["use_cache"] = true;
  json["dtype"] = torch_name(type);
  return json.dump(1) + "\n";
}

std::string hf_generation_config_json(const HfSpecialIds& ids) {
  Ordered json;
  add_ids(json, ids);
  json["do_sample"] = true;
  return json.dump(1) + "\n";
}

bool is_hf_folder(const fs::path& folder) {
  const fs::path config = folder / "config.json";
  if (!fs::is_regular_file(config)) return false;
  const Json json = read_json_file(config);
  if (!json.is_object() || !json_has(json, "model_type")) return false;
  return json["model_type"] == "nanochat" || json["model_type"] == "gpt2";
}

void set_hf_shape(const fs::path& folder, Options& options) {
  const fs::path config = folder / "config.json";
  const Json json = read_json_file(config);
  const Fields fields(json, config.string());
  if (json_string(json, "model_type", config.string()) == "gpt2") {
    set_gpt2(fields, options);
  } else {
    set_nanochat(fields, options);
  }
  // The bounds of the options hold for a file as well, before anything is made of them.
  Options shape;
  shape.model = options.model;
  shape.n_layer = options.n_layer;
  shape.n_head = options.n_head;
  shape.n_embd = options.n_embd;
  shape.n_kv_head = options.n_kv_head;
  shape.vocab_size = options.vocab_size;
  shape.seq_len = options.seq_len;
  try {
    check_options(shape);
  } catch (const ConfigError& e) {
    throw DataError(fmt::format("{}: {}", config.string(), e.what()),
                    "config.json and the weights beside it must belong together");
  }
}

}  // namespace qt
