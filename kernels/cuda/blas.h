// Plain matrix products by the vendor's library. blas.cu calls cuBLASLt; the simulator has a twin in
// kernels/sim/blas.cpp.
#pragma once

#include <cstdint>
#include <memory>

#include <cuda_runtime.h>

#include "src/core/tensor.h"

namespace qt::cuda {

// c[M, N] = a[M, R] b[R, N] (+ c), row-major as the ops see it: element (i, j) of a lies at a + i * a_pitch +
// j, or at a + j * a_pitch + i when a_transposed; b likewise. f32 accumulation, one rounding into c; with
// bias, bias[n] is added before the rounding. Deterministic: the same call on the same card gives the same
// bits.
struct BlasProduct {
  std::int64_t M = 0, N = 0, R = 0;
  const void* a = nullptr;
  const void* b = nullptr;
  void* c = nullptr;
  DType operands = DType::f32;  // f32 | bf16 | f16
  DType result = DType::f32;    // f32 or as the operands
  std::int64_t a_pitch = 0, b_pitch = 0, c_pitch = 0;
  bool a_transposed = false, b_transposed = false;
  bool accumulate = false;
  const float* bias = nullptr;  // [N]; not with accumulate
};

class Blas {
 public:
  virtual ~Blas() = default;
  // Enqueues the product. Throws DeviceError when the library refuses it.
  virtual void multiply(const BlasProduct& product, cudaStream_t stream) = 0;
};

// workspace: device memory of the library, workspace_bytes of it, that outlives the Blas; products on
// different streams must not overlap.
std::unique_ptr<Blas> make_blas(void* workspace, std::int64_t workspace_bytes);

}  // namespace qt::cuda
