// The backends that this build has, for every benchmark; src/cli/main.cpp does the same for the program.
#include "bench/harness.h"
#include "kernels/backend.h"

#ifdef QTRAIN_HAVE_CUDA
namespace qt {
// Of kernels/cuda.
std::unique_ptr<Backend> make_cuda_backend(const Target& target);
DeviceFacts probe_cuda_device();
}  // namespace qt
#endif

namespace qt::bench {

#ifdef QTRAIN_HAVE_CUDA
void add_backends() { add_backend("cuda", make_cuda_backend, probe_cuda_device); }
#else
void add_backends() {}
#endif

}  // namespace qt::bench
