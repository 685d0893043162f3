// Attention without tensor cores, for f32 and for head widths and addresses that the other kernels do not
// take: tiles of 32 x 32 scores, f32 products. A block makes 128 columns of its outputs; where D is larger,
// several blocks compute the same scores.
//
//   order   keys ascending, or query heads of the group and then queries ascending; within a tile as the
//           loops stand
//   needs   nothing: any D, any alignment, any scale
#pragma once

#include "kernels/cuda/attention_args.cuh"
#include "kernels/cuda/ptx.cuh"

namespace qt::cuda {

struct SimtTiles {
  static constexpr int kThreads = 256;
  static constexpr int kRows = 32;      // of a tile of scores, and its columns
  static constexpr int kWidth = 32;     // columns of the heads that meet at a time
  static constexpr int kPitch = 36;     // of [32, 32] tiles, f32: vectors of neighbouring rows in other banks
  static constexpr int kOutCols = 128;  // of a block
  static constexpr int kSquareElems = kRows * kPitch;
  static constexpr int kSharedBytes =
      3 * shared_array_bytes(kSquareElems, 4) + shared_array_bytes(kRows * kOutCols, 4);
  static_assert(kSharedBytes <= kMaxSharedBytes);
};

// The block's shared memory, and who does what: a warp has four rows, a lane two rows and two columns of the
// scores, or four rows and four columns of the outputs.
class SimtBlock {
  using Tiles = SimtTiles;

 public:
  __device__ SimtBlock()
      : left_(memory_.take<float>(Tiles::kSquareElems)),
        right_(memory_.take<float>(Tiles::kSquareElems)),
        square_(memory_.take<float>(Tiles::kSquareElems)),
        wide_(memory_.take<float>(Tiles::kRows * Tiles::kOutCols)) {}

  // Row i of the warp's four, in the tile. They are spread so that the halves of a warp write to other banks.
  __device__ static int out_row(int i) {
    const int warp = warp_id();
    return warp / 2 * 8 + warp % 2 * 2 + i / 2 * 4 + i % 2;
  }
  __device__ static int row(int i) { return out_row(lane_id() / 16 * 2 + i); }
  __device__ static int col(int i) { return lane_id() % 16 + 16 * i; }

  // c[i][j] = row row(i) of `left` times row col(j) of `right`, over D columns. Rows beyond the counts are 0.
  template <class T>
  __device__ void multiply_rows(float (&c)[2][2], const HeadRows<const T>& left, int left_first,
                                int left_rows, const HeadRows<const T>& right, int right_first,
                                int right_rows, int D) {
#pragma unroll
    for (int i = 0; i < 2; ++i) c[i][0] = c[i][1] = 0.0f;
    for (int d0 = 0; d0 < D; d0 += Tiles::kWidth) {
      __syncthreads();
      stage<Tiles::kWidth>(left_, Tiles::kPitch, left, left_first, left_rows, d0, D);
      stage<Tiles::kWidth>(right_, Tiles::kPitch, right, right_first, right_rows, d0, D);
      __syncthreads();
      const int width = D - d0 < Tiles::kWidth ? D - d0 : Tiles::kWidth;
#pragma unroll 2
      for (int d = 0; d < width; d += 4) {
        float4 a[2], b[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          a[i] = left_.read_as<float4>(row(i) * Tiles::kPitch + d);
          b[i] = right_.read_as<float4>(col(i) * Tiles::kPitch + d);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            c[i][j] = fmaf(a[i].x, b[j].x, c[i][j]);
            c[i][j] = fmaf(a[i].y, b[j].y, c[i][j]);
            c[i][j] = fmaf(a[i].z, b[j].z, c[i][j]);
            c[i][j] = fmaf(a[i].w, b[j].w, c[i][j]);
          }
        }
      }
    }
  }

  // out[i][j] += the sum over the tile's 32 columns of weights (laid out as multiply_rows leaves them, and
  // rounded to T first) times rows of `from`: row out_row(i), column first_col + 4 lane + j.
  template <class T>
  __device__ void multiply_add(float (&out)[4][4], const float (&weights)[2][2],
                               const HeadRows<const T>& from, int first, int rows, int first_col, int D) {
    __syncthreads();
    stage<Tiles::kOutCols>(wide_, Tiles::kOutCols, from, first, rows, first_col, D);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j)
        square_.write(row(i) * Tiles::kPitch + col(j), widen(narrow<T>(weights[i][j])));
    }
    __syncthreads();
