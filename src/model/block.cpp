#include "src/model/block.h"

#include <cmath>

namespace qt {

Block::Block(const ModelConfig& config, const Param* params, FormatId format)
    : config_(config),
      q_(params[0], format),
      k_(params[1], format),
      v_(params[2], format),
      proj_(params[3], format),
      fc_(params[4], format),
      mlp_proj_(params[5], format),
      scale_(static_cast<float>(1.0 / std::sqrt(static_cast<double>(config.head_dim())))) {}

Buffer Block::forward_to_hidden(StepContext& ctx, const TensorView& x_NC, std::int64_t rows,
                                const RopeTables& rope, BlockActivations& act) const {
  Backend& be = ctx.backend;
  Arena& step = ctx.step;
  const DType t = x_NC.dtype;
  const std::int64_t N = x_NC.dim(0), C = config_.n_embd, T = N / rows;
  const std::int64_t H = config_.n_head, G = config_.n_kv_head, D = config_.head_dim(),
                     F = config_.mlp_width();
  constexpr MemoryTag kAct = MemoryTag::activations;

  Buffer x1_NC = step.alloc("block.mid", kAct, t, {N, C});

  act.a = step.alloc("attn.norm", kAct, t, {N, C});
  act.rstd1 = step.alloc("attn.rstd", kAct, DType::f32, {N});
  be.run(RmsNormFwd{.x = x_NC, .y = act.a, .rstd = act.rstd1, .eps = config_.norm_eps});

  act.q = step.alloc("attn.q", kAct, t, {N, H, D});
  act.k = step.alloc("attn.k", kAct, t, {N, G, D});
  act.v = step.alloc("attn.v", kAct, t, {N, G, D});
  q_.forward(ctx, act.a, act.q->reshape({N, H * D}));
  k_.forward(ctx, act.a, act.k->reshape({N, G * D}));
  v_.forward(ctx, act.a, act.v->reshape({N, G * D}));

  act.rq = step.alloc("attn.rstd_q", kAct, DType::f32, {N, H});
  act.rk = step.alloc("attn.rstd_k", kAct, DType::f32, {N, G});
  be.run(RopeNormFwd{.x = act.q,
                     .y = act.q,
                     .rstd = act.rq,
                     .cos = rope.cos,
                     .sin = rope.sin,
                     .T = T,
                     .eps = config_.norm_eps});
  be.run(RopeNormFwd{.x = act.k,
                     .y = act.k,
                     .rstd = act.rk,
                     .cos = rope.cos,
                     .sin = rope.sin,
                     .T = T,
                     .eps = config_.norm_eps});

  act.y = step.alloc("attn.y", kAct, t, {N, H, D});
  act.lse = step.alloc("attn.lse", kAct, DType::f32, {rows, H, T});
  run_with_scratch(ctx, AttentionFwd{.q = act.q->reshape({rows, T, H, D}),
                                     .k = act.k->reshape({rows, T, G, D}),
                                     .v = act.v->reshape({rows, T, G, D}),
                                     .y = act.y->reshape({rows, T, H, D}),
                                     .lse = act.lse,
                                     .scratch = {},
                                     .scale = scale_});

  proj_.forward(ctx, act.y->reshape({N, H * D}), x1_NC);
  be.run(Add{.a = x_NC, .b = x1_NC, .y = x1_NC});

  act.m = step.alloc("mlp.norm", kAct, t, {N, C});
  act.rstd2 = step.alloc("mlp.rstd", kAct, DType::f32, {N});
  be.run(RmsNormFwd{.x = x1_NC, .y = act.m, .rstd = act.rstd2, .eps = config_.norm_eps});
  act.h = step.alloc("mlp.h", kAct, t, {N, F});
  fc_.forward(ctx, act.m, act.h);
  return x1_NC;
}

void Block::forward(StepContext& ctx, const TensorView& x_NC, std::int64_t rows, const RopeTables& rope,
                    BlockActivations& act, const TensorView& out_NC) const {
  const Buffer x1_NC = forward_to_hidden(ctx, x_NC, rows, rope, act);
  const Buffer r_NF =
      ctx.step.alloc("mlp.relu2", MemoryTag::activations, x_NC.dtype, {x_NC.dim(0), config_.mlp_width()});
  ctx.backend.run(Relu2Fwd{.x = act.h, .y = r_NF});
  mlp_proj_.forward(ctx, r_NF, out_NC);
  ctx.backend.run(Add{.a = x1_NC, .b = out_NC, .y = out_NC});
}

void Block::recompute(StepContext& ctx, const TensorView& x_NC, std::int64_t rows, const RopeTables& rope,
                      BlockActivations& act) const {
  const RecomputeScope recompute(ctx.backend);
  forward_to_hidden(ctx, x_NC, rows, rope, act);
}

void Block::backward(StepContext& ctx, BlockActivations& act, std::int64_t rows, const RopeTables& rope,
                     const TensorView& dx_NC) const {
  backward_mlp(ctx, act, dx_NC);
  backward_attention(ctx, act, rows, rope, dx_NC);
}

void Block::backward_mlp(StepContext& ctx, BlockActivations& act, const TensorView& dx_NC) const {
  Arena& step = ctx.step;
  const DType t = dx_NC.dtype;
  const std::int64_t N = dx_NC.dim(0), C = config_.n_embd, F = config_.mlp_width();
  {
    // relu^2 is computed again: it is one cheap pass, and h and dh are then the only wide buffers alive
    // together.
    const Buffer r_NF = step.alloc("mlp.relu2", MemoryTag::activations, t, {N, F});
    ctx.backend.run(Relu2Fwd{.x = act.h, .y = r_NF});
    mlp_proj_.backward_weight(ctx, dx_NC, r_NF);
  }
  Buffer dh_NF = step.alloc("mlp.dh", MemoryTag::activations, t, {N, F});
  mlp_proj_.backward_input(ctx, dx_NC, dh_NF);
  ctx.backend.run(Relu2Bwd{.x = act.h, .dy = dh_NF, .dx = dh_NF});
  act.h.release();
  fc_.backward_weight(ctx, dh_NF, act.m);
  const Buffer dm_NC = step.alloc("mlp.dm", MemoryTag::activations, t, {N, C});
  fc_.backward_input(ctx, dh_NF, dm_NC);
  dh_NF.release();
  ctx.backend.run(RmsNormBwd{.y = act.m, .rstd = act.rstd2, .dy = dm_NC, .dx = dx_NC, .accumulate = true});
  act.m.release();
  act.rstd2.release();
}

void Block::backward_attention(StepContext& ctx, BlockActivations& act, std::int64_t rows,
                               const RopeTables& rope, const TensorView& dx_NC) const {
  Backend& be = ctx.backend;
  Arena& step = ctx.step;
  const DType t = dx_NC.dtype;
  const std::int64_t N = dx_NC.dim(0), C = config_.n_embd, T = N / rows;
  const std::int64_t H = config_.n_head, G = config_.n_kv_head, D = config_.head_dim();
  constexpr MemoryTag kAct = MemoryTag::activations;

  proj_.backward_weight(ctx, dx_NC, act.y->reshape({N, H * D}));
  Buffer dy = step.alloc("attn.dy", kAct, t, {N, H, D});
  proj_.backward_input(ctx, dx_NC, dy->reshape({N, H * D}));

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
                                     .scale = scale_});
  dy.release();
  act.y.release();
  act.lse.release();
  act.v.release();
  be.run(
      RopeNormBwd{.y = act.q, .rstd = act.rq, .dy = dq, .dx = dq, .cos = rope.cos, .sin = rope.sin, .T = T});
  be.run(
      RopeNormBwd{.y = act.k, .rstd = act.rk, .dy = dk, .dx = dk, .cos = rope.cos, .sin = rope.sin, .T = T});
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
  be.run(RmsNormBwd{.y = act.a, .rstd = act.rstd1, .dy = da_NC, .dx = dx_NC, .accumulate = true});
  act.a.release();
  act.rstd1.release();
}

}  // namespace qt
