// Causal attention, forward and backward, at the shapes of d12, d20 and d32 and of GPT-2: milliseconds and
// TFLOP/s. Operations are counted as the causal half of the four (backward: ten) products: 2 B H T T D and 5
// B H T T D, recomputation left out, so that the figures compare with tools/torch_kernels.py attention.
//
//   bench_attention --device cuda --rows 8
//
// --rows: sequences. All other options are qtrain's.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "bench/harness.h"
#include "src/core/units.h"
#include "src/options/option_table.h"
#include "src/plan/machine.h"

namespace qt::bench {
namespace {

constexpr DType kDType = DType::bf16;

struct Shape {
  const char* name;
  std::int64_t T, H, G, D;  // tokens of a sequence, heads, key/value heads, width of a head
};
constexpr Shape kShapes[] = {
    {"d12", 2048, 6, 6, 128},   {"d20", 2048, 10, 10, 128},       {"d32", 2048, 16, 16, 128},
    {"gpt2", 1024, 12, 12, 64}, {"gpt 12x576", 1024, 12, 12, 48}, {"d32, 4 kv heads", 2048, 16, 4, 128},
};

void run(std::vector<std::string> words) {
  const auto rows = counts_of(take_option(words, "rows", "8"), "rows");
  const Target target = target_from_options(load_options(words).options);
  const auto backend = open_backend(target);
  fmt::print(
      "device  {}\nbf16, causal, random operands; "
      "median\n\n{:<18}{:>4}{:>6}{:>4}{:>5}{:>12}{:>9}{:>12}{:>9}\n",
      device_name(target), "shape", "B", "T", "H", "D", "forward ms", "TFLOP/s", "backward ms", "TFLOP/s");
  for (const std::int64_t B : rows) {
    for (const Shape& s : kShapes) {
      Buffers buffers(*backend);
      const auto heads = [&](std::int64_t count) { return buffers.normal({B, s.T, count, s.D}, kDType); };
      const auto same = [&](std::int64_t count) { return buffers.empty({B, s.T, count, s.D}, kDType); };
      const float scale = 1 / std::sqrt(static_cast<float>(s.D));
      AttentionFwd forward{.q = heads(s.H), .k = heads(s.G), .v = heads(s.G), .y = same(s.H)};
      forward.lse = buffers.empty({B, s.H, s.T}, DType::f32);
      forward.scale = scale;
      buffers.add_scratch(forward, target);
      const double forward_s = median_seconds(*backend, [&] { backend->run(forward); });
      AttentionBwd backward{
          .q = forward.q, .k = forward.k, .v = forward.v, .y = forward.y, .lse = forward.lse};
      backward.dy = heads(s.H);
      backward.dq = same(s.H);
      backward.dk = same(s.G);
      backward.dv = same(s.G);
      backward.scale = scale;
      buffers.add_scratch(backward, target);
      const double backward_s = median_seconds(*backend, [&] { backend->run(backward); });
      const double forward_flops = 2.0 * static_cast<double>(B * s.H * s.T) * static_cast<double>(s.T * s.D);
      fmt::print("{:<18}{:>4}{:>6}{:>4}{:>5}{:>12.3f}{:>9.2f}{:>12.3f}{:>9.2f}\n", s.name, B, s.T, s.H, s.D,
                 1e3 * forward_s, forward_flops / forward_s / 1e12, 1e3 * backward_s,
                 2.5 * forward_flops / backward_s / 1e12);
      std::fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace qt::bench

int main(int argc, char** argv) {
  return qt::bench::run_benchmark("bench_attention", argc, argv, qt::bench::run);
}
