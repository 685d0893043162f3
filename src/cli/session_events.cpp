#include "src/cli/session_events.h"

#include <unistd.h>

#include <csignal>

#include "src/plan/estimate.h"

namespace qt {

namespace {

ConsoleOptions console_options(const Options& o, const PlannedRun& run, const StepWork& work,
                               bool evaluates) {
  return {.log_every = o.quiet ? 0 : o.log_every,
          .show_progress = !o.quiet && isatty(STDOUT_FILENO) != 0,
          .on_card = run.target.kind == DeviceKind::cuda,
          .device_bytes = run.device_bytes,
          .work = work,
          .ahead = {.steps = run.steps,
                    .eval_every = o.eval_every,
                    .save_every = o.save_every,
                    .evaluates = evaluates,
                    .save_s = save_seconds(run)}};
}

}  // namespace

void HaltInStep::progressed(const StepProgress& progress) {
  if (progress.step == step_) std::raise(SIGSTOP);
}

SessionEvents::SessionEvents(const Options& options, const PlannedRun& run, const StepWork& work,
                             std::int64_t first_step, bool evaluates, std::int64_t halt_in_step)
    : log_(options.out, options.tensorboard, first_step, work),
      halt_(halt_in_step),
      console_(console_options(options, run, work, evaluates)) {}

}  // namespace qt
