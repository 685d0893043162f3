// Mlp: the half of a block that mixes channels, from its normed input to before the residual add.
//
// Legend: N tokens, C width, F MLP width.
#pragma once

#include "src/memory/arena.h"
#include "src/model/config.h"
#include "src/model/linear.h"
#include "src/model/params.h"

namespace qt {

// What an Mlp leaves for its backward pass, beside its input.
struct MlpActivations {
  Buffer h;  // [N, F] before the activation
};

class Mlp {
 public:
  // params must outlive the Mlp and keep its address.
  Mlp(const ModelConfig& config, const ParamList& params, const BlockRoles& roles);

  // The first half, from m [N, C]; fills `act`. It is all that backward reads.
  void forward_hidden(StepContext& ctx, const TensorView& m_NC, MlpActivations& act) const;
  // The second half: out [N, C].
  void forward_output(StepContext& ctx, const MlpActivations& act, const TensorView& out_NC) const;

  // The gradient of the second half's wide input [N, F], from that of its output. Adds to the weight's.
  Buffer backward_output(StepContext& ctx, const MlpActivations& act, const TensorView& dout_NC) const;
  // dm [N, C] from what backward_output() returned. Adds to the weights' gradients; releases `act`.
  Buffer backward_hidden(StepContext& ctx, MlpActivations& act, const TensorView& m_NC, Buffer dh_NF) const;

 private:
  // y [N, F]: the input of the last product.
  Buffer wide(StepContext& ctx, const MlpActivations& act) const;

  Activation activation_;
  Linear fc_, proj_;
};

}  // namespace qt
