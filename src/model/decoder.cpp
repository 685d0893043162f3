#include "src/model/decoder.h"

#include <algorithm>
#include <memory>
#include <utility>

namespace qt {

Decoder::Decoder(Model& model, std::int64_t max_tokens)
    : model_(model),
      max_tokens_(max_tokens),
      piece_tokens_(std::min(kPrefillTokens, max_tokens)),
      ctx_{model.context().backend, memory_} {
  const std::int64_t most = model.config().seq_len;
  QT_CHECK(max_tokens >= 1 && max_tokens <= most, ConfigError,
           "prompt and continuation together may have 1 to {} tokens (the model's sequence length), got {}",
           most, max_tokens);
  BufferSource& step = model.context().step;
  plan_buffers(step);
  if (const std::int64_t bytes = largest_scratch_bytes(); bytes > 0)
    memory_.set_scratch(step.alloc("scratch", MemoryTag::scratch, DType::u8, {bytes}));
}

void Decoder::plan_buffers(BufferSource& step) {
  const ModelConfig& c = model_.config();
  const DType t = model_.options().compute;
  const std::int64_t P = piece_tokens_, C = c.n_embd, H = c.n_head, G = c.n_kv_head, D = c.head_dim(),
                     F = c.mlp_width();
  constexpr MemoryTag kAct = MemoryTag::activations;
  for (std::int64_t l = 0; l < c.n_layer; ++l) {
    Buffer k = step.alloc("cache.k", MemoryTag::cache, t, {max_tokens_, G, D});
    Buffer v = step.alloc("cache.v", MemoryTag::cache, t, {max_tokens_, G, D});
    caches_.push_back({.k = k, .v = v});
    cache_buffers_.push_back(std::move(k));
    cache_buffers_.push_back(std::move(v));
  }
  memory_.add(step.alloc("ids", MemoryTag::inputs, DType::i32, {P}), {"ids"});
  // A block's output takes the place of its input, and so do the norms' outputs that of the earlier ones.
  memory_.add(step.alloc("x", kAct, t, {P, C}), {"x", "block.out"});
  memory_.add(step.alloc("block.mid", kAct, t, {P, C}), {"block.mid"});
  memory_.add(step.alloc("norm", kAct, t, {P, C}), {"attn.norm", "mlp.norm"});
  memory_.add(step.alloc("attn.q", kAct, t, {P, H, D}), {"attn.q"});
  memory_.add(step.alloc("attn.y", kAct, t, {P, H, D}), {"attn.y"});
  memory_.add(step.alloc("mlp.h", kAct, t, {P, F}), {"mlp.h"});
  if (c.gated_mlp) memory_.add(step.alloc("mlp.gate", kAct, t, {P, F}), {"mlp.gate"});
  memory_.add(step.alloc("mlp.act", kAct, t, {P, F}), {"mlp.act"});
  if (has_mean(c.norm)) memory_.add(step.alloc("mean", kAct, DType::f32, {P}), {"norm.mean"});
  memory_.add(step.alloc("rstd", kAct, DType::f32, {P * H}),
              {"norm.rstd", "x.rstd", "attn.rstd_q", "attn.rstd_k"});
  memory_.add(step.alloc("attn.lse", kAct, DType::f32, {P * H}), {"attn.lse"});
  logits_ = step.alloc("logits", MemoryTag::logits, DType::f32, {1, c.vocab_size});
}

std::int64_t Decoder::largest_scratch_bytes() {
  const std::unique_ptr<Backend> counting = make_backend("null", ctx_.backend.target());
  StepContext ctx{*counting, memory_};
  const DType t = model_.options().compute;
  // Not monotonic in the tokens: a few rows may be split along K where many are not.
  for (std::int64_t n = 1; n <= piece_tokens_; ++n) {
    const Buffer x_NC = memory_.alloc("x", MemoryTag::activations, t, {n, model_.config().n_embd});
    for (const std::int64_t first : {std::int64_t{0}, max_tokens_ - n}) {
      BlockActivations act;
      model_.blocks().front().forward(ctx, x_NC, batch_at(first), caches_.front(), act, x_NC);
    }
    if (n == 1) model_.head(ctx, x_NC, logits_);
  }
  return memory_.scratch_bytes();
}

void Decoder::feed(std::span<const std::int32_t> tokens, std::span<float> logits) {
  QT_CHECK(!tokens.empty() && position_ + static_cast<std::int64_t>(tokens.size()) <= max_tokens_,
           ConfigError, "{} tokens after {} do not fit the {} planned for this text", tokens.size(),
           position_, max_tokens_);
  while (!tokens.empty()) {
    const std::size_t n = std::min(tokens.size(), static_cast<std::size_t>(piece_tokens_));
    const Buffer x_NC = model_.hidden(ctx_, tokens.first(n), batch_at(position_), caches_);
    position_ += static_cast<std::int64_t>(n);
    tokens = tokens.subspan(n);
    if (!tokens.empty()) continue;
    const TensorView last = x_NC->rows(static_cast<std::int64_t>(n) - 1, 1);
    model_.final_norm(ctx_, last);
    model_.head(ctx_, last, logits_);
    ctx_.backend.download(logits_, std::as_writable_bytes(logits));
  }
}

}  // namespace qt
