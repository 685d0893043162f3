// Sorting by the vendor's primitives. sort.cu calls CUB; the simulator has a twin in kernels/sim/sort.cpp.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

namespace qt::cuda {

// Stable sort of n pairs by key, keys in [0, 2^key_bits). The pairs are in buffer 0; both buffers are written
// to. All in device memory, nothing overlaps.
struct SortPairs {
  std::int32_t* keys[2] = {};    // [n] each
  std::int32_t* values[2] = {};  // [n] each
  std::int64_t n = 0;            // below 2^31
  int key_bits = 32;
  void* temp = nullptr;
  std::int64_t temp_bytes = 0;
};

// Enqueues the sort and returns which of the buffers will hold the result, 0 or 1. Throws DeviceError when
// the temporary memory is less than the library asks for.
int sort_pairs(const SortPairs& sort, cudaStream_t stream);

}  // namespace qt::cuda
