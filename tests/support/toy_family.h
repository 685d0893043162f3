// A family of models that lives in tests alone: all that another family needs is in this file, and nothing
// elsewhere knows it. src/model/family.h includes it where QTRAIN_FAMILIES names it; it is included in no other way.
//
// RMSNorm with a weight, RoPE without QK-norm, a gated MLP, widths of heads and MLP of its own, untied head; at
// Hugging Face queries, keys and values are one tensor, gate and fc another.
#pragma once

namespace qt::test {

inline constexpr NamedShape kToyShapes[] = {{"toy-small", 2, 2, 32, 24, 40}, {"toy-large", 4, 4, 64, 24, 80}};
inline constexpr HfField kToyHfFields[] = {
    {"vocab_size", &ModelConfig::vocab_size, HfUse::needed},
    {"hidden_size", &ModelConfig::n_embd, HfUse::needed},
    {"intermediate_size", &ModelConfig::mlp_width, HfUse::needed},
    {"num_hidden_layers", &ModelConfig::n_layer, HfUse::needed},
    {"num_attention_heads", &ModelConfig::n_head, HfUse::needed},
    {"num_key_value_heads", &ModelConfig::n_kv_head},
    {"max_position_embeddings", &ModelConfig::seq_len},
    {"head_dim", &ModelConfig::head_dim},
    {"toy_activation", "gelu"},
    {"norm_eps", &ModelConfig::norm_eps},
    {"rope_parameters", HfRope{}},
    {"tie_word_embeddings", &ModelConfig::tied_head},
};
inline constexpr TrainingDefaults::Option kToyTraining[] = {{"beta2", "0.99"}};

}  // namespace qt::test

namespace qt::families {

inline constinit const Family toy = {
    .name = "toy",
    .noun = "toy",
    .shapes = test::kToyShapes,
    .shapes_text = "toy-small, toy-large",
    .own_shape_example = "--n-layer 1 --n-head 1 --n-embd 16",
    .fixed_by = "its name",
    .fixed_hint = "use --model toy",
    .switches = {.norm = NormKind::weighted_rms,
                 .activation = Activation::gelu,
                 .qk_norm = false,
                 .gated_mlp = true,
                 .embedding_norm = false,
                 .norm_eps = 1e-4f,
                 .rope_base = 5000.0f,
                 .logit_softcap = 0},
    .vocab_size = 96,
    .seq_len = 16,
    .pad_vocab_from = 10,
    .pad_vocab_to = 8,
    .idle_params = [](const ModelConfig& c) { return c.vocab_size * c.n_embd; },
    .names = {.embedding = "tokens",
              .blocks = "block",
              .norm1 = "before_attention",
              .q = "query",
              .k = "key",
              .v = "value",
              .proj = "mixed",
              .norm2 = "before_mlp",
              .gate = "gate",
              .fc = "up",
              .mlp_proj = "down",
              .final_norm = "last_norm",
              .head = "unembed"},
    .inits = {.embedding = 0.5f,
              .head = 0.25f,
              .inner = [](std::int64_t, std::int64_t) { return 0.125f; },
              .residual = [](const ModelConfig& c) { return 0.25f / static_cast<float>(c.n_layer); }},
    .hf = {.class_name = "ToyForCausalLM",
           .model_type = "toy",
           .fields = test::kToyHfFields,
           .names = {.embedding = "model.embed",
                     .blocks = "model.layers",
                     .norm1 = "input_norm",
                     .q = "attention.qkv",
                     .k = "attention.qkv",
                     .v = "attention.qkv",
                     .proj = "attention.out",
                     .norm2 = "mlp_norm",
                     .gate = "mlp.gate_up",
                     .fc = "mlp.gate_up",
                     .mlp_proj = "mlp.down",
                     .final_norm = "model.norm",
                     .head = "lm_head"}},
    .training = {.options = test::kToyTraining, .learning_rate = "0.01"},
};

}  // namespace qt::families

#define QT_FOR_EACH_FAMILY(X) X(nanochat) X(gpt) X(toy)
