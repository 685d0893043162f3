// Copies between the host's pinned memory and the device: in, out, both at once on their two streams, and
// within the device: what paging can reach, and what a kernel that only moves bytes is measured against. On
// the cpu the two memories are one and streams run in turn.
//
//   bench_copy --device cuda
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

void run(const std::vector<std::string>& words) {
  const Target target = target_from_options(load_options(words).options);
  const auto backend = open_backend(target);
  fmt::print(
      "device  {}\nGB/s of the median; both: bytes of the two directions together; on the device: read and "
      "written\n\n"
      "{:>10}{:>10}{:>10}{:>10}{:>12}\n",
      device_name(target), "size", "in", "out", "both", "on device");
  for (const std::int64_t bytes : {1 * kMiB, 4 * kMiB, 32 * kMiB, 256 * kMiB}) {
    Buffers buffers(*backend);
    const auto on = [&](Space space) { return buffers.empty({bytes}, DType::u8, space); };
    const TensorView device[] = {on(Space::device), on(Space::device)};
    const TensorView host[] = {on(Space::host), on(Space::host)};
    const auto in = [&] { backend->copy(host[0], device[0], Stream::copy_in); };
    const auto out = [&] { backend->copy(device[1], host[1], Stream::copy_out); };
    const auto gb_per_s = [&](double times, double seconds) {
      return times * static_cast<double>(bytes) / seconds / kGiga;
    };
    const double in_s = median_seconds(*backend, in), out_s = median_seconds(*backend, out);
    const double both_s = median_seconds(*backend, [&] {
      in();
      out();
    });
    const double device_s = median_seconds(*backend, [&] { backend->copy(device[0], device[1]); });
    fmt::print("{:>10}{:>10.2f}{:>10.2f}{:>10.2f}{:>12.2f}\n", format_bytes(bytes), gb_per_s(1, in_s),
               gb_per_s(1, out_s), gb_per_s(2, both_s), gb_per_s(2, device_s));
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace qt::bench

int main(int argc, char** argv) { return qt::bench::run_benchmark("bench_copy", argc, argv, qt::bench::run); }
