#include "src/model/linear.h"

#include <algorithm>

namespace qt {

void Linear::forward(StepContext& ctx, const TensorView& x_MK, const TensorView& y_MN) const {
  if (param_->weight.is_packed()) {
    run_with_scratch(ctx, PackedMatmul{.x = x_MK,
                                       .w = param_->weight.packed,
                                       .y = y_MN,
                                       .bias = vector_weight(bias_),
                                       .scratch = {},
                                       .layout = GemmLayout::nt});
  } else {
    run_with_scratch(ctx, Matmul{.a = x_MK,
                                 .b = param_->weight.dense,
                                 .c = y_MN,
                                 .bias = vector_weight(bias_),
                                 .scratch = {},
                                 .layout = GemmLayout::nt});
  }
}

void Linear::backward_input(StepContext& ctx, const TensorView& dy_MN, const TensorView& dx_MK) const {
  if (param_->weight.is_packed()) {
    run_with_scratch(
        ctx,
        PackedMatmul{
            .x = dy_MN, .w = param_->weight.packed, .y = dx_MK, .scratch = {}, .layout = GemmLayout::nn});
  } else {
    run_with_scratch(
        ctx,
        Matmul{.a = dy_MN, .b = param_->weight.dense, .c = dx_MK, .scratch = {}, .layout = GemmLayout::nn});
  }
}

void Linear::backward_weight(StepContext& ctx, const TensorView& dy_MN, const TensorView& x_MK) const {
  run_with_scratch(ctx, Matmul{.a = dy_MN,
                               .b = x_MK,
                               .c = param_->grad,
                               .scratch = {},
                               .layout = GemmLayout::tn,
                               .accumulate = true});
  if (bias_ != nullptr)
    run_with_scratch(ctx, ColumnSum{.x = dy_MN, .out = bias_->grad.flat(), .scratch = {}});
}

std::int64_t Linear::forward_scratch_bytes(const Target& target, DType dtype, std::int64_t M) const {
  // Not monotonic in M: a few rows may be split along K where many are not.
  std::int64_t bytes = 0;
  for (std::int64_t rows = 1; rows <= M; ++rows) {
    // Shapes are all that counts here; the address is never read.
    const TensorView x(
        param_->weight.is_packed() ? param_->weight.packed.codes.data : param_->weight.dense.data, dtype,
        {rows, param_->K});
    const TensorView y(x.data, dtype, {rows, param_->N});
    bytes =
        std::max(bytes, param_->weight.is_packed()
                            ? scratch_bytes(PackedMatmul{.x = x, .w = param_->weight.packed, .y = y}, target)
                            : scratch_bytes(Matmul{.a = x, .b = param_->weight.dense, .c = y}, target));
  }
  return bytes;
}

void Linear::forward_in(Backend& backend, const TensorView& x_MK, const TensorView& y_MN,
                        const TensorView& scratch) const {
  if (param_->weight.is_packed()) {
    backend.run(PackedMatmul{.x = x_MK,
                             .w = param_->weight.packed,
                             .y = y_MN,
                             .bias = vector_weight(bias_),
                             .scratch = scratch,
                             .layout = GemmLayout::nt});
  } else {
    backend.run(Matmul{.a = x_MK,
                       .b = param_->weight.dense,
                       .c = y_MN,
                       .bias = vector_weight(bias_),
                       .scratch = scratch,
                       .layout = GemmLayout::nt});
  }
}

}  // namespace qt
