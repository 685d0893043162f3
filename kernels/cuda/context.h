// What the implementations of ops share: the stream to work on, what the card is, and the libraries.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include "kernels/ops.h"
#include "kernels/target.h"
#include "kernels/with_dtype.h"

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

}  // namespace qt::cuda
