// When a run saves: one rule for the trainer, which follows it, and for plans and estimates, which foretell it.
#pragma once

#include <algorithm>
#include <cstdint>

namespace qt {

struct SavePolicy {
  std::int64_t every = 0;  // steps; 0: by time, within the two limits below

  // By time: saving stays below so many percent of it, and comes at most once in so many seconds.
  static constexpr std::int64_t kPercent = 1;
  static constexpr std::int64_t kLeastSecondsBetween = 60;

  bool goes_by_time() const { return every == 0; }
  // Whether `step`, just done, is saved. since_s: since the last save, which took save_s seconds.
  bool is_due(std::int64_t step, double since_s, double save_s) const {
    if (!goes_by_time()) return step % every == 0;
    return since_s >= std::max(static_cast<double>(kLeastSecondsBetween), save_s / share());
  }

  // By time: the most seconds that saves take beside seconds_of_training.
  static constexpr double most_seconds(double seconds_of_training) { return share() * seconds_of_training; }
  // By time, in a day: the most seconds that saves take, and the most saves.
  static constexpr std::int64_t most_seconds_per_day() { return kSecondsPerDay * kPercent / 100; }
  static constexpr std::int64_t most_saves_per_day() { return kSecondsPerDay / kLeastSecondsBetween; }

 private:
  static constexpr std::int64_t kSecondsPerDay = 86400;

  static constexpr double share() { return static_cast<double>(kPercent) / 100; }
};

}  // namespace qt
