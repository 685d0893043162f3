// What the implementations of ops share: the stream to work on, what the card is, and the libraries.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include "kernels/ops.h"
#include "kernels/target.h"

namespace qt::cuda {

class Blas;

struct Context {
  cudaStream_t stream = nullptr;
  const Target& target;
  int multiprocessors = 1;
  Blas& blas;
};

// Enqueues the op on context.stream; returns before the work is done. One declaration per op; scratch has
// been checked by the caller.
#define QT_DECLARE_CUDA_OP(Op) void run(const Op& op, const Context& context);
QT_FOR_EACH_OP(QT_DECLARE_CUDA_OP)
#undef QT_DECLARE_CUDA_OP

// Calls fn.operator()<T>() with the type behind a compute dtype; check() has let no other through.
template <class Fn>
decltype(auto) with_float(DType dtype, Fn&& fn) {
  if (dtype == DType::bf16) return fn.template operator()<bf16>();
  if (dtype == DType::f16) return fn.template operator()<f16>();
  QT_CHECK(dtype == DType::f32, DTypeError, "no arithmetic on {}", dtype_name(dtype));
  return fn.template operator()<float>();
}

}  // namespace qt::cuda
