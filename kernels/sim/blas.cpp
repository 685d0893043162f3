// The simulator's matrix products. Each sum runs in f32 over R in ascending order, whatever the blocks; whole
// trainings in CI run through here, so that the loops are cut for registers and caches.
#include "kernels/cuda/blas.h"

#include <cstring>
#include <map>
#include <vector>

#include "kernels/aligned.h"
#include "kernels/cuda/blas_algorithms.h"
#include "kernels/cuda/runtime.h"
#include "kernels/sim/sim.h"
#include "kernels/sim/stream.h"
#include "src/core/error.h"
#include "src/core/half.h"

namespace qt::cuda {

namespace {

// Outputs of one turn of the inner loop: 4 x 8 sums fill half of sixteen vector registers.
constexpr std::int64_t kRows = 4, kCols = 8, kLanes = 4;
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));

template <class T>
void store(void* c, std::int64_t at, bool accumulate, float sum) {
  T& to = static_cast<T*>(c)[at];
  to = from_float<T>(accumulate ? sum + to_float(to) : sum);
}

// Columns of a matrix [R, width] in groups of `group`, each group [R][group], zeros behind the last column.
template <class T>
std::vector<float> in_groups(const T* from, std::int64_t R, std::int64_t width, std::int64_t r_stride,
                             std::int64_t stride, std::int64_t group) {
  std::vector<float> to(static_cast<std::size_t>((width + group - 1) / group * group * R));
  for (std::int64_t first = 0; first < width; first += group) {
    for (std::int64_t r = 0; r < R; ++r) {
      for (std::int64_t i = 0; i < group && first + i < width; ++i)
        to[static_cast<std::size_t>(first * R + r * group + i)] =
            to_float(from[r * r_stride + (first + i) * stride]);
    }
  }
  return to;
}

// sums[kRows][kCols] of one group of rows of a and one of columns of b.
void multiply_groups(const float* a, const float* b, std::int64_t R, float* sums) {
  constexpr std::int64_t kVectors = kCols / kLanes;
  Lanes sum[kRows][kVectors] = {};
  for (std::int64_t r = 0; r < R; ++r, a += kRows, b += kCols) {
    Lanes right[kVectors];
    std::memcpy(right, b, sizeof right);
    for (std::int64_t i = 0; i < kRows; ++i) {
      for (std::int64_t v = 0; v < kVectors; ++v) sum[i][v] += a[i] * right[v];
    }
  }
  std::memcpy(sums, sum, sizeof sum);
}

template <class T, class To>
void compute(const BlasProduct& p) {
  const auto a = in_groups(static_cast<const T*>(p.a), p.R, p.M, p.a_transposed ? p.a_pitch : 1,
                           p.a_transposed ? 1 : p.a_pitch, kRows);
  const auto b = in_groups(static_cast<const T*>(p.b), p.R, p.N, p.b_transposed ? 1 : p.b_pitch,
                           p.b_transposed ? p.b_pitch : 1, kCols);
  float sums[kRows * kCols];
  for (std::int64_t n = 0; n < p.N; n += kCols) {
    for (std::int64_t m = 0; m < p.M; m += kRows) {
      multiply_groups(a.data() + m * p.R, b.data() + n * p.R, p.R, sums);
      for (std::int64_t i = 0; i < kRows && m + i < p.M; ++i) {
        for (std::int64_t j = 0; j < kCols && n + j < p.N; ++j) {
          store<To>(p.c, (m + i) * p.c_pitch + n + j, p.accumulate, sums[i * kCols + j]);
        }
      }
    }
  }
}

void compute(const BlasProduct& p) {
  const bool narrow = p.result != DType::f32;
  switch (p.operands) {
    case DType::bf16: return narrow ? compute<bf16, bf16>(p) : compute<bf16, float>(p);
    case DType::f16: return narrow ? compute<f16, f16>(p) : compute<f16, float>(p);
    default: return compute<float, float>(p);
  }
}

class SimBlas final : public Blas {
 public:
  void multiply(const BlasProduct& p, cudaStream_t stream) override {
    if (sim::runtime_call_fails("cublasLtMatmul")) check(sim::injected_error(), "cublasLtMatmul");
    QT_CHECK(p.M > 0 && p.N > 0 && p.R > 0, DeviceError, "an empty matrix product");
    QT_CHECK(p.result == DType::f32 || p.result == p.operands, DeviceError, "{} into {}",
             dtype_name(p.operands), dtype_name(p.result));
    QT_CHECK(p.a_pitch >= (p.a_transposed ? p.M : p.R) && p.b_pitch >= (p.b_transposed ? p.R : p.N) &&
                 p.c_pitch >= p.N,
             DeviceError, "rows longer than their pitch in the matrix product {}", describe(kind_of(p)));
    chosen_.emplace(kind_of(p), kAlgorithm);
    sim::enqueue_work(stream, [p] { compute(p); });
  }

  std::string algorithms() const override { return algorithms_text(kName, chosen_); }

  std::vector<std::string> use_algorithms(std::string_view text) override {
    return read_algorithms(kName, text,
                           [this](const BlasKind& kind, const AlgorithmBytes& bytes) -> std::string {
                             if (bytes != kAlgorithm) return "there is no such algorithm";
                             chosen_[kind] = bytes;
                             return {};
                           });
  }

 private:
  static constexpr std::string_view kName = "simulated library 1";
  const AlgorithmBytes kAlgorithm = {0x51, 0x0A};  // the only one there is
  std::map<BlasKind, AlgorithmBytes> chosen_;
};

}  // namespace

std::unique_ptr<Blas> make_blas(void*, std::int64_t) {
  if (sim::runtime_call_fails("cublasLtCreate")) check(sim::injected_error(), "cublasLtCreate");
  return std::make_unique<SimBlas>();
}

}  // namespace qt::cuda
