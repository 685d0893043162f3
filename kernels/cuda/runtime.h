// Calls of the CUDA runtime with their errors turned into ours. Host code; compiled for the simulator too.
#pragma once

#include <utility>

#include <cuda_runtime.h>

namespace qt::cuda {

// Throws DeviceError naming what was done, or FitError when it was refused for want of memory.
void check(cudaError_t result, const char* what);

// Where to look, by what went wrong. An error of a kernel is told by whatever call comes next.
const char* hint_for(cudaError_t error);

// For requests that may be refused: false when there is no memory of the kind, and the runtime has forgotten
// it. Any other error is thrown as by check().
bool granted(cudaError_t result, const char* what);

// To be called after every launch, a library's too: finds a launch that was refused. With
// QTRAIN_SYNC_LAUNCHES set it also waits for the kernel, so that a fault is reported under the name of the
// kernel that caused it.
void after_launch(const char* kernel, cudaStream_t stream);

// Owns a handle of a library. Destroying one never throws, whatever state the card is in.
template <class Handle, auto kDestroy>
class Owned {
 public:
  Owned() = default;
  explicit Owned(Handle handle) : handle_(handle) {}
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owned() {
    if (handle_ != nullptr) kDestroy(handle_);
  }
  Handle get() const { return handle_; }
  Handle* put() { return &handle_; }  // for calls that make one; there must be none yet

 private:
  Handle handle_ = nullptr;
};
using OwnedStream = Owned<cudaStream_t, cudaStreamDestroy>;
using OwnedEvent = Owned<cudaEvent_t, cudaEventDestroy>;

OwnedStream make_stream();  // orders nothing but itself
OwnedEvent make_event();    // without times

}  // namespace qt::cuda
