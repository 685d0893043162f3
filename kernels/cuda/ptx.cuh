// Every instruction that C++ has no word for: matrix fragments, asynchronous copies, packed conversions. All
// of it exists from sm_80 on. The host's half is kernels/sim/sim_ptx.h.
//
// Fragments of mma.m16n8k16 (PTX ISA), lane = 4 g + t, T = bf16 | f16, two values a register, the lower index
// in the lower half:
//   a[0] row g     k 2t,2t+1      a[1] row g + 8  k 2t,2t+1      a[2], a[3] the same rows, k + 8
//   b[0] column g  k 2t,2t+1      b[1] column g   k 2t+8,2t+9
//   c[0], c[1] row g  columns 2t, 2t+1      c[2], c[3] row g + 8
#pragma once

#include <cstdint>
#include <type_traits>

#include <cuda_fp16.h>

#include "kernels/cuda/launch.cuh"
#include "src/core/half.h"

#ifdef __CUDACC__

namespace qt::cuda {

// c += a b, f32 accumulation.
template <class T>
__device__ inline void mma_m16n8k16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, bf16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

// Four 8x8 matrices of 16-bit elements. Lane l passes the address of row l % 8 of matrix l / 8: 16-byte
// aligned element `at` of `from`. Register i of lane l gets row l / 4, columns 2 (l % 4) and the next, of
// matrix i; _trans: of the transposed matrix.
template <class T>
__device__ inline void ldmatrix_x4(std::uint32_t (&r)[4], const SharedArray<T>& from, int at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from.address(at))
               : "memory");
}
template <class T>
__device__ inline void ldmatrix_x4_trans(std::uint32_t (&r)[4], const SharedArray<T>& from, int at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(from.address(at))
               : "memory");
}

// Starts a copy of 16 bytes from global memory to element `at`, both 16-byte aligned; not valid: 16 zero
// bytes, and nothing is read. The bytes are there after cp_async_wait of this thread, and for others after a
// barrier behind it.
template <class T>
__device__ inline void cp_async16(const SharedArray<T>& to, int at, const void* from, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.address(at)), "l"(from),
               "r"(valid ? 16 : 0)
               : "memory");
}
// Closes the group of copies that this thread started since the last commit.
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most kPending of this thread's groups are under way.
template <int kPending>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

// Rounding to nearest even. A NaN stays a NaN, of one pattern.
__device__ inline bf16 cvt_bf16(float x) {
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
// Two at once, `low` in the lower half.
template <class T>
__device__ inline std::uint32_t cvt_pair(float low, float high) {
  std::uint32_t y;
  if constexpr (std::is_same_v<T, bf16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  }
  return y;
}

}  // namespace qt::cuda

#else
#include <sim_ptx.h>
#endif

namespace qt::cuda {

__device__ inline float widen(float x) { return x; }
__device__ inline float widen(bf16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
__device__ inline float widen(f16 x) { return __half2float(__ushort_as_half(x.bits)); }

// One rounding to nearest even; beyond 65504 to infinity in f16.
template <class T>
__device__ inline T narrow(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return cvt_bf16(x);
  } else if constexpr (std::is_same_v<T, f16>) {
    return f16{__half_as_ushort(__float2half_rn(x))};
  } else {
    return x;
  }
}

}  // namespace qt::cuda
