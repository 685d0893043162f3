// Linear: y = x W^T + b. Every product with a weight goes through Linear::product(), which alone chooses the op
// by the weight's format.
//
// Legend: M tokens, K input features, N output features.
#pragma once

#include "kernels/backend.h"
#include "kernels/scratch.h"
#include "quant/packed.h"
#include "quant/param.h"
#include "src/memory/arena.h"
#include "src/model/params.h"

namespace qt {

// Where a step's work goes: ops to the backend. And where its bytes come from: the step arena, or buffers that
// were planned once.
struct StepContext {
  Backend& backend;
  BufferSource& step;
};

// Runs an op after planning the scratch it asks for; the scratch is given back at once.
template <class Op>
void run_with_scratch(StepContext& ctx, Op op) {
  Buffer scratch;
  if (const std::int64_t bytes = scratch_bytes(op, ctx.backend.target()); bytes > 0) {
    scratch = ctx.step.alloc(Op::kName, MemoryTag::scratch, DType::u8, {bytes});
    op.scratch = scratch;
  }
  ctx.backend.run(op);
}

// A vector param's weight or gradient, or an undefined view where param is null.
inline TensorView vector_weight(const Param* param) {
  return param == nullptr ? TensorView() : param->weight.dense.flat();
}
inline TensorView vector_grad(const Param* param) {
  return param == nullptr ? TensorView() : param->grad.flat();
}

class Linear {
 public:
  // The params must outlive the Linear and keep their addresses. bias may be null.
  explicit Linear(const Param& param, const Param* bias = nullptr) : param_(&param), bias_(bias) {}
  Linear(const ParamList& params, const LinearRoles& roles)
      : Linear(params[roles.weight], param_at(params, roles.bias)) {}

  const Param& param() const { return *param_; }

  // y [M, N] = x [M, K] W^T + b.
  void forward(StepContext& ctx, const TensorView& x_MK, const TensorView& y_MN) const;
  // dx [M, K] = dy [M, N] W.
  void backward_input(StepContext& ctx, const TensorView& dy_MN, const TensorView& dx_MK) const;
  // grad [N, K] += dy^T x, and the bias's += the column sums of dy.
  void backward_weight(StepContext& ctx, const TensorView& dy_MN, const TensorView& x_MK) const;

 private:
  // Calls use(op) for each op of y = x W^T + bias (GemmLayout::nt) or y = x W (nn), in their order, without
  // scratch. Today that is one op. forward() and backward_input() take their products from here;
  // backward_weight() reads no weight and does not.
  template <class Use>
  void product(GemmLayout layout, const TensorView& x, const TensorView& y, const TensorView& bias,
               Use&& use) const;

  const Param* param_;
  const Param* bias_;
};

}  // namespace qt