#pragma unroll 1
    for (int k = 0; k < Tiles::kRows; k += 4) {
      float4 w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) w[i] = square_.read_as<float4>(out_row(i) * Tiles::kPitch + k);
#pragma unroll
      for (int kk = 0; kk < 4; ++kk) {
        const float4 x = wide_.read_as<float4>((k + kk) * Tiles::kOutCols + 4 * lane_id());
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float weight = kk == 0 ? w[i].x : kk == 1 ? w[i].y : kk == 2 ? w[i].z : w[i].w;
          out[i][0] = fmaf(weight, x.x, out[i][0]);
          out[i][1] = fmaf(weight, x.y, out[i][1]);
          out[i][2] = fmaf(weight, x.z, out[i][2]);
          out[i][3] = fmaf(weight, x.w, out[i][3]);
        }
      }
    }
  }

  // Stores what multiply_add() summed up, row i times factor[i].
  template <class T>
  __device__ static void store(const HeadRows<T>& to, int first, int rows, int first_col, int D,
                               const float (&out)[4][4], const float (&factor)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int col = first_col + 4 * lane_id() + j;
        if (out_row(i) < rows && col < D) to.row(first + out_row(i))[col] = narrow<T>(out[i][j] * factor[i]);
      }
    }
  }

 private:
  // 32 rows of kCols columns; zeros beyond `rows` and D.
  template <int kCols, class T>
  __device__ static void stage(const SharedArray<float>& to, int pitch, const HeadRows<const T>& from,
                               int first, int rows, int first_col, int D) {
#pragma unroll 2
    for (int i = 0; i < Tiles::kRows * kCols / Tiles::kThreads; ++i) {
      const int at = i * Tiles::kThreads + static_cast<int>(threadIdx.x), row = at / kCols, col = at % kCols;
      const bool valid = row < rows && first_col + col < D;
      to.write(row * pitch + col, valid ? widen(from.row(first + row)[first_col + col]) : 0.0f);
    }
  }

  SharedMemory memory_;
  SharedArray<float> left_, right_, square_, wide_;
};

// Over the 16 lanes that share the rows of a tile of scores.
__device__ inline float row_max(float x) {
  for (int offset = 8; offset > 0; offset /= 2) x = fmaxf(x, __shfl_xor_sync(kFullWarp, x, offset));
  return x;
}
__device__ inline float row_sum(float x) {
  for (int offset = 8; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullWarp, x, offset);
  return x;
}
// What the lanes hold for their two rows of scores, for the four rows of outputs.
__device__ inline void to_out_rows(float (&out)[4], const float (&rows)[2]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) out[i] = __shfl_sync(kFullWarp, rows[i % 2], i / 2 * 16);
}

// Bit 2 i + j: dropout drops the score at row(i), col(j) of the tile. A loop on purpose: unrolled, the
// generator would take all registers.
template <class DrawOf>
__device__ std::uint32_t dropped_scores(std::uint32_t threshold, DrawOf&& draw_of) {
  std::uint32_t bits = 0;
  if (threshold == 0) return bits;
#pragma unroll 1
  for (int i = 0; i < 4; ++i) {
    const std::uint32_t draw = draw_of(SimtBlock::row(i / 2), SimtBlock::col(i % 2));
    bits |= (draw < threshold ? 1u : 0u) << i;
  }
  return bits;
}

