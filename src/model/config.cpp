#include "src/model/config.h"

#include <algorithm>

#include "src/core/error.h"
#include "src/model/family.h"

namespace qt {

namespace {

using S = ModelShape;
using C = ModelConfig;
constexpr std::int64_t kMostLayers = 1024, kMostHeads = 1024, kMostWidth = std::int64_t{1} << 16;
constexpr ShapeDimension kDimensions[] = {
    {&S::n_layer, &C::n_layer, true, "--n-layer", kMostLayers},
    {&S::n_head, &C::n_head, true, "--n-head", kMostHeads},
    {&S::n_kv_head, &C::n_kv_head, false, "--n-kv-head", kMostHeads},
    {&S::n_embd, &C::n_embd, true, "--n-embd", kMostWidth},
};

// What --model may be: the names of every family, and the families themselves, the last one first.
std::string model_hint() {
  std::string shapes, own;
  for (const Family* f : all_families()) {
    shapes += fmt::format("{}{}", shapes.empty() ? "" : ", ", f->shapes_text);
    own = own.empty() ? std::string(f->name) : fmt::format("{} (or {})", f->name, own);
  }
  return fmt::format("use --model {}, or {} with --n-layer, --n-head and --n-embd", shapes, own);
}

[[noreturn]] void throw_unknown(std::string_view name) {
  std::string why = fmt::format("unknown model '{}'", name);
  for (const Family* f : all_families()) {
    const std::string known = f->explain_unknown != nullptr ? f->explain_unknown(name) : "";
    if (!known.empty()) why = known;
  }
  throw ConfigError(why, model_hint());
}

void require_takes(const Family& family, std::string_view name, const ModelShape& o) {
  const bool regularised = o.bias || o.dropout != 0;
  const bool own = name == family.name;
  if (own && (o.n_layer == 0 || o.n_head == 0 || o.n_embd == 0)) {
    throw ConfigError(
        fmt::format("--model {} is a shape of your own: it needs --n-layer, --n-head and --n-embd", name),
        fmt::format("for example {}", family.own_shape_example));
  }
  const bool reshaped = std::any_of(std::begin(kDimensions), std::end(kDimensions),
                                    [&](const ShapeDimension& d) { return d.of_name && o.*d.asked > 0; });
  if (!own && family.has_fixed_shapes() && (reshaped || (regularised && !family.has_bias_and_dropout))) {
    throw ConfigError(
        fmt::format("model '{}' is fixed by {}: it takes no --n-layer, --n-head, --n-embd, --bias or "
                    "--dropout",
                    name, family.fixed_by),
        std::string(family.fixed_hint));
  }
  QT_CHECK(!regularised || family.has_bias_and_dropout, ConfigError,
           "--model {} has neither biases nor dropout", name);
}

}  // namespace

const NamedShape* Family::find_shape(std::string_view model) const {
  const auto it =
      std::find_if(shapes.begin(), shapes.end(), [&](const NamedShape& s) { return s.name == model; });
  return it == shapes.end() ? nullptr : &*it;
}

const Family* find_family(std::string_view model) {
  for (const Family* f : all_families()) {
    if (f->name == model || f->find_shape(model) != nullptr) return f;
  }
  return nullptr;
}

std::int64_t ModelConfig::matrix_params() const {
  const std::int64_t mlp_matrices = gated_mlp ? 3 : 2;
  return n_layer * n_embd * (2 * q_width() + 2 * kv_width() + mlp_matrices * mlp_width());
}

std::int64_t ModelConfig::position_params() const { return are_rotations(positions) ? 0 : seq_len * n_embd; }

std::int64_t ModelConfig::vector_params() const {
  std::int64_t params = 0;
  const std::int64_t norms = 2 * n_layer + 1;  // that after the embedding has no weight
  if (has_weight(norm)) params += norms * n_embd * (bias && has_mean(norm) ? 2 : 1);
  // q; k and v; both projections; fc and gate
  if (bias) params += n_layer * (q_width() + 2 * kv_width() + 2 * n_embd + (gated_mlp ? 2 : 1) * mlp_width());
  return params;
}

std::int64_t ModelConfig::param_count() const {
  return matrix_params() + (tied_head ? 1 : 2) * vocab_size * n_embd + position_params() + vector_params();
}

double ModelConfig::model_flops_per_token() const {
  const double weights = static_cast<double>(param_count() - family->idle_params(*this));
  return 6.0 * weights + 12.0 * static_cast<double>(n_layer * q_width()) * static_cast<double>(seq_len);
}

void ModelConfig::validate() const {
  QT_CHECK(n_layer >= 1 && n_embd >= 2 && n_head >= 1 && n_kv_head >= 1 && vocab_size >= 2 && seq_len >= 1,
           ConfigError,
           "model '{}': every dimension must be positive (layers {}, width {}, heads {}, key/value heads {}, "
           "vocabulary {}, "
           "sequence length {})",
           name, n_layer, n_embd, n_head, n_kv_head, vocab_size, seq_len);
  QT_CHECK(head_width >= 0 && n_inner >= 0, ConfigError,
           "model '{}': heads of {} and an MLP of {} are too narrow", name, head_width, n_inner);
  QT_CHECK(head_width > 0 || n_embd % n_head == 0, ConfigError,
           "model '{}': width {} is not divisible by {} heads", name, n_embd, n_head);
  QT_CHECK(!are_rotations(positions) || head_dim() % 2 == 0, ConfigError,
           "model '{}': head width {} is odd; RoPE rotates halves of it", name, head_dim());
  QT_CHECK(n_head % n_kv_head == 0, ConfigError,
           "model '{}': {} heads cannot share {} key/value heads evenly (--n-kv-head)", name, n_head,
           n_kv_head);
  QT_CHECK(dropout >= 0 && dropout < 1, ConfigError, "--dropout {} is not in [0, 1)", dropout);
}

std::span<const ShapeDimension> shape_dimensions() { return kDimensions; }

void ModelShape::copy_dimensions(const ModelShape& from) {
  for (const ShapeDimension& d : kDimensions) this->*d.asked = from.*d.asked;
}

void ModelShape::copy_dimensions(const ModelConfig& from) {
  for (const ShapeDimension& d : kDimensions) this->*d.asked = from.*d.made;
}

void ModelShape::clear_dimensions() { copy_dimensions(ModelShape{}); }

void ModelShape::leave_to_name() {
  for (const ShapeDimension& d : kDimensions) {
    if (d.of_name) this->*d.asked = 0;
  }
}

void ModelShape::resolve(const ModelConfig& model) {
  for (const ShapeDimension& d : kDimensions) {
    if (!d.of_name || !model.family->has_fixed_shapes()) this->*d.asked = model.*d.made;
  }
  vocab_size = model.vocab_size;
  seq_len = model.seq_len;
}

ModelConfig model_by_name(std::string_view name, const ModelShape& o) {
  const Family* const family = find_family(name);
  if (family == nullptr) throw_unknown(name);
  require_takes(*family, name, o);
  const auto pick = [](auto wanted, auto own) { return wanted > 0 ? wanted : own; };
  const NamedShape* const named = family->find_shape(name);
  const NamedShape shape = named != nullptr ? *named : NamedShape{name, 0, 0, 0};
  ModelConfig c{family->switches};
  c.family = family;
  c.name = std::string(name);
  c.n_layer = pick(o.n_layer, shape.n_layer);
  c.n_head = pick(o.n_head, shape.n_head);
  c.n_embd = pick(o.n_embd, shape.n_embd);
  c.head_width = shape.head_width;
  c.n_inner = shape.n_inner;
  c.n_kv_head = pick(o.n_kv_head, c.n_head);
  c.vocab_size = pick(o.vocab_size, family->vocab_size);
  c.seq_len = pick(o.seq_len, family->seq_len);
  c.norm_eps = pick(static_cast<float>(o.norm_eps), c.norm_eps);
  c.bias = o.bias;
  c.dropout = o.dropout;
  c.validate();
  return c;
}

std::int64_t default_seq_len(std::string_view model) {
  const Family* family = find_family(model);
  return family == nullptr ? ModelConfig().seq_len : family->seq_len;
}

std::int64_t model_vocab_size(std::string_view model, std::int64_t tokenizer_size) {
  const Family* f = find_family(model);
  if (f == nullptr || tokenizer_size < f->pad_vocab_from) return tokenizer_size;
  return (tokenizer_size + f->pad_vocab_to - 1) / f->pad_vocab_to * f->pad_vocab_to;
}

}  // namespace qt
