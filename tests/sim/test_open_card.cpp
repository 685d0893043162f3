// Opening a card, on the simulator: a build without code for it, a reading of its context that cannot be
// right, calls of libraries that fail meanwhile; and where to look when a call fails.
#include <algorithm>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/cuda/runtime.h"
#include "kernels/cuda/staging.h"
#include "kernels/cuda_entry.h"
#include "kernels/sim/sim.h"
#include "src/core/error.h"
#include "src/core/log.h"
#include "src/core/units.h"

namespace qt::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class OpenCard : public ::testing::Test {
 protected:
  void SetUp() override {
    sim::card() = sim::Card();
    sim::begin_process();
  }
  void TearDown() override { SetUp(); }

  // The error of opening the card, "what | hint"; empty when it opens.
  static std::string refusal() {
    try {
      make_cuda_backend(cuda_target(80));
    } catch (const DeviceError& e) {
      return fmt::format("{} | {}", e.what(), e.hint());
    }
    return {};
  }
  // The calls of opening it, in order.
  static std::vector<std::string> calls() {
    sim::begin_process();
    make_cuda_backend(cuda_target(80));
    return sim::runtime_call_names();
  }
};

TEST_F(OpenCard, WithoutCodeForItNamesTheCardAndHowToBuild) {
  EXPECT_EQ(refusal(), "");
  sim::card().served_by_build = false;
  sim::card().major = 10;
  sim::card().minor = 3;
  EXPECT_THAT(refusal(), AllOf(HasSubstr("no code for the simulated card, which is sm_103"),
                               HasSubstr("CMAKE_CUDA_ARCHITECTURES=native")));
  sim::card() = sim::Card();
  EXPECT_EQ(refusal(), "");  // nothing is left of it
  // What else the runtime says when no code fits.
  const std::vector<std::string> names = calls();
  const auto asked = std::ranges::find(names, "cudaFuncGetAttributes") - names.begin();
  for (const cudaError_t error : {cudaErrorInvalidDeviceFunction, cudaErrorUnsupportedPtxVersion}) {
    sim::begin_process();
    sim::fail_runtime_call(asked, error, false);
    EXPECT_THAT(refusal(), HasSubstr("no code for the simulated card")) << cudaGetErrorName(error);
  }
}

TEST_F(OpenCard, AnyCallThatFailsMeanwhileIsNamed) {
  const std::vector<std::string> names = calls();
  for (const char* name : {"cudaFuncGetAttributes", "cublasLtCreate", "cublasLtMatmul", "fill_kernel"}) {
    SCOPED_TRACE(name);
    const auto at = std::ranges::find(names, name);
    ASSERT_NE(at, names.end());
    sim::begin_process();
    sim::fail_runtime_call(at - names.begin(), cudaErrorUnknown, false);
    EXPECT_THAT(refusal(), HasSubstr(fmt::format("failed at {}", name)));
    EXPECT_EQ(sim::allocated_bytes(), 0);
  }
}

TEST_F(OpenCard, WithAnOldDriverWhoseVersionCannotBeAskedForSaysWhatFailed) {
  sim::card().driver_version = 11080;
  for (const int call : {1, 2}) {  // behind cudaGetDeviceCount
    sim::begin_process();
    sim::fail_runtime_call(call, cudaErrorUnknown, false);
    EXPECT_THAT(refusal(),
                HasSubstr(call == 1 ? "failed at cudaDriverGetVersion" : "failed at cudaRuntimeGetVersion"));
  }
}

// What opening the card says on stderr; facts: what is known of the card then.
std::string log_of_opening(DeviceFacts& facts) {
  ::testing::internal::CaptureStderr();
  facts = make_cuda_backend(cuda_target(80))->device();
  return ::testing::internal::GetCapturedStderr();
}

