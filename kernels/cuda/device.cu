#include <cuda_runtime.h>

#include "kernels/cuda/device.h"
#include "kernels/cuda/runtime.h"
#include "src/core/error.h"

namespace qt::cuda {

Device open_device(const Target& target) {
  (void)target;
  int count = 0;
  check(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  check(cudaSetDevice(0), "cudaSetDevice");
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  Device device;
  device.name = properties.name;
  device.sm = properties.major * 10 + properties.minor;
  device.multiprocessors = properties.multiProcessorCount;
  return device;
}

}  // namespace qt::cuda
