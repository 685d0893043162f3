#include "src/train/console.h"

#include <algorithm>

#include <fmt/format.h>

#include "src/core/units.h"

namespace qt {

std::string eta_text(Range seconds) {
  const std::string low = format_duration_short(seconds.low), high = format_duration_short(seconds.high);
  return low == high ? low : low + "-" + high;
}

std::string step_header() {
  return fmt::format("{:>15} {:>6} {:>8} {:>8} {:>9} {:>8} {:>8} {:>6} {:>9} {:>5} {:>16}", "step/total", "%",
                     "loss", "norm", "lr", "ms", "tok/s", "MFU%", "VRAM", "W", "ETA");
}

std::string step_line(const StepLine& l) {
  const double percent =
      100.0 * static_cast<double>(l.step) / static_cast<double>(std::max<std::int64_t>(l.steps, 1));
  return fmt::format(
      "{:>15} {:>6.2f} {:>8.4f} {:>8.3g} {:>9.3g} {:>8.0f} {:>8.0f} {:>6} {:>9} {:>5} {:>16}{}",
      fmt::format("{}/{}", l.step, l.steps), percent, l.loss, l.norm, l.lr, l.seconds * 1e3, l.tokens_per_s,
      l.mfu ? fmt::format("{:.1f}", 100 * *l.mfu) : "-", format_bytes(l.device_bytes),
      l.watts ? fmt::format("{:.0f}", *l.watts) : "-", l.eta_s ? eta_text(*l.eta_s) : "-",
      l.skipped ? "  SKIPPED: not finite" : "");
}

std::string progress_line(std::int64_t step, std::int64_t done, std::int64_t total, double seconds) {
  if (total <= 1) return {};
  constexpr std::int64_t kWidth = 30;
  const std::int64_t filled = kWidth * done / total;
  return fmt::format("\r  step {} [{:{}}] {}/{} micro-batches, {:.0f} s ", step,
                     std::string(static_cast<std::size_t>(filled), '='), kWidth, done, total, seconds);
}

}  // namespace qt
