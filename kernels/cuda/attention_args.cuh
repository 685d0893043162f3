// What all attention kernels share: sizes, where the rows of a head lie, and the draws of its dropout mask.
//
// Legend: B rows of Tq queries and Tk keys, H query heads, G key heads, D head width. Query i stands at
// position i + Tk - Tq and sees the keys up to there. Tensors are [B, T, heads, D].
#pragma once

#include <array>
#include <cmath>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/dropout.h"

namespace qt::cuda {

struct AttentionArgs {
  std::int64_t B = 1;
  int Tq = 1, Tk = 1, H = 1, G = 1, D = 1;
  float scale = 1;
  std::uint32_t threshold = 0;  // of dropout; 0: everything is kept
  float keep_scale = 1;         // of what dropout keeps
  RngStream rng;
  std::int64_t first_row = 0;

  __device__ int offset() const { return Tk - Tq; }
  __device__ int group() const { return H / G; }  // query heads that share a key head
};

// One head of one row of the batch: token t at data + t * pitch.
template <class T>
struct HeadRows {
  T* data;
  std::int64_t pitch;
  __device__ T* row(int t) const { return data + t * pitch; }
};
template <class T>
__device__ HeadRows<T> head_rows(T* x, std::int64_t b, int tokens, int heads, int head, int D) {
  const std::int64_t pitch = static_cast<std::int64_t>(heads) * D;
  return {x + b * tokens * pitch + static_cast<std::int64_t>(head) * D, pitch};
}

// Which part of the work a block has: 1-D grids, the longest tasks first (`late` counts tiles from the end),
// all heads of a tile side by side.
struct BlockPlace {
  std::int64_t b;
  int head;
  int tile;
};
__device__ inline BlockPlace block_place(const AttentionArgs& args, int heads, int tiles, bool late) {
  const std::int64_t all = args.B * heads, block = blockIdx.x;
  const int tile = static_cast<int>(block / all);
  return {block % all / heads, static_cast<int>(block % heads), late ? tiles - 1 - tile : tile};
}

// The mask of one query head: four keys to a block of draws.
class HeadDraws {
 public:
  __device__ HeadDraws(const AttentionArgs& args, std::int64_t b, int h) : rng_(args.rng) {
    const AttentionMaskRows rows{.H = args.H, .T = args.Tk};
    first_block_ = rows.first_block(args.first_row + b, h, 0);
    row_blocks_ = rows.blocks_per_row();
  }
  // Of keys 4 key_block .. 4 key_block + 3.
  __device__ std::array<std::uint32_t, 4> words(int query, int key_block) const {
    return rng_block(rng_, first_block_ + static_cast<std::uint64_t>(query) * row_blocks_ +
                               static_cast<std::uint64_t>(key_block));
  }
  __device__ std::uint32_t word(int query, int key) const {
    const auto all = words(query, key / 4);
    // Not indexed by a variable: that would put the words into memory.
    const std::uint32_t low = key % 2 == 0 ? all[0] : all[1], high = key % 2 == 0 ? all[2] : all[3];
    return key % 4 < 2 ? low : high;
  }

 private:
  RngStream rng_;
  std::uint64_t first_block_, row_blocks_;
};

}  // namespace qt::cuda
