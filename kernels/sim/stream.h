// Streams of the simulator. Lazy ones, the default, do nothing until something waits for them, and then no
// more than what is waited for: work that nothing orders happens as late as it can. Streams of
// kernels/sim/sim.h says what else there is.
#pragma once

#include <functional>
#include <string>

#include <cuda_runtime.h>

namespace qt::sim {

// A kernel's launch: counts as a call of the runtime, and may be made to fail like one.
void enqueue_launch(cudaStream_t stream, const std::string& kernel, std::function<void()> work);
// Work of another library (matrix products, sorts) on the stream.
void enqueue_work(cudaStream_t stream, std::function<void()> work);

// True when the call is to fail; notes its name either way. For twins outside cuda_runtime.cpp. The error is
// left for cudaGetLastError.
bool runtime_call_fails(const char* name);
cudaError_t injected_error();

}  // namespace qt::sim
