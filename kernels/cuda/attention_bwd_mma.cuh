// The gradient of attention on tensor cores, in two kernels without atomics: queries by tiles of queries,
// keys and values by tiles of keys. Both compute scores and probabilities again from q, k and the saved lse.
//
//   order   dq: keys ascending. dk, dv: query heads of the group ascending, queries ascending.
//   needs   as the forward kernel; delta[b, h, t] = sum of dy y over D
#pragma once

#include "kernels/cuda/attention_mma.cuh"

namespace qt::cuda {

// Two products of scores are alive at a time.
template <int kD>
using QueryGradTiles = QueryTiles<kD, 32>;

template <class T, int kD>
__global__ void __launch_bounds__(QueryGradTiles<kD>::kThreads)
    attention_bwd_query_kernel(const T* q, const T* k, const T* v, const T* dy, const float* lse,
                               const float* delta, T* dq, AttentionArgs args) {
  using Tiles = QueryGradTiles<kD>;
  constexpr int kKeys = Tiles::kKeys;
  SharedMemory memory;
  const SharedArray<T> shared = memory.take<T>(2 * Tiles::kStageElems);
  const int lane = lane_id(), warp = warp_id(), g = lane / 4, t = lane % 4;

  const int tiles = (args.Tq + Tiles::kQueries - 1) / Tiles::kQueries;
  const BlockPlace at = block_place(args, args.H, tiles, true);
  const HeadRows<const T> q_rows = head_rows(q, at.b, args.Tq, args.H, at.head, args.D);
  const HeadRows<const T> dy_rows = head_rows(dy, at.b, args.Tq, args.H, at.head, args.D);
  const HeadRows<const T> k_rows = head_rows(k, at.b, args.Tk, args.G, at.head / args.group(), args.D);
  const HeadRows<const T> v_rows = head_rows(v, at.b, args.Tk, args.G, at.head / args.group(), args.D);
  const int q0 = at.tile * Tiles::kQueries, warp_q0 = q0 + 16 * warp;
  const int last_query = (q0 + Tiles::kQueries < args.Tq ? q0 + Tiles::kQueries : args.Tq) - 1;
  const int key_tiles = last_query / kKeys + 1;
  const float scale_log2 = args.scale * kLog2E;

  const auto load_keys = [&](int tile) {
    const SharedArray<T> stage = shared.part(tile % 2 * Tiles::kStageElems, Tiles::kStageElems);
    const int k0 = tile * kKeys;
    load_tile<kD, kKeys, Tiles::kThreads>(stage, k_rows, k0, args.Tk - k0, args.D);
    load_tile<kD, kKeys, Tiles::kThreads>(stage.part(Tiles::kKeyElems, Tiles::kKeyElems), v_rows, k0,
                                          args.Tk - k0, args.D);
    cp_async_commit();
  };

  // Queries and their gradients wait in the stages until they are in registers.
  const SharedArray<T> q_tile = shared.part(0, Tiles::kStageElems);
  const SharedArray<T> dy_tile = shared.part(Tiles::kStageElems, Tiles::kStageElems);
  load_tile<kD, Tiles::kQueries, Tiles::kThreads>(q_tile, q_rows, q0, args.Tq - q0, args.D);
  load_tile<kD, Tiles::kQueries, Tiles::kThreads>(dy_tile, dy_rows, q0, args.Tq - q0, args.D);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  std::uint32_t q_fragments[kD / 16][4], dy_fragments[kD / 16][4];
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) {
    load_a<kD>(q_fragments[step], q_tile, 16 * warp, step);
    load_a<kD>(dy_fragments[step], dy_tile, 16 * warp, step);
  }
  float lse_log2[2], row_delta[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int query = warp_q0 + g + 8 * half;
    const std::int64_t row = (at.b * args.H + at.head) * args.Tq + query;
    lse_log2[half] = query < args.Tq ? lse[row] * kLog2E : 0.0f;
    row_delta[half] = query < args.Tq ? delta[row] : 0.0f;
  }
  __syncthreads();
  load_keys(0);

