// The part of CUDA's runtime header that kernels/cuda uses, for the host compiler: keywords, built-in
// variables, collectives, and twins of the runtime's calls with their names, arguments and error codes.
// Found under its real name because this folder is on the include path of the simulator alone.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/sim/block.h"
#include "kernels/sim/where.h"

// ---- keywords ----------------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__

// ---- vectors -----------------------------------------------------------------------------------------

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// ---- built-in variables ------------------------------------------------------------------------------

namespace qt::sim {
inline Dim3 grid_dim() { return this_grid().blocks; }
inline Dim3 block_dim() { return {static_cast<unsigned>(this_grid().threads), 1, 1}; }
}  // namespace qt::sim
#define threadIdx (::qt::sim::this_thread().thread)
#define blockIdx (::qt::sim::this_block_index())
#define blockDim (::qt::sim::block_dim())
#define gridDim (::qt::sim::grid_dim())

// ---- collectives -------------------------------------------------------------------------------------

inline void __syncthreads(const qt::sim::Where where = qt::sim::Where::current()) {
  qt::sim::block_barrier(where);
}

namespace qt::sim {

void check_full_mask(unsigned mask, const qt::sim::Where& where);

template <class T>
struct ShuffleSlot {
  T value;
  int source;
};
template <class T>
void combine_shuffle(void* const* slots) {
  T values[kWarpThreads];
  for (int lane = 0; lane < kWarpThreads; ++lane)
    values[lane] = static_cast<ShuffleSlot<T>*>(slots[lane])->value;
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    auto& slot = *static_cast<ShuffleSlot<T>*>(slots[lane]);
    slot.value = values[slot.source];
  }
}
template <class T>
T shuffle(unsigned mask, T value, int source, const qt::sim::Where& where) {
  check_full_mask(mask, where);
  ShuffleSlot<T> slot{value, source};
  warp_collective("shuffle", &slot, combine_shuffle<T>, where);
  return slot.value;
}

inline void combine_ballot(void* const* slots) {
  unsigned all = 0;
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    if (*static_cast<unsigned*>(slots[lane]) != 0) all |= 1u << lane;
  }
  for (int lane = 0; lane < kWarpThreads; ++lane) *static_cast<unsigned*>(slots[lane]) = all;
}
inline void combine_max(void* const* slots) {
  unsigned top = 0;
  for (int lane = 0; lane < kWarpThreads; ++lane) {
    const unsigned value = *static_cast<unsigned*>(slots[lane]);
    top = top < value ? value : top;
  }
  for (int lane = 0; lane < kWarpThreads; ++lane) *static_cast<unsigned*>(slots[lane]) = top;
}
inline void combine_nothing(void* const*) {}

}  // namespace qt::sim

template <class T>
T __shfl_sync(unsigned mask, T value, int source, const qt::sim::Where where = qt::sim::Where::current()) {
  return qt::sim::shuffle(mask, value, source & 31, where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask,
                  const qt::sim::Where where = qt::sim::Where::current()) {
  return qt::sim::shuffle(mask, value, (qt::sim::this_thread().lane ^ lane_mask) & 31, where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta,
                   const qt::sim::Where where = qt::sim::Where::current()) {
  const int lane = qt::sim::this_thread().lane, source = lane + static_cast<int>(delta);
  return qt::sim::shuffle(mask, value, source < 32 ? source : lane, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta,
                 const qt::sim::Where where = qt::sim::Where::current()) {
  const int lane = qt::sim::this_thread().lane, source = lane - static_cast<int>(delta);
  return qt::sim::shuffle(mask, value, source >= 0 ? source : lane, where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              const qt::sim::Where where = qt::sim::Where::current()) {
  qt::sim::check_full_mask(mask, where);
  unsigned slot = predicate != 0 ? 1 : 0;
  qt::sim::warp_collective("ballot", &slot, qt::sim::combine_ballot, where);
  return slot;
}
inline unsigned __reduce_max_sync(unsigned mask, unsigned value,
                                  const qt::sim::Where where = qt::sim::Where::current()) {
  qt::sim::check_full_mask(mask, where);
  qt::sim::warp_collective("__reduce_max", &value, qt::sim::combine_max, where);
  return value;
}
inline int __any_sync(unsigned mask, int predicate, const qt::sim::Where where = qt::sim::Where::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate, const qt::sim::Where where = qt::sim::Where::current()) {
  return __ballot_sync(mask, predicate, where) == 0xFFFFFFFFu;
}
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, const qt::sim::Where where = qt::sim::Where::current()) {
  qt::sim::check_full_mask(mask, where);
  qt::sim::warp_collective("__syncwarp", nullptr, qt::sim::combine_nothing, where, true);
}

// ---- arithmetic --------------------------------------------------------------------------------------

inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<std::uint64_t>(a) * b >> 32);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const std::uint64_t bytes = static_cast<std::uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned nibble = selector >> (4 * i) & 0xFu;
    unsigned byte = static_cast<unsigned>(bytes >> (8 * (nibble & 7u))) & 0xFFu;
    if ((nibble & 8u) != 0) byte = (byte & 0x80u) != 0 ? 0xFFu : 0;  // the sign, replicated
    result |= byte << (8 * i);
  }
  return result;
}
// Blocks run one after the other, and a thread is not interrupted between two collectives.
template <class T>
T atomicCAS(T* address, T compare, T value) {
  const T old = *address;
  if (old == compare) *address = value;
  return old;
}

// ---- the runtime's calls -----------------------------------------------------------------------------

enum cudaError_t : int {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInitializationError = 3,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorECCUncorrectable = 214,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorOperatingSystem = 304,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorLaunchTimeout = 702,
  cudaErrorAssert = 710,
  cudaErrorHardwareStackError = 714,
  cudaErrorIllegalInstruction = 715,
  cudaErrorMisalignedAddress = 716,
  cudaErrorInvalidAddressSpace = 717,
  cudaErrorInvalidPc = 718,
  cudaErrorLaunchFailure = 719,
  cudaErrorNotSupported = 801,
  cudaErrorUnknown = 999,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrKernelExecTimeout = 17,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
struct cudaDeviceProp {
  char name[256];
  std::size_t totalGlobalMem;
  int major, minor;
  int multiProcessorCount;
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaFuncAttributes {
  int binaryVersion;  // compute capability times ten of the code that the card runs
};

namespace qt::sim {
struct StreamState;
struct EventState;
}  // namespace qt::sim
using cudaStream_t = qt::sim::StreamState*;
using cudaEvent_t = qt::sim::EventState*;

inline constexpr unsigned cudaStreamNonBlocking = 1;
inline constexpr unsigned cudaEventDisableTiming = 2;
inline constexpr unsigned cudaHostAllocDefault = 0;

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaDeviceGetPCIBusId(char* id, int length, int device);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* kernel);
cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total_bytes);
cudaError_t cudaMalloc(void** memory, std::size_t bytes);
cudaError_t cudaFree(void* memory);
cudaError_t cudaHostAlloc(void** memory, std::size_t bytes, unsigned flags);
cudaError_t cudaFreeHost(void* memory);
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);
