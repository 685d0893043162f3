// The simulator's matrix products: plain loops, f32 sums in ascending order.
#include "kernels/cuda/blas.h"

#include <cstddef>
#include <vector>

#include "kernels/cuda/runtime.h"
#include "kernels/sim/sim.h"
#include "kernels/sim/stream.h"
#include "src/core/half.h"

namespace qt::cuda {

namespace {

float load(const void* data, DType dtype, std::int64_t i) {
  switch (dtype) {
    case DType::bf16: return to_float(static_cast<const bf16*>(data)[i]);
    case DType::f16: return to_float(static_cast<const f16*>(data)[i]);
    default: return static_cast<const float*>(data)[i];
  }
}

void store(void* data, DType dtype, std::int64_t i, float x) {
  switch (dtype) {
    case DType::bf16: static_cast<bf16*>(data)[i] = to_bf16(x); break;
    case DType::f16: static_cast<f16*>(data)[i] = to_f16(x); break;
    default: static_cast<float*>(data)[i] = x; break;
  }
}

void compute(const BlasProduct& p) {
  // b widened once, row by row, so that the inner loop runs along rows.
  std::vector<float> b(static_cast<std::size_t>(p.R * p.N)), sums(static_cast<std::size_t>(p.N));
  for (std::int64_t r = 0; r < p.R; ++r) {
    for (std::int64_t n = 0; n < p.N; ++n) {
      b[static_cast<std::size_t>(r * p.N + n)] =
          load(p.b, p.operands, p.b_transposed ? n * p.b_pitch + r : r * p.b_pitch + n);
    }
  }
  for (std::int64_t m = 0; m < p.M; ++m) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (std::int64_t r = 0; r < p.R; ++r) {
      const float a = load(p.a, p.operands, p.a_transposed ? r * p.a_pitch + m : m * p.a_pitch + r);
      const float* const row = b.data() + r * p.N;
      for (std::int64_t n = 0; n < p.N; ++n) sums[static_cast<std::size_t>(n)] += a * row[n];
    }
    for (std::int64_t n = 0; n < p.N; ++n) {
      const std::int64_t at = m * p.c_pitch + n;
      float sum = sums[static_cast<std::size_t>(n)];
      if (p.bias != nullptr) sum += p.bias[n];
      if (p.accumulate) sum += load(p.c, p.result, at);
      store(p.c, p.result, at, sum);
    }
  }
}

class SimBlas final : public Blas {
 public:
  void multiply(const BlasProduct& product, cudaStream_t stream) override {
    if (sim::runtime_call_fails("multiply")) check(sim::injected_error(), "matrix product");
    sim::enqueue_work(stream, [product] { compute(product); });
  }
};

}  // namespace

std::unique_ptr<Blas> make_blas(void*, std::int64_t) { return std::make_unique<SimBlas>(); }

}  // namespace qt::cuda
