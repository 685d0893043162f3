// What the formats with a scale for each block share on the device (quant/block.h): the largest magnitude,
// and values normalised by it.
#pragma once

#include "kernels/cuda/vector.cuh"
#include "quant/block.h"

namespace qt::cuda {

// The bits of the largest magnitude of a lane's elements.
__device__ inline unsigned top_magnitude(const Floats& f) {
  unsigned top = 0;
#pragma unroll
  for (int i = 0; i < kVectorElems; ++i) {
    const unsigned bits = magnitude_bits(f.x[i]);
    top = top < bits ? bits : top;
  }
  return top;
}

__device__ inline Floats normalised(const Floats& f, const Normaliser& normalise) {
  Floats y;
  if (normalise.divides()) {
#pragma unroll
    for (int i = 0; i < kVectorElems; ++i) y.x[i] = f.x[i] / normalise.absmax();
  } else {
#pragma unroll
    for (int i = 0; i < kVectorElems; ++i) y.x[i] = f.x[i] * normalise.reciprocal();
  }
  return y;
}

}  // namespace qt::cuda
