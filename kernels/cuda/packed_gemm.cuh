// Packed weights on their way to a card's arithmetic: loaders (see gemm_tile.cuh) that take the codes and
// scales of a 64 x 64 square into registers and write its canonical weights to shared memory. They are
// templates over the format, which says how its codes lie in memory (`code_of`, `code_at` of quant/format.h).
#pragma once

#include <cstdint>

#include "kernels/cuda/code_points.cuh"
#include "kernels/cuda/gemm_tile.cuh"
#include "quant/packed.h"
#include "quant/tiles.h"

namespace qt::cuda {

static_assert(kTileSide == kSquare && kTileSlots == kSquareThreads);

// A matrix [N, K] of codes and scales in the flat layout of its format, or in the tiles of quant/tiles.h.
template <class F>
struct PackedMatrix {
  const std::uint8_t* codes = nullptr;
  const typename F::Scale* scales = nullptr;
  std::int64_t N = 0, K = 0;
  bool in_tiles = false;
};

// The canonical weight of element (n, k) of the matrix, 0 outside of it. One at a time: for checks.
template <class F>
__device__ float weight_at(const PackedMatrix<F>& w, const SharedArray<float>& table, std::int64_t n,
                           std::int64_t k) {
  if (n >= w.N || k >= w.K) return 0.0f;
  std::int64_t place = n * w.K + k, block = place / F::kBlockElems;
  if (w.in_tiles) {
    const std::int64_t tile = n / kTileSide * (w.K / kTileSide) + k / kTileSide;
    const int row = static_cast<int>(n % kTileSide);
    place = tile * kTileElems + tile_place(row, static_cast<int>(k % kTileSide));
    block = tile * kTileSide + row;
  }
  return widen(narrow<bf16>(table.read(F::code_at(w.codes, place)) * F::value_of(w.scales[block])));
}

// The codes of the 32 elements that a thread has of a square, in the order of memory.
template <class F>
struct ThreadCodes {
  typename F::Eight eights[kParts];
};

// The first `count` bytes, at any address; zeros for the others.
template <class F>
__device__ ThreadCodes<F> load_codes_in_bytes(const std::uint8_t* p, int count) {
  ThreadCodes<F> codes = {};
#pragma unroll
  for (int b = 0; b < kParts * F::kCodeBits; ++b) {
    if (b < count)
      codes.eights[b / F::kCodeBits] |= static_cast<typename F::Eight>(p[b]) << (8 * (b % F::kCodeBits));
  }
  return codes;
}

// p: aligned to 16 bytes.
template <class F>
__device__ ThreadCodes<F> load_codes(const std::uint8_t* p) {
  ThreadCodes<F> codes = {};
  if constexpr (F::kCodeBits == 4 && sizeof(typename F::Eight) == 4) {
    const uint4 words = read_global<uint4>(p);
    codes = {{words.x, words.y, words.z, words.w}};
  } else {
    codes = load_codes_in_bytes<F>(p, kParts * F::kCodeBits);
  }
  return codes;
}

// Eight elements with the scale scale_of(i) each, as a unit of bf16.
template <class F, class ScaleOf>
__device__ uint4 decode_unit(const SharedArray<float>& table, typename F::Eight codes, ScaleOf&& scale_of) {
  unsigned pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] = cvt_pair<bf16>(table.read(F::code_of(codes, 2 * i)) * scale_of(2 * i),
                              table.read(F::code_of(codes, 2 * i + 1)) * scale_of(2 * i + 1));
  }
  return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// K a multiple of a block of at least 64 elements, and codes 16-byte aligned: then a row of a square has one
// scale. Thread `thread` takes the half row thread / 2, in one access of 16 bytes where codes have four bits.
template <class F>
class BlockLoader {
 public:
  using Format = F;
  struct Piece {
    ThreadCodes<F> codes;
    float scale;
  };

  __device__ BlockLoader(const PackedMatrix<F>& w, const SharedArray<float>& table, int thread)
      : w_(w), table_(table), row_(thread / 2), half_(thread % 2) {}

  // Outside of the matrix a scale of 0 makes zeros.
  __device__ Piece load(std::int64_t row, std::int64_t col) const {
    const std::int64_t n = row * kSquare + row_, k = col * kSquare;
    if (n >= w_.N || k >= w_.K) return {};
    const std::int64_t first = n * w_.K + k;
    return {load_codes<F>(w_.codes + code_offset<F>(first + half_ * (kSquare / 2))),
            F::value_of(w_.scales[first / F::kBlockElems])};
  }

  __device__ void put(const Piece& piece, int part, const SharedArray<bf16>& square) const {
    square.write_as<uint4>(
        swizzled(row_, half_ * kParts + part),
        decode_unit<F>(table_, piece.codes.eights[part], [&](int) { return piece.scale; }));
  }

 private:
  const PackedMatrix<F>& w_;
  SharedArray<float> table_;
  int row_, half_;
};

// Any K: blocks begin anywhere in a row, and rows within a byte. The 32 elements of a thread lie in at most
// two blocks. Byte by byte, for matrices that no configuration of ours has.
template <class F>
class AnyLoader {
 public:
  using Format = F;
  struct Piece {
    ThreadCodes<F> codes;
    float scales[2];
    int split;  // elements of the first block
    int count;  // elements within the row; the others are zeros
  };

  __device__ AnyLoader(const PackedMatrix<F>& w, const SharedArray<float>& table, int thread)
      : w_(w), table_(table), row_(thread / 2), half_(thread % 2) {}

