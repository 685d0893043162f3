// What both directions of attention on the cpu are made of: the buffers of a worker, the rows of a head, the
// tile of scores. Legend: B rows of Tq queries and Tk keys, H query heads, G key heads, D head width. Query i
// stands at position i + Tk - Tq.
#pragma once

#include <algorithm>

#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/gemm_tile.h"
#include "kernels/dropout.h"
#include "src/core/error.h"

namespace qt::cpu {

// Queries and keys of a tile. 128: the products run near their peak, and half of a diagonal tile is little
// waste.
inline constexpr std::int64_t kLargestTile = kMaxTileKeys, kSmallestTile = 8;
// Cache line of a buffer's start.
inline constexpr std::int64_t kAlign = 64;

inline std::int64_t aligned(std::int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// A worker's buffers for tiles of `tile` queries and keys; the same layout for all three passes.
class TileBuffers {
 public:
  TileBuffers(std::int64_t tile, std::int64_t D, DType dtype)
      : pitch_(tile_pitch(tile)),
        out_pitch_(tile_pitch(D)),
        square_bytes_(aligned(tile * pitch_ * 4)),
        out_bytes_(aligned(tile * out_pitch_ * 4)),
        row_bytes_(aligned(tile * 4)),
        operand_bytes_(multiplies_dense() ? aligned(tile * D * dtype_bytes(dtype)) : 0),
        product_bytes_(std::max({tile_gemm_scratch_bytes(dtype, tile, tile, D),
                                 tile_gemm_scratch_bytes(dtype, tile, D, tile)})) {}

  std::int64_t bytes() const { return operands_at() + kOperands * operand_bytes_ + product_bytes_; }

  void place(std::byte* base) { base_ = base; }
  std::int64_t pitch() const { return pitch_; }          // of the square buffers
  std::int64_t out_pitch() const { return out_pitch_; }  // of the accumulators
  float* scores() const { return square(0); }
  void* probs() const { return square(1); }
  float* dprobs() const { return square(2); }
  void* dscores() const { return square(3); }
  float* out(int i) const { return at(4 * square_bytes_ + i * out_bytes_); }
  float* row(int i) const { return at(4 * square_bytes_ + 2 * out_bytes_ + i * row_bytes_); }
  std::byte* product() const { return base_ + operands_at() + kOperands * operand_bytes_; }

  // Rows of a head that meet several products: made dense once, where those would each do it.
  enum Slot { q_slot, k_slot, v_slot, dy_slot };
  Operand dense(Slot slot, const Operand& from, std::int64_t rows, std::int64_t D) const {
    if (!wants_dense(rows)) return from;
    return dense_operand(from, rows, D, base_ + operands_at() + slot * operand_bytes_);
  }

 private:
  static constexpr std::int64_t kOperands = 4;  // slots
  std::int64_t operands_at() const { return 4 * square_bytes_ + 2 * out_bytes_ + 2 * row_bytes_; }
  float* at(std::int64_t offset) const { return reinterpret_cast<float*>(base_ + offset); }
  float* square(int i) const { return at(i * square_bytes_); }

  std::int64_t pitch_, out_pitch_, square_bytes_, out_bytes_, row_bytes_, operand_bytes_, product_bytes_;
  std::byte* base_ = nullptr;
};

// The largest tile with buffers that fit a worker's scratch: a function of shape and dtype alone.
inline std::int64_t tile_for(std::int64_t D, DType dtype) {
  for (std::int64_t tile = kLargestTile; tile >= kSmallestTile; tile /= 2) {
    if (TileBuffers(tile, D, dtype).bytes() <= kWorkerScratchBytes) return tile;
  }
  throw ShapeError(
      fmt::format("attention: a head width of {} does not fit the tile buffers of a cpu worker", D));
}

inline std::int64_t tiles_of(std::int64_t n, std::int64_t tile) { return (n + tile - 1) / tile; }

// Rows of one head of a [B, T, heads, D] tensor: a matrix with tokens as rows.
struct Head {
  std::byte* data = nullptr;
  DType dtype = DType::f32;
  std::int64_t pitch = 0;

  Head(const TensorView& x, std::int64_t b, std::int64_t head)
      : data(x.data + (b * x.dim(1) * x.dim(2) + head) * x.dim(3) * dtype_bytes(x.dtype)),
        dtype(x.dtype),
        pitch(x.dim(2) * x.dim(3)) {}

  std::byte* row(std::int64_t t) const { return data + t * pitch * dtype_bytes(dtype); }
  Operand from(std::int64_t t) const { return Operand::rows(row(t), dtype, pitch); }
};

struct AttentionShape {
  std::int64_t B, Tq, Tk, H, G, D;
  std::int64_t group() const { return H / G; }  // query heads that share a key head

  template <class Op>
  static AttentionShape of(const Op& op) {
    return {op.q.dim(0), op.q.dim(1), op.k.dim(1), op.q.dim(2), op.k.dim(2), op.q.dim(3)};
  }
};

// The mask of the tile at (q0, k0) of a head. k0 is a multiple of the tile, and so of a generator block.
template <class Op>
TileDropout tile_dropout(const Op& op, const AttentionShape& s, std::int64_t b, std::int64_t h,
                         std::int64_t q0, std::int64_t k0) {
  if (op.dropout == 0) return {};
  const AttentionMaskRows rows{.H = s.H, .T = s.Tk};
  return {.threshold = dropout_threshold(op.dropout),
          .scale = dropout_scale(op.dropout),
          .rng = op.rng,
          .first_block = rows.first_block(op.first_row + b, h, q0) + static_cast<std::uint64_t>(k0) / 4,
          .row_blocks = rows.blocks_per_row()};
}

inline ScoreTile score_tile(const TileBuffers& buffers, DType dtype, std::int64_t queries, std::int64_t keys,
                            std::int64_t first_visible, float scale, const TileDropout& dropout) {
  return {.scores = buffers.scores(),
          .probs = buffers.probs(),
          .dtype = dtype,
          .pitch = buffers.pitch(),
          .queries = queries,
          .keys = keys,
          .first_visible = first_visible,
          .scale = scale,
          .dropout = dropout};
}

}  // namespace qt::cpu
