// Packed weights on their way into a matrix product: loaders (see gemm_tile.cuh) that take the codes and
// scales of a 64 x 64 square into registers and write its canonical weights to shared memory.
#pragma once

#include <cstdint>

#include "kernels/cuda/code_points.cuh"
#include "kernels/cuda/gemm_tile.cuh"
#include "quant/tiles.h"

namespace qt::cuda {

inline constexpr int kScaleBlock = 64;  // elements that share a scale
static_assert(kTileSide == kSquare && kTileSlots == kSquareThreads);

// A matrix [N, K] of 4-bit codes, two a byte with the first in the high half, and a scale for each 64
// elements of the flat order; or the same in the tiles of quant/tiles.h.
struct PackedMatrix {
  const std::uint8_t* codes = nullptr;
  const float* absmax = nullptr;
  std::int64_t N = 0, K = 0;
  bool in_tiles = false;
};

// Code i of the eight in a word, in the order of their elements.
__device__ inline int code_of(unsigned word, int i) {
  return static_cast<int>(word >> (8 * (i / 2) + (i % 2 == 0 ? 4 : 0)) & 0xFu);
}

// Eight elements with the scale scale_of(i) each, as a unit of bf16.
template <class ScaleOf>
__device__ uint4 decode_unit(const SharedArray<float>& table, unsigned word, ScaleOf&& scale_of) {
  unsigned pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] = cvt_pair<bf16>(table.read(code_of(word, 2 * i)) * scale_of(2 * i),
                              table.read(code_of(word, 2 * i + 1)) * scale_of(2 * i + 1));
  }
  return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// K a multiple of 64 and codes 16-byte aligned: then a row of a square is one block, 32 bytes and one scale.
// Thread `thread` takes the half row thread / 2, in one access of 16 bytes.
class BlockLoader {
 public:
  struct Piece {
    unsigned words[kParts];
    float scale;
  };

  __device__ BlockLoader(const PackedMatrix& w, const SharedArray<float>& table, int thread)
      : w_(w), table_(table), row_(thread / 2), half_(thread % 2) {}

  // Outside of the matrix a scale of 0 makes zeros.
  __device__ Piece load(std::int64_t row, std::int64_t col) const {
    const std::int64_t n = row * kSquare + row_, k = col * kSquare;
    if (n >= w_.N || k >= w_.K) return {};
    const std::int64_t block = (n * w_.K + k) / kScaleBlock;
    const uint4 codes = read_global<uint4>(reinterpret_cast<const uint4*>(w_.codes) + (2 * block + half_));
    return {{codes.x, codes.y, codes.z, codes.w}, w_.absmax[block]};
  }

  __device__ void put(const Piece& piece, int part, const SharedArray<bf16>& square) const {
    square.write_as<uint4>(swizzled(row_, half_ * kParts + part),
                           decode_unit(table_, piece.words[part], [&](int) { return piece.scale; }));
  }

 private:
  const PackedMatrix& w_;
  SharedArray<float> table_;
  int row_, half_;
};

// Any K: blocks begin anywhere in a row, and rows within a byte. The 32 elements of a thread lie in at most
// two blocks. Byte by byte, for matrices that no configuration of ours has.
class AnyLoader {
 public:
  struct Piece {
    unsigned words[kParts];
    float scales[2];
    int split;  // elements of the first block
    int count;  // elements within the row; the others are zeros
  };

  __device__ AnyLoader(const PackedMatrix& w, const SharedArray<float>& table, int thread)
      : w_(w), table_(table), row_(thread / 2), half_(thread % 2) {}

