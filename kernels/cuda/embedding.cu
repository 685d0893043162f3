// The token embedding, its gradient, and the gradient of positions. For the gradient tokens are sorted by id,
// stably, and each run of equal ids is summed in token order by one warp, or by one block where it is long.
// Every row of the gradient has one writer; there are no atomics, and the order of a sum is a function of the
// ids alone. Legend: N tokens, C width, T tokens of a row, V vocabulary.
#include <bit>

#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sort.h"
#include "kernels/cuda/vector.cuh"

namespace qt::cuda {

namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarpThreads;

// Bits as they are, 16 bytes at a time where the addresses allow it.
template <class T>
__device__ void copy_vector(const T* from, T* to, int count) {
  if (count == kVectorElems && is_aligned16(from) && is_aligned16(to)) {
    const uint4 low = read_global<uint4>(from);
    if constexpr (sizeof(T) == 4) write_global(to + 4, read_global<uint4>(from + 4));
    write_global(to, low);
    return;
  }
#pragma unroll
  for (int i = 0; i < kVectorElems; ++i) {
    if (i < count) to[i] = from[i];
  }
}

template <class T>
struct Rows {
  const std::int32_t* ids;
  const T* table;
  const T* positions;  // of the first position; or null
  T* y;
  std::int64_t N, C;
  std::int64_t row_tokens;  // T
};

// A warp per token.
template <class T>
__global__ void embedding_fwd_kernel(Rows<T> rows) {
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp_id();
  if (n >= rows.N) return;
  const T* const token = rows.table + rows.ids[n] * rows.C;
  const T* const position =
      rows.positions == nullptr ? nullptr : rows.positions + n % rows.row_tokens * rows.C;
  T* const y = rows.y + n * rows.C;
  for (std::int64_t c = lane_id() * kVectorElems; c < rows.C; c += kWarpThreads * kVectorElems) {
    const int count = vector_count(c, rows.C);
    if (position == nullptr) {
      copy_vector(token + c, y + c, count);
    } else {
      Floats sum = load_floats(token + c, count);
      add_floats(sum, load_floats(position + c, count));
      store_floats(y + c, count, sum);
    }
  }
}

// dpositions[i] += the sum of dy[i + b * elems] over the rows b of the batch, i in [0, elems), elems = T C.
template <class G, class D>
__global__ void position_bwd_kernel(const G* dy, D* dpositions, std::int64_t elems, std::int64_t batch) {
  const bool aligned = rows_aligned16(dy, elems);
  for_each_vector(elems, [&](std::int64_t first, int count) {
    const Floats sum = sum_of_rows<4>(dy + first, elems, 0, batch, count, aligned && count == kVectorElems);
    Floats total = load_floats(dpositions + first, count);
    add_floats(total, sum);
    store_floats(dpositions + first, count, total);
  });
}

constexpr int kLongRun = 2 * kWarpThreads;  // longer ones are for blocks

// In order of id, then of token.
struct SortedTokens {
  const std::int32_t* ids;     // [N]
  const std::int32_t* tokens;  // [N]
  std::int64_t N;

  __device__ bool has(std::int64_t at, std::int32_t id) const { return at >= 0 && at < N && ids[at] == id; }
};

__global__ void embedding_pairs_kernel(const std::int32_t* ids, std::int32_t* keys, std::int32_t* tokens,
                                       std::int64_t N) {
  for (std::int64_t n = global_thread(); n < N; n += global_threads()) {
    keys[n] = ids[n];
    tokens[n] = static_cast<std::int32_t>(n);
  }
}

template <class D>
__device__ void add_to_row(D* row, int count, const Floats& sum) {
  Floats total = load_floats(row, count);
  add_floats(total, sum);
  store_floats(row, count, total);
}

constexpr int kWarpColumns = kWarpThreads * kVectorElems;

// A warp for each place in the sorted order and each slab of columns: works where a run begins that is not
// long.
template <class G, class D>
__global__ void embedding_bwd_kernel(SortedTokens sorted, const G* dy, D* dtable, std::int64_t C) {
  constexpr int kRowsAtOnce = 4;  // loads of this many rows are under way together
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp_id();
  if (at >= sorted.N) return;
  const std::int32_t id = sorted.ids[at];
  if (sorted.has(at - 1, id) || sorted.has(at + kLongRun, id)) return;

  const bool low = sorted.has(at + lane_id(), id), high = sorted.has(at + kWarpThreads + lane_id(), id);
  const int length = __popc(__ballot_sync(kFullWarp, low)) + __popc(__ballot_sync(kFullWarp, high));
  const std::int32_t low_token = low ? sorted.tokens[at + lane_id()] : 0;
  const std::int32_t high_token = high ? sorted.tokens[at + kWarpThreads + lane_id()] : 0;

  const std::int64_t c = static_cast<std::int64_t>(blockIdx.y) * kWarpColumns + lane_id() * kVectorElems;
  const int count = vector_count(c, C);
  const G* const from = dy + (count == 0 ? 0 : c);  // lanes behind the last column load the first
  const auto sum_with = [&](auto&& load) {
    Floats sum{};
    for (int i = 0; i < length; i += kRowsAtOnce) {
      Floats rows[kRowsAtOnce];
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        // Behind the end the last row once more: a condition would stand between the loads.
        const int row = i + r < length ? i + r : length - 1;
        const std::int32_t token =
            __shfl_sync(kFullWarp, row < kWarpThreads ? low_token : high_token, row % kWarpThreads);
        rows[r] = load(from + token * C);
      }
      if (i == 0) sum = rows[0];  // onto 0 a sum of -0 would be lost
#pragma unroll
      for (int r = 0; r < kRowsAtOnce; ++r) {
        if (i + r > 0 && i + r < length) add_floats(sum, rows[r]);
      }
    }
    return sum;
  };
  const bool aligned = rows_aligned16(dy, C) && C % kVectorElems == 0;
  const Floats sum = aligned ? sum_with([&](const G* p) { return widen(load_packed(p)); })
                             : sum_with([&](const G* p) { return load_floats(p, count); });
  add_to_row(dtable + id * C + c, count, sum);
}

