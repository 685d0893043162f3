// Mlp: the half of a block that mixes channels, from its normed input to before the residual add.
//   plain  out = act(m Wfc^T) Wproj^T
//   gated  out = (act(m Wgate^T) * (m Wfc^T)) Wproj^T
// Linear's biases are left out here. Legend: N tokens, C width, F MLP width.
#pragma once

#include <optional>

#include "src/memory/arena.h"
#include "src/model/config.h"
#include "src/model/linear.h"
#include "src/model/params.h"

namespace qt {

// What an Mlp leaves for its backward pass, beside its input.
struct MlpActivations {
  Buffer h;     // [N, F] the product with fc: before the activation, or what the gate multiplies
  Buffer gate;  // [N, F] the product with the gate, before the activation; gated only
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
  Buffer alloc_wide(StepContext& ctx, const char* name, const TensorView& x) const;
  // y [N, F] = act of its input, which is that of the gate where there is one.
  Buffer activated(StepContext& ctx, const MlpActivations& act) const;
  // What the last product reads.
  Buffer wide(StepContext& ctx, const MlpActivations& act) const;

  Activation activation_;
  Linear fc_, proj_;
  std::optional<Linear> gate_;
};

}  // namespace qt
