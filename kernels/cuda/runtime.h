// Calls of the CUDA runtime with their errors turned into ours. Host code; compiled for the simulator too.
#pragma once

#include <cuda_runtime.h>

namespace qt::cuda {

// Throws DeviceError naming what was done, or FitError when it was refused for want of memory.
void check(cudaError_t result, const char* what);

// To be called after every launch: finds a launch that was refused. With QTRAIN_SYNC_LAUNCHES set it also
// waits for the kernel, so that a fault is reported under the name of the kernel that caused it.
void after_launch(const char* kernel, cudaStream_t stream);

}  // namespace qt::cuda
