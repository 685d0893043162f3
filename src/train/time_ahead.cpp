#include "src/train/time_ahead.h"

#include <algorithm>
#include <numeric>

#include "src/train/save_policy.h"

namespace qt {

TimeAhead time_ahead(const WorkAhead& w) {
  // Multiples of `every` from the step that is done to the last one but the end.
  const auto on_the_way = [&](std::int64_t every) {
    const std::int64_t before = std::max<std::int64_t>(w.step - 1, 0), last = std::max(w.steps - 1, before);
    const std::int64_t count = every > 0 ? last / every - before / every : 0;
    return static_cast<double>(count);
  };
  TimeAhead t;
  t.steps = static_cast<double>(std::max<std::int64_t>(w.steps - w.step, 0));
  const double evaluations = w.evaluates ? on_the_way(w.eval_every) : 0;
  const std::int64_t both =
      w.evaluates && w.eval_every > 0 && w.save_every > 0 ? std::lcm(w.eval_every, w.save_every) : 0;
  t.evaluations = w.evaluates ? evaluations + 1 : 0;
  t.saves = 1 + evaluations + on_the_way(w.save_every) - on_the_way(both);
  t.training_s = times(w.step_s, t.steps);
  t.evaluation_s = times(w.evaluation_s, t.evaluations);
  t.saves_s = times(w.save_s, t.saves);
  if (SavePolicy{w.save_every}.goes_by_time()) t.saves_s.high += SavePolicy::most_seconds(t.training_s.high);
  t.total_s = plus(plus(t.training_s, t.evaluation_s), t.saves_s);
  t.flops = w.step_flops * t.steps + t.evaluations * w.evaluation_flops;
  if (w.peak_flops > 0 && t.total_s.low < t.flops / w.peak_flops) {
    t.held_at_floor = true;
    t.total_s.low = t.flops / w.peak_flops;
    t.total_s.high = std::max(t.total_s.high, t.total_s.low);
  }
  return t;
}

}  // namespace qt