constexpr int kBlockColumns = 128, kBlockRows = 64;  // of a tile in shared memory
constexpr int kTileElems = kBlockColumns * kBlockRows;
constexpr int kPiecesPerRow = kBlockColumns / kVectorElems;
constexpr int kPiecesPerThread = kBlockRows * kPiecesPerRow / kThreads;
static_assert(kBlockColumns <= kThreads && kBlockRows == kLongRun);

// The end of the run of `id` that is known to reach beyond `from`.
__device__ inline std::int64_t run_end(const SortedTokens& sorted, std::int32_t id, std::int64_t from) {
  std::int64_t inside = from, outside = sorted.N;
  while (outside - inside > 1) {
    const std::int64_t middle = inside + (outside - inside) / 2;
    (sorted.ids[middle] == id ? inside : outside) = middle;
  }
  return outside;
}

// A block for each multiple of kLongRun in the sorted order and each slab of columns: works where that is the
// first multiple inside a long run. All threads fetch a tile of rows while the one before is summed, one
// thread a column.
template <class G, class D>
__global__ void embedding_bwd_long_kernel(SortedTokens sorted, const G* dy, D* dtable, std::int64_t C) {
  const std::int64_t at = static_cast<std::int64_t>(blockIdx.x) * kLongRun;
  const std::int32_t id = sorted.ids[at];
  if (sorted.has(at - kLongRun, id)) return;
  // How far in front of `at` the run begins: less than two warps' width.
  const unsigned near = __ballot_sync(kFullWarp, sorted.has(at - 1 - lane_id(), id));
  const unsigned far = __ballot_sync(kFullWarp, sorted.has(at - 1 - kWarpThreads - lane_id(), id));
  const std::int64_t begin = at - __popc(near) - __popc(far);
  if (!sorted.has(begin + kLongRun, id)) return;
  const std::int64_t end = run_end(sorted, id, begin + kLongRun);

  SharedMemory shared;
  const SharedArray<float> tile = shared.take<float>(kTileElems);
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t left = static_cast<std::int64_t>(blockIdx.y) * kBlockColumns;
  const int row = thread / kPiecesPerRow, column = thread % kPiecesPerRow * kVectorElems;  // of piece 0
  constexpr int kRowStep = kThreads / kPiecesPerRow;  // to the next piece
  const int count = vector_count(left + column, C);

  // Behind the end the last token once more, as in the other kernel; it is not summed.
  std::int32_t tokens[kPiecesPerThread];
  const auto fetch_tokens = [&](std::int64_t first) {
#pragma unroll
    for (int k = 0; k < kPiecesPerThread; ++k) {
      const std::int64_t place = first + row + k * kRowStep;
      tokens[k] = sorted.tokens[place < end ? place : end - 1];
    }
  };
  Floats pieces[kPiecesPerThread];
  const bool aligned = rows_aligned16(dy, C) && C % kVectorElems == 0;
  const auto fetch_pieces = [&] {
    const G* const from = dy + left + (count == 0 ? 0 : column);
    if (aligned) {
#pragma unroll
      for (int k = 0; k < kPiecesPerThread; ++k) pieces[k] = widen(load_packed(from + tokens[k] * C));
    } else {
#pragma unroll
      for (int k = 0; k < kPiecesPerThread; ++k) pieces[k] = load_floats(from + tokens[k] * C, count);
    }
  };
  fetch_tokens(begin);
  fetch_pieces();
  fetch_tokens(begin + kBlockRows);

  float sum = 0;
  for (std::int64_t first = begin; first < end; first += kBlockRows) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kPiecesPerThread; ++k) {
      const int to = (row + k * kRowStep) * kBlockColumns + column;
      const float* const x = pieces[k].x;
      tile.write_as(to, make_float4(x[0], x[1], x[2], x[3]));
      tile.write_as(to + 4, make_float4(x[4], x[5], x[6], x[7]));
    }
    __syncthreads();
    fetch_pieces();
    fetch_tokens(first + 2 * kBlockRows);
    if (thread < kBlockColumns) {
      const int rows = end - first < kBlockRows ? static_cast<int>(end - first) : kBlockRows;
      sum = first == begin ? tile.read(thread) : sum + tile.read(thread);
#pragma unroll 8
      for (int r = 1; r < rows; ++r) sum += tile.read(r * kBlockColumns + thread);
    }
  }
  if (thread < kBlockColumns && left + thread < C) {
    D* const to = dtable + id * C + left + thread;
    *to = narrow<D>(widen(*to) + sum);
  }
}

