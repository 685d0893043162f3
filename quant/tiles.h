// The layout of 4-bit matrices on a card: tiles of 64 x 64 weights, each one piece of 2 KiB that serves both
// products, x W^T and dy W. Files and the cpu keep the flat layout of quant/nf4.h; blocks of 64 along a row
// are the same in both, so that going from one to the other moves bytes and changes none.
//
// The kernels of today read slots straight from global memory, a slot of 16 bytes a thread, and write the
// weights behind it to shared memory as bf16 (kernels/cuda/packed_gemm.cuh). A slot holds what the lanes of
// an mma want of either product: its pairs along k and along n. The swizzle permits more than that: in a tile
// copied to shared memory as it is, lanes 4 g + t of a warp may take the chunks (g, t) or (t, g) by 16-byte
// reads that meet no bank conflict.
//
//   tile     (n / 64) * (K / 64) + k / 64; inside it n, k in 0..63:
//              n = 2 (8 i + p) + dn     k = 2 (8 s + q) + dk     p, q in 0..7   i, s in 0..3   dn, dk in 0..1
//   slot     64 (s / 2) + 8 p + (q xor f[p]), f = 0 4 2 6 0 4 2 6: 16 bytes of chunk (p, q), 128 to a tile
//   in it    quad 4 (s % 2) + i: two bytes, one for each dn; dk in the order of the flat layout
//   scales   64 of a tile one after the other, by n
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>

#include "src/core/device.h"

namespace qt {

inline constexpr int kTileSide = 64;
inline constexpr int kTileElems = kTileSide * kTileSide;
inline constexpr int kTileSlotElems = 32;
inline constexpr int kTileSlots = kTileElems / kTileSlotElems;
inline constexpr int kTileCodeBytes = kTileElems / 2;
inline constexpr int kTileSlotBytes = kTileSlotElems / 2;

using TileScale = float;

// Whether tiles can hold a format: a pair of neighbours along k is a byte, and a row of a tile has a scale of
// the type that tiles have. A format that they can't hold stays flat on a card too.
template <class F>
inline constexpr bool kFitsTiles =
    F::kCodeBits == 4 && F::kGroupElems == 2 &&
    (F::kBlockElems == kTileSide) && std::is_same_v<typename F::Scale, TileScale>;

// f[p]. It is its own way back: q xor f[p] xor f[p] is q.
QT_HOST_DEVICE constexpr int tile_swizzle(int p) { return (p & 1) << 2 | (p & 2); }

QT_HOST_DEVICE constexpr int tile_slot(int half, int p, int q) {
  return kTileSlots / 2 * half + 8 * p + (q ^ tile_swizzle(p));
}

// The place of element (n, k) among the elements of a tile: its codes are those of a flat row in this order.
// n, k in [0, 64).
QT_HOST_DEVICE constexpr int tile_place(int n, int k) {
  const int i = n / 16, p = n / 2 % 8, dn = n % 2, s = k / 16, q = k / 2 % 8, dk = k % 2;
  return kTileSlotElems * tile_slot(s / 2, p, q) + 4 * (4 * (s % 2) + i) + 2 * dn + dk;
}

// The byte of a tile that elements (n, k) and (n, k + 1) share. n, k in [0, 64), k even.
QT_HOST_DEVICE constexpr int tile_byte(int n, int k) { return tile_place(n, k) / 2; }

constexpr bool can_be_tiled(std::int64_t N, std::int64_t K) {
  return N % kTileSide == 0 && K % kTileSide == 0;
}

// A matrix [N, K], both multiples of 64: codes [N * K / 2] and scales [N * K / 64] from one layout to the
// other. The 64 rows from a multiple of 64 on are one piece of memory in both, so a matrix may also go in
// such pieces. Source and destination may not overlap. Throw ShapeError where a size does not fit.
void flat_to_tiles(std::int64_t N, std::int64_t K, std::span<const std::uint8_t> flat_codes,
                   std::span<std::uint8_t> tile_codes);
void flat_to_tiles(std::int64_t N, std::int64_t K, std::span<const TileScale> flat_scales,
                   std::span<TileScale> tile_scales);
void tiles_to_flat(std::int64_t N, std::int64_t K, std::span<const std::uint8_t> tile_codes,
                   std::span<std::uint8_t> flat_codes);
void tiles_to_flat(std::int64_t N, std::int64_t K, std::span<const TileScale> tile_scales,
                   std::span<TileScale> flat_scales);

}  // namespace qt
