#include "src/model/config.h"

#include <charconv>

#include "src/core/error.h"

namespace qt {

namespace {

constexpr std::int64_t kAspect = 64;  // n_embd = 64 * depth
constexpr std::int64_t kHeadDim = 128;
constexpr std::int64_t kMinDepth = 2;
constexpr std::int64_t kMaxDepth = 34;

}  // namespace

std::int64_t ModelConfig::matrix_params() const {
  return n_layer * (2 * n_embd * n_embd + 2 * n_embd * kv_width() + 2 * n_embd * mlp_width());
}

std::int64_t ModelConfig::param_count() const { return matrix_params() + 2 * vocab_size * n_embd; }

double ModelConfig::model_flops_per_token() const {
  const double weights = static_cast<double>(param_count() - vocab_size * n_embd);
  return 6.0 * weights + 12.0 * static_cast<double>(n_layer * n_embd) * static_cast<double>(seq_len);
}

void ModelConfig::validate() const {
  QT_CHECK(n_layer >= 1 && n_embd >= 2 && n_head >= 1 && n_kv_head >= 1 && vocab_size >= 2 && seq_len >= 1,
           ConfigError,
           "model '{}': every dimension must be positive (layers {}, width {}, heads {}, key/value heads {}, "
           "vocabulary {}, "
           "sequence length {})",
           name, n_layer, n_embd, n_head, n_kv_head, vocab_size, seq_len);
  QT_CHECK(n_embd % n_head == 0, ConfigError, "model '{}': width {} is not divisible by {} heads", name,
           n_embd, n_head);
  QT_CHECK(head_dim() % 2 == 0, ConfigError, "model '{}': head width {} is odd; RoPE rotates halves of it",
           name, head_dim());
  QT_CHECK(n_head % n_kv_head == 0, ConfigError,
           "model '{}': {} heads cannot share {} key/value heads evenly (--n-kv-head)", name, n_head,
           n_kv_head);
}

ModelConfig model_by_name(std::string_view name, const ModelOverrides& overrides) {
  constexpr const char* kHint = "use --model d2, d4, d6 ... d34 (nanochat; width is 64 times the depth)";
  std::int64_t depth = 0;
  const char* begin = name.data() + (name.empty() ? 0 : 1);
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(begin, end, depth);
  if (name.size() < 2 || name[0] != 'd' || error != std::errc{} || stop != end) {
    throw ConfigError(fmt::format("unknown model '{}'", name), kHint);
  }
  if (depth % 2 != 0) {
    const std::int64_t width = kAspect * depth;
    throw ConfigError(
        fmt::format("model '{}' does not exist: width {} does not divide into heads of {} (odd depth)", name,
                    width, kHeadDim),
        kHint);
  }
  if (depth < kMinDepth || depth > kMaxDepth)
    throw ConfigError(fmt::format("model '{}' is outside d2 .. d34", name), kHint);

  ModelConfig config;
  config.name = std::string(name);
  config.n_layer = depth;
  config.n_embd = kAspect * depth;
  config.n_head = config.n_embd / kHeadDim;
  config.n_kv_head = overrides.n_kv_head > 0 ? overrides.n_kv_head : config.n_head;
  if (overrides.vocab_size > 0) config.vocab_size = overrides.vocab_size;
  if (overrides.seq_len > 0) config.seq_len = overrides.seq_len;
  config.validate();
  return config;
}

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (std::int64_t depth = kMinDepth; depth <= kMaxDepth; depth += 2)
    names.push_back(fmt::format("d{}", depth));
  return names;
}

}  // namespace qt
