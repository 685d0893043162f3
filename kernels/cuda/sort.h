// Sorting by the vendor's primitives. sort.cu calls CUB; the simulator has a twin in kernels/sim/sort.cpp.
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

namespace qt::cuda {

// Temporary memory that sort_pairs wants for n pairs.
std::int64_t sort_temp_bytes(std::int64_t n);

// Stable sort of n pairs by key, keys in [0, 2^key_bits). in and out do not overlap; all in device memory.
struct SortPairs {
  const std::int32_t* keys_in = nullptr;
  std::int32_t* keys_out = nullptr;
  const std::int32_t* values_in = nullptr;
  std::int32_t* values_out = nullptr;
  std::int64_t n = 0;
  int key_bits = 32;
  void* temp = nullptr;
  std::int64_t temp_bytes = 0;
};
void sort_pairs(const SortPairs& sort, cudaStream_t stream);

}  // namespace qt::cuda
