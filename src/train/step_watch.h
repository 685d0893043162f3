// Notices when steps have become much slower than they were: a card that throttles, or has its memory
// moved to the host's by the system, loses days before its user looks.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace qt {

class StepWatch {
 public:
  // Takes the time of one step, warm-up steps left out. Returns how many times slower than usual the last
  // kInARow steps were, each of them by at least kSlow; then is silent for kSilentSteps. Usual is the median
  // of the last kHistory steps before them, and nothing is usual before kLeast. Steps shorter than
  // kLeastSeconds are never slow: every system has hiccups of that length.
  std::optional<double> take(double seconds);

  static constexpr double kSlow = 2.0;
  static constexpr double kLeastSeconds = 0.5;
  static constexpr int kInARow = 3;
  static constexpr std::int64_t kSilentSteps = 100;
  static constexpr std::size_t kHistory = 64, kLeast = 8;

 private:
  std::vector<double> history_;  // ring
  std::size_t next_ = 0;
  int slow_in_a_row_ = 0;
  double least_ratio_ = 0;
  std::int64_t silent_ = 0;
};

}  // namespace qt
