// Which attention kernels an op takes, and their arguments.
#pragma once

#include <initializer_list>

#include "kernels/aligned.h"
#include "kernels/cuda/attention_args.cuh"
#include "kernels/cuda/context.h"

namespace qt::cuda {

template <class Op>
AttentionArgs attention_args(const Op& op) {
  const auto size = [](std::int64_t n) { return static_cast<int>(n); };
  return {.B = op.q.dim(0),
          .Tq = size(op.q.dim(1)),
          .Tk = size(op.k.dim(1)),
          .H = size(op.q.dim(2)),
          .G = size(op.k.dim(2)),
          .D = size(op.q.dim(3)),
          .scale = op.scale,
          .threshold = dropout_threshold(op.dropout),
          .keep_scale = op.dropout == 0 ? 1.0f : dropout_scale(op.dropout),
          .rng = op.rng,
          .first_row = op.first_row};
}

// What the kernels on tensor cores need (attention_mma.cuh).
inline bool fits_tensor_cores(const AttentionArgs& args, DType dtype,
                              std::initializer_list<const TensorView*> tensors) {
  bool fits = dtype != DType::f32 && args.D <= 128 && args.D % 8 == 0 && args.scale > 0;
  for (const TensorView* x : tensors) fits = fits && is_aligned16(x->data);
  return fits;
}

// Calls fn.operator()<T, kD>() for the 16-bit type and the narrowest kernel that takes heads of D columns.
template <class Fn>
void with_head_width(DType dtype, int D, Fn&& fn) {
  const auto with_type = [&]<class T>() {
    if (D <= 64) return fn.template operator()<T, 64>();
    if (D <= 96) return fn.template operator()<T, 96>();
    return fn.template operator()<T, 128>();
  };
  if (dtype == DType::bf16) return with_type.template operator()<bf16>();
  return with_type.template operator()<f16>();
}

}  // namespace qt::cuda