  float out[kD / 8][4];
  clear<kD>(out);
  for (int tile = 0; tile < key_tiles; ++tile) {
    cp_async_wait<0>();
    __syncthreads();  // the tile is in shared memory, and no thread reads the other stage any more
    if (tile + 1 < key_tiles) load_keys(tile + 1);
    const int k0 = tile * kKeys;
    if (warp_q0 >= args.Tq || k0 > warp_q0 + 15) continue;
    const SharedArray<T> stage = shared.part(tile % 2 * Tiles::kStageElems, Tiles::kStageElems);

    std::uint32_t dropped = 0;
    if (args.threshold != 0) {
      const HeadDraws draws(args, at.b, at.head);
      dropped = dropped_bits<kKeys>(args.threshold, [&](std::uint32_t(&draw)[4], int n) {
        draw_tile(draw, draws, warp_q0, k0 / 4 + 2 * n);
      });
    }
    float s[kKeys / 8][4], dp[kKeys / 8][4];
    const auto take = [](std::uint32_t(&a)[4], const std::uint32_t(&from)[4]) {
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] = from[i];
    };
    multiply_transposed<kD, kKeys>(
        s, [&](std::uint32_t(&a)[4], int step) { take(a, q_fragments[step]); }, stage);
    multiply_transposed<kD, kKeys>(
        dp, [&](std::uint32_t(&a)[4], int step) { take(a, dy_fragments[step]); },
        stage.part(Tiles::kKeyElems, Tiles::kKeyElems));
    if (k0 + kKeys - 1 > warp_q0) hide_later_keys<kKeys>(s, warp_q0 + g + 1 - k0 - 2 * t);
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float kept = (dropped >> (4 * n + i) & 1u) != 0 ? 0.0f : dp[n][i] * args.keep_scale;
        const float p = exp2f(fmaf(s[n][i], scale_log2, -lse_log2[i / 2]));
        s[n][i] = p * (kept - row_delta[i / 2]);
      }
    }
    std::uint32_t ds[kKeys / 16][4];
    to_fragments<T, kKeys>(ds, s);
    multiply_add<kD, kKeys>(out, ds, stage);
  }

  __syncthreads();  // the stages are free
  if (warp_q0 >= args.Tq) return;
  store_rows<kD>(head_rows(dq, at.b, args.Tq, args.H, at.head, args.D), warp_q0, args.Tq - warp_q0, args.D,
                 out, {args.scale, args.scale}, shared.part(16 * warp * kD, 16 * kD));
}

// A warp owns 16 keys and both their gradients; products are transposed, rows are keys, so that probabilities
// come out as the left operand of the next product. Two gradients of 128 columns fill the registers of a
// thread: then one block of eight warps takes the place of two blocks of four, and shares their queries.
template <int kD>
struct KeyTiles {
  static constexpr int kWarps = kD <= 96 ? 4 : 8;
  static constexpr int kThreads = kWarps * kWarpThreads;
  static constexpr int kKeys = 16 * kWarps;
  static constexpr int kQueries = 32;
  static constexpr int kKeyElems = kKeys * kD;
  static constexpr int kQueryElems = kQueries * kD;
  static constexpr int kStageElems = 2 * kQueryElems;  // q, dy
  static constexpr int kRowElems = 2 * kQueries;       // lse, delta
  static constexpr int kSharedBytes = 2 * shared_array_bytes(kKeyElems, 2) +
                                      shared_array_bytes(2 * kStageElems, 2) +
                                      shared_array_bytes(2 * kRowElems, 4);
  static_assert(kSharedBytes <= kMaxSharedBytes && kKeys % kQueries == 0);
};

// Queries before the key do not see it. first_visible: of row g and column 2t of the warp's tile, how far the
// first query that sees the key lies to the right.
template <int kCols>
__device__ void hide_earlier_queries(float (&s)[kCols / 8][4], int first_visible) {
#pragma unroll
  for (int n = 0; n < kCols / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (8 * n + i % 2 - i / 2 * 8 < first_visible) s[n][i] = -INFINITY;
    }
  }
}