template <class T>
__global__ void __launch_bounds__(SimtTiles::kThreads)
    attention_fwd_simt_kernel(const T* q, const T* k, const T* v, T* y, float* lse, AttentionArgs args) {
  using Tiles = SimtTiles;
  constexpr int kRows = Tiles::kRows;
  SimtBlock block;
  const BlockPlace at = block_place(args, args.H, (args.Tq + kRows - 1) / kRows, true);
  const HeadRows<const T> q_rows = head_rows(q, at.b, args.Tq, args.H, at.head, args.D);
  const HeadRows<const T> k_rows = head_rows(k, at.b, args.Tk, args.G, at.head / args.group(), args.D);
  const HeadRows<const T> v_rows = head_rows(v, at.b, args.Tk, args.G, at.head / args.group(), args.D);
  const int first_col = static_cast<int>(blockIdx.y) * Tiles::kOutCols;
  const int q0 = at.tile * kRows, queries = args.Tq - q0 < kRows ? args.Tq - q0 : kRows;
  const int key_end = q0 + queries + args.offset();  // beyond the last key that the last query sees
  const HeadDraws draws(args, at.b, at.head);

  float out[4][4] = {}, max[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  for (int k0 = 0; k0 < key_end; k0 += kRows) {
    const std::uint32_t dropped =
        dropped_scores(args.threshold, [&](int row, int col) { return draws.word(q0 + row, k0 + col); });
    float s[2][2];
    block.multiply_rows(s, q_rows, q0, queries, k_rows, k0, args.Tk - k0, args.D);
    float rescale[2], out_rescale[4];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int query = q0 + SimtBlock::row(i);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int key = k0 + SimtBlock::col(j);
        s[i][j] = key <= query + args.offset() ? s[i][j] * args.scale : -INFINITY;
      }
      const float top = fmaxf(max[i], row_max(fmaxf(s[i][0], s[i][1])));
      rescale[i] = expf(max[i] - top);  // 0 in the first tile
      max[i] = top;
#pragma unroll
      for (int j = 0; j < 2; ++j) s[i][j] = expf(s[i][j] - top);
      sum[i] = sum[i] * rescale[i] + (s[i][0] + s[i][1]);
#pragma unroll
      for (int j = 0; j < 2; ++j) s[i][j] = (dropped >> (2 * i + j) & 1u) != 0 ? 0.0f : s[i][j];
    }
    to_out_rows(out_rescale, rescale);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) out[i][j] *= out_rescale[i];
    }
    block.multiply_add(out, s, v_rows, k0, args.Tk - k0, first_col, args.D);
  }

  float factor[2], out_factor[4];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float total = row_sum(sum[i]);
    factor[i] = args.keep_scale / total;
    if (first_col == 0 && lane_id() % 16 == 0 && SimtBlock::row(i) < queries) {
      lse[(at.b * args.H + at.head) * args.Tq + q0 + SimtBlock::row(i)] = max[i] + logf(total);
    }
  }
  to_out_rows(out_factor, factor);
  SimtBlock::store(head_rows(y, at.b, args.Tq, args.H, at.head, args.D), q0, queries, first_col, args.D, out,
                   out_factor);
}

template <class T>
__global__ void __launch_bounds__(SimtTiles::kThreads)
    attention_bwd_query_simt_kernel(const T* q, const T* k, const T* v, const T* dy, const float* lse,
                                    const float* delta, T* dq, AttentionArgs args) {
  using Tiles = SimtTiles;
  constexpr int kRows = Tiles::kRows;
  SimtBlock block;
  const BlockPlace at = block_place(args, args.H, (args.Tq + kRows - 1) / kRows, true);
  const HeadRows<const T> q_rows = head_rows(q, at.b, args.Tq, args.H, at.head, args.D);
  const HeadRows<const T> dy_rows = head_rows(dy, at.b, args.Tq, args.H, at.head, args.D);
  const HeadRows<const T> k_rows = head_rows(k, at.b, args.Tk, args.G, at.head / args.group(), args.D);
  const HeadRows<const T> v_rows = head_rows(v, at.b, args.Tk, args.G, at.head / args.group(), args.D);
  const int first_col = static_cast<int>(blockIdx.y) * Tiles::kOutCols;
  const int q0 = at.tile * kRows, queries = args.Tq - q0 < kRows ? args.Tq - q0 : kRows;
  const HeadDraws draws(args, at.b, at.head);
  float row_lse[2], row_delta[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int row = SimtBlock::row(i);
    const std::int64_t from = (at.b * args.H + at.head) * args.Tq + q0 + row;
    row_lse[i] = row < queries ? lse[from] : 0.0f;
    row_delta[i] = row < queries ? delta[from] : 0.0f;
  }

  float out[4][4] = {};
  for (int k0 = 0; k0 < q0 + queries; k0 += kRows) {
    const std::uint32_t dropped =
        dropped_scores(args.threshold, [&](int row, int col) { return draws.word(q0 + row, k0 + col); });
    float s[2][2], dp[2][2];
    block.multiply_rows(s, q_rows, q0, queries, k_rows, k0, args.Tk - k0, args.D);
    block.multiply_rows(dp, dy_rows, q0, queries, v_rows, k0, args.Tk - k0, args.D);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int query = q0 + SimtBlock::row(i);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int key = k0 + SimtBlock::col(j);
        const bool kept = (dropped >> (2 * i + j) & 1u) == 0;
        const float p = expf(fmaf(s[i][j], args.scale, -row_lse[i]));
        const float slope = (kept ? dp[i][j] * args.keep_scale : 0.0f) - row_delta[i];
        s[i][j] = key <= query ? p * slope : 0.0f;
      }
    }
    block.multiply_add(out, s, k_rows, k0, args.Tk - k0, first_col, args.D);
  }
  SimtBlock::store(head_rows(dq, at.b, args.Tq, args.H, at.head, args.D), q0, queries, first_col, args.D, out,
                   {args.scale, args.scale, args.scale, args.scale});
}

