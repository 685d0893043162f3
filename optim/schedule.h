// Learning-rate schedules: pure functions of the step, so that nothing about them has to be saved.
#pragma once

#include <cstdint>

namespace qt {

enum class ScheduleKind : std::uint8_t {
  warmdown,  // linear warm-up, constant, linear decay over the last part of the run (nanochat)
  cosine,    // linear warm-up, then half a cosine (nanoGPT)
};

struct Schedule {
  ScheduleKind kind = ScheduleKind::warmdown;
  std::int64_t steps = 1;        // of the whole run
  std::int64_t decay_steps = 0;  // where the decay ends; 0: with the run
  std::int64_t warmup_steps = 0;
  double warmdown_fraction = 0.2;  // warmdown: this share of the steps decays
  double final_fraction = 0.0;     // of the peak rate, reached at the end

  // Multiplier on every group's peak rate at `step` (0-based). Warm-up is (step + 1) / warmup_steps; with
  // cosine (step + 1) / (warmup_steps + 1), as in nanoGPT.
  double multiplier(std::int64_t step) const;
};

}  // namespace qt
