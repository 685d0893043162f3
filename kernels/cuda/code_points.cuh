// The code points of a format, in shared memory once for each block of threads: each f32 lies in a bank of its
// own (up to 32 code points), so that a look-up never conflicts. A weight is code point times scale in f32, rounded once to bf16:
// the bits of the format's reference.
#pragma once

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "quant/format.h"

namespace qt::cuda {

template <class F>
inline constexpr int kCodePoints = 1 << F::kCodeBits;
template <class F>
inline constexpr int kCodePointBytes = shared_array_bytes(kCodePoints<F>, sizeof(float));  // of shared memory

// As kernels take them: a device does not reach the host's arrays.
template <class F>
struct CodePoints {
  float value[kCodePoints<F>];
};

template <class F>
CodePoints<F> code_points_of() {
  CodePoints<F> points;
  std::copy(F::kCodebook.begin(), F::kCodebook.end(), points.value);
  return points;
}

// Every thread of the block must come; they may look up after the next barrier.
template <class F>
__device__ SharedArray<float> take_code_points(SharedMemory& shared, const CodePoints<F>& points) {
  const SharedArray<float> table = shared.take<float>(kCodePoints<F>);
  // By constant indices: any other would put the parameter into local memory.
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < kCodePoints<F>; ++i) table.write(i, points.value[i]);
  }
  return table;
}

}  // namespace qt::cuda
