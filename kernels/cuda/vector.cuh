// Elementwise loops: eight elements a thread, in 16-byte accesses where the addresses allow it.
#pragma once

#include <cstdint>

#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace qt::cuda {

inline constexpr int kVectorElems = 8;

struct Floats {
  float x[kVectorElems];
};

// Elements [0, count) of p, widened; zeros behind them. count <= kVectorElems.
template <class T>
__device__ Floats load_floats(const T* p, int count) {
  Floats f;
  if (count == kVectorElems && reinterpret_cast<std::uintptr_t>(p) % 16 == 0) {
    if constexpr (sizeof(T) == 4) {
      const float4 low = *reinterpret_cast<const float4*>(p), high = *reinterpret_cast<const float4*>(p + 4);
      f = {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
    } else {
      const uint4 pairs = *reinterpret_cast<const uint4*>(p);
      const unsigned words[4] = {pairs.x, pairs.y, pairs.z, pairs.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        f.x[2 * i] = widen(T{static_cast<std::uint16_t>(words[i] & 0xFFFFu)});
        f.x[2 * i + 1] = widen(T{static_cast<std::uint16_t>(words[i] >> 16)});
      }
    }
    return f;
  }
#pragma unroll
  for (int i = 0; i < kVectorElems; ++i) f.x[i] = i < count ? widen(p[i]) : 0.0f;
  return f;
}

// One rounding each; elements from count on are not touched.
template <class T>
__device__ void store_floats(T* p, int count, const Floats& f) {
  if (count == kVectorElems && reinterpret_cast<std::uintptr_t>(p) % 16 == 0) {
    if constexpr (sizeof(T) == 4) {
      *reinterpret_cast<float4*>(p) = make_float4(f.x[0], f.x[1], f.x[2], f.x[3]);
      *reinterpret_cast<float4*>(p + 4) = make_float4(f.x[4], f.x[5], f.x[6], f.x[7]);
    } else {
      *reinterpret_cast<uint4*>(p) = make_uint4(cvt_pair<T>(f.x[0], f.x[1]), cvt_pair<T>(f.x[2], f.x[3]),
                                                cvt_pair<T>(f.x[4], f.x[5]), cvt_pair<T>(f.x[6], f.x[7]));
    }
    return;
  }
#pragma unroll  // whole, so that f stays in registers
  for (int i = 0; i < kVectorElems; ++i) {
    if (i < count) p[i] = narrow<T>(f.x[i]);
  }
}

// Calls fn(first, count) for pieces of kVectorElems that cover [0, n), spread over the grid.
template <class Fn>
__device__ void for_each_vector(std::int64_t n, Fn&& fn) {
  for (std::int64_t i = global_thread() * kVectorElems; i < n; i += global_threads() * kVectorElems) {
    fn(i, static_cast<int>(n - i < kVectorElems ? n - i : kVectorElems));
  }
}

// Enough blocks to fill the card, and no more than the elements need. The grid never enters a result.
inline LaunchShape elementwise_shape(const char* kernel, std::int64_t n, const Context& context) {
  constexpr int kThreads = 256, kBlocksPerMultiprocessor = 8;
  const std::int64_t needed = blocks_for(n, std::int64_t{kThreads} * kVectorElems);
  const std::int64_t most = std::int64_t{context.multiprocessors} * kBlocksPerMultiprocessor;
  return {
      .name = kernel, .blocks = needed < most ? needed : most, .threads = kThreads, .stream = context.stream};
}

}  // namespace qt::cuda
