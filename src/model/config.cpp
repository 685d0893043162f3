#include "src/model/config.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "src/core/error.h"

namespace qt {

namespace {

constexpr std::int64_t kAspect = 64;  // nanochat: n_embd = 64 * depth
constexpr std::int64_t kHeadDim = 128;
constexpr std::int64_t kMinDepth = 2;
constexpr std::int64_t kMaxDepth = 34;

constexpr std::string_view kOwnNanochat = "nanochat";  // a shape of one's own

constexpr std::int64_t kGptSeqLen = 1024;
constexpr std::int64_t kPadFrom = 4096;
constexpr std::int64_t kPadTo = 64;

constexpr const char* kHint =
    "use --model d2, d4, d6 ... d34 (nanochat; width is 64 times the depth), gpt2, gpt2-medium, gpt2-large, "
    "gpt2-xl, or gpt (or nanochat) with --n-layer, --n-head and --n-embd";

struct GptShape {
  std::string_view name;
  std::int64_t n_layer, n_head, n_embd;  // 0: has to be given
};
constexpr std::array<GptShape, 5> kGptShapes = {{{"gpt2", 12, 12, 768},
                                                 {"gpt2-medium", 24, 16, 1024},
                                                 {"gpt2-large", 36, 20, 1280},
                                                 {"gpt2-xl", 48, 25, 1600},
                                                 {"gpt", 0, 0, 0}}};

const GptShape* find_gpt(std::string_view name) {
  const auto it = std::find_if(kGptShapes.begin(), kGptShapes.end(),
                               [&](const GptShape& shape) { return shape.name == name; });
  return it == kGptShapes.end() ? nullptr : &*it;
}

ModelConfig gpt_model(const GptShape& shape, const ModelOverrides& o) {
  ModelConfig c;
  c.arch = "gpt";
  c.name = std::string(shape.name);
  c.n_layer = o.n_layer > 0 ? o.n_layer : shape.n_layer;
  c.n_head = o.n_head > 0 ? o.n_head : shape.n_head;
  c.n_embd = o.n_embd > 0 ? o.n_embd : shape.n_embd;
  if (c.n_layer == 0 || c.n_head == 0 || c.n_embd == 0) {
    throw ConfigError("--model gpt is a shape of your own: it needs --n-layer, --n-head and --n-embd",
                      "for example --n-layer 6 --n-head 6 --n-embd 384; or use --model gpt2");
  }
  c.vocab_size = 50304;
  c.seq_len = default_seq_len(shape.name);
  c.norm = NormKind::layer;
  c.activation = Activation::gelu;
  c.positions = Positions::learned;
  c.init = InitScheme::gpt2;
  c.embedding_norm = false;
  c.tied_head = true;
  c.norm_eps = 1e-5f;
  c.logit_softcap = 0;
  c.bias = o.bias.value_or(false);
  c.dropout = o.dropout.value_or(0.0);
  return c;
}

ModelConfig own_nanochat_model(const ModelOverrides& o) {
  if (o.n_layer == 0 || o.n_head == 0 || o.n_embd == 0) {
    throw ConfigError("--model nanochat is a shape of your own: it needs --n-layer, --n-head and --n-embd",
                      "for example --n-layer 4 --n-head 4 --n-embd 256; or use --model d4");
  }
  QT_CHECK(!o.bias.value_or(false) && o.dropout.value_or(0.0) == 0, ConfigError,
           "--model nanochat has neither biases nor dropout");
  ModelConfig c;
  c.name = std::string(kOwnNanochat);
  c.n_layer = o.n_layer;
  c.n_head = o.n_head;
  c.n_embd = o.n_embd;
  return c;
}

ModelConfig nanochat_model(std::string_view name, const ModelOverrides& o) {
  if (name == kOwnNanochat) return own_nanochat_model(o);
  std::int64_t depth = 0;
  const char* begin = name.data() + (name.empty() ? 0 : 1);
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(begin, end, depth);
  if (name.size() < 2 || name[0] != 'd' || error != std::errc{} || stop != end)
    throw ConfigError(fmt::format("unknown model '{}'", name), kHint);
  if (depth % 2 != 0) {
    throw ConfigError(
        fmt::format("model '{}' does not exist: width {} does not divide into heads of {} (odd depth)", name,
                    kAspect * depth, kHeadDim),
        kHint);
  }
  if (depth < kMinDepth || depth > kMaxDepth)
    throw ConfigError(fmt::format("model '{}' is outside d2 .. d34", name), kHint);
  if (o.n_layer > 0 || o.n_head > 0 || o.n_embd > 0 || o.bias.value_or(false) ||
      o.dropout.value_or(0.0) > 0) {
    throw ConfigError(
        fmt::format("model '{}' is fixed by its depth: it takes no --n-layer, --n-head, --n-embd, --bias or "
                    "--dropout",
                    name),
        "leave them out, or use --model gpt for a shape of your own");
  }
  ModelConfig c;
  c.name = std::string(name);
  c.n_layer = depth;
  c.n_embd = kAspect * depth;
  c.n_head = c.n_embd / kHeadDim;
  return c;
}

}  // namespace

std::int64_t ModelConfig::matrix_params() const {
  const std::int64_t mlp_matrices = gated_mlp ? 3 : 2;
  return n_layer * n_embd * (2 * q_width() + 2 * kv_width() + mlp_matrices * mlp_width());
}

std::int64_t ModelConfig::position_params() const {
  return positions == Positions::learned ? seq_len * n_embd : 0;
}

std::int64_t ModelConfig::vector_params() const {
  std::int64_t params = 0;
  const std::int64_t norms = 2 * n_layer + 1;  // that after the embedding has no weight
  if (norm != NormKind::rms) params += norms * n_embd * (bias && norm == NormKind::layer ? 2 : 1);
  // q; k and v; both projections; fc and gate
  if (bias) params += n_layer * (q_width() + 2 * kv_width() + 2 * n_embd + (gated_mlp ? 2 : 1) * mlp_width());
  return params;
}

std::int64_t ModelConfig::param_count() const {
  return matrix_params() + (tied_head ? 1 : 2) * vocab_size * n_embd + position_params() + vector_params();
}

double ModelConfig::model_flops_per_token() const {
  const std::int64_t idle = tied_head ? position_params() : vocab_size * n_embd;
  const double weights = static_cast<double>(param_count() - idle);
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
  QT_CHECK(positions != Positions::rope || head_dim() % 2 == 0, ConfigError,
           "model '{}': head width {} is odd; RoPE rotates halves of it", name, head_dim());
  QT_CHECK(n_head % n_kv_head == 0, ConfigError,
           "model '{}': {} heads cannot share {} key/value heads evenly (--n-kv-head)", name, n_head,
           n_kv_head);
  QT_CHECK(dropout >= 0 && dropout < 1, ConfigError, "--dropout {} is not in [0, 1)", dropout);
}

ModelConfig model_by_name(std::string_view name, const ModelOverrides& overrides) {
  const GptShape* shape = find_gpt(name);
  ModelConfig config = shape != nullptr ? gpt_model(*shape, overrides) : nanochat_model(name, overrides);
  config.n_kv_head = overrides.n_kv_head > 0 ? overrides.n_kv_head : config.n_head;
  if (overrides.vocab_size > 0) config.vocab_size = overrides.vocab_size;
  if (overrides.seq_len > 0) config.seq_len = overrides.seq_len;
  if (overrides.norm_eps > 0) config.norm_eps = static_cast<float>(overrides.norm_eps);
  config.validate();
  return config;
}

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (std::int64_t depth = kMinDepth; depth <= kMaxDepth; depth += 2)
    names.push_back(fmt::format("d{}", depth));
  for (const GptShape& shape : kGptShapes) names.emplace_back(shape.name);
  return names;
}

std::int64_t default_seq_len(std::string_view model) {
  return is_gpt_name(model) ? kGptSeqLen : ModelConfig().seq_len;
}

bool is_gpt_name(std::string_view name) { return find_gpt(name) != nullptr; }

std::int64_t model_vocab_size(std::string_view model, std::int64_t tokenizer_size) {
  if (!is_gpt_name(model) || tokenizer_size < kPadFrom) return tokenizer_size;
  return (tokenizer_size + kPadTo - 1) / kPadTo * kPadTo;
}

}  // namespace qt
