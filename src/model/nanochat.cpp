// The nanochat family.
#include <algorithm>
#include <charconv>
#include <cmath>

#include <fmt/format.h>

#include "src/model/family.h"

namespace qt {

namespace {

constexpr std::int64_t kAspect = 64;  // n_embd = 64 * depth
constexpr std::int64_t kHeadDim = 128;

constexpr NamedShape named(std::string_view name, std::int64_t depth) {
  return {name, depth, kAspect * depth / kHeadDim, kAspect * depth};
}
constexpr NamedShape kShapes[] = {
    named("d2", 2),   named("d4", 4),   named("d6", 6),   named("d8", 8),   named("d10", 10),
    named("d12", 12), named("d14", 14), named("d16", 16), named("d18", 18), named("d20", 20),
    named("d22", 22), named("d24", 24), named("d26", 26), named("d28", 28), named("d30", 30),
    named("d32", 32), named("d34", 34),
};

std::string explain_unknown(std::string_view name) {
  std::int64_t depth = 0;
  const char* end = name.data() + name.size();
  if (name.size() < 2 || name[0] != 'd') return {};
  const auto [stop, error] = std::from_chars(name.data() + 1, end, depth);
  if (error != std::errc{} || stop != end) return {};
  const std::string plain = fmt::format("d{}", depth);
  if (families::nanochat.find_shape(plain) != nullptr)
    return fmt::format("model '{}' is written {}, without a leading zero", name, plain);
  if (depth % 2 == 0) return fmt::format("model '{}' is outside d2 .. d34", name);
  return fmt::format("model '{}' does not exist: width {} does not divide into heads of {} (odd depth)", name,
                     kAspect * depth, kHeadDim);
}

float inner_stddev(std::int64_t fan_out, std::int64_t fan_in) {
  const double in = static_cast<double>(fan_in), out = static_cast<double>(fan_out);
  return static_cast<float>(1.0 / std::sqrt(in) * std::min(1.0, std::sqrt(out / in)));
}

using C = ModelConfig;
constexpr HfField kHfFields[] = {
    {"vocab_size", &C::vocab_size, HfUse::needed},
    {"hidden_size", &C::n_embd, HfUse::needed},
    {"intermediate_size", &C::mlp_width, HfUse::needed},
    {"num_hidden_layers", &C::n_layer, HfUse::needed},
    {"num_attention_heads", &C::n_head, HfUse::needed},
    {"num_key_value_heads", &C::n_kv_head},
    {"max_position_embeddings", &C::seq_len, HfUse::needed},
    {"hidden_act", "relu2"},
    {"attention_bias", false},
    {"attention_dropout", 0.0, HfUse::unread},
    {"rms_norm_eps", &C::norm_eps, HfUse::optional, 1e-6},
    {"rope_parameters", HfRope{}},
    {"final_logit_softcapping", &C::logit_softcap},
    {"initializer_range", 0.02, HfUse::unread},
    {"tie_word_embeddings", &C::tied_head},
};

constexpr std::string_view kCompared[] = {"d20", "d24", "d26", "d28"};
constexpr std::string_view kCompareNotes[] = {
    "d21 does not exist: its width of 1,344 does not divide into heads of 128, and it would have",
    "0.63 billion parameters; the model of 1.3 billion is d28."};

}  // namespace

// As of October 2025, the architecture of d32 and of Hugging Face's NanoChatForCausalLM: pre-norm blocks
// without learned norm weights, RoPE by -theta with QK-norm after it, relu^2, softcapped logits, untied head.
constinit const Family families::nanochat = {
    .name = "nanochat",
    .noun = "nanochat model",
    .shapes = kShapes,
    .shapes_text = "d2, d4, d6 ... d34 (nanochat; width is 64 times the depth)",
    .own_shape_example = "--n-layer 4 --n-head 4 --n-embd 256; or use --model d4",
    .fixed_by = "its depth",
    .fixed_hint = "leave them out, or use --model gpt for a shape of your own",
    .explain_unknown = explain_unknown,
    .switches = {},
    .vocab_size = 65536,
    .seq_len = 2048,
    .idle_params = [](const ModelConfig& c) { return c.vocab_size * c.n_embd; },
    .names = kNanogptNames,
    .inits = {.embedding = 1,
              .head = 0,
              .inner = inner_stddev,
              .residual = [](const ModelConfig&) { return 0.0f; }},
    .hf = {.class_name = "NanoChatForCausalLM",
           .model_type = "nanochat",
           .fields = kHfFields,
           .names = {.embedding = "model.embed_tokens",
                     .blocks = "model.layers",
                     .q = "self_attn.q_proj",
                     .k = "self_attn.k_proj",
                     .v = "self_attn.v_proj",
                     .proj = "self_attn.o_proj",
                     .fc = "mlp.fc1",
                     .mlp_proj = "mlp.fc2",
                     .head = "lm_head"}},
    .compared = kCompared,
    .compare_notes = kCompareNotes,
};

}  // namespace qt
