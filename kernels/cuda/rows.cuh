// One group of threads per row of a matrix [N, C]: a warp while the row is short, a block beyond. A thread
// owns every kGroup-th vector of eight elements, so what it sums, and in which order, is a function of C
// alone: neither the address of the row nor whether it is kept in registers enters a result.
//
// kVectors > 0: a thread's vectors are read once and kept in registers; rows are whole vectors then, aligned
// to 16 bytes. kVectors == 0: they are read again where they are needed, from cache, in any width and
// alignment.
#pragma once

#include <cstdint>

#include "kernels/aligned.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vector.cuh"

namespace qt::cuda {

inline constexpr int kRowBlockThreads = 256;           // of a block that has one row
inline constexpr int kRowsPerBlock = 4;                // of a block that has a row per warp
inline constexpr std::int64_t kMaxWarpColumns = 2048;  // eight vectors a lane

template <int kGroup, int kVectors>
class RowGroup {
 public:
  static constexpr bool kHeld = kVectors > 0;

  __device__ RowGroup() : partial_(take_partial()) {}

  __device__ std::int64_t row() const {
    if constexpr (kGroup == kWarpThreads) {
      return static_cast<std::int64_t>(blockIdx.x) * kRowsPerBlock + warp_id();
    } else {
      return blockIdx.x;
    }
  }
  __device__ bool is_first() const { return rank() == 0; }

  // Calls fn(v, first, count) for this thread's vectors of the row in ascending order: elements
  // [first, first + count), v their number when they are held.
  template <class Fn>
  __device__ void for_each(int C, Fn&& fn) const {
    if constexpr (kHeld) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int first = (v * kGroup + rank()) * kVectorElems;
        if (first < C) fn(v, first, kVectorElems);
      }
    } else {
      for (int first = rank() * kVectorElems; first < C; first += kGroup * kVectorElems) {
        fn(0, first, C - first < kVectorElems ? C - first : kVectorElems);
      }
    }
  }

  // Over the group by a fixed tree, the same bits in every thread.
  __device__ float sum(float x) const {
    if constexpr (kGroup == kWarpThreads) {
      return warp_sum(x);
    } else {
      return block_sum(x, partial_);
    }
  }

  // Of the vectors that for_each names.
  template <class T>
  static __device__ Floats load(const T* p, int count) {
    if constexpr (kHeld) {
      return widen(load_packed(p));
    } else {
      return load_floats(p, count);
    }
  }
  template <class T>
  static __device__ void store(T* p, int count, const Floats& f) {
    if constexpr (kHeld) {
      store_packed(p, f);
    } else {
      store_floats(p, count, f);
    }
  }

 private:
  static __device__ int rank() { return static_cast<int>(threadIdx.x) % kGroup; }
  static __device__ SharedArray<float> take_partial() {
    SharedMemory shared;
    return shared.template take<float>(kGroup == kWarpThreads ? 0 : kGroup / kWarpThreads);
  }

  SharedArray<float> partial_;  // one a warp; empty for a group that is a warp
};

// One row of a tensor, to be asked for the vectors that RowGroup::for_each names.
template <class T, int kGroup, int kVectors>
class Row {
 public:
  __device__ Row(const RowGroup<kGroup, kVectors>& group, const T* row, int C) {
    group.for_each(C, [&](int v, int first, int) { packed_[v] = load_packed(row + first); });
  }
  __device__ Floats get(int v, int, int) const { return widen(packed_[v]); }

 private:
  Packed<T> packed_[kVectors];
};
template <class T, int kGroup>
class Row<T, kGroup, 0> {
 public:
  __device__ Row(const RowGroup<kGroup, 0>&, const T* row, int) : row_(row) {}
  __device__ Floats get(int, int first, int count) const { return load_floats(row_ + first, count); }

 private:
  const T* row_;
};

template <class... Views>
bool all_aligned16(const Views&... views) {
  return (is_aligned16(views.data) && ...);
}

// Of a view that may be undefined.
inline float* floats_or_null(const TensorView& view) { return view.defined() ? view.as<float>() : nullptr; }

// Calls fn.operator()<kGroup, kVectors>() with what rows of C elements ask for; aligned: where they begin, in
// every tensor, is.
template <class Fn>
void with_row_group(std::int64_t C, bool aligned, Fn&& fn) {
  if (C > kMaxWarpColumns) return fn.template operator()<kRowBlockThreads, 0>();
  constexpr std::int64_t kStep = kWarpThreads * kVectorElems;
  if (!aligned || C % kVectorElems != 0) return fn.template operator()<kWarpThreads, 0>();
  if (C <= kStep) return fn.template operator()<kWarpThreads, 1>();
  if (C <= 2 * kStep) return fn.template operator()<kWarpThreads, 2>();
  if (C <= 4 * kStep) return fn.template operator()<kWarpThreads, 4>();
  return fn.template operator()<kWarpThreads, 8>();
}

template <int kGroup>
LaunchShape rows_shape(const char* kernel, std::int64_t N, const Context& context) {
  if constexpr (kGroup == kWarpThreads) {
    return {.name = kernel,
            .blocks = blocks_for(N, kRowsPerBlock),
            .threads = kRowsPerBlock * kWarpThreads,
            .stream = context.stream};
  } else {
    return {.name = kernel,
            .blocks = N,
            .threads = kGroup,
            .shared_bytes = shared_array_bytes(kGroup / kWarpThreads, sizeof(float)),
            .stream = context.stream};
  }
}

}  // namespace qt::cuda
