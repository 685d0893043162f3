#include "src/model/block.h"

#include <cmath>
#include <tuple>
#include <utility>

namespace qt {

void drop(Backend& backend, const BatchContext& batch, std::uint64_t place, const TensorView& x_NC) {
  if (batch.dropout == 0) return;
  const std::int64_t row_elems = x_NC.elems() / batch.rows;
  backend.run(Dropout{.x = x_NC,
                      .y = x_NC,
                      .rate = static_cast<float>(batch.dropout),
                      .rng = batch.rng(place),
                      .first_element = batch.first_row * row_elems});
}

Block::Block(const ModelConfig& config, const ParamList& params, const BlockRoles& roles,
             const RopeTables& rope, std::int64_t index)
    : config_(config),
      rope_(rope),
      norm1_(config, params, roles.norm1),
      norm2_(config, params, roles.norm2),
      q_(params, roles.q),
      k_(params, roles.k),
      v_(params, roles.v),
      proj_(params, roles.proj),
      mlp_(config, params, roles),
      index_(static_cast<std::uint64_t>(index)),
      scale_(static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim())))) {}

Buffer Block::forward_to_hidden(StepContext& ctx, const TensorView& x_NC, const BatchContext& batch,
                                const KeyValues& cache, BlockActivations& act) const {
  Backend& be = ctx.backend;
  BufferSource& step = ctx.step;
  const DType t = x_NC.dtype;
  const std::int64_t rows = batch.rows, N = x_NC.dim(0), C = config_.n_embd, T = N / rows;
  const std::int64_t H = config_.n_head, G = config_.n_kv_head, D = config_.head_dim();
  constexpr MemoryTag kAct = MemoryTag::activations;

  Buffer x1_NC = step.alloc("block.mid", kAct, t, {N, C});

  act.a = step.alloc("attn.norm", kAct, t, {N, C});
  act.stats1 = norm1_.alloc_stats(ctx, N);
  norm1_.forward(be, x_NC, act.a, act.stats1);

  act.q = step.alloc("attn.q", kAct, t, {N, H, D});
  const bool cached = cache.k.defined();
  const std::int64_t keys = batch.first_position + T;
  act.k = cached ? Buffer(cache.k.rows(batch.first_position, T)) : step.alloc("attn.k", kAct, t, {N, G, D});
  act.v = cached ? Buffer(cache.v.rows(batch.first_position, T)) : step.alloc("attn.v", kAct, t, {N, G, D});
  q_.forward(ctx, act.a, act.q->reshape({N, H * D}));
  k_.forward(ctx, act.a, act.k->reshape({N, G * D}));
  v_.forward(ctx, act.a, act.v->reshape({N, G * D}));

  if (are_rotations(config_.positions)) {
    if (config_.qk_norm) {
      act.rq = step.alloc("attn.rstd_q", kAct, DType::f32, {N, H});
      act.rk = step.alloc("attn.rstd_k", kAct, DType::f32, {N, G});
    }
    for (const auto& [x, rstd] : {std::pair{&act.q, &act.rq}, std::pair{&act.k, &act.rk}}) {
      be.run(RopeNormFwd{.x = *x,
                         .y = *x,
                         .rstd = *rstd,
                         .cos = rope_.cos,
                         .sin = rope_.sin,
                         .T = T,
                         .first_position = batch.first_position,
                         .eps = config_.norm_eps});
    }
  }

  act.y = step.alloc("attn.y", kAct, t, {N, H, D});
  act.lse = step.alloc("attn.lse", kAct, DType::f32, {rows, H, T});
  const TensorView k_all = cached ? cache.k.rows(0, keys) : act.k.view(),
                   v_all = cached ? cache.v.rows(0, keys) : act.v.view();
  run_with_scratch(ctx, AttentionFwd{.q = act.q->reshape({rows, T, H, D}),
                                     .k = k_all.reshape({rows, keys, G, D}),
                                     .v = v_all.reshape({rows, keys, G, D}),
                                     .y = act.y->reshape({rows, T, H, D}),
                                     .lse = act.lse,
                                     .scratch = {},
                                     .scale = scale_,
                                     .dropout = static_cast<float>(batch.dropout),
                                     .rng = batch.rng(attention_place()),
                                     .first_row = batch.first_row});

  proj_.forward(ctx, act.y->reshape({N, H * D}), x1_NC);
  drop(be, batch, proj_place(), x1_NC);
  be.run(Add{.a = x_NC, .b = x1_NC, .y = x1_NC});

  act.m = step.alloc("mlp.norm", kAct, t, {N, C});
  act.stats2 = norm2_.alloc_stats(ctx, N);
  norm2_.forward(be, x1_NC, act.m, act.stats2);
  mlp_.forward_hidden(ctx, act.m, act.mlp);
  return x1_NC;
}

void Block::forward(StepContext& ctx, const TensorView& x_NC, const BatchContext& batch,
                    const KeyValues& cache, BlockActivations& act, const TensorView& out_NC) const {
  Buffer x1_NC = forward_to_hidden(ctx, x_NC, batch, cache, act);
  mlp_.forward_output(ctx, act.mlp, out_NC);
  drop(ctx.backend, batch, mlp_place(), out_NC);
  ctx.backend.run(Add{.a = x1_NC, .b = out_NC, .y = out_NC});
  if (norm2_.needs_input()) act.x1 = std::move(x1_NC);
}

void Block::recompute(StepContext& ctx, const TensorView& x_NC, const BatchContext& batch,
                      BlockActivations& act) const {
  const RecomputeScope recompute(ctx.backend);
  Buffer x1_NC = forward_to_hidden(ctx, x_NC, batch, {}, act);
  if (norm2_.needs_input()) act.x1 = std::move(x1_NC);
}