TEST_F(OpenCard, MeasuresItsContextUnlessTheReadingCannotBeItsOwn) {
  const std::int64_t assumed_bytes = assumed_context_bytes(cuda_target(80));
  DeviceFacts facts;
  sim::card().context_bytes = 2 * assumed_bytes - kMiB;
  EXPECT_EQ(log_of_opening(facts), "");
  EXPECT_EQ(facts.context_bytes, 2 * assumed_bytes - kMiB);
  // Somebody takes 2 GiB meanwhile, or gives some back.
  for (const std::int64_t bytes : {2 * kGiB, -100 * kMiB}) {
    sim::card().context_bytes = bytes;
    sim::begin_process();
    EXPECT_THAT(log_of_opening(facts), AllOf(HasSubstr(bytes > 0 ? " by 2.0 GiB" : " by -100.0 MiB"),
                                             HasSubstr("goes on assuming")));
    EXPECT_EQ(facts.context_bytes, 0);  // unknown
    EXPECT_EQ(facts.free_bytes, 12 * kGiB - 300 * kMiB - bytes);
  }
  // A process that has a context already takes none, and has nothing to say about it.
  sim::card() = sim::Card();
  sim::begin_process();
  log_of_opening(facts);
  EXPECT_EQ(facts.context_bytes, 280 * kMiB);
  EXPECT_EQ(log_of_opening(facts), "");
  EXPECT_EQ(facts.context_bytes, 0);
}

TEST_F(OpenCard, LoadsCodeBeforeItMeasuresAndKeepsNothingOfThat) {
  const std::vector<std::string> names = calls();
  const auto last = [&](const char* name) {
    return std::ranges::find(names.rbegin(), names.rend(), name).base();
  };
  EXPECT_LT(last("fill_kernel"), last("cudaMemGetInfo"));
  EXPECT_LT(last("cublasLtMatmul"), last("cudaMemGetInfo"));
  sim::begin_process();
  const auto backend = make_cuda_backend(cuda_target(80));
  EXPECT_EQ(sim::allocated_bytes(), default_workspace_bytes(cuda_target(80)) + 4096);
}

TEST_F(OpenCard, HostMemoryBeginsAtAPageWhereverTheRuntimePutsIt) {
  void* raw = nullptr;
  ASSERT_EQ(cudaHostAlloc(&raw, 64, cudaHostAllocDefault), cudaSuccess);
  EXPECT_NE(reinterpret_cast<std::uintptr_t>(raw) % 4096, 0u);
  EXPECT_EQ(cudaFreeHost(raw), cudaSuccess);
  const auto backend = make_cuda_backend(cuda_target(80));
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(backend->allocate(Space::host, 100)->base()) % 4096, 0u);
}

// The first piece, then the second.
TEST_F(OpenCard, StagingThatIsRefusedAPieceGivesBackWhatItHasAndNothingElse) {
  for (const int pieces : {0, 1}) {
    sim::begin_process();
    sim::card().pinned_limit_bytes = pieces * static_cast<std::int64_t>(cuda::Staging::kPieceBytes);
    EXPECT_EQ(cuda::Staging::make(), nullptr);
    EXPECT_EQ(std::ranges::count(sim::runtime_call_names(), "cudaFreeHost"), pieces);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
    EXPECT_EQ(sim::allocated_bytes(), 0);
  }
  EXPECT_EQ(cudaFreeHost(nullptr), cudaErrorInvalidValue);
}

TEST(Hints, OfEveryFaultOfAKernelNameTheWayToFindIt) {
  for (const cudaError_t error :
       {cudaErrorIllegalAddress, cudaErrorMisalignedAddress, cudaErrorInvalidAddressSpace,
        cudaErrorIllegalInstruction, cudaErrorInvalidPc, cudaErrorHardwareStackError, cudaErrorAssert,
        cudaErrorLaunchFailure}) {
    EXPECT_THAT(cuda::hint_for(error), HasSubstr("QTRAIN_SYNC_LAUNCHES=1")) << cudaGetErrorName(error);
    EXPECT_STRNE(cudaGetErrorName(error), "unknown error");
  }
  EXPECT_THAT(cuda::hint_for(cudaErrorUnknown), HasSubstr("nvidia-smi"));
  EXPECT_THAT(cuda::hint_for(cudaErrorECCUncorrectable), HasSubstr("ECC"));
}

}  // namespace
}  // namespace qt::test
