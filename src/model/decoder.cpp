#include "src/model/decoder.h"

#include <algorithm>
#include <utility>

namespace qt {

namespace {

AttentionFwd attention_op(const ModelConfig& c, DType t, std::byte* any, std::int64_t queries,
                          std::int64_t keys) {
  return AttentionFwd{.q = TensorView(any, t, {1, queries, c.n_head, c.head_dim()}),
                      .k = TensorView(any, t, {1, keys, c.n_kv_head, c.head_dim()}),
                      .v = TensorView(any, t, {1, keys, c.n_kv_head, c.head_dim()}),
                      .y = TensorView(any, t, {1, queries, c.n_head, c.head_dim()}),
                      .lse = TensorView(any, DType::f32, {1, c.n_head, queries}),
                      .scratch = {},
                      .scale = 1};
}

}  // namespace

Decoder::Decoder(Model& model, std::int64_t max_tokens)
    : model_(model), max_tokens_(max_tokens), piece_tokens_(std::min(kPrefillTokens, max_tokens)) {
  const ModelConfig& c = model_.config();
  QT_CHECK(max_tokens >= 1 && max_tokens <= c.seq_len, ConfigError,
           "prompt and continuation together may have 1 to {} tokens (the model's sequence length), got {}",
           c.seq_len, max_tokens);
  Arena& step = model_.ctx_.step;
  const DType t = model_.options().compute;
  const std::int64_t P = piece_tokens_, C = c.n_embd, H = c.n_head, G = c.n_kv_head, D = c.head_dim(),
                     F = c.mlp_width();
  constexpr MemoryTag kAct = MemoryTag::activations;
  for (std::int64_t l = 0; l < c.n_layer; ++l) {
    k_cache_.push_back(step.alloc("cache.k", MemoryTag::cache, t, {max_tokens_, G, D}));
    v_cache_.push_back(step.alloc("cache.v", MemoryTag::cache, t, {max_tokens_, G, D}));
  }
  ids_ = step.alloc("ids", MemoryTag::inputs, DType::i32, {P});
  x_ = step.alloc("x", kAct, t, {P, C});
  x1_ = step.alloc("block.mid", kAct, t, {P, C});
  a_ = step.alloc("norm", kAct, t, {P, C});
  q_ = step.alloc("attn.q", kAct, t, {P, H, D});
  y_ = step.alloc("attn.y", kAct, t, {P, H, D});
  h_ = step.alloc("mlp.h", kAct, t, {P, F});
  r_ = step.alloc("mlp.act", kAct, t, {P, F});
  if (model_.final_norm().needs_input()) mean_ = step.alloc("mean", kAct, DType::f32, {P});
  rstd_ = step.alloc("rstd", kAct, DType::f32, {P * H});
  lse_ = step.alloc("attn.lse", kAct, DType::f32, {P * H});
  logits_ = step.alloc("logits", MemoryTag::logits, DType::f32, {1, c.vocab_size});

  const Target& target = model_.backend_.target();
  std::int64_t bytes = 0;
  for (std::int64_t n = 1; n <= P; ++n) {
    for (const std::int64_t keys : {n, max_tokens_}) {
      bytes = std::max(bytes, scratch_bytes(attention_op(c, t, x_->data, n, keys), target));
    }
  }
  for (const Linear* linear : {&model_.blocks_[0].q(), &model_.blocks_[0].k(), &model_.blocks_[0].proj(),
                               &model_.blocks_[0].fc(), &model_.blocks_[0].mlp_proj()}) {
    bytes = std::max(bytes, linear->forward_scratch_bytes(target, t, P));
  }
  bytes = std::max(bytes, model_.head().forward_scratch_bytes(target, t, 1));
  if (bytes > 0) scratch_ = step.alloc("scratch", MemoryTag::scratch, DType::u8, {bytes});
}

void Decoder::feed(std::span<const std::int32_t> tokens, std::span<float> logits) {
  const ModelConfig& c = model_.config();
  QT_CHECK(!tokens.empty() && position_ + static_cast<std::int64_t>(tokens.size()) <= max_tokens_,
           ConfigError, "{} tokens after {} do not fit the {} planned for this text", tokens.size(),
           position_, max_tokens_);
  while (!tokens.empty()) {
    const std::size_t n = std::min(tokens.size(), static_cast<std::size_t>(piece_tokens_));
    feed_piece(tokens.first(n));
    tokens = tokens.subspan(n);
    if (!tokens.empty()) continue;
    Backend& be = model_.backend_;
    const TensorView last = x_->rows(static_cast<std::int64_t>(n) - 1, 1), normed = a_->rows(0, 1);
    norm(model_.final_norm(), last, normed);
    model_.head().forward_in(be, normed, logits_, scratch_);
    if (c.logit_softcap > 0) be.run(Softcap{.x = logits_->flat(), .softcap = c.logit_softcap});
    be.download(logits_, std::as_writable_bytes(logits));
  }
}

void Decoder::feed_piece(std::span<const std::int32_t> tokens) {
  Backend& be = model_.backend_;
  const ModelConfig& c = model_.config();
  const std::int64_t n = static_cast<std::int64_t>(tokens.size());
  be.upload(std::as_bytes(tokens), ids_->rows(0, n));
  const TensorView x = x_->rows(0, n);
  EmbeddingFwd embedding{
      .ids = ids_->rows(0, n), .table = model_.params_[model_.roles_.embedding].weight.dense, .y = x};
  if (model_.roles_.positions) {
    embedding.positions = model_.params_[*model_.roles_.positions].weight.dense;
    embedding.T = n;
    embedding.first_position = position_;
  }
  be.run(embedding);
  if (c.embedding_norm) be.run(RmsNormFwd{.x = x, .y = x, .rstd = rstd_->flat(0, n), .eps = c.norm_eps});
  for (std::size_t l = 0; l < model_.blocks_.size(); ++l) block(l, n);
  position_ += n;
}

void Decoder::norm(const Norm& norm, const TensorView& x, const TensorView& y) {
  const std::int64_t n = x.dim(0);
  norm.forward(model_.backend_, x, y, rstd_->flat(0, n), mean_->defined() ? mean_->flat(0, n) : TensorView());
}

void Decoder::block(std::size_t index, std::int64_t n) {
  Backend& be = model_.backend_;
  const ModelConfig& c = model_.config();
  const Block& block = model_.blocks_[index];
  const std::int64_t H = c.n_head, G = c.n_kv_head, D = c.head_dim(), keys = position_ + n;
  const TensorView x = x_->rows(0, n), x1 = x1_->rows(0, n), a = a_->rows(0, n), h = h_->rows(0, n),
                   r = r_->rows(0, n);
  const TensorView q = q_->rows(0, n), y = y_->rows(0, n);
  const TensorView k_new = k_cache_[index]->rows(position_, n), v_new = v_cache_[index]->rows(position_, n);

  norm(block.norm1(), x, a);
  block.q().forward_in(be, a, q.reshape({n, H * D}), scratch_);
  block.k().forward_in(be, a, k_new.reshape({n, G * D}), scratch_);
  block.v().forward_in(be, a, v_new.reshape({n, G * D}), scratch_);
  if (c.positions == Positions::rope) {
    for (const auto& [view, heads] : {std::pair{q, H}, std::pair{k_new, G}}) {
      be.run(RopeNormFwd{.x = view,
                         .y = view,
                         .rstd = rstd_->flat(0, n * heads).reshape({n, heads}),
                         .cos = model_.rope_.cos,
                         .sin = model_.rope_.sin,
                         .T = n,
                         .first_position = position_,
                         .eps = c.norm_eps});
    }
  }
  be.run(AttentionFwd{.q = q.reshape({1, n, H, D}),
                      .k = k_cache_[index]->rows(0, keys).reshape({1, keys, G, D}),
                      .v = v_cache_[index]->rows(0, keys).reshape({1, keys, G, D}),
                      .y = y.reshape({1, n, H, D}),
                      .lse = lse_->flat(0, H * n).reshape({1, H, n}),
                      .scratch = scratch_,
                      .scale = block.attention_scale()});
  block.proj().forward_in(be, y.reshape({n, H * D}), x1, scratch_);
  be.run(Add{.a = x, .b = x1, .y = x1});
  norm(block.norm2(), x1, a);
  block.fc().forward_in(be, a, h, scratch_);
  block.activate(be, h, r);
  block.mlp_proj().forward_in(be, r, x, scratch_);
  be.run(Add{.a = x1, .b = x, .y = x});
}

}  // namespace qt
