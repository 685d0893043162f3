#include <cstdlib>

#include "kernels/cuda/runtime.h"
#include "src/core/error.h"

namespace qt::cuda {

void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  if (result == cudaErrorMemoryAllocation) {
    throw FitError(
        fmt::format("the card refused memory for {}: {}", what, cudaGetErrorString(result)),
        "close other programs that use the card, lower --vram or --micro-batch, or see `qtrain plan`");
  }
  throw DeviceError(fmt::format("the card failed at {}: {} ({})", what, cudaGetErrorString(result),
                                cudaGetErrorName(result)));
}

void after_launch(const char* kernel, cudaStream_t stream) {
  static const bool sync = std::getenv("QTRAIN_SYNC_LAUNCHES") != nullptr;
  check(cudaGetLastError(), kernel);
  if (sync) check(cudaStreamSynchronize(stream), kernel);
}

}  // namespace qt::cuda
