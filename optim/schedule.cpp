#include "optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace qt {

double Schedule::multiplier(std::int64_t step) const {
  const bool cosine = kind == ScheduleKind::cosine;
  if (step < warmup_steps)
    return static_cast<double>(step + 1) / static_cast<double>(warmup_steps + (cosine ? 1 : 0));
  const std::int64_t end = decay_steps > 0 ? decay_steps : steps;
  if (cosine) {
    const double span = static_cast<double>(std::max<std::int64_t>(end - warmup_steps, 1));
    const double progress = std::min(1.0, static_cast<double>(step - warmup_steps) / span);
    return final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
  }
  // round(0.2 N) steps of decay; step N - w still runs at the full rate, as in nanochat.
  const std::int64_t decay = std::llround(warmdown_fraction * static_cast<double>(end));
  if (decay == 0 || step <= end - decay) return 1.0;
  const double progress = std::max(0.0, static_cast<double>(end - step) / static_cast<double>(decay));
  return progress + (1.0 - progress) * final_fraction;
}

}  // namespace qt
