// One transformer block: the order of its ops, forward and backward, and what backward needs.
//
// Legend: B rows of T tokens, N = B T, C width, H query heads, G key/value heads, D head width.
#pragma once

#include "src/core/rng.h"
#include "src/memory/arena.h"
#include "src/model/config.h"
#include "src/model/linear.h"
#include "src/model/mlp.h"
#include "src/model/norm.h"
#include "src/model/params.h"

namespace qt {

// cos and sin tables [positions, D/2] in the compute dtype; undefined with learned positions.
struct RopeTables {
  TensorView cos;
  TensorView sin;
};

// What the blocks of one micro-batch share.
struct BatchContext {
  std::int64_t rows = 0;            // B, the number of sequences
  std::int64_t first_position = 0;  // of each sequence's first token; above 0 only behind a cache
  // Dropout: a mask depends on (seed, place in the model, row of the run, element), so that a recomputation
  // draws it again and the size of the micro-batch does not matter.
  double dropout = 0;  // 0 outside training
  std::uint64_t seed = 0;
  std::int64_t first_row = 0;  // of the run's data order

  RngStream rng(std::uint64_t place) const {
    return RngStream{.seed = seed, .purpose = RngPurpose::dropout, .stream = place};
  }
};

// Where decoding keeps the keys and values of one sequence in one block, rows by position; undefined elsewhere,
// where they are the batch's own.
struct KeyValues {
  TensorView k;  // [positions, G, D]
  TensorView v;  // [positions, G, D]
};

// x [N, C] with elements dropped in place; nothing is run where dropout is off.
void drop(Backend& backend, const BatchContext& batch, std::uint64_t place, const TensorView& x_NC);

// Everything backward reads. The gradient of a norm without a weight is taken from its output, so that neither
// the block's input nor the residual stream between the halves is needed; Norm::needs_input() tells.
struct BlockActivations {
  Buffer a;  // [N, C] normed input of the attention half
  NormStats stats1;
  Buffer q;    // [N, H, D] after RoPE and QK-norm
  Buffer k;    // [N, G, D] after RoPE and QK-norm
  Buffer v;    // [N, G, D]
  Buffer rq;   // [N, H] f32, QK-norm only
  Buffer rk;   // [N, G] f32, QK-norm only
  Buffer y;    // [N, H, D] attention output
  Buffer lse;  // [B, H, T] f32
  Buffer x1;   // [N, C] residual stream between the halves, where norms need their input
  Buffer m;    // [N, C] normed input of the MLP half
  NormStats stats2;
  MlpActivations mlp;
};

class Block {
 public:
  // params must outlive the block and keep its address; index counts blocks from 0.
  Block(const ModelConfig& config, const ParamList& params, const BlockRoles& roles, const RopeTables& rope,
        std::int64_t index);

  // out [N, C] = block(x [N, C]); fills `act`. out may be x if x is not read afterwards. With a cache, keys and
  // values of the N tokens of one sequence are added to it; its rows up to batch.first_position are filled before.
  void forward(StepContext& ctx, const TensorView& x_NC, const BatchContext& batch, const KeyValues& cache,
               BlockActivations& act, const TensorView& out_NC) const;
  // The same work up to what backward reads: without the last product and the last residual add.
  void recompute(StepContext& ctx, const TensorView& x_NC, const BatchContext& batch,
                 BlockActivations& act) const;
  // dx [N, C] holds the gradient of the output on entry and that of the input on return. x is the block's
  // input, read where needs_input(). Accumulates into the weights' gradients. Releases the activations as
  // soon as they are spent.
  void backward(StepContext& ctx, BlockActivations& act, const TensorView& x_NC, const BatchContext& batch,
                const TensorView& dx_NC) const;

  bool needs_input() const { return norm1_.needs_input(); }

 private:
  // Returns the residual stream between the halves.
  Buffer forward_to_hidden(StepContext& ctx, const TensorView& x_NC, const BatchContext& batch,
                           const KeyValues& cache, BlockActivations& act) const;
  // dx [N, C] as it enters a residual branch: with its dropout. Undefined buffer: dx itself.
  Buffer branch_gradient(StepContext& ctx, const BatchContext& batch, std::uint64_t place,
                         const TensorView& dx_NC) const;
  void backward_mlp(StepContext& ctx, BlockActivations& act, const BatchContext& batch,
                    const TensorView& dx_NC) const;
  void backward_attention(StepContext& ctx, BlockActivations& act, const TensorView& x_NC,
                          const BatchContext& batch, const TensorView& dx_NC) const;

  // Where dropout happens in a block; place 0 is the embedding.
  static constexpr std::uint64_t kPlacesPerBlock = 3;
  std::uint64_t attention_place() const { return 1 + kPlacesPerBlock * index_; }
  std::uint64_t proj_place() const { return attention_place() + 1; }
  std::uint64_t mlp_place() const { return attention_place() + 2; }

  const ModelConfig& config_;
  RopeTables rope_;
  Norm norm1_, norm2_;
  Linear q_, k_, v_, proj_;
  Mlp mlp_;
  std::uint64_t index_;
  float scale_;
};

}  // namespace qt
