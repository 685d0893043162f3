// The code points of a format of 4 bits, in shared memory once for each block of threads: sixteen f32 in
// sixteen banks, so that a look-up never conflicts. A weight is code point times scale in f32, rounded once
// to bf16: the bits of Nf4::decode.
#pragma once

#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "quant/format.h"

namespace qt::cuda {

inline constexpr int kCodePoints = 16;
inline constexpr int kCodePointBytes = shared_array_bytes(kCodePoints, sizeof(float));  // of shared memory

// As kernels take them: a device does not reach the host's arrays.
struct CodePoints {
  float value[kCodePoints];
};

inline CodePoints code_points_of(FormatId format) {
  CodePoints points;
  dispatch_format(format, [&]<class F>() {
    static_assert(F::kCodeBits == 4 && F::kCodebook.size() == kCodePoints);
    std::copy(F::kCodebook.begin(), F::kCodebook.end(), points.value);
  });
  return points;
}

// Every thread of the block must come; they may look up after the next barrier.
__device__ inline SharedArray<float> take_code_points(SharedMemory& shared, const CodePoints& points) {
  const SharedArray<float> table = shared.take<float>(kCodePoints);
  // By constant indices: any other would put the parameter into local memory.
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < kCodePoints; ++i) table.write(i, points.value[i]);
  }
  return table;
}

}  // namespace qt::cuda
