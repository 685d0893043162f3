// The simulator's matrix products. Each sum runs in f32 over R in ascending order, whatever the blocks; whole
// trainings in CI run through here, so that the loops are cut for registers and caches.
// QTRAIN_SIM_BLAS=slices sums small products in slices, as a library for cards does: the same row then has
// other bits in a product of another size.
#include "kernels/cuda/blas.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "kernels/cuda/blas_algorithms.h"
#include "kernels/cuda/runtime.h"
#include "kernels/sim/shared_memory.h"
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

bool in_slices() {
  const char* name = std::getenv("QTRAIN_SIM_BLAS");
  if (name == nullptr) return false;
  if (std::string_view(name) == "slices") return true;
  throw sim::SimError("QTRAIN_SIM_BLAS is slices, or not set, not " + std::string(name));
}

// Into how many parts each sum is cut, which are added in order: more the fewer squares there are to fill a
// card with.
std::int64_t slices_of(const BlasProduct& p) {
  static const bool sliced = in_slices();
  constexpr std::int64_t kSquare = 64, kLeast = 4;  // terms of a slice
  if (!sliced) return 1;
  const std::int64_t squares = ((p.M + kSquare - 1) / kSquare) * ((p.N + kSquare - 1) / kSquare);
  const std::int64_t slices = squares >= 16 ? 1 : squares >= 4 ? 2 : squares >= 2 ? 3 : 4;
  return p.R < kLeast * slices ? 1 : slices;
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
  const std::int64_t slices = slices_of(p), slice = (p.R + slices - 1) / slices;
  float sums[kRows * kCols], part[kRows * kCols];
  for (std::int64_t n = 0; n < p.N; n += kCols) {
    for (std::int64_t m = 0; m < p.M; m += kRows) {
      multiply_groups(a.data() + m * p.R, b.data() + n * p.R, std::min(slice, p.R), sums);
      for (std::int64_t r = slice; r < p.R; r += slice) {
        multiply_groups(a.data() + m * p.R + r * kRows, b.data() + n * p.R + r * kCols,
                        std::min(slice, p.R - r), part);
        for (std::int64_t i = 0; i < kRows * kCols; ++i) sums[i] += part[i];
      }
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

  std::string algorithms() const override { return algorithms_text(name_, chosen_); }

  std::vector<std::string> use_algorithms(std::string_view text) override {
    return read_algorithms(name_, text,
                           [this](const BlasKind& kind, const AlgorithmBytes& bytes) -> std::string {
                             if (bytes != kAlgorithm) return "there is no such algorithm";
                             chosen_[kind] = bytes;
                             return {};
                           });
  }

 private:
  const std::string name_ = in_slices() ? "simulated library 1, in slices" : "simulated library 1";
  const AlgorithmBytes kAlgorithm = {0x51, 0x0A};  // the only one there is
  std::map<BlasKind, AlgorithmBytes> chosen_;
};

}  // namespace

std::unique_ptr<Blas> make_blas(void*, std::int64_t) {
  if (sim::runtime_call_fails("cublasLtCreate")) check(sim::injected_error(), "cublasLtCreate");
  return std::make_unique<SimBlas>();
}

}  // namespace qt::cuda