  __device__ Piece load(std::int64_t row, std::int64_t col) const {
    constexpr int kElems = kSquare / 2;
    static_assert(F::kBlockElems >= kElems);
    const std::int64_t n = row * kSquare + row_, k = col * kSquare + half_ * kElems;
    if (n >= w_.N || k >= w_.K) return {};
    const std::int64_t first = n * w_.K + k, block = first / F::kBlockElems;
    Piece piece;
    piece.count = static_cast<int>(w_.K - k < kElems ? w_.K - k : kElems);
    piece.split = F::kBlockElems - static_cast<int>(first % F::kBlockElems);
    piece.scales[0] = F::value_of(w_.scales[block]);
    piece.scales[1] = piece.split < piece.count ? F::value_of(w_.scales[block + 1]) : 0.0f;
    if (first % F::kGroupElems == 0) {
      const std::int64_t groups = blocks_for(piece.count, F::kGroupElems);
      piece.codes = load_codes_in_bytes<F>(w_.codes + code_offset<F>(first),
                                           static_cast<int>(code_offset<F>(groups * F::kGroupElems)));
    } else {
      piece.codes = {};
#pragma unroll
      for (int i = 0; i < kElems; ++i) {
        if (i < piece.count)
          piece.codes.eights[i / kUnitElems] |= F::eight_of(F::code_at(w_.codes, first + i), i % kUnitElems);
      }
    }
    return piece;
  }

  __device__ void put(const Piece& piece, int part, const SharedArray<bf16>& square) const {
    const auto scale = [&](int i) {
      const int at = kUnitElems * part + i;
      return at >= piece.count ? 0.0f : at < piece.split ? piece.scales[0] : piece.scales[1];
    };
    square.write_as<uint4>(swizzled(row_, half_ * kParts + part),
                           decode_unit<F>(table_, piece.codes.eights[part], scale));
  }

 private:
  const PackedMatrix<F>& w_;
  SharedArray<float> table_;
  int row_, half_;
};

// Tiles of quant/tiles.h, which are the squares: thread `thread` takes slot `thread`, neighbouring columns of
// eight rows. kAligned: codes and scales begin at multiples of 16 bytes.
template <class F, bool kAligned = true>
class TileLoader {
 public:
  using Format = F;
  static_assert(kFitsTiles<F>);
  struct Piece {
    ThreadCodes<F> codes;
    float2 scales[kParts];  // of rows 16 i + 2 p and the next
  };

  __device__ TileLoader(const PackedMatrix<F>& w, const SharedArray<float>& table, int thread)
      : w_(w),
        table_(table),
        slot_(thread),
        half_(thread / (kTileSlots / 2)),
        p_(thread / 8 % 8),
        q_(thread % 8 ^ tile_swizzle(p_)) {}

  __device__ Piece load(std::int64_t row, std::int64_t col) const {
    if (row * kSquare >= w_.N || col * kSquare >= w_.K) return {};
    const std::int64_t tile = row * (w_.K / kSquare) + col;
    const std::uint8_t* const codes = w_.codes + (tile * kTileSlots + slot_) * kTileSlotBytes;
    Piece piece = {};
    if constexpr (kAligned) {
      piece.codes = load_codes<F>(codes);
    } else {
      piece.codes = load_codes_in_bytes<F>(codes, kTileSlotBytes);
    }
#pragma unroll
    for (int i = 0; i < kParts; ++i) {
      const TileScale* const scales = w_.scales + tile * kSquare + 16 * i + 2 * p_;
      if constexpr (kAligned) {
        piece.scales[i] = read_global<float2>(scales);
      } else {
        piece.scales[i] = make_float2(scales[0], scales[1]);
      }
    }
    return piece;
  }

  __device__ void put(const Piece& piece, int part, const SharedArray<bf16>& square) const {
    const int unit = 2 * (2 * half_ + part / 2) + q_ / 4;  // of the columns 16 s + 2 q and the next
    const typename F::Eight codes = piece.codes.eights[part];
#pragma unroll
    for (int quad = 0; quad < 2; ++quad) {
      const int i = part % 2 * 2 + quad;
#pragma unroll
      for (int dn = 0; dn < 2; ++dn) {
        const int first = 4 * quad + 2 * dn;
        const float scale = dn == 0 ? piece.scales[i].x : piece.scales[i].y;
        square.write_as<std::uint32_t>(swizzled(16 * i + 2 * p_ + dn, unit) + q_ % 4 * 2,
                                       cvt_pair<bf16>(table_.read(F::code_of(codes, first)) * scale,
                                                      table_.read(F::code_of(codes, first + 1)) * scale));
      }
    }
  }

 private:
  const PackedMatrix<F>& w_;
  SharedArray<float> table_;
  int slot_, half_, p_, q_;
};

// What a launch takes of a packed matrix.
template <class F>
struct PackedOperand {
  PackedMatrix<F> matrix;
  CodePoints<F> points;
  bool aligned = false;    // codes and scales begin at multiples of 16 bytes
  bool in_blocks = false;  // flat, as BlockLoader wants it
};

template <class F>
PackedOperand<F> packed_operand_of(const PackedView& w) {
  PackedOperand<F> weight;
  weight.matrix = {.codes = w.codes.as<std::uint8_t>(),
                   .scales = w.absmax.as<typename F::Scale>(),
                   .N = w.N,
                   .K = w.K,
                   .in_tiles = w.layout == PackedLayout::tiles};
  weight.points = code_points_of<F>();
  const bool codes_aligned = is_aligned16(weight.matrix.codes);
  weight.aligned = codes_aligned && is_aligned16(weight.matrix.scales);
  weight.in_blocks =
      !weight.matrix.in_tiles && F::kBlockElems % kSquare == 0 && w.K % F::kBlockElems == 0 && codes_aligned;
  return weight;
}

}  // namespace qt::cuda
