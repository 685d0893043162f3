// The gradient of attention on the cpu: dq is one pass over query tiles, dk and dv another over key tiles:
// scores are computed twice, and nothing is added up across tasks. Legend in attention_pass.h.
#include <algorithm>

#include "kernels/cpu/attention_pass.h"

namespace qt::cpu {

namespace {

// The rows of a head that meet in one tile.
struct TileRows {
  Operand q, dy, k, v;
};

// Probabilities and score gradients of one tile, from the saved lse; both passes of the gradient begin so.
void recompute_tile(const AttentionBwd& op, const AttentionShape& s, const TileBuffers& buffers,
                    const TileRows& in, std::int64_t b, std::int64_t h, std::int64_t q0, std::int64_t queries,
                    std::int64_t k0, std::int64_t keys) {
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

void query_gradient_tile(const AttentionBwd& op, const AttentionShape& s, const TileBuffers& buffers,
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

void key_gradient_tile(const AttentionBwd& op, const AttentionShape& s, const TileBuffers& buffers,
                       std::int64_t tile, std::int64_t b, std::int64_t g, std::int64_t k0) {
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

void run(const AttentionBwd& op, Context& ctx) {
  const AttentionShape s = AttentionShape::of(op);
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