// Rows of the tiles are keys, columns are queries.
template <class T>
__global__ void __launch_bounds__(SimtTiles::kThreads, 1)
    attention_bwd_key_simt_kernel(const T* q, const T* k, const T* v, const T* dy, const float* lse,
                                  const float* delta, T* dk, T* dv, AttentionArgs args) {
  using Tiles = SimtTiles;
  constexpr int kRows = Tiles::kRows;
  SimtBlock block;
  const int tokens = args.Tk;
  const BlockPlace at = block_place(args, args.G, 0, false);
  const HeadRows<const T> k_rows = head_rows(k, at.b, tokens, args.G, at.head, args.D);
  const HeadRows<const T> v_rows = head_rows(v, at.b, tokens, args.G, at.head, args.D);
  const int first_col = static_cast<int>(blockIdx.y) * Tiles::kOutCols;
  const int k0 = at.tile * kRows, keys = tokens - k0 < kRows ? tokens - k0 : kRows;

  float dk_sum[4][4] = {}, dv_sum[4][4] = {};
  for (int head = at.head * args.group(); head < (at.head + 1) * args.group(); ++head) {
    const HeadRows<const T> q_rows = head_rows(q, at.b, tokens, args.H, head, args.D);
    const HeadRows<const T> dy_rows = head_rows(dy, at.b, tokens, args.H, head, args.D);
    const std::int64_t first_row = (at.b * args.H + head) * tokens;
    const HeadDraws draws(args, at.b, head);
    for (int q0 = k0; q0 < tokens; q0 += kRows) {  // earlier queries see none of the keys
      const std::uint32_t dropped =
          dropped_scores(args.threshold, [&](int row, int col) { return draws.word(q0 + col, k0 + row); });
      float s[2][2], ds[2][2];
      block.multiply_rows(s, k_rows, k0, keys, q_rows, q0, tokens - q0, args.D);
      block.multiply_rows(ds, v_rows, k0, keys, dy_rows, q0, tokens - q0, args.D);
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int query = q0 + SimtBlock::col(j);
        const float col_lse = query < tokens ? lse[first_row + query] : 0.0f;
        const float col_delta = query < tokens ? delta[first_row + query] : 0.0f;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int key = k0 + SimtBlock::row(i);
          const bool visible = key <= query && query < tokens;
          const bool kept = (dropped >> (2 * i + j) & 1u) == 0;
          const float p = expf(fmaf(s[i][j], args.scale, -col_lse));
          const float slope = (kept ? ds[i][j] * args.keep_scale : 0.0f) - col_delta;
          ds[i][j] = visible ? p * slope : 0.0f;
          s[i][j] = visible && kept ? p : 0.0f;
        }
      }
      block.multiply_add(dv_sum, s, dy_rows, q0, tokens - q0, first_col, args.D);
      block.multiply_add(dk_sum, ds, q_rows, q0, tokens - q0, first_col, args.D);
    }
  }
  SimtBlock::store(head_rows(dv, at.b, tokens, args.G, at.head, args.D), k0, keys, first_col, args.D, dv_sum,
                   {args.keep_scale, args.keep_scale, args.keep_scale, args.keep_scale});
  SimtBlock::store(head_rows(dk, at.b, tokens, args.G, at.head, args.D), k0, keys, first_col, args.D, dk_sum,
                   {args.scale, args.scale, args.scale, args.scale});
}

}  // namespace qt::cuda
