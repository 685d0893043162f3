// For tests of the simulator itself: launches a kernel of the test and tells what was reported.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/sim/sim.h"
#include "src/core/error.h"

namespace qt::test {

// A stream for the lifetime of a test.
class SimStream {
 public:
  SimStream() { cuda::check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "stream"); }
  ~SimStream() { cudaStreamDestroy(stream_); }
  SimStream(const SimStream&) = delete;
  SimStream& operator=(const SimStream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

struct SimShape {
  const char* name = nullptr;
  std::int64_t blocks = 1;
  int threads = 32;
  int shared_bytes = 0;
};

// Runs the kernel to its end; throws SimError.
template <class... Params, class... Args>
void run_kernel(const SimShape& shape, void (*kernel)(Params...), Args... args) {
  const SimStream stream;
  cuda::launch({.name = shape.name,
                .blocks = shape.blocks,
                .threads = shape.threads,
                .shared_bytes = shape.shared_bytes,
                .stream = stream.get()},
               kernel, args...);
  cuda::check(cudaStreamSynchronize(stream.get()), shape.name);
}

// What the simulator reports, or the launch refuses; "" when all is well.
template <class... Params, class... Args>
std::string report_of(const SimShape& shape, void (*kernel)(Params...), Args... args) {
  try {
    run_kernel(shape, kernel, args...);
  } catch (const sim::SimError& e) {
    return e.what();
  } catch (const ShapeError& e) {
    return e.what();
  }
  return {};
}

}  // namespace qt::test
