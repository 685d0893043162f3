#include "src/model/linear.h"

#include <algorithm>
#include <type_traits>

namespace qt {

template <class Use>
void Linear::product(GemmLayout layout, const TensorView& x, const TensorView& y, const TensorView& bias,
                     Use&& use) const {
  param_->weight.visit([&](const auto& w) {
    if constexpr (std::is_same_v<decltype(w), const PackedView&>) {
      use(PackedMatmul{.x = x, .w = w, .y = y, .bias = bias, .scratch = {}, .layout = layout});
    } else {
      use(Matmul{.a = x, .b = w, .c = y, .bias = bias, .scratch = {}, .layout = layout});
    }
  });
}

void Linear::forward(StepContext& ctx, const TensorView& x_MK, const TensorView& y_MN) const {
  product(GemmLayout::nt, x_MK, y_MN, vector_weight(bias_), [&](auto op) { run_with_scratch(ctx, op); });
}

void Linear::backward_input(StepContext& ctx, const TensorView& dy_MN, const TensorView& dx_MK) const {
  product(GemmLayout::nn, dy_MN, dx_MK, {}, [&](auto op) { run_with_scratch(ctx, op); });
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
  // Shapes are all that counts here; the address is never read.
  void* const address =
      param_->weight.is_packed() ? param_->weight.packed.codes.data : param_->weight.dense.data;
  // Not monotonic in M: a few rows may be split along K where many are not.
  std::int64_t bytes = 0;
  for (std::int64_t rows = 1; rows <= M; ++rows) {
    const TensorView x(address, dtype, {rows, param_->K}), y(address, dtype, {rows, param_->N});
    product(GemmLayout::nt, x, y, vector_weight(bias_),
            [&](const auto& op) { bytes = std::max(bytes, scratch_bytes(op, target)); });
  }
  return bytes;
}

void Linear::forward_in(Backend& backend, const TensorView& x_MK, const TensorView& y_MN,
                        const TensorView& scratch) const {
  product(GemmLayout::nt, x_MK, y_MN, vector_weight(bias_), [&](auto op) {
    op.scratch = scratch;
    backend.run(op);
  });
}

}  // namespace qt
