// How a program comes by the cuda backend: defined in the library of kernels/cuda, and by the simulator's in
// its place. A program links one of the two, or neither.
#pragma once

#include <memory>

#include "kernels/backend.h"

namespace qt {

// Throws what opening a card may throw: DeviceError without one, ConfigError for a target of another,
// FitError.
std::unique_ptr<Backend> make_cuda_backend(const Target& target);
// For add_backend().
DeviceFacts probe_cuda_device();

}  // namespace qt
