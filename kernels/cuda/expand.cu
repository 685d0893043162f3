#include "kernels/cuda/expand.h"
#include "kernels/cuda/packed_gemm.cuh"
#include "kernels/cuda/vector.cuh"

namespace qt::cuda {

namespace {

// Of a rectangle's elements, in its own row-major order, those that are stored: [first, first + count).
struct Stored {
  std::int64_t first = 0, count = 0;
};

// A square of 64 x 64 at a time through shared memory, so that codes and weights are both moved in whole
// sectors, whatever the layout.
template <class Loader, class T>
__global__ __launch_bounds__(kSquareThreads) void expand_kernel(Rectangle area, Stored stored,
                                                                PackedMatrix<typename Loader::Format> w,
                                                                CodePoints<typename Loader::Format> points,
                                                                T* to) {
  SharedMemory shared;
  const SharedArray<float> table = take_code_points(shared, points);
  const SharedArray<bf16> square = shared.take<bf16>(kSquareElems);
  const Loader loader(w, table, static_cast<int>(threadIdx.x));
  const std::int64_t across = blocks_for(area.cols, kSquare), down = blocks_for(area.rows, kSquare);
  for (std::int64_t i = blockIdx.x; i < across * down; i += gridDim.x) {
    const std::int64_t row = i / across * kSquare, col = i % across * kSquare;
    const auto piece = loader.load((area.first_row + row) / kSquare, (area.first_col + col) / kSquare);
    __syncthreads();  // the table is complete; the square before has been stored
#pragma unroll
    for (int part = 0; part < kParts; ++part) loader.put(piece, part, square);
    __syncthreads();
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const int unit_at = static_cast<int>(threadIdx.x) + part * kSquareThreads;
      const int down_at = unit_at / kSquareUnits, unit = unit_at % kSquareUnits;
      const std::int64_t col_at = col + unit * kUnitElems;
      if (row + down_at >= area.rows || col_at >= area.cols) continue;
      const std::int64_t at = (row + down_at) * area.cols + col_at - stored.first;  // of the unit, in `to`
      const std::int64_t in_row = area.cols - col_at, in_range = stored.count - at;
      const int count = vector_count(0, in_row < in_range ? in_row : in_range);
      const Floats weights = widen(Packed<bf16>{square.read_as<uint4>(swizzled(down_at, unit))});
      if (at >= 0) {
        store_floats(to + at, count, weights);
      } else {  // the range begins within the unit, or behind it
#pragma unroll
        for (int e = 0; e < kUnitElems; ++e) {
          if (e < count && at + e >= 0) to[at + e] = narrow<T>(weights.x[e]);
        }
      }
    }
  }
}

template <class Loader, class T>
void launch_expand(const Rectangle& area, const Stored& stored,
                   const PackedOperand<typename Loader::Format>& weight, T* to, const Context& context) {
  LaunchShape shape =
      filling_shape("expand_kernel", blocks_for(area.rows, kSquare) * blocks_for(area.cols, kSquare),
                    kSquareThreads, context);
  shape.shared_bytes = kCodePointBytes<typename Loader::Format> + shared_array_bytes(kSquareElems, 2);
  launch(shape, expand_kernel<Loader, T>, area, stored, weight.matrix, weight.points, to);
}

template <class T>
void expand_as(const PackedView& w, const Rectangle& area, const Stored& stored, T* to,
               const Context& context) {
  dispatch_format(w.format, [&]<class F>() {
    const PackedOperand<F> weight = packed_operand_of<F>(w);
    if constexpr (kFitsTiles<F>) {
      if (weight.matrix.in_tiles) {
        if (weight.aligned) return launch_expand<TileLoader<F>>(area, stored, weight, to, context);
        return launch_expand<TileLoader<F, false>>(area, stored, weight, to, context);
      }
    }
    if (weight.in_blocks) return launch_expand<BlockLoader<F>>(area, stored, weight, to, context);
    launch_expand<AnyLoader<F>>(area, stored, weight, to, context);
  });
}

}  // namespace

template <class T>
void expand(const PackedView& w, const Rectangle& rectangle, T* to, const Context& context) {
  expand_as(w, rectangle, {.count = rectangle.rows * rectangle.cols}, to, context);
}

template <class T>
void expand(const PackedView& w, std::int64_t first, std::int64_t count, T* to, const Context& context) {
  const std::int64_t first_row = first / w.K / kSquare * kSquare;
  const Rectangle rows = {
      .first_row = first_row, .rows = blocks_for(first + count, w.K) - first_row, .cols = w.K};
  expand_as(w, rows, {.first = first - first_row * w.K, .count = count}, to, context);
}

template void expand(const PackedView&, const Rectangle&, bf16*, const Context&);
template void expand(const PackedView&, const Rectangle&, float*, const Context&);
template void expand(const PackedView&, std::int64_t, std::int64_t, bf16*, const Context&);
template void expand(const PackedView&, std::int64_t, std::int64_t, float*, const Context&);

}  // namespace qt::cuda