void Block::backward(StepContext& ctx, BlockActivations& act, const TensorView& x_NC,
                     const BatchContext& batch, const TensorView& dx_NC) const {
  backward_mlp(ctx, act, batch, dx_NC);
  backward_attention(ctx, act, x_NC, batch, dx_NC);
}

Buffer Block::branch_gradient(StepContext& ctx, const BatchContext& batch, std::uint64_t place,
                              const TensorView& dx_NC) const {
  if (batch.dropout == 0) return {};
  Buffer dropped_NC =
      ctx.step.alloc("block.d_dropped", MemoryTag::activations, dx_NC.dtype, {dx_NC.dim(0), dx_NC.dim(1)});
  const std::int64_t row_elems = dx_NC.elems() / batch.rows;
  ctx.backend.run(Dropout{.x = dx_NC,
                          .y = dropped_NC,
                          .rate = static_cast<float>(batch.dropout),
                          .rng = batch.rng(place),
                          .first_element = batch.first_row * row_elems});
  return dropped_NC;
}

void Block::backward_mlp(StepContext& ctx, BlockActivations& act, const BatchContext& batch,
                         const TensorView& dx_NC) const {
  Buffer dropped_NC = branch_gradient(ctx, batch, mlp_place(), dx_NC);
  const TensorView dout_NC = dropped_NC->defined() ? dropped_NC.view() : dx_NC;
  Buffer dh_NF = mlp_.backward_output(ctx, act.mlp, dout_NC);
  dropped_NC.release();
  const Buffer dm_NC = mlp_.backward_hidden(ctx, act.mlp, act.m, std::move(dh_NF));
  norm2_.backward(ctx, act.x1, act.m, act.stats2, dm_NC, dx_NC, true);
  act.x1.release();
  act.m.release();
  act.stats2.release();
}

void Block::backward_attention(StepContext& ctx, BlockActivations& act, const TensorView& x_NC,
                               const BatchContext& batch, const TensorView& dx_NC) const {
  Backend& be = ctx.backend;
  BufferSource& step = ctx.step;
  const DType t = dx_NC.dtype;
  const std::int64_t rows = batch.rows, N = dx_NC.dim(0), C = config_.n_embd, T = N / rows;
  const std::int64_t H = config_.n_head, G = config_.n_kv_head, D = config_.head_dim();
  constexpr MemoryTag kAct = MemoryTag::activations;

  Buffer dropped_NC = branch_gradient(ctx, batch, proj_place(), dx_NC);
  const TensorView dout_NC = dropped_NC->defined() ? dropped_NC.view() : dx_NC;
  proj_.backward_weight(ctx, dout_NC, act.y->reshape({N, H * D}));
  Buffer dy = step.alloc("attn.dy", kAct, t, {N, H, D});
  proj_.backward_input(ctx, dout_NC, dy->reshape({N, H * D}));
  dropped_NC.release();

  Buffer dq = step.alloc("attn.dq", kAct, t, {N, H, D});
  Buffer dk = step.alloc("attn.dk", kAct, t, {N, G, D});
  Buffer dv = step.alloc("attn.dv", kAct, t, {N, G, D});
  run_with_scratch(ctx, AttentionBwd{.q = act.q->reshape({rows, T, H, D}),
                                     .k = act.k->reshape({rows, T, G, D}),
                                     .v = act.v->reshape({rows, T, G, D}),
                                     .y = act.y->reshape({rows, T, H, D}),
                                     .lse = act.lse,
                                     .dy = dy->reshape({rows, T, H, D}),
                                     .dq = dq->reshape({rows, T, H, D}),
                                     .dk = dk->reshape({rows, T, G, D}),
                                     .dv = dv->reshape({rows, T, G, D}),
                                     .scratch = {},
                                     .scale = scale_,
                                     .dropout = static_cast<float>(batch.dropout),
                                     .rng = batch.rng(attention_place()),
                                     .first_row = batch.first_row});
  dy.release();
  act.y.release();
  act.lse.release();
  act.v.release();
  if (are_rotations(config_.positions)) {
    for (const auto& [y, rstd, d] : {std::tuple{&act.q, &act.rq, &dq}, std::tuple{&act.k, &act.rk, &dk}}) {
      be.run(RopeNormBwd{
          .y = *y, .rstd = *rstd, .dy = *d, .dx = *d, .cos = rope_.cos, .sin = rope_.sin, .T = T});
    }
  }
  act.q.release();
  act.k.release();
  act.rq.release();
  act.rk.release();

  const TensorView dq_NC = dq->reshape({N, H * D}), dk_NG = dk->reshape({N, G * D}),
                   dv_NG = dv->reshape({N, G * D});
  q_.backward_weight(ctx, dq_NC, act.a);
  k_.backward_weight(ctx, dk_NG, act.a);
  v_.backward_weight(ctx, dv_NG, act.a);

  // da = dq Wq + dk Wk + dv Wv, summed in this order.
  const Buffer da_NC = step.alloc("attn.da", kAct, t, {N, C});
  const Buffer part_NC = step.alloc("attn.da_part", kAct, t, {N, C});
  q_.backward_input(ctx, dq_NC, da_NC);
  k_.backward_input(ctx, dk_NG, part_NC);
  be.run(Add{.a = da_NC, .b = part_NC, .y = da_NC});
  v_.backward_input(ctx, dv_NG, part_NC);
  be.run(Add{.a = da_NC, .b = part_NC, .y = da_NC});
  norm1_.backward(ctx, x_NC, act.a, act.stats1, da_NC, dx_NC, true);
  act.a.release();
  act.stats1.release();
}

}  // namespace qt
