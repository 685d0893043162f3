#include "src/model/model.h"

#include <algorithm>
#include <utility>

#include "kernels/scratch.h"

namespace qt {

namespace {

// Every gradient starts on such a boundary: optimizer slabs, quantizer blocks and 8-bit state blocks then
// start together.
constexpr std::int64_t kParamAlignment = 256;
// Of dropout; the blocks count on from here.
constexpr std::uint64_t kEmbeddingPlace = 0;

Buffer upload_ids(StepContext& ctx, const char* name, std::span<const std::int32_t> ids) {
  Buffer ids_N = ctx.step.alloc(name, MemoryTag::inputs, DType::i32, {static_cast<std::int64_t>(ids.size())});
  ctx.backend.upload(std::as_bytes(ids), ids_N);
  return ids_N;
}

std::int64_t aligned_elems(std::int64_t elems) {
  return (elems + kParamAlignment - 1) / kParamAlignment * kParamAlignment;
}

}  // namespace

Model::Model(Backend& backend, Arena& state, Arena& step, ModelConfig config, ModelOptions options)
    : backend_(backend), ctx_{backend, step}, config_(std::move(config)), options_(options) {
  config_.validate();
  QT_CHECK(options_.micro_batch_rows >= 1, ConfigError, "--micro-batch must be at least 1 row, got {}",
           options_.micro_batch_rows);
  QT_CHECK(
      options_.compute == DType::f32 || options_.compute == DType::bf16 || options_.compute == DType::f16,
      ConfigError, "--dtype {} is not available for this model; use f32, bf16 or fp16",
      dtype_name(options_.compute));
  QT_CHECK(options_.compute != DType::f16 || options_.weights == FormatId::none, ConfigError,
           "--dtype fp16 does not go with --quant {}; use --dtype bf16, or --quant none",
           format_info(options_.weights).name);
  const std::int64_t fitting = kLogitsChunkBytes / (config_.vocab_size * dtype_bytes(DType::f32));
  chunk_tokens_ =
      options_.loss_chunk_tokens > 0 ? options_.loss_chunk_tokens : std::max<std::int64_t>(fitting, 1);
  chunk_tokens_ = std::min(chunk_tokens_, batch_tokens());

  ModelParams made = make_params(config_);
  params_ = std::move(made.params);
  roles_ = std::move(made.roles);
  place(state);
  blocks_.reserve(roles_.blocks.size());
  for (std::size_t i = 0; i < roles_.blocks.size(); ++i)
    blocks_.emplace_back(config_, params_, roles_.blocks[i], rope_, static_cast<std::int64_t>(i));
}

void Model::place(Arena& state) {
  for (Param& p : params_) {
    const FormatId format = options_.format_of(p);
    if (format == FormatId::none) {
      p.weight.dense = state.keep(p.name, MemoryTag::weights, options_.dense_dtype_of(p), {p.N, p.K});
      continue;
    }
    p.weight.packed = {
        .format = format,
        .N = p.N,
        .K = p.K,
        .layout = packed_layout(format, p.N, p.K, backend_.target()),
        .codes = state.keep(p.name, MemoryTag::weights, DType::u8, {code_bytes(format, p.elems())}),
        .absmax = state.keep(p.name, MemoryTag::weights, format_info(format).scale_dtype,
                             {scale_count(format, p.elems())})};
  }
  if (options_.gradients) place_gradients(state);
  if (!are_rotations(config_.positions)) return;
  const std::int64_t T = config_.seq_len, half = config_.head_dim() / 2;
  rope_.cos = state.keep("rope.cos", MemoryTag::weights, options_.compute, {T, half});
  rope_.sin = state.keep("rope.sin", MemoryTag::weights, options_.compute, {T, half});
}

void Model::place_gradients(Arena& state) {
  const auto place_those = [&](const char* name, DType dtype, auto&& belongs) {
    std::int64_t elems = 0;
    for (const Param& p : params_) elems += belongs(p) ? aligned_elems(p.elems()) : 0;
    if (elems == 0) return;
    const TensorView region = state.keep(name, MemoryTag::gradients, dtype, {elems});
    std::int64_t first = 0;
    for (Param& p : params_) {
      if (!belongs(p)) continue;
      p.grad = region.flat(first, p.elems()).reshape({p.N, p.K});
      first += aligned_elems(p.elems());
    }
    gradients_.push_back(region);
  };
  if (options_.gradient == DType::f32) {
    place_those("gradients", DType::f32, [](const Param&) { return true; });
    return;
  }
  place_those("gradients", options_.gradient, [](const Param& p) { return p.group != ParamGroup::norm; });
  place_those("vector gradients", DType::f32, [](const Param& p) { return p.group == ParamGroup::norm; });
}

void Model::prepare() {
  if (are_rotations(config_.positions))
    backend_.run(RopeTable{.cos = rope_.cos, .sin = rope_.sin, .base = config_.rope_base});
}

BatchContext Model::batch_context(const HostBatch& batch, bool training) const {
  return BatchContext{.rows = options_.micro_batch_rows,
                      .dropout = training ? config_.dropout : 0,
                      .seed = options_.seed,
                      .first_row = batch.first_row};
}

void Model::embed(Backend& backend, const TensorView& ids_N, const BatchContext& batch,
                  const TensorView& x_NC, const TensorView& rstd_N) const {
  EmbeddingFwd op{.ids = ids_N, .table = params_[roles_.embedding].weight.dense, .y = x_NC};
  if (roles_.positions) {
    op.positions = params_[*roles_.positions].weight.dense;
    op.T = x_NC.dim(0) / batch.rows;
    op.first_position = batch.first_position;
  }
  backend.run(op);
  drop(backend, batch, kEmbeddingPlace, x_NC);
  if (config_.embedding_norm)
    backend.run(RmsNormFwd{.x = x_NC, .y = x_NC, .rstd = rstd_N, .eps = config_.norm_eps});
}

void Model::require_batch(std::span<const std::int32_t> ids) const {
  QT_CHECK(static_cast<std::int64_t>(ids.size()) == batch_tokens(), ShapeError,
           "a micro-batch has {} tokens, got {}", batch_tokens(), ids.size());
}

Buffer Model::hidden(StepContext& ctx, std::span<const std::int32_t> ids, const BatchContext& batch,
                     std::span<const KeyValues> caches) const {
  const std::int64_t N = static_cast<std::int64_t>(ids.size()), C = config_.n_embd;
  const DType t = options_.compute;
  Buffer x_NC = ctx.step.alloc("x", MemoryTag::activations, t, {N, C});
  {
    Buffer rstd_N;
    if (config_.embedding_norm) rstd_N = ctx.step.alloc("x.rstd", MemoryTag::activations, DType::f32, {N});
    const Buffer ids_N = upload_ids(ctx, "ids", ids);
    embed(ctx.backend, ids_N, batch, x_NC, rstd_N);
  }
  for (std::size_t l = 0; l < blocks_.size(); ++l) {
    Buffer out_NC = ctx.step.alloc("block.out", MemoryTag::activations, t, {N, C});
    {
      BlockActivations act;
      blocks_[l].forward(ctx, x_NC, batch, caches.empty() ? KeyValues() : caches[l], act, out_NC);
    }
    x_NC = std::move(out_NC);
  }
  return x_NC;
}

void Model::final_norm(StepContext& ctx, const TensorView& x_NC) const {
  const Norm norm = last_norm();
  const NormStats stats = norm.alloc_stats(ctx, x_NC.dim(0));
  norm.forward(ctx.backend, x_NC, x_NC, stats);
}

void Model::head(StepContext& ctx, const TensorView& xf_MC, const TensorView& logits_MV) const {
  head_weight().forward(ctx, xf_MC, logits_MV);
  if (config_.logit_softcap > 0)
    ctx.backend.run(Softcap{.x = logits_MV.flat(), .softcap = config_.logit_softcap});
}

Buffer Model::forward_hidden(const HostBatch& batch) {
  require_batch(batch.ids);
  Buffer x_NC = hidden(ctx_, batch.ids, batch_context(batch, false));
  final_norm(ctx_, x_NC);
  return x_NC;
}

void Model::loss_chunks(const TensorView& xf_NC, const TensorView& targets_N, const TensorView& totals,
                        float grad_scale, const TensorView& dx_NC) {
  const std::int64_t N = xf_NC.dim(0), V = config_.vocab_size;
  const Linear head = head_weight();
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
  BufferSource& step = ctx_.step;
  const std::int64_t N = batch_tokens(), C = config_.n_embd;
  const DType t = options_.compute;
  const std::size_t L = blocks_.size();
  const bool keep_all = !options_.checkpoint_activations;

  const BatchContext context = batch_context(batch, true);
  require_batch(batch.ids);
  require_batch(batch.targets);
  const Buffer ids_N = upload_ids(ctx_, "ids", batch.ids);
  const Buffer targets_N = upload_ids(ctx_, "targets", batch.targets);

  // x[l] is the input of block l. With checkpointing all of them live to their block's backward. Without, a
  // block's backward reads its kept activations, and x[l] only where its norm's gradient needs the input;
  // x[0] stays for the gradient of the embedding's norm.
  const bool keep_inputs = !keep_all || blocks_.front().needs_input();
  std::vector<Buffer> x(L + 1);
  std::vector<BlockActivations> kept(keep_all ? L : 0);
  x[0] = step.alloc("x", MemoryTag::activations, t, {N, C});
  Buffer rstd0_N;
  if (config_.embedding_norm) rstd0_N = step.alloc("x.rstd", MemoryTag::activations, DType::f32, {N});
  embed(backend_, ids_N, context, x[0], rstd0_N);
  for (std::size_t l = 0; l < L; ++l) {
    x[l + 1] = step.alloc("block.out", MemoryTag::activations, t, {N, C});
    BlockActivations passing;
    blocks_[l].forward(ctx_, x[l], context, {}, keep_all ? kept[l] : passing, x[l + 1]);
    if (!keep_inputs && l > 0) x[l].release();
  }

  const Buffer dx_NC = step.alloc("dx", MemoryTag::activations, t, {N, C});
  {
    // In place where the gradient needs only the output.
    const Norm norm = last_norm();
    Buffer separate_NC;
    if (norm.needs_input()) separate_NC = step.alloc("final.norm", MemoryTag::activations, t, {N, C});
    const TensorView xf_NC = norm.needs_input() ? separate_NC.view() : x[L].view();
    const NormStats stats = norm.alloc_stats(ctx_, N);
    norm.forward(backend_, x[L], xf_NC, stats);
    loss_chunks(xf_NC, targets_N, totals, grad_scale, dx_NC);
    norm.backward(ctx_, x[L], xf_NC, stats, dx_NC, dx_NC, false);
    x[L].release();
  }

  for (std::size_t l = L; l-- > 0;) {
    BlockActivations recomputed;
    const bool needs_input = blocks_[l].needs_input();
    if (!keep_all) blocks_[l].recompute(ctx_, x[l], context, recomputed);
    if (!keep_all && !needs_input && l > 0) x[l].release();
    blocks_[l].backward(ctx_, keep_all ? kept[l] : recomputed, x[l], context, dx_NC);
    if (l > 0) x[l].release();
  }
  if (config_.embedding_norm) backend_.run(RmsNormBwd{.y = x[0], .rstd = rstd0_N, .dy = dx_NC, .dx = dx_NC});
  drop(backend_, context, kEmbeddingPlace, dx_NC);
  if (roles_.positions) {
    backend_.run(
        PositionBwd{.dy = dx_NC, .dpositions = params_[*roles_.positions].grad, .T = config_.seq_len});
  }
  run_with_scratch(
      ctx_, EmbeddingBwd{.ids = ids_N, .dy = dx_NC, .dtable = params_[roles_.embedding].grad, .scratch = {}});
}

void Model::evaluate(const HostBatch& batch, const TensorView& totals) {
  require_batch(batch.targets);
  const Buffer targets_N = upload_ids(ctx_, "targets", batch.targets);
  const Buffer xf_NC = forward_hidden(batch);
  loss_chunks(xf_NC, targets_N, totals, 0.0f, {});
}

void Model::logits(std::span<const std::int32_t> ids, std::span<float> out) {
  const std::int64_t N = batch_tokens(), V = config_.vocab_size;
  const Buffer xf_NC = forward_hidden(HostBatch{.ids = ids, .targets = {}});
  const Buffer logits_NV = ctx_.step.alloc("logits", MemoryTag::logits, DType::f32, {N, V});
  head(ctx_, xf_NC, logits_NV);
  if (!out.empty()) backend_.download(logits_NV, std::as_writable_bytes(out));
}

}  // namespace qt
