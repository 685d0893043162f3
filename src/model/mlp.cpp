#include "src/model/mlp.h"

namespace qt {

Mlp::Mlp(const ModelConfig& config, const ParamList& params, const BlockRoles& roles)
    : activation_(config.activation), fc_(params, roles.fc), proj_(params, roles.mlp_proj) {
  if (roles.gate) gate_.emplace(params, *roles.gate);
}

Buffer Mlp::alloc_wide(StepContext& ctx, const char* name, const TensorView& x) const {
  return ctx.step.alloc(name, MemoryTag::activations, x.dtype, {x.dim(0), fc_.param().N});
}

void Mlp::forward_hidden(StepContext& ctx, const TensorView& m_NC, MlpActivations& act) const {
  act.h = alloc_wide(ctx, "mlp.h", m_NC);
  fc_.forward(ctx, m_NC, act.h);
  if (!gate_) return;
  act.gate = alloc_wide(ctx, "mlp.gate", m_NC);
  gate_->forward(ctx, m_NC, act.gate);
}

Buffer Mlp::activated(StepContext& ctx, const MlpActivations& act) const {
  const TensorView& x_NF = gate_ ? act.gate : act.h;
  Buffer y_NF = alloc_wide(ctx, "mlp.act", x_NF);
  switch (activation_) {
    case Activation::relu2: ctx.backend.run(Relu2Fwd{.x = x_NF, .y = y_NF}); break;
    case Activation::gelu: ctx.backend.run(GeluFwd{.x = x_NF, .y = y_NF}); break;
  }
  return y_NF;
}

Buffer Mlp::wide(StepContext& ctx, const MlpActivations& act) const {
  Buffer y_NF = activated(ctx, act);
  if (gate_) ctx.backend.run(Multiply{.a = y_NF, .b = act.h, .y = y_NF});
  return y_NF;
}

void Mlp::forward_output(StepContext& ctx, const MlpActivations& act, const TensorView& out_NC) const {
  proj_.forward(ctx, wide(ctx, act), out_NC);
}

Buffer Mlp::backward_output(StepContext& ctx, const MlpActivations& act, const TensorView& dout_NC) const {
  // The activation is computed again: it is one cheap pass, and fewer wide buffers are alive together.
  proj_.backward_weight(ctx, dout_NC, wide(ctx, act));
  Buffer dh_NF = alloc_wide(ctx, "mlp.dh", dout_NC);
  proj_.backward_input(ctx, dout_NC, dh_NF);
  return dh_NF;
}

Buffer Mlp::backward_hidden(StepContext& ctx, MlpActivations& act, const TensorView& m_NC,
                            Buffer dh_NF) const {
  // dh becomes the gradient of the activation's input, act.h that of the product it was multiplied with.
  if (gate_) {
    const Buffer y_NF = activated(ctx, act);
    ctx.backend.run(MultiplyBwd{.a = y_NF, .b = act.h, .dy = dh_NF, .da = dh_NF, .db = act.h});
  }
  Buffer& x_NF = gate_ ? act.gate : act.h;
  switch (activation_) {
    case Activation::relu2: ctx.backend.run(Relu2Bwd{.x = x_NF, .dy = dh_NF, .dx = dh_NF}); break;
    case Activation::gelu: ctx.backend.run(GeluBwd{.x = x_NF, .dy = dh_NF, .dx = dh_NF}); break;
  }
  x_NF.release();
  const Linear& first = gate_ ? *gate_ : fc_;
  first.backward_weight(ctx, dh_NF, m_NC);
  Buffer dm_NC = ctx.step.alloc("mlp.dm", MemoryTag::activations, m_NC.dtype, {m_NC.dim(0), m_NC.dim(1)});
  first.backward_input(ctx, dh_NF, dm_NC);
  dh_NF.release();
  if (!gate_) return dm_NC;
  // dm = dgate Wgate + dh Wfc, summed in this order.
  fc_.backward_weight(ctx, act.h, m_NC);
  const Buffer part_NC =
      ctx.step.alloc("mlp.dm_part", MemoryTag::activations, m_NC.dtype, {m_NC.dim(0), m_NC.dim(1)});
  fc_.backward_input(ctx, act.h, part_NC);
  act.h.release();
  ctx.backend.run(Add{.a = dm_NC, .b = part_NC, .y = dm_NC});
  return dm_NC;
}

}  // namespace qt
