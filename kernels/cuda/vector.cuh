// Elementwise loops: eight elements a thread, in 16-byte accesses where the addresses allow it.
#pragma once

#include <cstdint>

#include "kernels/aligned.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace qt::cuda {

inline constexpr int kVectorElems = 8;

struct Floats {
  float x[kVectorElems];
};

// kVectorElems elements as they lie in memory: what a row in registers is kept in.
template <class T>
struct Packed {
  uint4 pairs;
};
template <>
struct Packed<float> {
  float4 low, high;
};

// Whether every row of a matrix begins at such an address. Asked once, before a loop over rows: in a loop the
// question would stand between its loads.
template <class T>
__device__ bool rows_aligned16(const T* p, std::int64_t pitch) {
  return is_aligned16(p) && pitch * static_cast<std::int64_t>(sizeof(T)) % 16 == 0;
}

// kVectorElems elements at p, which is aligned to 16 bytes.
template <class T>
__device__ Packed<T> load_packed(const T* p) {
  if constexpr (sizeof(T) == 4) {
    return {read_global<float4>(p), read_global<float4>(p + 4)};
  } else {
    return {read_global<uint4>(p)};
  }
}

template <class T>
__device__ Floats widen(const Packed<T>& packed) {
  if constexpr (sizeof(T) == 4) {
    const float4 low = packed.low, high = packed.high;
    return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
  } else {
    const unsigned words[4] = {packed.pairs.x, packed.pairs.y, packed.pairs.z, packed.pairs.w};
    Floats f;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      f.x[2 * i] = widen(T{static_cast<std::uint16_t>(words[i] & 0xFFFFu)});
      f.x[2 * i + 1] = widen(T{static_cast<std::uint16_t>(words[i] >> 16)});
    }
    return f;
  }
}

// One rounding each; p is aligned to 16 bytes.
template <class T>
__device__ void store_packed(T* p, const Floats& f) {
  if constexpr (sizeof(T) == 4) {
    write_global(p, make_float4(f.x[0], f.x[1], f.x[2], f.x[3]));
    write_global(p + 4, make_float4(f.x[4], f.x[5], f.x[6], f.x[7]));
  } else {
    write_global(p, make_uint4(cvt_pair<T>(f.x[0], f.x[1]), cvt_pair<T>(f.x[2], f.x[3]),
                               cvt_pair<T>(f.x[4], f.x[5]), cvt_pair<T>(f.x[6], f.x[7])));
  }
}

// Four elements at p, which is aligned to the four of them: to[0] .. to[3], widened.
template <class T>
__device__ void load_quad(const T* p, float* to) {
  if constexpr (sizeof(T) == 4) {
    const float4 quad = read_global<float4>(p);
    to[0] = quad.x, to[1] = quad.y, to[2] = quad.z, to[3] = quad.w;
  } else {
    const uint2 pairs = read_global<uint2>(p);
    to[0] = widen(T{static_cast<std::uint16_t>(pairs.x & 0xFFFFu)});
    to[1] = widen(T{static_cast<std::uint16_t>(pairs.x >> 16)});
    to[2] = widen(T{static_cast<std::uint16_t>(pairs.y & 0xFFFFu)});
    to[3] = widen(T{static_cast<std::uint16_t>(pairs.y >> 16)});
  }
}
// One rounding each.
template <class T>
__device__ void store_quad(T* p, const float* x) {
  if constexpr (sizeof(T) == 4) {
    write_global(p, make_float4(x[0], x[1], x[2], x[3]));
  } else {
    write_global(p, make_uint2(cvt_pair<T>(x[0], x[1]), cvt_pair<T>(x[2], x[3])));
  }
}

// Elements [0, count) of p, widened; zeros behind them. count <= kVectorElems.
template <class T>
__device__ Floats load_floats(const T* p, int count) {
  if (count == kVectorElems && is_aligned16(p)) return widen(load_packed(p));
  Floats f;
#pragma unroll
  for (int i = 0; i < kVectorElems; ++i) f.x[i] = i < count ? widen(p[i]) : 0.0f;
  return f;
}

// One rounding each; elements from count on are not touched.
template <class T>
__device__ void store_floats(T* p, int count, const Floats& f) {
  if (count == kVectorElems && is_aligned16(p)) return store_packed(p, f);
#pragma unroll  // whole, so that f stays in registers
  for (int i = 0; i < kVectorElems; ++i) {
    if (i < count) p[i] = narrow<T>(f.x[i]);
  }
}

// How many of the kVectorElems elements from `first` on are there.
__device__ inline int vector_count(std::int64_t first, std::int64_t n) {
  const std::int64_t left = n - first;
  return left >= kVectorElems ? kVectorElems : left > 0 ? static_cast<int>(left) : 0;
}

__device__ inline void add_floats(Floats& sum, const Floats& f) {
#pragma unroll
  for (int i = 0; i < kVectorElems; ++i) sum.x[i] += f.x[i];
}

// The sum of rows [first, end) of a matrix, at least one, in ascending order: of `count` columns from p on,
// which is the first of them in row 0. aligned: count is kVectorElems, and p is at a multiple of 16 bytes in
// every row.
template <int kUnroll, class T>
__device__ Floats sum_of_rows(const T* p, std::int64_t pitch, std::int64_t first, std::int64_t end, int count,
                              bool aligned) {
  const auto sum_with = [&](auto&& load) {
    Floats sum = load(p + first * pitch);
#pragma unroll kUnroll
    for (std::int64_t row = first + 1; row < end; ++row) add_floats(sum, load(p + row * pitch));
    return sum;
  };
  return aligned ? sum_with([](const T* at) { return widen(load_packed(at)); })
                 : sum_with([&](const T* at) { return load_floats(at, count); });
}

// Calls fn(first, count) for pieces of kVectorElems that cover [0, n), spread over the grid.
template <class Fn>
__device__ void for_each_vector(std::int64_t n, Fn&& fn) {
  for (std::int64_t i = global_thread() * kVectorElems; i < n; i += global_threads() * kVectorElems) {
    fn(i, vector_count(i, n));
  }
}

// For kernels with blocks that take one piece of work after the other: enough blocks to fill the card, and no
// more than `needed`. The grid never enters a result.
inline LaunchShape filling_shape(const char* kernel, std::int64_t needed, int threads, const Context& context,
                                 int blocks_per_multiprocessor = 8) {
  const std::int64_t most = std::int64_t{context.multiprocessors} * blocks_per_multiprocessor;
  return {
      .name = kernel, .blocks = needed < most ? needed : most, .threads = threads, .stream = context.stream};
}

inline LaunchShape elementwise_shape(const char* kernel, std::int64_t n, const Context& context) {
  constexpr int kThreads = 256;
  return filling_shape(kernel, blocks_for(n, std::int64_t{kThreads} * kVectorElems), kThreads, context);
}

}  // namespace qt::cuda
