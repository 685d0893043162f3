// Targets by name, and the fixed memory each of them needs before any op runs.
#include "kernels/target.h"

#include "src/core/error.h"
#include "src/core/units.h"

namespace qt {

namespace {

constexpr int kOldestSm = 80;  // bf16 tensor cores and cp.async start here
constexpr int kHopperSm = 90;

// cuBLAS's documentation recommends 32 MiB on Hopper and 4 MiB before it. Twice the latter, so that
// algorithms which split K through the workspace stay open to the heuristics.
constexpr std::int64_t kHopperWorkspaceBytes = 32 * kMiB;
constexpr std::int64_t kAmpereWorkspaceBytes = 8 * kMiB;

// Driver context, loaded modules and the GEMM library's kernels. An assumption: no card has been measured.
constexpr std::int64_t kAssumedCudaContextBytes = 450 * kMiB;

// Without these instructions tiles are widened to f32 first: bf16 then saves memory and costs time.
bool cpu_has_bf16() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512bf16") != 0;
#else
  return false;
#endif
}

}  // namespace

Target cpu_target(int threads) {
  QT_CHECK(threads >= 1, ConfigError, "the cpu backend needs at least one thread, not {}", threads);
  Target target;
  target.kind = DeviceKind::cpu;
  target.threads = threads;
  target.native_bf16 = cpu_has_bf16();
  target.name = "cpu";
  return target;
}

Target cuda_target(int sm) {
  if (sm < kOldestSm) {
    throw ConfigError(
        fmt::format("compute capability {}.{} is too old: qtrain needs bf16 tensor cores", sm / 10, sm % 10),
        "use a card of compute capability 8.0 or later (RTX 30 series, A100 or newer), or --device cpu");
  }
  Target target;
  target.kind = DeviceKind::cuda;
  target.sm = sm;
  target.name = fmt::format("sm_{}", sm);
  target.context_bytes = assumed_context_bytes(target);
  return target;
}

std::int64_t default_workspace_bytes(const Target& target) {
  if (target.kind == DeviceKind::cpu) return target.threads * kWorkerScratchBytes;
  return target.sm >= kHopperSm ? kHopperWorkspaceBytes : kAmpereWorkspaceBytes;
}

std::int64_t assumed_context_bytes(const Target& target) {
  return target.kind == DeviceKind::cuda ? kAssumedCudaContextBytes : 0;
}

}  // namespace qt
