// Causal attention with grouped key heads on the cpu: which tiles meet in which order. Scores never exist
// beyond one tile of a worker; tiles beyond the diagonal are skipped. Products by tile_gemm(), the rest by
// attention_tile.h. Each task owns its outputs and walks its tiles in ascending order, so that results do not
// depend on the threads.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/attention_pass.h"

namespace qt::cpu {

namespace {

void forward_tile(const AttentionFwd& op, const AttentionShape& s, const TileBuffers& buffers,
                  std::int64_t tile, std::int64_t b, std::int64_t h, std::int64_t q0) {
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

}  // namespace

void run(const AttentionFwd& op, Context& ctx) {
  const AttentionShape s = AttentionShape::of(op);
  const std::int64_t tile = tile_for(s.D, op.q.dtype), tiles = tiles_of(s.Tq, tile), heads = s.B * s.H;
  // Late queries see the most keys: they go first, so that no long task is left for the end.
  ctx.pool.parallel_for(heads * tiles, [&](std::int64_t task, int worker) {
    TileBuffers buffers(tile, s.D, op.q.dtype);
    buffers.place(ctx.worker_scratch(worker));
    const std::int64_t head = task % heads, q_tile = tiles - 1 - task / heads;
    forward_tile(op, s, buffers, tile, head / s.H, head % s.H, q_tile * tile);
  });
}

}  // namespace qt::cpu
