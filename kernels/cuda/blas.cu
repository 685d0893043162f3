// cuBLASLt. The library is column-major: what it calls A is our b, its B is our a, and its result the
// transpose of ours, which are the same bytes.
#include <cstring>
#include <map>
#include <optional>
#include <utility>

#include <cublasLt.h>
#include <fmt/format.h>

#include "kernels/cuda/blas.h"
#include "kernels/cuda/blas_algorithms.h"
#include "kernels/cuda/runtime.h"
#include "src/core/error.h"

namespace qt::cuda {

namespace {

// Sums in f32 only, never rounded on the way: neither in place in the result nor in its type in the
// workspace.
constexpr std::uint32_t kReductions = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;

void check_blas(cublasStatus_t status, const std::string& what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  const std::string message = fmt::format("cuBLASLt failed at {}: {}", what, cublasLtGetStatusString(status));
  if (status == CUBLAS_STATUS_ALLOC_FAILED) {
    throw FitError(message, "close other programs that use the card, or lower --vram or --micro-batch");
  }
  throw DeviceError(message, hint_for(cudaErrorUnknown));
}

using Library = Owned<cublasLtHandle_t, cublasLtDestroy>;
using Operation = Owned<cublasLtMatmulDesc_t, cublasLtMatmulDescDestroy>;
using Layout = Owned<cublasLtMatrixLayout_t, cublasLtMatrixLayoutDestroy>;
using Preference = Owned<cublasLtMatmulPreference_t, cublasLtMatmulPreferenceDestroy>;

cudaDataType_t type_of(DType dtype) {
  return dtype == DType::bf16 ? CUDA_R_16BF : dtype == DType::f16 ? CUDA_R_16F : CUDA_R_32F;
}

// What the library wants to know of a kind of product; made once for each.
struct Plan {
  Operation operation;
  Layout a, b, c;  // in our names
  cublasLtMatmulAlgo_t algorithm{};
};

template <class T>
void set(const Operation& operation, cublasLtMatmulDescAttributes_t attribute, T value) {
  check_blas(cublasLtMatmulDescSetAttribute(operation.get(), attribute, &value, sizeof value),
             "the description of a matrix product");
}
template <class T>
void set(const Preference& preference, cublasLtMatmulPreferenceAttributes_t attribute, T value) {
  check_blas(cublasLtMatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value),
             "the wishes for a matrix product");
}

// rows x cols as the ops see the matrix in memory: a row is a column of the library's.
Layout layout_of(DType dtype, std::int64_t rows, std::int64_t cols, std::int64_t pitch) {
  Layout layout;
  check_blas(cublasLtMatrixLayoutCreate(layout.put(), type_of(dtype), static_cast<std::uint64_t>(cols),
                                        static_cast<std::uint64_t>(rows), pitch),
             "the description of a matrix");
  return layout;
}

Plan plan_of(const BlasKind& k) {
  Operation operation;
  // Never tf32: the products of f32 keep all their bits.
  check_blas(cublasLtMatmulDescCreate(operation.put(), CUBLAS_COMPUTE_32F, CUDA_R_32F),
             "the description of a matrix product");
  set<std::int32_t>(operation, CUBLASLT_MATMUL_DESC_TRANSA, k.b_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  set<std::int32_t>(operation, CUBLASLT_MATMUL_DESC_TRANSB, k.a_transposed ? CUBLAS_OP_T : CUBLAS_OP_N);
  return Plan{.operation = std::move(operation),
              .a = layout_of(k.operands, k.a_transposed ? k.R : k.M, k.a_transposed ? k.M : k.R, k.a_pitch),
              .b = layout_of(k.operands, k.b_transposed ? k.N : k.R, k.b_transposed ? k.R : k.N, k.b_pitch),
              .c = layout_of(k.result, k.M, k.N, k.c_pitch)};
}

std::uint32_t reduction_of(const cublasLtMatmulAlgo_t& algorithm) {
  std::uint32_t reduction = CUBLASLT_REDUCTION_SCHEME_MASK;
  std::size_t written = 0;
  check_blas(cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME,
                                                  &reduction, sizeof reduction, &written),
             "the reading of an algorithm");
  return reduction;
}

class LibraryBlas final : public Blas {
 public:
  LibraryBlas(void* workspace, std::int64_t workspace_bytes)
      : workspace_(workspace), workspace_bytes_(static_cast<std::size_t>(workspace_bytes)) {
    check_blas(cublasLtCreate(library_.put()), "its start");
    int device = 0, major = 0, minor = 0;
    check(cudaGetDevice(&device), "cudaGetDevice");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
          "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
          "cudaDeviceGetAttribute");
    int multiprocessors = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
          "cudaDeviceGetAttribute");
    name_ = fmt::format("cuBLASLt {}, sm_{}{}, {} multiprocessors", cublasLtGetVersion(), major, minor,
                        multiprocessors);
  }

  void multiply(const BlasProduct& p, cudaStream_t stream) override {
    const BlasKind kind = kind_of(p);
    const Plan& plan = plan_for(kind);
    const float one = 1, beta = p.accumulate ? 1 : 0;
    check_blas(cublasLtMatmul(library_.get(), plan.operation.get(), &one, p.b, plan.b.get(), p.a,
                              plan.a.get(), &beta, p.c, plan.c.get(), p.c, plan.c.get(), &plan.algorithm,
                              workspace_, workspace_bytes_, stream),
               "the matrix product " + describe(kind));
    after_launch("cublasLtMatmul", stream);
  }

  std::string algorithms() const override {
    std::map<BlasKind, AlgorithmBytes> chosen;
    for (const auto& [kind, plan] : plans_) {
      AlgorithmBytes bytes(sizeof plan.algorithm);
      std::memcpy(bytes.data(), &plan.algorithm, bytes.size());
      chosen.emplace(kind, std::move(bytes));
    }
    return algorithms_text(name_, chosen);
  }

  std::vector<std::string> use_algorithms(std::string_view text) override {
    return read_algorithms(
        name_, text, [this](const BlasKind& kind, const AlgorithmBytes& bytes) -> std::string {
          if (bytes.size() != sizeof(cublasLtMatmulAlgo_t))
            return "it is not as long as those of this library";
          std::optional<Plan> plan;
          try {
            plan.emplace(plan_of(kind));
          } catch (const Error& error) {
            return error.what();
          }
          std::memcpy(&plan->algorithm, bytes.data(), bytes.size());
          cublasLtMatmulHeuristicResult_t found{};
          const cublasStatus_t status =
              cublasLtMatmulAlgoCheck(library_.get(), plan->operation.get(), plan->b.get(), plan->a.get(),
                                      plan->c.get(), plan->c.get(), &plan->algorithm, &found);
          if (status != CUBLAS_STATUS_SUCCESS) return cublasLtGetStatusString(status);
          if (found.workspaceSize > workspace_bytes_) return "it needs a larger workspace";
          if ((reduction_of(plan->algorithm) & ~kReductions) != 0) return "it rounds its sums on the way";
          plans_.erase(kind);
          plans_.emplace(kind, std::move(*plan));
          return {};
        });
  }

 private:
  const Plan& plan_for(const BlasKind& kind) {
    if (const auto at = plans_.find(kind); at != plans_.end()) return at->second;
    Plan plan = plan_of(kind);
    plan.algorithm = choice(kind, plan);
    return plans_.emplace(kind, std::move(plan)).first->second;
  }

  cublasLtMatmulAlgo_t choice(const BlasKind& kind, const Plan& plan) const {
    Preference wishes;
    check_blas(cublasLtMatmulPreferenceCreate(wishes.put()), "the wishes for a matrix product");
    set<std::uint64_t>(wishes, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes_);
    set<std::uint32_t>(wishes, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, kReductions);
    const auto alignment = [&](cublasLtMatmulPreferenceAttributes_t attribute, std::int64_t bytes) {
      set<std::uint32_t>(wishes, attribute, static_cast<std::uint32_t>(bytes));
    };
    alignment(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, kind.b_align_bytes);
    alignment(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, kind.a_align_bytes);
    alignment(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, kind.c_align_bytes);
    alignment(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, kind.c_align_bytes);

    cublasLtMatmulHeuristicResult_t found{};
    int count = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(library_.get(), plan.operation.get(), plan.b.get(), plan.a.get(),
                                       plan.c.get(), plan.c.get(), wishes.get(), 1, &found, &count);
    const std::string what = "the choice of an algorithm for the matrix product " + describe(kind);
    check_blas(status, what);
    check_blas(count == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : found.state, what);
    return found.algo;
  }

  void* workspace_;
  std::size_t workspace_bytes_;
  Library library_;
  std::string name_;
  std::map<BlasKind, Plan> plans_;
};

}  // namespace

std::unique_ptr<Blas> make_blas(void* workspace, std::int64_t workspace_bytes) {
  return std::make_unique<LibraryBlas>(workspace, workspace_bytes);
}

}  // namespace qt::cuda
