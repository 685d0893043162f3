// Matrix products at the shapes of d12, d20 and d32: plain by the dense library, and with an NF4 weight by
// the fused and the scratch route, forward (nt) and for the input's gradient (nn); the weight's gradient (tn)
// plain. Milliseconds, TFLOP/s, and the packed product's speed as a share of the plain one's.
//
//   bench_gemm --device cuda --arch sm_90 --table kernels/gemm_routes_table.cpp
//
// --models 12,20,32 and --tokens 64,...,16384 choose; other options are qtrain's. --table FILE writes the
// measured routes of this card, and those of other cards that this build knows, as the source that --gemm
// auto reads. The cpu has one route only.
#include <cstdio>
#include <optional>
#include <span>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "bench/harness.h"
#include "kernels/gemm_routes.h"
#include "src/core/units.h"
#include "src/io/file.h"
#include "src/options/option_table.h"
#include "src/plan/machine.h"

namespace qt::bench {
namespace {

constexpr DType kDType = DType::bf16;

struct Product {
  GemmLayout layout;
  std::int64_t M, N, K;  // tokens, and the weight [N, K]
  double flops() const {
    return 2.0 * static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(K);
  }
};

const char* layout_name(GemmLayout layout) {
  return layout == GemmLayout::nt ? "nt" : layout == GemmLayout::nn ? "nn" : "tn";
}

// One backend per route: the route is the target's.
struct Backends {
  std::unique_ptr<Backend> fused;
  std::unique_ptr<Backend> scratch;  // null on cpu
};

Backends open_backends(Target target) {
  Backends backends;
  target.gemm = GemmRoute::fused;
  backends.fused = open_backend(target);
  if (target.kind == DeviceKind::cuda) {
    target.gemm = GemmRoute::scratch;
    backends.scratch = open_backend(target);
  }
  return backends;
}

double plain_seconds(Backend& backend, const Product& p) {
  Buffers buffers(backend);
  Matmul op{.layout = p.layout};
  const auto [M, N, K] = std::tuple(p.M, p.N, p.K);
  const bool tn = p.layout == GemmLayout::tn, nt = p.layout == GemmLayout::nt;
  op.a = buffers.normal({M, nt ? K : N}, kDType);
  op.b = tn ? buffers.normal({M, K}, kDType) : buffers.normal({N, K}, kDType);
  op.c = tn ? buffers.empty({N, K}, kDType) : buffers.empty({M, nt ? N : K}, kDType);
  buffers.add_scratch(op, backend.target());
  return median_seconds(backend, [&] { backend.run(op); });
}

double packed_seconds(Backend& backend, const Product& p) {
  Buffers buffers(backend);
  const bool nt = p.layout == GemmLayout::nt;
  PackedMatmul op{.layout = p.layout};
  op.x = buffers.normal({p.M, nt ? p.K : p.N}, kDType);
  op.w = buffers.packed(FormatId::nf4, p.N, p.K);
  op.y = buffers.empty({p.M, nt ? p.N : p.K}, kDType);
  buffers.add_scratch(op, backend.target());
  return median_seconds(backend, [&] { backend.run(op); });
}

void print_row(const std::string& model, const Product& p, double plain, std::optional<double> fused,
               std::optional<double> scratch) {
  const auto cell = [&](std::optional<double> seconds) {
    if (!seconds) return fmt::format("{:>10}{:>9}{:>7}", "-", "-", "-");
    return fmt::format("{:>10.4f}{:>9.2f}{:>7.2f}", *seconds * 1e3, p.flops() / *seconds / 1e12,
                       plain / *seconds);
  };
  fmt::print("{:<5}{:<4}{:>7}{:>7}{:>7}{:>10.4f}{:>9.2f}{}{}\n", model, layout_name(p.layout), p.M, p.N, p.K,
             plain * 1e3, p.flops() / plain / 1e12, cell(fused), cell(scratch));
  std::fflush(stdout);
}

void write_table(const std::string& path, int sm, const std::vector<MeasuredProduct>& measured) {
  std::vector<MeasuredProduct> rows;
  for (const MeasuredProduct& p : measured_products()) {
    if (p.sm != sm) rows.push_back(p);
  }
  rows.insert(rows.end(), measured.begin(), measured.end());
  std::string text =
      "// Written by bench_gemm --table on each card that has been measured; not by hand. "
      "kernels/gemm_routes.h says\n"
      "// how it is read.\n#include <vector>\n\n#include \"kernels/gemm_routes.h\"\n\nnamespace qt {\n\n"
      "std::span<const MeasuredProduct> measured_products() {\n  // clang-format off\n"
      "  static const std::vector<MeasuredProduct> table = {\n"
      "      // sm, layout, M, N, K, fused us, scratch us\n";
  for (const MeasuredProduct& p : rows) {
    text += fmt::format("      {{{}, GemmLayout::{}, {}, {}, {}, {:.2f}, {:.2f}}},\n", p.sm,
                        layout_name(p.layout), p.M, p.N, p.K, p.fused_us, p.scratch_us);
  }
  text += "  };\n  // clang-format on\n  return table;\n}\n\n}  // namespace qt\n";
  write_file_atomically(posix_fs(), path, std::as_bytes(std::span(text)));
  fmt::print("{} measured products written to {}\n", rows.size(), path);
}

void run(std::vector<std::string> words) {
  const auto models = counts_of(take_option(words, "models", "12,20,32"), "models");
  const auto tokens = counts_of(take_option(words, "tokens", "64,256,512,1024,2048,4096,16384"), "tokens");
  const std::string table_path = take_option(words, "table", "");
  const Target target = target_from_options(load_options(words).options);
  QT_CHECK(table_path.empty() || target.kind == DeviceKind::cuda, ConfigError,
           "--table is about routes on a card, and the cpu has one route only");
  const Backends backends = open_backends(target);

  fmt::print(
      "device  {}\nbf16, random operands; ms and TFLOP/s of the median; share: speed over the plain "
      "product's\n\n",
      device_name(target));
  fmt::print("{:<5}{:<4}{:>7}{:>7}{:>7}{:>10}{:>9}{:>10}{:>9}{:>7}{:>10}{:>9}{:>7}\n", "model", "", "M", "N",
             "K", "plain ms", "TFLOP/s", "fused ms", "TFLOP/s", "share", "scratch", "TFLOP/s", "share");
  std::vector<MeasuredProduct> measured;
  for (const std::int64_t depth : models) {
    const std::int64_t C = 64 * depth;
    const std::string model = fmt::format("d{}", depth);
    for (const auto& [N, K] : {std::pair(C, C), std::pair(4 * C, C), std::pair(C, 4 * C)}) {
      for (const GemmLayout layout : {GemmLayout::nt, GemmLayout::nn, GemmLayout::tn}) {
        for (const std::int64_t M : tokens) {
          const Product p{layout, M, N, K};
          const double plain = plain_seconds(*backends.fused, p);
          std::optional<double> fused, scratch;
          if (layout != GemmLayout::tn) {
            fused = packed_seconds(*backends.fused, p);
            if (backends.scratch) {
              scratch = packed_seconds(*backends.scratch, p);
              measured.push_back({target.sm, layout, M, N, K, 1e6 * *fused, 1e6 * *scratch});
            }
          }
          print_row(model, p, plain, fused, scratch);
        }
      }
    }
  }
  if (!table_path.empty()) write_table(table_path, target.sm, measured);
}

}  // namespace
}  // namespace qt::bench

int main(int argc, char** argv) { return qt::bench::run_benchmark("bench_gemm", argc, argv, qt::bench::run); }
