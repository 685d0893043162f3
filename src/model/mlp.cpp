#include "src/model/mlp.h"

namespace qt {

Mlp::Mlp(const ModelConfig& config, const ParamList& params, const BlockRoles& roles)
    : activation_(config.activation), fc_(params, roles.fc), proj_(params, roles.mlp_proj) {}

void Mlp::forward_hidden(StepContext& ctx, const TensorView& m_NC, MlpActivations& act) const {
  act.h = ctx.step.alloc("mlp.h", MemoryTag::activations, m_NC.dtype, {m_NC.dim(0), fc_.param().N});
  fc_.forward(ctx, m_NC, act.h);
}

Buffer Mlp::wide(StepContext& ctx, const MlpActivations& act) const {
  Buffer y_NF =
      ctx.step.alloc("mlp.act", MemoryTag::activations, act.h->dtype, {act.h->dim(0), act.h->dim(1)});
  if (activation_ == Activation::relu2) {
    ctx.backend.run(Relu2Fwd{.x = act.h, .y = y_NF});
  } else {
    ctx.backend.run(GeluFwd{.x = act.h, .y = y_NF});
  }
  return y_NF;
}

void Mlp::forward_output(StepContext& ctx, const MlpActivations& act, const TensorView& out_NC) const {
  proj_.forward(ctx, wide(ctx, act), out_NC);
}

Buffer Mlp::backward_output(StepContext& ctx, const MlpActivations& act, const TensorView& dout_NC) const {
  // The activation is computed again: it is one cheap pass, and h and dh are then the only wide buffers alive
  // together.
  proj_.backward_weight(ctx, dout_NC, wide(ctx, act));
  Buffer dh_NF =
      ctx.step.alloc("mlp.dh", MemoryTag::activations, dout_NC.dtype, {act.h->dim(0), act.h->dim(1)});
  proj_.backward_input(ctx, dout_NC, dh_NF);
  return dh_NF;
}

Buffer Mlp::backward_hidden(StepContext& ctx, MlpActivations& act, const TensorView& m_NC,
                            Buffer dh_NF) const {
  if (activation_ == Activation::relu2) {
    ctx.backend.run(Relu2Bwd{.x = act.h, .dy = dh_NF, .dx = dh_NF});
  } else {
    ctx.backend.run(GeluBwd{.x = act.h, .dy = dh_NF, .dx = dh_NF});
  }
  act.h.release();
  fc_.backward_weight(ctx, dh_NF, m_NC);
  Buffer dm_NC = ctx.step.alloc("mlp.dm", MemoryTag::activations, m_NC.dtype, {m_NC.dim(0), m_NC.dim(1)});
  fc_.backward_input(ctx, dh_NF, dm_NC);
  dh_NF.release();
  return dm_NC;
}

}  // namespace qt
