// Pace: how fast steps are, from their measured times. The first steps of a session pay for caches, page
// faults and just-in-time kernels and never enter; no clock is read here, so that no clock can disturb it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "src/train/time_ahead.h"

namespace qt {

// Of a session.
inline constexpr std::int64_t kWarmupSteps = 2;

// What a step takes: between the quartiles, and never closer to the median than 5 %. At least one.
Range usual_seconds(std::vector<double> seconds);

class Pace {
 public:
  // Of the step after the last one. Returns whether it enters.
  bool take(double seconds);

  // Of the last kHistory steps that entered; nothing before there is one.
  std::optional<double> mean_seconds() const;
  std::optional<Range> usual() const;

  static constexpr std::size_t kHistory = 1000;

 private:
  std::int64_t steps_ = 0;
  std::vector<double> history_;  // ring
  std::size_t next_ = 0;
};

// What steps and evaluations compute, for MFU and for the time that is left. 0: not known.
struct StepWork {
  double model_flops = 0;       // of a step, by nanochat's count
  double executed_flops = 0;    // of a step
  double evaluation_flops = 0;  // executed, of an evaluation
  double peak_flops = 0;        // of the card, per second
};

struct Speed {
  double tokens_per_s = 0;
  std::optional<double> mfu;  // of the peak, by nanochat's count
  std::optional<Range> eta_s;
};

// tok/s and MFU by the mean of the steps that count, the time that is left by what they usually take; before
// there are any, tok/s of the last step alone and nothing else. `ahead`: what is left, with the times of
// evaluations and saves; an evaluation that was not measured yet takes as long as its operations would in
// steps. The rest of it is filled in here.
Speed speed_of(const Pace& pace, double last_seconds, std::int64_t step_tokens, const StepWork& work,
               WorkAhead ahead);

}  // namespace qt
