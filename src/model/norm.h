// Norm: RMSNorm without or with a weight, or LayerNorm: the only class that knows which.
//
// Legend: N tokens, C width.
#pragma once

#include "quant/param.h"
#include "src/memory/arena.h"
#include "src/model/config.h"
#include "src/model/linear.h"

namespace qt {

// What a norm leaves for its backward pass.
struct NormStats {
  Buffer rstd;  // [N] f32
  Buffer mean;  // [N] f32, LayerNorm only

  void release() {
    rstd.release();
    mean.release();
  }
};

class Norm {
 public:
  // The params must outlive the Norm and keep their addresses.
  Norm(const ModelConfig& config, const ParamList& params, const NormRoles& roles)
      : kind_(config.norm),
        weight_(param_at(params, roles.weight)),
        bias_(param_at(params, roles.bias)),
        eps_(config.norm_eps) {}

  // Without a weight the gradient is taken from the output, otherwise from the input, which must then outlive
  // the forward pass.
  bool needs_input() const { return has_weight(kind_); }

  NormStats alloc_stats(StepContext& ctx, std::int64_t N) const;

  // y [N, C] = norm(x); y may be x.
  void forward(Backend& backend, const TensorView& x_NC, const TensorView& y_NC,
               const NormStats& stats) const;

  // dx (+)= the gradient of the input; adds to the gradients of weight and bias. x_NC is read where
  // needs_input(), y_NC otherwise. dx may be dy when not accumulating.
  void backward(StepContext& ctx, const TensorView& x_NC, const TensorView& y_NC, const NormStats& stats,
                const TensorView& dy_NC, const TensorView& dx_NC, bool accumulate) const;

 private:
  NormKind kind_;
  const Param* weight_;
  const Param* bias_;
  float eps_;
};

}  // namespace qt