  __device__ Piece load(std::int64_t row, std::int64_t col) const {
    constexpr int kElems = kSquare / 2, kBytes = kElems / 2;
    const std::int64_t n = row * kSquare + row_, k = col * kSquare + half_ * kElems;
    if (n >= w_.N || k >= w_.K) return {};
    const std::int64_t first = n * w_.K + k, block = first / kScaleBlock;
    Piece piece;
    piece.count = static_cast<int>(w_.K - k < kElems ? w_.K - k : kElems);
    piece.split = kScaleBlock - static_cast<int>(first % kScaleBlock);
    piece.scales[0] = w_.absmax[block];
    piece.scales[1] = piece.split < piece.count ? w_.absmax[block + 1] : 0.0f;
    // Both halves of `two` are wanted where the row begins in the low half of a byte.
    const std::int64_t last = (first + piece.count - 1) / 2;
    const auto byte = [&](int i) -> unsigned { return first / 2 + i <= last ? w_.codes[first / 2 + i] : 0u; };
    unsigned two = byte(0);
#pragma unroll
    for (int i = 0; i < kParts; ++i) piece.words[i] = 0;
#pragma unroll
    for (int i = 0; i < kBytes; ++i) {
      two = two << 8 | byte(i + 1);
      piece.words[i / 4] |= (two >> (first % 2 == 0 ? 8 : 4) & 0xFFu) << (8 * (i % 4));
    }
    return piece;
  }

  __device__ void put(const Piece& piece, int part, const SharedArray<bf16>& square) const {
    const auto scale = [&](int i) {
      const int at = kUnitElems * part + i;
      return at >= piece.count ? 0.0f : at < piece.split ? piece.scales[0] : piece.scales[1];
    };
    square.write_as<uint4>(swizzled(row_, half_ * kParts + part),
                           decode_unit(table_, piece.words[part], scale));
  }

 private:
  const PackedMatrix& w_;
  SharedArray<float> table_;
  int row_, half_;
};

// Tiles of quant/tiles.h, which are the squares: thread `thread` takes slot `thread`, neighbouring columns of
// eight rows. Codes and scales begin at multiples of 16 bytes.
class TileLoader {
 public:
  struct Piece {
    unsigned words[kParts];
    float2 scales[kParts];  // of rows 16 i + 2 p and the next
  };

  __device__ TileLoader(const PackedMatrix& w, const SharedArray<float>& table, int thread)
      : w_(w),
        table_(table),
        slot_(thread),
        half_(thread / (kTileSlots / 2)),
        p_(thread / 8 % 8),
        q_(thread % 8 ^ tile_swizzle(p_)) {}

  __device__ Piece load(std::int64_t row, std::int64_t col) const {
    if (row * kSquare >= w_.N || col * kSquare >= w_.K) return {};
    const std::int64_t tile = row * (w_.K / kSquare) + col;
    const uint4 codes =
        read_global<uint4>(reinterpret_cast<const uint4*>(w_.codes) + (tile * kTileSlots + slot_));
    Piece piece{{codes.x, codes.y, codes.z, codes.w}, {}};
#pragma unroll
    for (int i = 0; i < kParts; ++i)
      piece.scales[i] = read_global<float2>(w_.absmax + tile * kSquare + 16 * i + 2 * p_);
    return piece;
  }

  __device__ void put(const Piece& piece, int part, const SharedArray<bf16>& square) const {
    const int unit = 2 * (2 * half_ + part / 2) + q_ / 4;  // of the columns 16 s + 2 q and the next
#pragma unroll
    for (int quad = 0; quad < 2; ++quad) {
      const int i = part % 2 * 2 + quad;
#pragma unroll
      for (int dn = 0; dn < 2; ++dn) {
        const unsigned byte = piece.words[part] >> (16 * quad + 8 * dn);
        const float scale = dn == 0 ? piece.scales[i].x : piece.scales[i].y;
        square.write_as<std::uint32_t>(swizzled(16 * i + 2 * p_ + dn, unit) + q_ % 4 * 2,
                                       cvt_pair<bf16>(table_.read(static_cast<int>(byte >> 4 & 0xFu)) * scale,
                                                      table_.read(static_cast<int>(byte & 0xFu)) * scale));
      }
    }
  }

 private:
  const PackedMatrix& w_;
  SharedArray<float> table_;
  int slot_, half_, p_, q_;
};

}  // namespace qt::cuda
