// The backend that the bodies of a test run on: cpu, or what QTRAIN_TEST_BACKEND names.
//
//   cpu           the default
//   sim           kernels/cuda on the simulator; packed products take the route that `auto` picks
//   sim-fused, sim-scratch   ... this route
//   cuda, cuda-fused, cuda-scratch   likewise on a card
//
// A test knows sim only where it is linked with it, which QTRAIN_TEST_SIM says, and cuda likewise.
#pragma once

#include <cstdlib>
#include <memory>
#include <string>

#include "kernels/backend.h"
#include "kernels/cuda_entry.h"

namespace qt::test {

inline std::string test_backend_name() {
  const char* wanted = std::getenv("QTRAIN_TEST_BACKEND");
  return wanted == nullptr ? "cpu" : wanted;
}
inline bool is_sim(const std::string& backend) { return backend.starts_with("sim"); }

// Where a program is linked with one of them: the card that it plans for.
inline int test_sm() {
#ifdef QTRAIN_TEST_CUDA
  static const int sm = probe_cuda_device().sm;
  return sm;
#else
  return 86;
#endif
}

// threads: of the cpu backend; the others have none.
inline Target target_of(const std::string& backend, int threads) {
  if (backend == "cpu") return cpu_target(threads);
  const std::string device = backend.substr(0, backend.find('-'));
  const std::string route = backend.substr(device.size());
  QT_CHECK(
      (device == "sim" || device == "cuda") && (route.empty() || route == "-fused" || route == "-scratch"),
      ConfigError, "no test target for backend '{}'", backend);
  Target target = cuda_target(test_sm());
  if (route == "-fused") target.gemm = GemmRoute::fused;
  if (route == "-scratch") target.gemm = GemmRoute::scratch;
  return target;
}
inline Target test_target(int threads) { return target_of(test_backend_name(), threads); }

inline std::unique_ptr<Backend> make_test_backend(const Target& target) {
#if defined(QTRAIN_TEST_SIM) || defined(QTRAIN_TEST_CUDA)
  if (target.kind == DeviceKind::cuda) return make_cuda_backend(target);
#endif
  return make_backend(target.kind == DeviceKind::cpu ? "cpu" : "cuda", target);
}

}  // namespace qt::test
