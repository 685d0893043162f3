// The host's half of kernels/cuda/ptx.cuh. Products are exact in f32, and a fragment's sum runs over k in
// ascending order behind the accumulator; a card orders and truncates otherwise, within the tolerance of the
// tests.
#pragma once

#include <cuda_fp16.h>

#include "kernels/sim/bank_counter.h"
#include "kernels/sim/cp_async.h"
#include "kernels/sim/where.h"

namespace qt::cuda {

namespace detail {

struct MmaSlot {
  float* c;
  const std::uint32_t* a;
  const std::uint32_t* b;
};

template <class T>
float half_of(std::uint32_t pair, int which) {
  return to_float(T{static_cast<std::uint16_t>(which == 0 ? pair & 0xFFFFu : pair >> 16)});
}

template <class T>
void combine_mma(void* const* slots) {
  float a[16][16], b[16][8], c[16][8];
  for (int lane = 0; lane < sim::kWarpThreads; ++lane) {
    const MmaSlot& s = *static_cast<const MmaSlot*>(slots[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; ++r) {
      for (int h = 0; h < 2; ++h) a[g + r % 2 * 8][2 * t + h + r / 2 * 8] = half_of<T>(s.a[r], h);
    }
    for (int r = 0; r < 2; ++r) {
      for (int h = 0; h < 2; ++h) b[2 * t + h + r * 8][g] = half_of<T>(s.b[r], h);
    }
    for (int r = 0; r < 4; ++r) c[g + r / 2 * 8][2 * t + r % 2] = s.c[r];
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) c[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int lane = 0; lane < sim::kWarpThreads; ++lane) {
    const MmaSlot& s = *static_cast<const MmaSlot*>(slots[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int r = 0; r < 4; ++r) s.c[r] = c[g + r / 2 * 8][2 * t + r % 2];
  }
}

struct LdmatrixSlot {
  std::uint32_t* r;
  sim::SharedShadow::Span row;
  sim::Where where;
};

template <bool kTransposed>
void combine_ldmatrix(void* const* slots) {
  const auto slot = [&](int lane) -> const LdmatrixSlot& {
    return *static_cast<const LdmatrixSlot*>(slots[lane]);
  };
  for (int i = 0; i < 4; ++i) {
    std::uint16_t matrix[8][8];
    std::int64_t offsets[8];
    for (int row = 0; row < 8; ++row) {
      const LdmatrixSlot& s = slot(8 * i + row);
      std::memcpy(matrix[row], sim::shared_memory().read(s.row, sim::this_warp_access(), s.where), 16);
      offsets[row] = s.row.offset;
    }
    sim::record_matrix_rows(offsets, slot(0).where);
    for (int lane = 0; lane < sim::kWarpThreads; ++lane) {
      const int g = lane / 4, t = 2 * (lane % 4);
      const std::uint32_t low = kTransposed ? matrix[t][g] : matrix[g][t];
      const std::uint32_t high = kTransposed ? matrix[t + 1][g] : matrix[g][t + 1];
      slot(lane).r[i] = low | high << 16;
    }
  }
}

}  // namespace detail

template <class T>
void mma_m16n8k16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                  const sim::Where where = sim::Where::current()) {
  detail::MmaSlot slot{c, a, b};
  sim::warp_collective("mma", &slot, detail::combine_mma<T>, where);
}

template <class T>
void ldmatrix_x4(std::uint32_t (&r)[4], const SharedArray<T>& from, int at,
                 const sim::Where where = sim::Where::current()) {
  static_assert(sizeof(T) == 2);
  detail::LdmatrixSlot slot{r, from.span(at, 16), where};
  sim::warp_collective("ldmatrix", &slot, detail::combine_ldmatrix<false>, where);
}
template <class T>
void ldmatrix_x4_trans(std::uint32_t (&r)[4], const SharedArray<T>& from, int at,
                       const sim::Where where = sim::Where::current()) {
  static_assert(sizeof(T) == 2);
  detail::LdmatrixSlot slot{r, from.span(at, 16), where};
  sim::warp_collective("ldmatrix.trans", &slot, detail::combine_ldmatrix<true>, where);
}

template <class T>
void cp_async16(const SharedArray<T>& to, int at, const void* from, bool valid = true,
                const sim::Where where = sim::Where::current()) {
  if (valid) sim::check_aligned(from, 16, "cp.async", where);
  const sim::SharedShadow::Span span = to.span(at, 16);
  sim::shared_memory().poison(span, sim::this_access(), where);
  sim::note_bank_access(span.offset, 16, where);
  sim::this_copies().start({span, valid ? static_cast<const std::byte*>(from) : nullptr});
}
inline void cp_async_commit() { sim::this_copies().commit(); }
template <int kPending>
void cp_async_wait() {
  sim::this_copies().wait(kPending, sim::shared_memory(), sim::this_access());
}

inline bf16 cvt_bf16(float x) { return to_bf16(x); }
template <class T>
std::uint32_t cvt_pair(float low, float high) {
  return from_float<T>(low).bits | static_cast<std::uint32_t>(from_float<T>(high).bits) << 16;
}

}  // namespace qt::cuda
