// Sorting by CUB. Host code, and the one file beside the matrix library that the simulator has a twin for.
#include <cstddef>

#include <cub/device/device_radix_sort.cuh>

#include "kernels/cuda/runtime.h"
#include "kernels/cuda/sort.h"
#include "src/core/error.h"

namespace qt::cuda {

int sort_pairs(const SortPairs& sort, cudaStream_t stream) {
  // Keys are not negative, and unsigned ones spare the flip of the sign bit, which key_bits leaves out.
  cub::DoubleBuffer<std::uint32_t> keys(reinterpret_cast<std::uint32_t*>(sort.keys[0]),
                                        reinterpret_cast<std::uint32_t*>(sort.keys[1]));
  cub::DoubleBuffer<std::int32_t> values(sort.values[0], sort.values[1]);
  std::size_t need_bytes = 0;
  const auto call = [&](void* temp) {
    return cub::DeviceRadixSort::SortPairs(temp, need_bytes, keys, values, static_cast<int>(sort.n), 0,
                                           sort.key_bits, stream);
  };
  check(call(nullptr), "the size of a sort");
  QT_CHECK(sort.temp_bytes >= 0 && static_cast<std::size_t>(sort.temp_bytes) >= need_bytes, DeviceError,
           "the sort library asks for {} bytes to sort {} pairs, and {} were planned", need_bytes, sort.n,
           sort.temp_bytes);
  check(call(sort.temp), "a sort");
  after_launch("a sort", stream);
  return keys.selector;
}

}  // namespace qt::cuda
