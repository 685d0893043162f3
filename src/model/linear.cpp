#include "src/model/linear.h"

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

}  // namespace qt
