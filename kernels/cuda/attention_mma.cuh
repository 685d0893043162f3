// Attention forward on tensor cores, after FlashAttention-2: a block owns 64 queries of one head and walks
// the keys in ascending tiles; a warp owns 16 of the queries. Scores never leave the registers.
//
//   moves   q, y and lse once; k and v once per 64 queries, mostly out of the second-level cache
//   order   keys ascending; within a tile as the fragments hold them: a function of the shape alone
//   needs   16-byte aligned tensors, D % 8 == 0, D <= kD, scale > 0 (the maximum is taken before it)
#pragma once

#include "kernels/cuda/attention_tile.cuh"

namespace qt::cuda {

// Tiles of a block that owns queries, for a head width of up to kD. Two stages of keys and values, one being
// read while the next one comes.
template <int kD, int kKeysAtOnce>
struct QueryTiles {
  static constexpr int kThreads = 128;
  static constexpr int kQueries = 64;
  static constexpr int kKeys = kKeysAtOnce;
  static constexpr int kKeyElems = kKeys * kD;       // of a tile
  static constexpr int kStageElems = 2 * kKeyElems;  // holds a tile of queries before the first keys come
  static_assert(kStageElems >= kQueries * kD);
  static constexpr int kSharedBytes = shared_array_bytes(2 * kStageElems, 2);
  static_assert(kSharedBytes <= kMaxSharedBytes);
};

// Wide heads take fewer keys at a time, so that sums, queries and scores together fit the registers.
template <int kD>
using ForwardTiles = QueryTiles<kD, kD <= 64 ? 64 : 32>;

// Streaming softmax of the two rows of scores that a lane shares with the three others of its quad.
struct RowState {
  float max[2];  // of the raw scores
  float sum[2];  // this lane's columns only, relative to max
};

// Scores become probabilities; the sums so far count `rescale` times. Base 2: scale_log2 is the scale times
// log2(e).
template <int kCols>
__device__ void softmax_rows(float (&s)[kCols / 8][4], RowState& state, float (&rescale)[2],
                             float scale_log2) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float top = state.max[half];
#pragma unroll
    for (int n = 0; n < kCols / 8; ++n) top = fmaxf(top, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
    top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
    rescale[half] = exp2f((state.max[half] - top) * scale_log2);  // 0 in the first tile
    const float shift = top * scale_log2;
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < kCols / 8; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        s[n][i] = exp2f(fmaf(s[n][i], scale_log2, -shift));
        sum += s[n][i];
      }
    }
    state.max[half] = top;
    state.sum[half] = state.sum[half] * rescale[half] + sum;
  }
}

// Scores of keys that a query does not see become -inf. first_hidden: of row g and column 2t of the warp's
// tile, how far the first hidden key lies to the right.
template <int kCols>
__device__ void hide_later_keys(float (&s)[kCols / 8][4], int first_hidden) {
#pragma unroll
  for (int n = 0; n < kCols / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (8 * n + i % 2 - i / 2 * 8 >= first_hidden) s[n][i] = -INFINITY;
    }
  }
}

