// Linear: y = x W^T + b. The only class that knows a weight may be packed.
//
// Legend: M tokens, K input features, N output features.
#pragma once

#include "kernels/backend.h"
#include "kernels/scratch.h"
#include "quant/packed.h"
#include "quant/param.h"
#include "src/memory/arena.h"

namespace qt {

// Where a step's work goes: ops to the backend, bytes from the step arena.
struct StepContext {
  Backend& backend;
  Arena& step;
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

// A vector param's view, or an undefined one where there is no such param.
inline TensorView vector_view(const Param* param, TensorView Param::*view) {
  return param == nullptr ? TensorView() : (param->*view).flat();
}

class Linear {
 public:
  // The params must outlive the Linear and keep their addresses. bias may be null.
  Linear(const Param& param, FormatId format, const Param* bias = nullptr)
      : param_(&param), bias_(bias), format_(format) {}

  const Param& param() const { return *param_; }

  // y [M, N] = x [M, K] W^T + b.
  void forward(StepContext& ctx, const TensorView& x_MK, const TensorView& y_MN) const;
  // dx [M, K] = dy [M, N] W.
  void backward_input(StepContext& ctx, const TensorView& dy_MN, const TensorView& dx_MK) const;
  // grad [N, K] += dy^T x, and the bias's += the column sums of dy.
  void backward_weight(StepContext& ctx, const TensorView& dy_MN, const TensorView& x_MK) const;

  // For callers that plan their scratch once: what forward() would need for any number of rows up to M.
  std::int64_t forward_scratch_bytes(const Target& target, DType dtype, std::int64_t M) const;
  // forward() with scratch from the caller.
  void forward_in(Backend& backend, const TensorView& x_MK, const TensorView& y_MN,
                  const TensorView& scratch) const;

 private:
  const Param* param_;
  const Param* bias_;
  FormatId format_;
};

}  // namespace qt
