#include "src/train/pace.h"

#include <algorithm>
#include <numeric>

namespace qt {

namespace {

constexpr double kLeastSpread = 0.05;

}  // namespace

Range usual_seconds(std::vector<double> seconds) {
  std::sort(seconds.begin(), seconds.end());
  const std::size_t n = seconds.size();
  const double median = seconds[n / 2];
  return {.low = std::min(seconds[n / 4], median * (1 - kLeastSpread)),
          .high = std::max(seconds[n - 1 - n / 4], median * (1 + kLeastSpread))};
}

bool Pace::take(double seconds) {
  if (++steps_ <= kWarmupSteps) return false;
  if (history_.size() < kHistory) {
    history_.push_back(seconds);
  } else {
    history_[next_++ % kHistory] = seconds;
  }
  return true;
}

std::optional<double> Pace::mean_seconds() const {
  if (history_.empty()) return std::nullopt;
  return std::accumulate(history_.begin(), history_.end(), 0.0) / static_cast<double>(history_.size());
}

std::optional<Range> Pace::usual() const {
  if (history_.empty()) return std::nullopt;
  return usual_seconds(history_);
}

Speed speed_of(const Pace& pace, double last_seconds, std::int64_t step_tokens, const StepWork& work,
               WorkAhead ahead) {
  const std::optional<double> mean = pace.mean_seconds();
  Speed speed{.tokens_per_s = static_cast<double>(step_tokens) / mean.value_or(last_seconds)};
  if (!mean) return speed;
  if (work.peak_flops > 0) speed.mfu = work.model_flops / *mean / work.peak_flops;
  ahead.step_s = *pace.usual();
  ahead.step_flops = work.executed_flops;
  ahead.evaluation_flops = work.evaluation_flops;
  ahead.peak_flops = work.peak_flops;
  if (ahead.evaluation_s.high <= 0 && work.executed_flops > 0) {
    const double steps = work.evaluation_flops / work.executed_flops;  // that one evaluation is worth
    ahead.evaluation_s = {.low = steps * ahead.step_s.low, .high = steps * ahead.step_s.high};
  }
  speed.eta_s = time_ahead(ahead).total_s;
  return speed;
}

}  // namespace qt
