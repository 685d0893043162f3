// The embedding's forward pass, and the gradient of positions. Legend: N tokens, C width, T tokens of a row.
#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.cuh"
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
