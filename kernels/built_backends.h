// The backends that this build has beside cpu and null, for every program: add_built_backends() is the only
// place that knows them. QTRAIN_HAVE_CUDA says that a program is linked with the library of kernels/cuda.
#pragma once

#include "kernels/backend.h"
#include "kernels/cuda_entry.h"

namespace qt {

// To be called before the first make_backend() or probe_device().
inline void add_built_backends() {
#ifdef QTRAIN_HAVE_CUDA
  add_backend("cuda", make_cuda_backend, probe_cuda_device);
#endif
}

}  // namespace qt