template <class T, int kD>
__global__ void __launch_bounds__(KeyTiles<kD>::kThreads)
    attention_bwd_key_kernel(const T* q, const T* k, const T* v, const T* dy, const float* lse,
                             const float* delta, T* dk, T* dv, AttentionArgs args) {
  using Tiles = KeyTiles<kD>;
  constexpr int kQueries = Tiles::kQueries;
  SharedMemory memory;
  const SharedArray<T> k_tile = memory.take<T>(Tiles::kKeyElems), v_tile = memory.take<T>(Tiles::kKeyElems);
  const SharedArray<T> stages = memory.take<T>(2 * Tiles::kStageElems);
  const SharedArray<float> row_stages = memory.take<float>(2 * Tiles::kRowElems);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = lane_id(), warp = warp_id(), g = lane / 4, t = lane % 4;

  const int tokens = args.Tk;
  const BlockPlace at = block_place(args, args.G, 0, false);
  const int k0 = at.tile * Tiles::kKeys, warp_k0 = k0 + 16 * warp;
  const int first_tile = k0 / kQueries, tiles = (tokens + kQueries - 1) / kQueries - first_tile;
  const int steps = args.group() * tiles;
  const float scale_log2 = args.scale * kLog2E;

  // Step i: tile i % tiles of head i / tiles of the group. lse and delta come through a register, as their
  // rows are not aligned for cp.async.
  float row_value = 0;
  const auto load_queries = [&](int step) {
    const int head = at.head * args.group() + step / tiles, q0 = (first_tile + step % tiles) * kQueries;
    const SharedArray<T> stage = stages.part(step % 2 * Tiles::kStageElems, Tiles::kStageElems);
    const HeadRows<const T> q_rows = head_rows(q, at.b, tokens, args.H, head, args.D);
    const HeadRows<const T> dy_rows = head_rows(dy, at.b, tokens, args.H, head, args.D);
    load_tile<kD, kQueries, Tiles::kThreads>(stage, q_rows, q0, tokens - q0, args.D);
    load_tile<kD, kQueries, Tiles::kThreads>(stage.part(Tiles::kQueryElems, Tiles::kQueryElems), dy_rows, q0,
                                             tokens - q0, args.D);
    cp_async_commit();
    if (thread < Tiles::kRowElems) {
      const int query = q0 + thread % kQueries;
      const float* const from = thread < kQueries ? lse : delta;
      row_value = query < tokens ? from[(at.b * args.H + head) * tokens + query] : 0.0f;
    }
  };

  load_tile<kD, Tiles::kKeys, Tiles::kThreads>(k_tile, head_rows(k, at.b, tokens, args.G, at.head, args.D),
                                               k0, tokens - k0, args.D);
  load_tile<kD, Tiles::kKeys, Tiles::kThreads>(v_tile, head_rows(v, at.b, tokens, args.G, at.head, args.D),
                                               k0, tokens - k0, args.D);
  load_queries(0);

  float dk_sum[kD / 8][4], dv_sum[kD / 8][4];
  clear<kD>(dk_sum);
  clear<kD>(dv_sum);
  for (int step = 0; step < steps; ++step) {
    const SharedArray<float> rows = row_stages.part(step % 2 * Tiles::kRowElems, Tiles::kRowElems);
    if (thread < Tiles::kRowElems) rows.write(thread, thread < kQueries ? row_value * kLog2E : row_value);
    cp_async_wait<0>();
    __syncthreads();  // the tile is in shared memory, and no thread reads the other stage any more
    if (step + 1 < steps) load_queries(step + 1);
    const int q0 = (first_tile + step % tiles) * kQueries;
    if (warp_k0 >= tokens || warp_k0 > q0 + kQueries - 1) continue;
    const SharedArray<T> stage = stages.part(step % 2 * Tiles::kStageElems, Tiles::kStageElems);
    const SharedArray<T> dy_tile = stage.part(Tiles::kQueryElems, Tiles::kQueryElems);

    std::uint32_t dropped = 0;
    if (args.threshold != 0) {
      const HeadDraws draws(args, at.b, at.head * args.group() + step / tiles);
      dropped = dropped_bits<kQueries>(args.threshold, [&](std::uint32_t(&draw)[4], int n) {
        draw_tile_transposed(draw, draws, q0 + 8 * n, warp_k0 / 4);
      });
    }
    float s[kQueries / 8][4], ds[kQueries / 8][4];
    multiply_transposed<kD, kQueries>(
        s, [&](std::uint32_t(&a)[4], int d) { load_a<kD>(a, k_tile, 16 * warp, d); }, stage);
    multiply_transposed<kD, kQueries>(
        ds, [&](std::uint32_t(&a)[4], int d) { load_a<kD>(a, v_tile, 16 * warp, d); }, dy_tile);
    if (q0 < warp_k0 + 15) hide_earlier_queries<kQueries>(s, warp_k0 + g - q0 - 2 * t);
#pragma unroll
    for (int n = 0; n < kQueries / 8; ++n) {
      const float2 lse_log2 = rows.template read_as<float2>(8 * n + 2 * t);
      const float2 row_delta = rows.template read_as<float2>(kQueries + 8 * n + 2 * t);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const bool kept = (dropped >> (4 * n + i) & 1u) == 0;
        const float p = exp2f(fmaf(s[n][i], scale_log2, i % 2 == 0 ? -lse_log2.x : -lse_log2.y));
        const float dp = kept ? ds[n][i] * args.keep_scale : 0.0f;
        ds[n][i] = p * (dp - (i % 2 == 0 ? row_delta.x : row_delta.y));
        s[n][i] = kept ? p : 0.0f;
      }
    }
    std::uint32_t left[kQueries / 16][4];
    to_fragments<T, kQueries>(left, s);
    multiply_add<kD, kQueries>(dv_sum, left, dy_tile);
    to_fragments<T, kQueries>(left, ds);
    multiply_add<kD, kQueries>(dk_sum, left, stage);
  }

  if (warp_k0 >= tokens) return;
  // A warp alone has read its rows of the tiles.
  store_rows<kD>(head_rows(dv, at.b, tokens, args.G, at.head, args.D), warp_k0, tokens - warp_k0, args.D,
                 dv_sum, {args.keep_scale, args.keep_scale}, v_tile.part(16 * warp * kD, 16 * kD));
  store_rows<kD>(head_rows(dk, at.b, tokens, args.G, at.head, args.D), warp_k0, tokens - warp_k0, args.D,
                 dk_sum, {args.scale, args.scale}, k_tile.part(16 * warp * kD, 16 * kD));
}

}  // namespace qt::cuda
