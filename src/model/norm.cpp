#include "src/model/norm.h"

namespace qt {

NormStats Norm::alloc_stats(StepContext& ctx, std::int64_t N) const {
  NormStats stats;
  stats.rstd = ctx.step.alloc("norm.rstd", MemoryTag::activations, DType::f32, {N});
  if (has_mean(kind_)) stats.mean = ctx.step.alloc("norm.mean", MemoryTag::activations, DType::f32, {N});
  return stats;
}

void Norm::forward(Backend& backend, const TensorView& x_NC, const TensorView& y_NC,
                   const NormStats& stats) const {
  switch (kind_) {
    case NormKind::rms: return backend.run(RmsNormFwd{.x = x_NC, .y = y_NC, .rstd = stats.rstd, .eps = eps_});
    case NormKind::layer:
    case NormKind::weighted_rms: break;
  }
  backend.run(LayerNormFwd{.x = x_NC,
                           .weight = weight_->weight.dense.flat(),
                           .bias = vector_weight(bias_),
                           .y = y_NC,
                           .mean = stats.mean,
                           .rstd = stats.rstd,
                           .eps = eps_});
}

void Norm::backward(StepContext& ctx, const TensorView& x_NC, const TensorView& y_NC, const NormStats& stats,
                    const TensorView& dy_NC, const TensorView& dx_NC, bool accumulate) const {
  switch (kind_) {
    case NormKind::rms:
      return ctx.backend.run(
          RmsNormBwd{.y = y_NC, .rstd = stats.rstd, .dy = dy_NC, .dx = dx_NC, .accumulate = accumulate});
    case NormKind::layer:
    case NormKind::weighted_rms: break;
  }
  run_with_scratch(ctx, LayerNormBwd{.x = x_NC,
                                     .mean = stats.mean,
                                     .rstd = stats.rstd,
                                     .weight = weight_->weight.dense.flat(),
                                     .dy = dy_NC,
                                     .dx = dx_NC,
                                     .dweight = weight_->grad.flat(),
                                     .dbias = vector_grad(bias_),
                                     .scratch = {},
                                     .accumulate = accumulate});
}

}  // namespace qt
