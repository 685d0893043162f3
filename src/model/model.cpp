#include "src/model/model.h"

#include <algorithm>
#include <cmath>

namespace qt {

namespace {

// Every gradient starts on such a boundary: optimizer slabs, quantiser blocks and 8-bit state blocks then
// start together.
constexpr std::int64_t kParamAlignment = 256;

std::int64_t aligned_elems(std::int64_t elems) {
  return (elems + kParamAlignment - 1) / kParamAlignment * kParamAlignment;
}

// nanochat's inits: sigma = 1 / sqrt(fan_in) * min(1, sqrt(fan_out / fan_in)) for what feeds attention and
// the MLP, zero for every projection back into the residual stream and for the head, N(0, 1) for the
// embedding.
float linear_stddev(std::int64_t fan_out, std::int64_t fan_in) {
  const double in = static_cast<double>(fan_in), out = static_cast<double>(fan_out);
  return static_cast<float>(1.0 / std::sqrt(in) * std::min(1.0, std::sqrt(out / in)));
}

ParamList nanochat_params(const ModelConfig& c) {
  ParamList params;
  const auto add = [&](std::string name, ParamGroup group, std::int64_t N, std::int64_t K, float stddev) {
    Param p;
    p.name = std::move(name);
    p.group = group;
    p.N = N;
    p.K = K;
    p.init.stddev = stddev;
    p.rng_stream = params.size();
    params.push_back(std::move(p));
  };
  const std::int64_t C = c.n_embd, Q = c.n_embd, KV = c.kv_width(), F = c.mlp_width();
  add("transformer.wte.weight", ParamGroup::embedding, c.vocab_size, C, 1.0f);
  for (std::int64_t i = 0; i < c.n_layer; ++i) {
    const std::string prefix = fmt::format("transformer.h.{}.", i);
    add(prefix + "attn.c_q.weight", ParamGroup::matrix, Q, C, linear_stddev(Q, C));
    add(prefix + "attn.c_k.weight", ParamGroup::matrix, KV, C, linear_stddev(KV, C));
    add(prefix + "attn.c_v.weight", ParamGroup::matrix, KV, C, linear_stddev(KV, C));
    add(prefix + "attn.c_proj.weight", ParamGroup::matrix, C, Q, 0.0f);
    add(prefix + "mlp.c_fc.weight", ParamGroup::matrix, F, C, linear_stddev(F, C));
    add(prefix + "mlp.c_proj.weight", ParamGroup::matrix, C, F, 0.0f);
  }
  add("lm_head.weight", ParamGroup::head, c.vocab_size, C, 0.0f);
  return params;
}

constexpr std::size_t kParamsPerBlock = 6;

}  // namespace

Model::Model(Backend& backend, Arena& state, Arena& step, ModelConfig config, ModelOptions options)
    : backend_(backend), ctx_{backend, step}, config_(std::move(config)), options_(options) {
  config_.validate();
  QT_CHECK(options_.micro_batch_rows >= 1, ConfigError, "--micro-batch must be at least 1 row, got {}",
           options_.micro_batch_rows);
  QT_CHECK(options_.compute == DType::f32 || options_.compute == DType::bf16, ConfigError,
           "--dtype {} is not available for this model; use f32 or bf16", dtype_name(options_.compute));
  const std::int64_t fitting = kLogitsChunkBytes / (config_.vocab_size * dtype_bytes(DType::f32));
  chunk_tokens_ =
      options_.loss_chunk_tokens > 0 ? options_.loss_chunk_tokens : std::max<std::int64_t>(fitting, 1);
  chunk_tokens_ = std::min(chunk_tokens_, batch_tokens());

  params_ = nanochat_params(config_);
  place(state);
  blocks_.reserve(static_cast<std::size_t>(config_.n_layer));
  for (std::int64_t i = 0; i < config_.n_layer; ++i) {
    blocks_.emplace_back(config_, &params_[1 + static_cast<std::size_t>(i) * kParamsPerBlock],
                         options_.weights);
  }
}

void Model::place(Arena& state) {
  std::int64_t gradient_elems = 0;
  for (Param& p : params_) {
    p.packed = p.group == ParamGroup::matrix && options_.weights != FormatId::none;
    if (p.packed) {
      p.codes = state.keep(p.name, MemoryTag::weights, DType::u8, {code_bytes(options_.weights, p.elems())});
      p.absmax =
          state.keep(p.name, MemoryTag::weights, DType::f32, {scale_count(options_.weights, p.elems())});
    } else {
      p.compute = state.keep(p.name, MemoryTag::weights, options_.compute, {p.N, p.K});
    }
    gradient_elems += aligned_elems(p.elems());
  }
  if (options_.gradients) {
    gradients_ = state.keep("gradients", MemoryTag::gradients, options_.gradient, {gradient_elems});
    std::int64_t first = 0;
    for (Param& p : params_) {
      p.grad = gradients_.flat(first, p.elems()).reshape({p.N, p.K});
      first += aligned_elems(p.elems());
    }
  }
  rope_.cos =
      state.keep("rope.cos", MemoryTag::weights, options_.compute, {config_.seq_len, config_.head_dim() / 2});
  rope_.sin =
      state.keep("rope.sin", MemoryTag::weights, options_.compute, {config_.seq_len, config_.head_dim() / 2});
}

void Model::prepare() {
  backend_.run(RopeTable{.cos = rope_.cos, .sin = rope_.sin, .base = config_.rope_base});
}

Buffer Model::upload_ids(const char* name, std::span<const std::int32_t> ids) {
  QT_CHECK(static_cast<std::int64_t>(ids.size()) == batch_tokens(), ShapeError,
           "a micro-batch has {} tokens, got {}", batch_tokens(), ids.size());
  Buffer ids_N = ctx_.step.alloc(name, MemoryTag::inputs, DType::i32, {batch_tokens()});
  backend_.upload(std::as_bytes(ids), ids_N);
  return ids_N;
}

Buffer Model::forward_hidden(std::span<const std::int32_t> ids) {
  const std::int64_t N = batch_tokens(), C = config_.n_embd, B = options_.micro_batch_rows;
  const DType t = options_.compute;
  Buffer x_NC = ctx_.step.alloc("x", MemoryTag::activations, t, {N, C});
  const Buffer rstd_N = ctx_.step.alloc("x.rstd", MemoryTag::activations, DType::f32, {N});
  {
    const Buffer ids_N = upload_ids("ids", ids);
    backend_.run(EmbeddingFwd{.ids = ids_N, .table = params_.front().compute, .y = x_NC});
  }
  backend_.run(RmsNormFwd{.x = x_NC, .y = x_NC, .rstd = rstd_N, .eps = config_.norm_eps});
  for (const Block& block : blocks_) {
    Buffer out_NC = ctx_.step.alloc("block.out", MemoryTag::activations, t, {N, C});
    {
      BlockActivations act;
      block.forward(ctx_, x_NC, B, rope_, act, out_NC);
    }
    x_NC = std::move(out_NC);
  }
  backend_.run(RmsNormFwd{.x = x_NC, .y = x_NC, .rstd = rstd_N, .eps = config_.norm_eps});
  return x_NC;
}

void Model::loss_chunks(const TensorView& xf_NC, const TensorView& targets_N, const TensorView& totals,
                        float grad_scale, const TensorView& dx_NC) {
  const std::int64_t N = xf_NC.dim(0), V = config_.vocab_size;
  const Linear head(params_.back(), FormatId::none);
  const Buffer logits_MV = ctx_.step.alloc("loss.logits", MemoryTag::logits, DType::f32, {chunk_tokens_, V});
  const Buffer nll_M = ctx_.step.alloc("loss.nll", MemoryTag::logits, DType::f32, {chunk_tokens_});
  for (std::int64_t first = 0; first < N; first += chunk_tokens_) {
    const std::int64_t M = std::min(chunk_tokens_, N - first);
    const TensorView x_MC = xf_NC.rows(first, M), targets_M = targets_N.rows(first, M);
    const TensorView z_MV = logits_MV->rows(0, M), loss_M = nll_M->rows(0, M);
    head.forward(ctx_, x_MC, z_MV);
    SoftcapCrossEntropy op{.logits = z_MV,
                           .targets = targets_M,
                           .nll = loss_M,
                           .dlogits = {},
                           .softcap = config_.logit_softcap,
                           .grad_scale = grad_scale};
    if (dx_NC.defined()) op.dlogits = dlogits_view(z_MV, options_.compute);
    backend_.run(op);
    backend_.run(SumLoss{.nll = loss_M, .targets = targets_M, .totals = totals});
    if (!dx_NC.defined()) continue;
    head.backward_weight(ctx_, op.dlogits, x_MC);
    head.backward_input(ctx_, op.dlogits, dx_NC.rows(first, M));
  }
}

void Model::forward_backward(const HostBatch& batch, float grad_scale, const TensorView& totals) {
  Arena& step = ctx_.step;
  const std::int64_t N = batch_tokens(), C = config_.n_embd, B = options_.micro_batch_rows;
  const DType t = options_.compute;
  const std::size_t L = blocks_.size();
  const bool keep_all = !options_.checkpoint_activations;

  const Buffer ids_N = upload_ids("ids", batch.ids);
  const Buffer targets_N = upload_ids("targets", batch.targets);

  // x[l] is the input of block l. With checkpointing all of them live to their block's backward; without,
  // only x[0] does (the first norm's gradient needs it), because a block's backward reads its kept
  // activations alone.
  std::vector<Buffer> x(L + 1);
  std::vector<BlockActivations> kept(keep_all ? L : 0);
  x[0] = step.alloc("x", MemoryTag::activations, t, {N, C});
  const Buffer rstd0_N = step.alloc("x.rstd", MemoryTag::activations, DType::f32, {N});
  backend_.run(EmbeddingFwd{.ids = ids_N, .table = params_.front().compute, .y = x[0]});
  backend_.run(RmsNormFwd{.x = x[0], .y = x[0], .rstd = rstd0_N, .eps = config_.norm_eps});
  for (std::size_t l = 0; l < L; ++l) {
    x[l + 1] = step.alloc("block.out", MemoryTag::activations, t, {N, C});
    BlockActivations passing;
    blocks_[l].forward(ctx_, x[l], B, rope_, keep_all ? kept[l] : passing, x[l + 1]);
    if (keep_all && l > 0) x[l].release();
  }

  // The last norm works in place: its gradient needs only its output.
  Buffer& xf_NC = x[L];
  const Buffer rstdf_N = step.alloc("final.rstd", MemoryTag::activations, DType::f32, {N});
  backend_.run(RmsNormFwd{.x = xf_NC, .y = xf_NC, .rstd = rstdf_N, .eps = config_.norm_eps});

  const Buffer dx_NC = step.alloc("dx", MemoryTag::activations, t, {N, C});
  loss_chunks(xf_NC, targets_N, totals, grad_scale, dx_NC);
  backend_.run(RmsNormBwd{.y = xf_NC, .rstd = rstdf_N, .dy = dx_NC, .dx = dx_NC});
  xf_NC.release();

  for (std::size_t l = L; l-- > 0;) {
    BlockActivations recomputed;
    if (!keep_all) blocks_[l].recompute(ctx_, x[l], B, rope_, recomputed);
    if (!keep_all && l > 0) x[l].release();
    blocks_[l].backward(ctx_, keep_all ? kept[l] : recomputed, B, rope_, dx_NC);
  }
  backend_.run(RmsNormBwd{.y = x[0], .rstd = rstd0_N, .dy = dx_NC, .dx = dx_NC});
  run_with_scratch(ctx_,
                   EmbeddingBwd{.ids = ids_N, .dy = dx_NC, .dtable = params_.front().grad, .scratch = {}});
}

void Model::evaluate(const HostBatch& batch, const TensorView& totals) {
  const Buffer targets_N = upload_ids("targets", batch.targets);
  const Buffer xf_NC = forward_hidden(batch.ids);
  loss_chunks(xf_NC, targets_N, totals, 0.0f, {});
}

void Model::logits(std::span<const std::int32_t> ids, std::span<float> out) {
  const std::int64_t N = batch_tokens(), V = config_.vocab_size;
  const Buffer xf_NC = forward_hidden(ids);
  const Buffer logits_NV = ctx_.step.alloc("logits", MemoryTag::logits, DType::f32, {N, V});
  Linear(params_.back(), FormatId::none).forward(ctx_, xf_NC, logits_NV);
  backend_.run(Softcap{.x = logits_NV->flat(), .softcap = config_.logit_softcap});
  if (!out.empty()) backend_.download(logits_NV, std::as_writable_bytes(out));
}

}  // namespace qt
