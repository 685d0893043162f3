// The backends that this build has, for every benchmark; src/cli/main.cpp does the same for the program.
#include "bench/harness.h"
#include "kernels/backend.h"
#include "kernels/cuda_entry.h"

namespace qt::bench {

#ifdef QTRAIN_HAVE_CUDA
void add_backends() { add_backend("cuda", make_cuda_backend, probe_cuda_device); }
#else
void add_backends() {}
#endif

}  // namespace qt::bench
