// Target: what is planned for. Scratch sizes, routes and fixed workspaces are pure functions of (op, Target),
// compiled without any toolkit, so that a build without CUDA still plans for a card.
#pragma once

#include <cstdint>
#include <string>

namespace qt {

enum class DeviceKind : std::uint8_t { cpu, cuda };

// How a GEMM with a packed operand is computed (docs/memory.md): expanded inside the kernel, or a slice at a
// time into scratch and then by the dense library.
enum class GemmRoute : std::uint8_t { automatic, fused, scratch };

// The part of a cpu worker's scratch in which oneDNN packs the operands of a product: 541 KB is the most it
// asks for, for the tiles of kernels/gemm_grid.h. Where it takes no scratch (before AVX-512) this part lies
// untouched, and stands for what the library then allocates and frees inside a call: 706 KB at most.
inline constexpr std::int64_t kLibraryScratchBytes = 1 << 20;

// Bytes of tile buffers that each cpu worker owns for its lifetime (packed-weight tiles, attention tiles, the
// library's share). default_workspace_bytes() of a cpu target is this per thread.
inline constexpr std::int64_t kWorkerScratchBytes = (4 << 20) + kLibraryScratchBytes;

struct Target {
  DeviceKind kind = DeviceKind::cpu;
  int sm = 0;       // cuda: compute capability times ten, 80 .. 120
  int threads = 1;  // cpu: worker threads; sizes the workspace, never the results
  GemmRoute gemm = GemmRoute::automatic;
  std::int64_t context_bytes = 0;  // cuda: the driver's own share (assumed without a card, measured with one)
  bool context_measured = false;
  std::int64_t workspace_bytes = 0;  // libraries' fixed workspaces; 0 means: use default_workspace_bytes()
  bool native_bf16 = true;           // multiplies bf16 at least as fast as f32; the default of --dtype asks
  std::string name;                  // "cpu", "sm_89"
};

Target cpu_target(int threads);
// Throws ConfigError for a compute capability below 8.0.
Target cuda_target(int sm);

// Fixed per-backend memory: per-thread tile buffers on cpu, the GEMM library's workspace on cuda.
std::int64_t default_workspace_bytes(const Target& target);

// Bytes the driver takes for a context before qtrain allocates anything: 0 on cpu. The figure for cuda is an
// assumption until a card has been measured, and is labelled so wherever it is printed.
std::int64_t assumed_context_bytes(const Target& target);

}  // namespace qt
