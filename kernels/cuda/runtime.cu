#include <cstdlib>

#include "kernels/cuda/runtime.h"
#include "src/core/error.h"

namespace qt::cuda {

const char* hint_for(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidPc:
    case cudaErrorHardwareStackError:
    case cudaErrorAssert:
    case cudaErrorLaunchFailure:
      return "a kernel failed before this call: QTRAIN_SYNC_LAUNCHES=1 with the same command names it; "
             "please report that. The run continues from its last checkpoint";
    case cudaErrorLaunchTimeout:
      return "the card drives a display, and its watchdog ended a long kernel: lower --micro-batch, or use a "
             "card without a display; the same command continues from the last checkpoint";
    case cudaErrorECCUncorrectable:
      return "the card's memory is failing (`nvidia-smi -q -d ECC`); the last checkpoint is good, and the "
             "same command continues from it";
    case cudaErrorNoKernelImageForDevice:
      return "this build has no code for the card: build with -DCMAKE_CUDA_ARCHITECTURES=native on this "
             "machine";
    default:
      return "`nvidia-smi` and the system's log tell more of the card; the same command continues from the "
             "last checkpoint";
  }
}

void check(cudaError_t result, const char* what) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // told here; not once more by the next launch
  if (result == cudaErrorMemoryAllocation) {
    throw FitError(
        fmt::format("the card refused memory for {}: {}", what, cudaGetErrorString(result)),
        "close other programs that use the card, lower --vram or --micro-batch, or see `qtrain plan`");
  }
  throw DeviceError(fmt::format("the card failed at {}: {} ({})", what, cudaGetErrorString(result),
                                cudaGetErrorName(result)),
                    hint_for(result));
}

bool granted(cudaError_t result, const char* what) {
  if (result == cudaErrorMemoryAllocation || result == cudaErrorNotSupported ||
      result == cudaErrorOperatingSystem) {
    cudaGetLastError();
    return false;
  }
  check(result, what);
  return true;
}

void after_launch(const char* kernel, cudaStream_t stream) {
  static const bool sync = std::getenv("QTRAIN_SYNC_LAUNCHES") != nullptr;
  check(cudaGetLastError(), kernel);
  if (sync) check(cudaStreamSynchronize(stream), kernel);
}

OwnedStream make_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
  return OwnedStream(stream);
}

OwnedEvent make_event() {
  cudaEvent_t event = nullptr;
  check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  return OwnedEvent(event);
}

}  // namespace qt::cuda
