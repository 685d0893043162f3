#include "src/train/step_watch.h"

#include <algorithm>

namespace qt {

std::optional<double> StepWatch::take(double seconds) {
  const auto remember = [&] {
    if (history_.size() < kHistory) {
      history_.push_back(seconds);
    } else {
      history_[next_++ % kHistory] = seconds;
    }
  };
  if (silent_ > 0) --silent_;
  if (history_.size() < kLeast) {
    remember();
    return std::nullopt;
  }
  std::vector<double> sorted = history_;
  const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>(sorted.size() / 2);
  std::nth_element(sorted.begin(), middle, sorted.end());
  const double ratio = seconds / *middle;
  // A slow step is no history until it is clear that it is the new usual.
  if (ratio < kSlow || seconds < kLeastSeconds) {
    slow_in_a_row_ = 0;
    remember();
    return std::nullopt;
  }
  least_ratio_ = slow_in_a_row_ == 0 ? ratio : std::min(least_ratio_, ratio);
  if (++slow_in_a_row_ < kInARow) return std::nullopt;
  if (slow_in_a_row_ > kInARow) remember();
  if (silent_ > 0) return std::nullopt;
  silent_ = kSilentSteps;
  return least_ratio_;
}

}  // namespace qt
