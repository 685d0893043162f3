// Plain matrix products. The library does them, all but one kind: a bias in f32 added to a sum that is then
// rounded to 16 bits. cuBLASLt wants the bias in the type of the result, which would round it beforehand. To
// f32 results a kernel adds it afterwards, which is the same sum: the library may know no algorithm that adds
// one at the small and odd sizes that are allowed here.
#include "kernels/cuda/context.h"
#include "kernels/cuda/dense_product.h"
#include "kernels/cuda/gemm_tile.cuh"
#include "kernels/cuda/vector.cuh"
#include "kernels/gemm_grid.h"

namespace qt::cuda {

namespace {

// Squares of a plain matrix [N, K]. kAligned: its rows begin at multiples of 16 bytes, K a multiple of 8.
template <class T, bool kAligned>
class PlainLoader {
 public:
  struct Piece {
    uint4 units[kParts];
  };

  __device__ PlainLoader(const T* b, std::int64_t N, std::int64_t K, std::int64_t pitch, int thread)
      : b_(b), N_(N), K_(K), pitch_(pitch), thread_(thread) {}

  __device__ Piece load(std::int64_t row, std::int64_t col) const {
    Piece piece;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const std::int64_t n = row * kSquare + row_of(part), k = col * kSquare + unit() * kUnitElems;
      const T* const from = b_ + n * pitch_ + k;
      if constexpr (kAligned) {
        piece.units[part] = n < N_ && k < K_ ? read_global<uint4>(from) : make_uint4(0, 0, 0, 0);
      } else {
        piece.units[part] = load_unit(from, n < N_ ? K_ - k : 0);
      }
    }
    return piece;
  }

  __device__ void put(const Piece& piece, int part, const SharedArray<T>& square) const {
    square.template write_as<uint4>(swizzled(row_of(part), unit()), piece.units[part]);
  }

 private:
  __device__ int unit() const { return thread_ % kSquareUnits; }
  __device__ int row_of(int part) const {
    return thread_ / kSquareUnits + part * (kSquareThreads / kSquareUnits);
  }

  const T* b_;
  std::int64_t N_, K_, pitch_;
  int thread_;
};

template <class T, int kTile, bool kAligned>
__global__ __launch_bounds__(GemmTile<kTile>::kThreads,
                             GemmTile<kTile>::kBlocksAtOnce) void biased_gemm_kernel(GemmProblem<T> p,
                                                                                     const T* b,
                                                                                     std::int64_t b_pitch) {
  SharedMemory shared;
  const PlainLoader<T, kAligned> loader(b, p.N, p.R, b_pitch, static_cast<int>(threadIdx.x) % kSquareThreads);
  multiply_tile<kTile, false, kAligned>(p, loader, shared);
}

template <class T, int kTile, bool kAligned>
void launch_biased(const BlasProduct& product, const float* bias, const Context& context) {
  const GemmProblem<T> p{.a = static_cast<const T*>(product.a),
                         .c = static_cast<T*>(product.c),
                         .bias = bias,
                         .M = product.M,
                         .N = product.N,
                         .R = product.R,
                         .a_pitch = product.a_pitch,
                         .c_pitch = product.c_pitch};
  launch({.name = "biased_gemm_kernel",
          .blocks = GemmTile<kTile>::blocks(p.M, p.N),
          .threads = GemmTile<kTile>::kThreads,
          .shared_bytes = GemmTile<kTile>::kSharedBytes,
          .stream = context.stream},
         biased_gemm_kernel<T, kTile, kAligned>, p, static_cast<const T*>(product.b), product.b_pitch);
}

template <class T>
void biased_product(const BlasProduct& product, const float* bias, const Context& context) {
  const auto whole_units = [](const void* data, std::int64_t pitch) {
    return is_aligned16(data) && pitch % kUnitElems == 0;
  };
  const bool aligned = product.R % kUnitElems == 0 && whole_units(product.a, product.a_pitch) &&
                       whole_units(product.b, product.b_pitch);
  if (!aligned) return launch_biased<T, 64, false>(product, bias, context);
  if (large_tiles(product.M, product.N, context.multiprocessors))
    return launch_biased<T, 128, true>(product, bias, context);
  launch_biased<T, 64, true>(product, bias, context);
}

// c[m, n] += bias[n]. In any geometry the same bits.
__global__ void add_bias_kernel(float* c, const float* bias, std::int64_t M, std::int64_t N,
                                std::int64_t pitch) {
  for (std::int64_t i = global_thread(); i < M * N; i += global_threads()) {
    float* const at = c + i / N * pitch + i % N;
    write_global(at, read_global<float>(at) + read_global<float>(bias + i % N));
  }
}

void add_bias(const BlasProduct& product, const float* bias, const Context& context) {
  launch(elementwise_shape("add_bias_kernel", product.M * product.N, context), add_bias_kernel,
         static_cast<float*>(product.c), bias, product.M, product.N, product.c_pitch);
}

// Of a view with one row the pitch says nothing.
std::int64_t pitch_of(const TensorView& view) { return view.dim(0) > 1 ? view.pitch : view.dim(1); }

}  // namespace

void dense_product(const BlasProduct& product, const float* bias, const Context& context) {
  if (product.M == 0 || product.N == 0) return;
  QT_CHECK(bias == nullptr || (!product.a_transposed && product.b_transposed && !product.accumulate),
           ShapeError, "a bias belongs to products with a transposed weight");
  if (bias == nullptr || product.result == DType::f32) {
    context.blas.multiply(product, context.stream);
    if (bias != nullptr) add_bias(product, bias, context);
  } else if (product.result == DType::bf16) {
    biased_product<bf16>(product, bias, context);
  } else {
    biased_product<f16>(product, bias, context);
  }
}

void run(const Matmul& op, const Context& context) {
  const GemmShape shape = gemm_shape(op);
  if (shape.M == 0 || shape.N == 0) return;
  QT_CHECK(shape.R >= 1, ShapeError, "{}: nothing to sum over: a {}, b {}", Matmul::kName, op.a.shape(),
           op.b.shape());
  dense_product({.M = shape.M,
                 .N = shape.N,
                 .R = shape.R,
                 .a = op.a.data,
                 .b = op.b.data,
                 .c = op.c.data,
                 .operands = op.a.dtype,
                 .result = op.c.dtype,
                 .a_pitch = pitch_of(op.a),
                 .b_pitch = pitch_of(op.b),
                 .c_pitch = pitch_of(op.c),
                 .a_transposed = op.layout == GemmLayout::tn,
                 .b_transposed = op.layout == GemmLayout::nt,
                 .accumulate = op.accumulate},
                op.bias.defined() ? op.bias.as<float>() : nullptr, context);
}

}  // namespace qt::cuda
