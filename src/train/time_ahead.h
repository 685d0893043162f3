// The time that a run still takes: the arithmetic that estimates before the first step and the ETA of a run share.
#pragma once

#include <cstdint>

#include "src/core/range.h"

namespace qt {

// What a run has still to do: the numbers that estimates and the trainer's ETA share. Evaluations and saves
// are those of Trainer::run(): evaluations on the way and one at the end; a save before each on the way,
// those asked for, and one at the end. Samples are not counted.
struct WorkAhead {
  std::int64_t step = 0;  // done; an evaluation or a save that is due at this very step is still to come
  std::int64_t steps = 0;
  std::int64_t eval_every = 0;  // steps; 0: only at the end
  std::int64_t save_every = 0;  // steps; 0: so that saving takes at most 1 % of the time
  bool evaluates = true;
  Range step_s{}, evaluation_s{}, save_s{};     // of one
  double step_flops = 0, evaluation_flops = 0;  // executed, of one
  double peak_flops = 0;                        // per second; 0: not known
};

struct TimeAhead {
  double steps = 0, evaluations = 0, saves = 0;  // how many
  Range training_s, evaluation_s, saves_s;
  Range total_s;
  double flops = 0;            // executed
  bool held_at_floor = false;  // the times given are shorter than the peak allows
};

TimeAhead time_ahead(const WorkAhead& work);

}  // namespace qt
