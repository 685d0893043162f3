// One transformer block: the order of its ops, forward and backward, and what backward needs.
//
// Legend: B rows of T tokens, N = B T, C width, H query heads, G key/value heads, D head width, F MLP width.
#pragma once

#include "src/memory/arena.h"
#include "src/model/config.h"
#include "src/model/linear.h"

namespace qt {

// cos and sin tables [positions, D/2] in the compute dtype.
struct RopeTables {
  TensorView cos;
  TensorView sin;
};

// Everything backward reads. RMSNorm's gradient is taken from its output, so neither the block's input nor
// the residual stream between the halves is here.
struct BlockActivations {
  Buffer a;      // [N, C] normed input of the attention half
  Buffer rstd1;  // [N] f32
  Buffer q;      // [N, H, D] after RoPE and QK-norm
  Buffer k;      // [N, G, D] after RoPE and QK-norm
  Buffer v;      // [N, G, D]
  Buffer rq;     // [N, H] f32
  Buffer rk;     // [N, G] f32
  Buffer y;      // [N, H, D] attention output
  Buffer lse;    // [B, H, T] f32
  Buffer m;      // [N, C] normed input of the MLP half
  Buffer rstd2;  // [N] f32
  Buffer h;      // [N, F] before relu^2
};

class Block {
 public:
  // `params` are the six matrices of this block in the order q, k, v, attention projection, fc, MLP
  // projection.
  Block(const ModelConfig& config, const Param* params, FormatId format);

  // out [N, C] = block(x [N, C]); fills `act`. rows is B, the number of sequences in x.
  void forward(StepContext& ctx, const TensorView& x_NC, std::int64_t rows, const RopeTables& rope,
               BlockActivations& act, const TensorView& out_NC) const;
  // The same work up to what backward reads: without the last product and the last residual add.
  void recompute(StepContext& ctx, const TensorView& x_NC, std::int64_t rows, const RopeTables& rope,
                 BlockActivations& act) const;
  // dx [N, C] holds the gradient of the output on entry and that of the input on return. Accumulates into the
  // weights' gradients. Releases the activations as soon as they are spent.
  void backward(StepContext& ctx, BlockActivations& act, std::int64_t rows, const RopeTables& rope,
                const TensorView& dx_NC) const;

  const Linear& q() const { return q_; }
  const Linear& k() const { return k_; }
  const Linear& v() const { return v_; }
  const Linear& proj() const { return proj_; }
  const Linear& fc() const { return fc_; }
  const Linear& mlp_proj() const { return mlp_proj_; }
  float attention_scale() const { return scale_; }

 private:
  // Returns the residual stream between the halves.
  Buffer forward_to_hidden(StepContext& ctx, const TensorView& x_NC, std::int64_t rows,
                           const RopeTables& rope, BlockActivations& act) const;
  void backward_mlp(StepContext& ctx, BlockActivations& act, const TensorView& dx_NC) const;
  void backward_attention(StepContext& ctx, BlockActivations& act, std::int64_t rows, const RopeTables& rope,
                          const TensorView& dx_NC) const;

  const ModelConfig& config_;
  Linear q_, k_, v_, proj_, fc_, mlp_proj_;
  float scale_;
};

}  // namespace qt
