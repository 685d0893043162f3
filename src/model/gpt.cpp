// The gpt family: GPT-2 as nanoGPT trains it.
#include <cmath>

#include "src/model/family.h"

namespace qt {

namespace {

constexpr NamedShape kShapes[] = {{"gpt2", 12, 12, 768},
                                  {"gpt2-medium", 24, 16, 1024},
                                  {"gpt2-large", 36, 20, 1280},
                                  {"gpt2-xl", 48, 25, 1600}};

// nanoGPT's.
constexpr TrainingDefaults::Option kTraining[] = {
    {"beta1", "0.9"},       {"beta2", "0.95"},   {"eps", "1e-8"},           {"weight-decay", "0.1"},
    {"schedule", "cosine"}, {"final-lr", "0.1"}, {"split-pattern", "gpt2"},
};
constexpr std::string_view kCompared[] = {"gpt2", "gpt2-medium", "gpt2-large"};

constexpr float kStddev = 0.02f;

float residual_stddev(const ModelConfig& c) {
  return static_cast<float>(0.02 / std::sqrt(2.0 * static_cast<double>(c.n_layer)));
}

using C = ModelConfig;
constexpr std::string_view kTanhGelu[] = {"gelu_new", "gelu_pytorch_tanh"};
constexpr HfField kHfFields[] = {
    {"vocab_size", &C::vocab_size, HfUse::needed},
    {"n_positions", &C::seq_len},
    {"n_ctx", &C::seq_len},
    {"n_embd", &C::n_embd, HfUse::needed},
    {"n_layer", &C::n_layer, HfUse::needed},
    {"n_head", &C::n_head, HfUse::needed},
    {"n_inner", &C::mlp_width},
    {"activation_function", "gelu", HfUse::optional, "gelu_new", kTanhGelu,  // "gelu" is the exact one
     "trained with the tanh form of GELU ({}); the exact one is computed here, which changes logits a little"},
    {"layer_norm_epsilon", &C::norm_eps},
    {"resid_pdrop", 0.0, HfUse::unread},
    {"embd_pdrop", 0.0, HfUse::unread},
    {"attn_pdrop", 0.0, HfUse::unread},
    {"initializer_range", 0.02, HfUse::unread},
    {"scale_attn_weights", true},
    {"scale_attn_by_inverse_layer_idx", false},
    {"reorder_and_upcast_attn", false, HfUse::unread},
    {"add_cross_attention", false},
    {"tie_word_embeddings", &C::tied_head},
    // Not transformers': its GPT-2 always has biases, and those of a model without are zero.
    {"bias", &C::bias, HfUse::optional, true},
};
constexpr std::string_view kMaskBuffers[] = {".attn.bias", ".attn.masked_bias"};

}  // namespace

// LayerNorm, learned positions, exact-erf GELU, tied head, biases and dropout where asked for. nanoGPT makes
// 50,304 of GPT-2's 50,257 tokens.
constinit const Family families::gpt = {
    .name = "gpt",
    .noun = "GPT",
    .shapes = kShapes,
    .shapes_text = "gpt2, gpt2-medium, gpt2-large, gpt2-xl",
    .own_shape_example = "--n-layer 6 --n-head 6 --n-embd 384; or use --model gpt2",
    .switches = {.norm = NormKind::layer,
                 .activation = Activation::gelu,
                 .positions = Positions::learned,
                 .embedding_norm = false,
                 .tied_head = true,
                 .norm_eps = 1e-5f,
                 .logit_softcap = 0},
    .has_bias_and_dropout = true,
    .vocab_size = 50304,
    .seq_len = 1024,
    .pad_vocab_from = 4096,
    .pad_vocab_to = 64,
    .idle_params = [](const ModelConfig& c) { return c.position_params(); },
    .names = kNanogptNames,
    .inits = {.embedding = kStddev,
              .inner = [](std::int64_t, std::int64_t) { return kStddev; },
              .residual = residual_stddev},
    .hf = {.class_name = "GPT2LMHeadModel",
           .model_type = "gpt2",
           .fields = kHfFields,
           .names = {.embedding = "transformer.wte",
                     .positions = "transformer.wpe",
                     .blocks = "transformer.h",
                     .norm1 = "ln_1",
                     .q = "attn.c_attn",
                     .k = "attn.c_attn",
                     .v = "attn.c_attn",
                     .proj = "attn.c_proj",
                     .norm2 = "ln_2",
                     .fc = "mlp.c_fc",
                     .mlp_proj = "mlp.c_proj",
                     .final_norm = "transformer.ln_f",
                     .head = "lm_head"},
           .shares_kv_heads = false,
           .transposed = true,
           .always_biased = true,
           .optional_prefix = "transformer.",  // OpenAI's own files lack it
           .ignored_endings = kMaskBuffers},
    .training = {.options = kTraining, .learning_rate = "6e-4"},
    .compared = kCompared,
};

}  // namespace qt
