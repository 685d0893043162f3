// Plain matrix products by the vendor's library. blas.cu calls cuBLASLt; the simulator has a twin in
// kernels/sim/blas.cpp.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <cuda_runtime.h>

#include "src/core/tensor.h"

namespace qt::cuda {

// c[M, N] = a[M, R] b[R, N] (+ c), row-major as the ops see it: element (i, j) of a lies at a + i * a_pitch +
// j, or at a + j * a_pitch + i when a_transposed; b likewise. f32 accumulation, one rounding into c.
// Deterministic: the same call on the same card gives the same bits. All sizes are at least 1.
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
};

// An algorithm is chosen when a kind of product (sizes, types, pitches, alignments) is first met, and kept.
// Another algorithm is another order of sums: a run that is to continue with the same bits records them.
class Blas {
 public:
  virtual ~Blas() = default;

  // Enqueues the product. Throws DeviceError when the library refuses it.
  virtual void multiply(const BlasProduct& product, cudaStream_t stream) = 0;

  // The algorithms in use, as text: a line for the library and the card, and one for each kind of product, in
  // an order of their own. The same calls give the same text.
  virtual std::string algorithms() const = 0;

  // Takes over what algorithms() gave: for the kinds of products that it names, in place of what is in use;
  // the others stay. Returns why an entry was left out, a line
  // each: those kinds of products are chosen anew, and their bits may differ. Never throws for what the text
  // says: all of it may be of another library or card.
  virtual std::vector<std::string> use_algorithms(std::string_view text) = 0;
};

// workspace: device memory of the library, workspace_bytes of it, that outlives the Blas; products on
// different streams must not overlap.
std::unique_ptr<Blas> make_blas(void* workspace, std::int64_t workspace_bytes);

}  // namespace qt::cuda
