// Causal attention with grouped key heads on the cpu: which tiles meet in which order. Scores never exist
// beyond one tile of a worker; tiles beyond the diagonal are skipped. Products by tile_gemm(), the rest by
// attention_tile.h. Each task owns its outputs and walks its tiles in ascending order, so that results do not
// depend on the threads.
//
// Legend: B rows of Tq queries and Tk keys, H query heads, G key heads, D head width. Query i stands at
// position i + Tk - Tq. dq is one pass over query tiles, dk and dv another over key tiles: scores are
// computed twice, and nothing is added up across tasks.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/gemm_tile.h"
#include "kernels/dropout.h"
#include "src/core/error.h"

namespace qt::cpu {

namespace {

// Queries and keys of a tile. 128: the products run near their peak, and half of a diagonal tile is little
// waste.
constexpr std::int64_t kLargestTile = kMaxTileKeys, kSmallestTile = 8;
// Cache line of a buffer's start.
constexpr std::int64_t kAlign = 64;

std::int64_t aligned(std::int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

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

// The largest tile whose buffers fit a worker's scratch: a function of shape and dtype alone.
std::int64_t tile_for(std::int64_t D, DType dtype) {
  for (std::int64_t tile = kLargestTile; tile >= kSmallestTile; tile /= 2) {
    if (TileBuffers(tile, D, dtype).bytes() <= kWorkerScratchBytes) return tile;
  }
  throw ShapeError(
      fmt::format("attention: a head width of {} does not fit the tile buffers of a cpu worker", D));
}

std::int64_t tiles_of(std::int64_t n, std::int64_t tile) { return (n + tile - 1) / tile; }

// Rows of one head of a [B, T, heads, D] tensor: a matrix whose rows are the tokens.
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

struct Shape {
  std::int64_t B, Tq, Tk, H, G, D;
  std::int64_t group() const { return H / G; }  // query heads that share a key head

  template <class Op>
  static Shape of(const Op& op) {
    return {op.q.dim(0), op.q.dim(1), op.k.dim(1), op.q.dim(2), op.k.dim(2), op.q.dim(3)};
  }
};

// The mask of the tile at (q0, k0) of a head. k0 is a multiple of the tile, and so of a generator block.
template <class Op>
TileDropout tile_dropout(const Op& op, const Shape& s, std::int64_t b, std::int64_t h, std::int64_t q0,
                         std::int64_t k0) {
  if (op.dropout == 0) return {};
  const AttentionMaskRows rows{.H = s.H, .T = s.Tk};
  return {.threshold = dropout_threshold(op.dropout),
          .scale = dropout_scale(op.dropout),
          .rng = op.rng,
          .first_block = rows.first_block(op.first_row + b, h, q0) + static_cast<std::uint64_t>(k0) / 4,
          .row_blocks = rows.blocks_per_row()};
}

ScoreTile score_tile(const TileBuffers& buffers, DType dtype, std::int64_t queries, std::int64_t keys,
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

void forward_tile(const AttentionFwd& op, const Shape& s, const TileBuffers& buffers, std::int64_t tile,
                  std::int64_t b, std::int64_t h, std::int64_t q0) {
  const DType dtype = op.q.dtype;
  const Head q(op.q, b, h), k(op.k, b, h / s.group()), v(op.v, b, h / s.group()), y(op.y, b, h);
  const std::int64_t queries = std::min(tile, s.Tq - q0);
  const std::int64_t offset = s.Tk - s.Tq;
  const std::int64_t key_end = q0 + queries + offset;  // beyond the last key that the last query sees
  float* const max = buffers.row(0);
  float* const sum = buffers.row(1);
  std::fill_n(max, queries, -std::numeric_limits<float>::infinity());
  std::fill_n(sum, queries, 0.0f);
  const Operand queries_used = buffers.dense(TileBuffers::q_slot, q.from(q0), queries, s.D);
  for (std::int64_t k0 = 0; k0 < key_end; k0 += tile) {
    const std::int64_t keys = std::min(tile, key_end - k0);
    tile_gemm(queries, keys, s.D, queries_used, k.from(k0).transposed(), buffers.scores(), buffers.pitch(),
              false, buffers.product());
    softmax_tile(score_tile(buffers, dtype, queries, keys, q0 + offset + 1 - k0, op.scale,
                            tile_dropout(op, s, b, h, q0, k0)),
                 {.max = max,
                  .sum = sum,
                  .out = buffers.out(0),
                  .out_pitch = buffers.out_pitch(),
                  .out_cols = k0 == 0 ? 0 : s.D});
    tile_gemm(queries, s.D, keys, Operand::rows(buffers.probs(), dtype, buffers.pitch()), v.from(k0),
              buffers.out(0), buffers.out_pitch(), k0 > 0, buffers.product());
  }
  store_scaled({.from = buffers.out(0),
                .from_pitch = buffers.out_pitch(),
                .to = y.row(q0),
                .dtype = dtype,
                .to_pitch = y.pitch,
                .rows = queries,
                .cols = s.D,
                .factor = op.dropout == 0 ? 1.0f : dropout_scale(op.dropout),
                .row_divisor = sum});
  float* const lse = op.lse.as<float>() + (b * s.H + h) * s.Tq + q0;
  for (std::int64_t i = 0; i < queries; ++i) lse[i] = max[i] + std::log(sum[i]);
}

// The rows of a head that meet in one tile.
struct TileRows {
  Operand q, dy, k, v;
};

// Probabilities and score gradients of one tile, from the saved lse; both passes of the gradient begin so.
void recompute_tile(const AttentionBwd& op, const Shape& s, const TileBuffers& buffers, const TileRows& in,
                    std::int64_t b, std::int64_t h, std::int64_t q0, std::int64_t queries, std::int64_t k0,
                    std::int64_t keys) {
  tile_gemm(queries, keys, s.D, in.q, in.k.transposed(), buffers.scores(), buffers.pitch(), false,
            buffers.product());
  tile_gemm(queries, keys, s.D, in.dy, in.v.transposed(), buffers.dprobs(), buffers.pitch(), false,
            buffers.product());
  const std::int64_t row = (b * s.H + h) * s.Tq + q0;
  grad_tile(score_tile(buffers, op.q.dtype, queries, keys, q0 + 1 - k0, op.scale,
                       tile_dropout(op, s, b, h, q0, k0)),
            {.lse = op.lse.as<float>() + row,
             .delta = reinterpret_cast<const float*>(op.scratch.data) + row,
             .dprobs = buffers.dprobs(),
             .dscores = buffers.dscores()});
}

void store_gradient(const TileBuffers& buffers, int accumulator, const Head& to, std::int64_t t,
                    std::int64_t rows, std::int64_t D, float factor) {
  store_scaled({.from = buffers.out(accumulator),
                .from_pitch = buffers.out_pitch(),
                .to = to.row(t),
                .dtype = to.dtype,
                .to_pitch = to.pitch,
                .rows = rows,
                .cols = D,
                .factor = factor});
}

void query_gradient_tile(const AttentionBwd& op, const Shape& s, const TileBuffers& buffers,
                         std::int64_t tile, std::int64_t b, std::int64_t h, std::int64_t q0) {
  const Head q(op.q, b, h), dy(op.dy, b, h), k(op.k, b, h / s.group()), v(op.v, b, h / s.group());
  const std::int64_t queries = std::min(tile, s.Tq - q0), key_end = q0 + queries;
  TileRows in{.q = buffers.dense(TileBuffers::q_slot, q.from(q0), queries, s.D),
              .dy = buffers.dense(TileBuffers::dy_slot, dy.from(q0), queries, s.D),
              .k = {},
              .v = {}};
  const Operand dscores = Operand::rows(buffers.dscores(), op.q.dtype, buffers.pitch());
  for (std::int64_t k0 = 0; k0 < key_end; k0 += tile) {
    const std::int64_t keys = std::min(tile, key_end - k0);
    in.k = buffers.dense(TileBuffers::k_slot, k.from(k0), keys, s.D);
    in.v = v.from(k0);
    recompute_tile(op, s, buffers, in, b, h, q0, queries, k0, keys);
    tile_gemm(queries, s.D, keys, dscores, in.k, buffers.out(0), buffers.out_pitch(), k0 > 0,
              buffers.product());
  }
  store_gradient(buffers, 0, Head(op.dq, b, h), q0, queries, s.D, op.scale);
}

void key_gradient_tile(const AttentionBwd& op, const Shape& s, const TileBuffers& buffers, std::int64_t tile,
                       std::int64_t b, std::int64_t g, std::int64_t k0) {
  const std::int64_t keys = std::min(tile, s.Tk - k0);
  const Operand probs = Operand::rows(buffers.probs(), op.q.dtype, buffers.pitch());
  const Operand dscores = Operand::rows(buffers.dscores(), op.q.dtype, buffers.pitch());
  const Head k(op.k, b, g), v(op.v, b, g);
  TileRows in{.q = {},
              .dy = {},
              .k = buffers.dense(TileBuffers::k_slot, k.from(k0), keys, s.D),
              .v = buffers.dense(TileBuffers::v_slot, v.from(k0), keys, s.D)};
  bool first = true;
  for (std::int64_t h = g * s.group(); h < (g + 1) * s.group(); ++h) {
    const Head q(op.q, b, h), dy(op.dy, b, h);
    for (std::int64_t q0 = k0; q0 < s.Tq;
         q0 += tile) {  // k0 is a multiple of the tile: earlier queries see none of it
      const std::int64_t queries = std::min(tile, s.Tq - q0);
      in.q = buffers.dense(TileBuffers::q_slot, q.from(q0), queries, s.D);
      in.dy = buffers.dense(TileBuffers::dy_slot, dy.from(q0), queries, s.D);
      recompute_tile(op, s, buffers, in, b, h, q0, queries, k0, keys);
      tile_gemm(keys, s.D, queries, probs.transposed(), in.dy, buffers.out(0), buffers.out_pitch(), !first,
                buffers.product());
      tile_gemm(keys, s.D, queries, dscores.transposed(), in.q, buffers.out(1), buffers.out_pitch(), !first,
                buffers.product());
      first = false;
    }
  }
  store_gradient(buffers, 0, Head(op.dv, b, g), k0, keys, s.D,
                 op.dropout == 0 ? 1.0f : dropout_scale(op.dropout));
  store_gradient(buffers, 1, Head(op.dk, b, g), k0, keys, s.D, op.scale);
}

}  // namespace

void run(const AttentionFwd& op, Context& ctx) {
  const Shape s = Shape::of(op);
  const std::int64_t tile = tile_for(s.D, op.q.dtype), tiles = tiles_of(s.Tq, tile), heads = s.B * s.H;
  // Late queries see the most keys: they go first, so that no long task is left for the end.
  ctx.pool.parallel_for(heads * tiles, [&](std::int64_t task, int worker) {
    TileBuffers buffers(tile, s.D, op.q.dtype);
    buffers.place(ctx.worker_scratch(worker));
    const std::int64_t head = task % heads, q_tile = tiles - 1 - task / heads;
    forward_tile(op, s, buffers, tile, head / s.H, head % s.H, q_tile * tile);
  });
}

void run(const AttentionBwd& op, Context& ctx) {
  const Shape s = Shape::of(op);
  const std::int64_t tile = tile_for(s.D, op.q.dtype), tiles = tiles_of(s.Tq, tile);
  const std::int64_t token_bytes = s.H * s.D * dtype_bytes(op.q.dtype);

  constexpr std::int64_t kTokensPerTask = 64;
  auto* const delta = reinterpret_cast<float*>(op.scratch.data);  // [B, H, T]
  parallel_ranges(ctx, s.B * s.Tq, kTokensPerTask, [&](std::int64_t begin, std::int64_t end, int) {
    for (std::int64_t n = begin; n < end; ++n) {
      head_dots(op.y.data + n * token_bytes, op.dy.data + n * token_bytes, op.q.dtype, s.H, s.D,
                delta + n / s.Tq * s.H * s.Tq + n % s.Tq, s.Tq);
    }
  });

  // One queue for both passes: they share no outputs. Long tasks first: early keys are seen by most queries,
  // and by all query heads of their group; then late queries.
  const std::int64_t key_heads = s.B * s.G, query_heads = s.B * s.H, key_tasks = key_heads * tiles;
  ctx.pool.parallel_for(key_tasks + query_heads * tiles, [&](std::int64_t task, int worker) {
    TileBuffers buffers(tile, s.D, op.q.dtype);
    buffers.place(ctx.worker_scratch(worker));
    if (task < key_tasks) {
      const std::int64_t head = task % key_heads;
      key_gradient_tile(op, s, buffers, tile, head / s.G, head % s.G, task / key_heads * tile);
    } else {
      const std::int64_t head = (task - key_tasks) % query_heads,
                         q_tile = tiles - 1 - (task - key_tasks) / query_heads;
      query_gradient_tile(op, s, buffers, tile, head / s.H, head % s.H, q_tile * tile);
    }
  });
}

}  // namespace qt::cpu
