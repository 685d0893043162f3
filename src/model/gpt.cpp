// The gpt family: GPT-2 as nanoGPT trains it.
#include <cmath>

#include "src/model/family.h"

namespace qt {

namespace {

constexpr NamedShape kShapes[] = {{"gpt2", 12, 12, 768},
                                  {"gpt2-medium", 24, 16, 1024},
                                  {"gpt2-large", 36, 20, 1280},
                                  {"gpt2-xl", 48, 25, 1600}};

constexpr float kStddev = 0.02f;

float residual_stddev(const ModelConfig& c) {
  return static_cast<float>(0.02 / std::sqrt(2.0 * static_cast<double>(c.n_layer)));
}

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
};

}  // namespace qt
