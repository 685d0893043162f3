// Ops that draw random numbers: initial weights and dropout. A thread takes whole blocks of the generator,
// and which draw belongs to which element is a matter of the element's number alone.
#include "kernels/aligned.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/vector.cuh"
#include "kernels/dropout.h"
#include "kernels/normal_quantile.h"

namespace qt::cuda {

namespace {

constexpr int kDrawsPerBlock = 4;

// What an element i of a view is in the whole tensor: element `first + i`. Pieces of kSize elements that
// begin at multiples of kSize there, and cover the view; the first and the last may stick out.
template <int kSize>
struct Pieces {
  std::int64_t first;
  std::int64_t n;  // of the view

  QT_HOST_DEVICE std::int64_t lowest() const { return first / kSize; }
  QT_HOST_DEVICE std::int64_t count() const {
    return n == 0 ? 0 : (first + n - 1) / kSize - first / kSize + 1;
  }
  // Where a piece begins in the view, from -kSize + 1 on.
  __device__ std::int64_t begin(std::int64_t piece) const { return (lowest() + piece) * kSize - first; }
};

using InitPieces = Pieces<kDrawsPerBlock>;
using DropoutPieces = Pieces<kVectorElems>;

struct InitScale {
  float stddev, constant;
};

template <class T>
__global__ void init_normal_kernel(T* x, InitPieces pieces, InitScale scale, RngStream rng) {
  const auto value = [&](std::uint32_t draw) {
    if (scale.stddev == 0.0f) return scale.constant;
    const double z = normal_quantile(static_cast<double>(rng_unit(draw)));
    return scale.constant + scale.stddev * static_cast<float>(z);
  };
  for (std::int64_t piece = global_thread(); piece < pieces.count(); piece += global_threads()) {
    const auto draws = rng_block(rng, static_cast<std::uint64_t>(pieces.lowest() + piece));
    const float values[kDrawsPerBlock] = {value(draws[0]), value(draws[1]), value(draws[2]), value(draws[3])};
    const std::int64_t begin = pieces.begin(piece);
    const bool whole = begin >= 0 && begin + kDrawsPerBlock <= pieces.n;
    if (whole && is_aligned<kDrawsPerBlock* static_cast<int>(sizeof(T))>(x + begin)) {
      store_quad(x + begin, values);
      continue;
    }
#pragma unroll
    for (int i = 0; i < kDrawsPerBlock; ++i) {
      if (begin + i >= 0 && begin + i < pieces.n) x[begin + i] = narrow<T>(values[i]);
    }
  }
}

// y may be x.
template <class T>
__global__ void dropout_kernel(const T* x, T* y, DropoutPieces pieces, std::uint32_t threshold, float scale,
                               RngStream rng) {
  for (std::int64_t piece = global_thread(); piece < pieces.count(); piece += global_threads()) {
    const auto block = static_cast<std::uint64_t>(pieces.lowest() + piece) * 2;
    const auto low = rng_block(rng, block), high = rng_block(rng, block + 1);
    const std::uint32_t draws[kVectorElems] = {low[0],  low[1],  low[2],  low[3],
                                               high[0], high[1], high[2], high[3]};
    const auto kept = [&](float v, std::uint32_t draw) { return draw < threshold ? 0.0f : v * scale; };
    const std::int64_t begin = pieces.begin(piece);
    if (begin >= 0 && begin + kVectorElems <= pieces.n) {
      Floats f = load_floats(x + begin, kVectorElems);
#pragma unroll
      for (int i = 0; i < kVectorElems; ++i) f.x[i] = kept(f.x[i], draws[i]);
      store_floats(y + begin, kVectorElems, f);
      continue;
    }
#pragma unroll
    for (int i = 0; i < kVectorElems; ++i) {
      if (begin + i >= 0 && begin + i < pieces.n)
        y[begin + i] = narrow<T>(kept(widen(x[begin + i]), draws[i]));
    }
  }
}

}  // namespace

void run(const InitNormal& op, const Context& context) {
  const InitPieces pieces{.first = op.first_element, .n = op.x.elems()};
  const auto run_as = [&]<class T>() {
    launch(elementwise_shape("init_normal_kernel", pieces.count() * kVectorElems, context),
           init_normal_kernel<T>, op.x.as<T>(), pieces,
           InitScale{.stddev = op.stddev, .constant = op.constant}, op.rng);
  };
  if (op.x.dtype == DType::bf16) return run_as.template operator()<bf16>();
  run_as.template operator()<float>();
}

void run(const Dropout& op, const Context& context) {
  if (op.rate == 0) {
    if (op.x.data == op.y.data) return;
    return check(cudaMemcpyAsync(op.y.data, op.x.data, static_cast<std::size_t>(op.x.bytes()),
                                 cudaMemcpyDeviceToDevice, context.stream),
                 "a copy instead of dropout");
  }
  const DropoutPieces pieces{.first = op.first_element, .n = op.x.elems()};
  with_float(op.x.dtype, [&]<class T>() {
    launch(elementwise_shape("dropout_kernel", pieces.count() * kVectorElems, context), dropout_kernel<T>,
           op.x.as<T>(), op.y.as<T>(), pieces, dropout_threshold(op.rate), dropout_scale(op.rate), op.rng);
  });
}

}  // namespace qt::cuda