template <class G, class D>
void add_runs(const EmbeddingBwd& op, const SortedTokens& sorted, const Context& context) {
  const std::int64_t C = op.dy.dim(1);
  launch({.name = "embedding_bwd_kernel",
          .blocks = blocks_for(sorted.N, kWarps),
          .blocks_y = blocks_for(C, kWarpColumns),
          .threads = kThreads,
          .stream = context.stream},
         embedding_bwd_kernel<G, D>, sorted, op.dy.as<G>(), op.dtable.as<D>(), C);
  if (sorted.N <= kLongRun) return;
  launch({.name = "embedding_bwd_long_kernel",
          .blocks = blocks_for(sorted.N, kLongRun),
          .blocks_y = blocks_for(C, kBlockColumns),
          .threads = kThreads,
          .shared_bytes = shared_array_bytes(kTileElems, sizeof(float)),
          .stream = context.stream},
         embedding_bwd_long_kernel<G, D>, sorted, op.dy.as<G>(), op.dtable.as<D>(), C);
}

}  // namespace

void run(const EmbeddingFwd& op, const Context& context) {
  const std::int64_t N = op.ids.dim(0), C = op.table.dim(1);
  if (C == 0) return;
  with_float(op.table.dtype, [&]<class T>() {
    const T* const positions =
        op.positions.defined() ? op.positions.as<T>() + op.first_position * C : nullptr;
    launch({.name = "embedding_fwd_kernel",
            .blocks = blocks_for(N, kWarps),
            .threads = kThreads,
            .stream = context.stream},
           embedding_fwd_kernel<T>,
           Rows<T>{.ids = op.ids.as<std::int32_t>(),
                   .table = op.table.as<T>(),
                   .positions = positions,
                   .y = op.y.as<T>(),
                   .N = N,
                   .C = C,
                   .row_tokens = op.T});
  });
}

void run(const EmbeddingBwd& op, const Context& context) {
  const std::int64_t N = op.ids.dim(0), V = op.dtable.dim(0);
  if (op.dy.elems() == 0) return;
  auto* const scratch = reinterpret_cast<std::int32_t*>(op.scratch.data);
  const SortPairs sort{
      .keys = {scratch, scratch + N},
      .values = {scratch + 2 * N, scratch + 3 * N},
      .n = N,
      .key_bits = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(V > 1 ? V - 1 : 1))),
      .temp = scratch + 4 * N,
      .temp_bytes = op.scratch.bytes() - 16 * N};
  launch(elementwise_shape("embedding_pairs_kernel", N * kVectorElems, context), embedding_pairs_kernel,
         op.ids.as<std::int32_t>(), sort.keys[0], sort.values[0], N);
  const int result = sort_pairs(sort, context.stream);
  const SortedTokens sorted{.ids = sort.keys[result], .tokens = sort.values[result], .N = N};
  with_float(op.dy.dtype, [&]<class G>() {
    op.dtable.dtype == DType::f32 ? add_runs<G, float>(op, sorted, context)
                                  : add_runs<G, bf16>(op, sorted, context);
  });
}

void run(const PositionBwd& op, const Context& context) {
  if (op.dy.elems() == 0) return;
  const std::int64_t elems = op.T * op.dy.dim(1);
  with_float(op.dy.dtype, [&]<class G>() {
    const auto add_to = [&]<class D>(D* dpositions) {
      launch(elementwise_shape("position_bwd_kernel", elems, context), position_bwd_kernel<G, D>,
             op.dy.as<G>(), dpositions, elems, op.dy.dim(0) / op.T);
    };
    op.dpositions.dtype == DType::f32 ? add_to(op.dpositions.as<float>()) : add_to(op.dpositions.as<bf16>());
  });
}

}  // namespace qt::cuda
