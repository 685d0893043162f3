// What every kernel file starts from: launching, the block's shared memory, and lane collectives. The only
// file beside ptx.cuh that knows whether a device or the host runs the kernels; the host's half is
// kernels/sim/sim_launch.h, with the same names.
//
// Rules that keep one body for both:
//   * blocks are one-dimensional, a multiple of 32 threads; collectives take the whole warp
//   * shared memory is dynamic, cut into SharedArrays, and reached by read() and write() alone
//   * global memory is reached in pieces larger than its elements by read_global() and write_global() alone
//   * a kernel is launched under its own name, which the launch counters of the tests know it by
#pragma once

#include <cstdint>

#include <cuda_runtime.h>

#include "kernels/cuda/runtime.h"
#include "src/core/error.h"

namespace qt::cuda {

inline constexpr int kWarpThreads = 32;
inline constexpr unsigned kFullWarp = 0xFFFFFFFFu;

// Static and dynamic shared memory that a block may have on every architecture built for (sm_86, 89, 120).
inline constexpr int kMaxSharedBytes = 99 * 1024;

struct LaunchShape {
  const char* name = nullptr;  // of the kernel, without template arguments
  std::int64_t blocks = 0;     // grid, x; 0 launches nothing
  std::int64_t blocks_y = 1;
  std::int64_t blocks_z = 1;
  int threads = 0;       // of a block, a multiple of 32
  int shared_bytes = 0;  // of a block
  cudaStream_t stream = nullptr;
};

// What stands before every launch. False: there is nothing to launch. Throws ShapeError for more blocks or
// shared memory than any card takes, and what check() throws.
inline bool prepare_launch(const LaunchShape& shape, const void* kernel) {
  if (shape.blocks == 0 || shape.blocks_y == 0 || shape.blocks_z == 0) return false;
  constexpr std::int64_t kMostBlocks = 0x7FFFFFFF, kMostBlocksYZ = 65535;
  const auto fits = [](std::int64_t count, std::int64_t most) { return count > 0 && count <= most; };
  QT_CHECK(fits(shape.blocks, kMostBlocks) && fits(shape.blocks_y, kMostBlocksYZ) &&
               fits(shape.blocks_z, kMostBlocksYZ) && shape.shared_bytes <= kMaxSharedBytes,
           ShapeError,
           "the launch of {} is too large for a card: {} x {} x {} blocks with {} bytes of shared memory",
           shape.name, shape.blocks, shape.blocks_y, shape.blocks_z, shape.shared_bytes);
  constexpr int kWithoutAsking = 48 * 1024;
  if (shape.shared_bytes > kWithoutAsking) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes),
          shape.name);
  }
  return true;
}

}  // namespace qt::cuda

#ifdef __CUDACC__

namespace qt::cuda {

// A vector V in global memory at p, which is aligned to the size of V.
template <class V>
__device__ V read_global(const void* p) {
  return *static_cast<const V*>(p);
}
template <class V>
__device__ void write_global(void* p, V value) {
  *static_cast<V*>(p) = value;
}

// A piece of the block's shared memory. Indices count elements. read_as and write_as move a vector V (4, 8 or
// 16 bytes, a multiple of T, its alignment) at element i.
template <class T>
class SharedArray {
 public:
  __device__ SharedArray(T* data) : data_(data) {}
  __device__ T read(int i) const { return data_[i]; }
  __device__ void write(int i, T value) const { data_[i] = value; }
  template <class V>
  __device__ V read_as(int i) const {
    return *reinterpret_cast<const V*>(data_ + i);
  }
  template <class V>
  __device__ void write_as(int i, V value) const {
    *reinterpret_cast<V*>(data_ + i) = value;
  }
  __device__ SharedArray part(int first, int count) const {
    (void)count;
    return SharedArray(data_ + first);
  }
  __device__ unsigned address(int i) const {
    return static_cast<unsigned>(__cvta_generic_to_shared(data_ + i));
  }

 private:
  T* data_;
};

// Hands out the shared memory of the launch piece by piece, each aligned to 128 bytes (shared_array_bytes
// says how much a piece takes). Every thread of the block must take the same pieces in the same order.
class SharedMemory {
 public:
  __device__ SharedMemory() {}
  template <class T>
  __device__ SharedArray<T> take(int count) {
    extern __shared__ __align__(128) unsigned char qt_shared_memory[];
    T* const piece = reinterpret_cast<T*>(qt_shared_memory + used_bytes_);
    used_bytes_ += (count * static_cast<int>(sizeof(T)) + 127) / 128 * 128;
    return SharedArray<T>(piece);
  }

 private:
  int used_bytes_ = 0;
};

template <class... Params, class... Args>
void launch(const LaunchShape& shape, void (*kernel)(Params...), Args... args) {
  if (!prepare_launch(shape, reinterpret_cast<const void*>(kernel))) return;
  kernel<<<dim3(static_cast<unsigned>(shape.blocks), static_cast<unsigned>(shape.blocks_y),
                static_cast<unsigned>(shape.blocks_z)),
           static_cast<unsigned>(shape.threads), static_cast<std::size_t>(shape.shared_bytes),
           shape.stream>>>(static_cast<Params>(args)...);
  after_launch(shape.name, shape.stream);
}

}  // namespace qt::cuda

#else
#include <sim_launch.h>
#endif

namespace qt::cuda {

// What SharedMemory::take<T>(count) uses up.
constexpr int shared_array_bytes(std::int64_t count, std::int64_t element_bytes) {
  return static_cast<int>((count * element_bytes + 127) / 128 * 128);
}

// Blocks of `per_block` that cover n.
constexpr std::int64_t blocks_for(std::int64_t n, std::int64_t per_block) {
  return (n + per_block - 1) / per_block;
}

__device__ inline std::int64_t global_thread() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline std::int64_t global_threads() { return static_cast<std::int64_t>(gridDim.x) * blockDim.x; }
__device__ inline int lane_id() { return static_cast<int>(threadIdx.x) % kWarpThreads; }
__device__ inline int warp_id() { return static_cast<int>(threadIdx.x) / kWarpThreads; }

// Sum over the warp by a fixed tree, the same bits in every lane.
template <class T>
__device__ T warp_sum(T x) {
  for (int offset = kWarpThreads / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullWarp, x, offset);
  return x;
}
template <class T>
__device__ T warp_max(T x) {
  for (int offset = kWarpThreads / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(kFullWarp, x, offset);
    x = x < other ? other : x;
  }
  return x;
}

// Sum over the block by a fixed tree, the same bits in every thread. partial: one element a warp; may be used
// again at once: the function waits before its first write and after its last read.
template <class T>
__device__ T block_sum(T x, const SharedArray<T>& partial) {
  x = warp_sum(x);
  __syncthreads();
  if (lane_id() == 0) partial.write(warp_id(), x);
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / kWarpThreads;
  T sum = partial.read(0);
  for (int w = 1; w < warps; ++w) sum += partial.read(w);
  return sum;
}

}  // namespace qt::cuda