template <class T, int kD>
__global__ void __launch_bounds__(ForwardTiles<kD>::kThreads)
    attention_fwd_kernel(const T* q, const T* k, const T* v, T* y, float* lse, AttentionArgs args) {
  using Tiles = ForwardTiles<kD>;
  constexpr int kKeys = Tiles::kKeys;
  SharedMemory memory;
  const SharedArray<T> shared = memory.take<T>(2 * Tiles::kStageElems);
  const int lane = lane_id(), warp = warp_id(), g = lane / 4, t = lane % 4;

  const int tiles = (args.Tq + Tiles::kQueries - 1) / Tiles::kQueries;
  const BlockPlace at = block_place(args, args.H, tiles, true);
  const HeadRows<const T> q_rows = head_rows(q, at.b, args.Tq, args.H, at.head, args.D);
  const HeadRows<const T> k_rows = head_rows(k, at.b, args.Tk, args.G, at.head / args.group(), args.D);
  const HeadRows<const T> v_rows = head_rows(v, at.b, args.Tk, args.G, at.head / args.group(), args.D);
  const int q0 = at.tile * Tiles::kQueries, warp_q0 = q0 + 16 * warp;
  const int last_query = (q0 + Tiles::kQueries < args.Tq ? q0 + Tiles::kQueries : args.Tq) - 1;
  const int key_tiles = (last_query + args.offset()) / kKeys + 1;
  const float scale_log2 = args.scale * kLog2E;

  const auto load_keys = [&](int tile) {
    const SharedArray<T> stage = shared.part(tile % 2 * Tiles::kStageElems, Tiles::kStageElems);
    const int k0 = tile * kKeys;
    load_tile<kD, kKeys, Tiles::kThreads>(stage, k_rows, k0, args.Tk - k0, args.D);
    load_tile<kD, kKeys, Tiles::kThreads>(stage.part(Tiles::kKeyElems, Tiles::kKeyElems), v_rows, k0,
                                          args.Tk - k0, args.D);
    cp_async_commit();
  };

  // The queries wait in the second stage until they are in registers.
  const SharedArray<T> q_tile = shared.part(Tiles::kStageElems, Tiles::kStageElems);
  load_tile<kD, Tiles::kQueries, Tiles::kThreads>(q_tile, q_rows, q0, args.Tq - q0, args.D);
  load_keys(0);
  cp_async_wait<0>();
  __syncthreads();
  std::uint32_t q_fragments[kD / 16][4];
#pragma unroll
  for (int step = 0; step < kD / 16; ++step) load_a<kD>(q_fragments[step], q_tile, 16 * warp, step);

  float out[kD / 8][4];
  clear<kD>(out);
  RowState state{{-INFINITY, -INFINITY}, {0.0f, 0.0f}};
  for (int tile = 0; tile < key_tiles; ++tile) {
    cp_async_wait<0>();
    __syncthreads();  // the tile is in shared memory, and no thread reads the other stage any more
    if (tile + 1 < key_tiles) load_keys(tile + 1);
    const int k0 = tile * kKeys;
    // Warps without queries, and warps with all queries before the tile, have nothing to do.
    if (warp_q0 >= args.Tq || k0 > warp_q0 + 15 + args.offset()) continue;
    const SharedArray<T> stage = shared.part(tile % 2 * Tiles::kStageElems, Tiles::kStageElems);

    std::uint32_t dropped = 0;
    if (args.threshold != 0) {
      const HeadDraws draws(args, at.b, at.head);
      dropped = dropped_bits<kKeys>(args.threshold, [&](std::uint32_t(&draw)[4], int n) {
        draw_tile(draw, draws, warp_q0, k0 / 4 + 2 * n);
      });
    }
    float s[kKeys / 8][4];
    multiply_transposed<kD, kKeys>(
        s,
        [&](std::uint32_t(&a)[4], int step) {
#pragma unroll
          for (int i = 0; i < 4; ++i) a[i] = q_fragments[step][i];
        },
        stage);
    if (k0 + kKeys - 1 > warp_q0 + args.offset()) {
      hide_later_keys<kKeys>(s, warp_q0 + g + args.offset() + 1 - k0 - 2 * t);
    }
    float rescale[2];
    softmax_rows<kKeys>(s, state, rescale, scale_log2);
    if (__any_sync(kFullWarp, rescale[0] != 1.0f || rescale[1] != 1.0f)) {
#pragma unroll
      for (int d = 0; d < kD / 8; ++d) {
#pragma unroll
        for (int i = 0; i < 4; ++i) out[d][i] *= rescale[i / 2];
      }
    }
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) s[n][i] = (dropped >> (4 * n + i) & 1u) != 0 ? 0.0f : s[n][i];
    }
    std::uint32_t p[kKeys / 16][4];
    to_fragments<T, kKeys>(p, s);
    multiply_add<kD, kKeys>(out, p, stage.part(Tiles::kKeyElems, Tiles::kKeyElems));
  }

  __syncthreads();  // the stages are free
  if (warp_q0 >= args.Tq) return;
  float factor[2];
  float* const lse_rows = lse + (at.b * args.H + at.head) * args.Tq;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = state.sum[half];
    sum += __shfl_xor_sync(kFullWarp, sum, 1);
    sum += __shfl_xor_sync(kFullWarp, sum, 2);
    factor[half] = args.keep_scale / sum;
    const int query = warp_q0 + g + 8 * half;
    if (t == 0 && query < args.Tq) lse_rows[query] = fmaf(state.max[half], args.scale, logf(sum));
  }
  store_rows<kD>(head_rows(y, at.b, args.Tq, args.H, at.head, args.D), warp_q0, args.Tq - warp_q0, args.D,
                 out, factor, shared.part(16 * warp * kD, 16 * kD));
}

}  // namespace qt::cuda
