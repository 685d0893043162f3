#include "src/cli/session_events.h"

#include <unistd.h>

#include <csignal>

#include "src/plan/estimate.h"

namespace qt {

namespace {

ConsoleOptions console_options(const Plan& run, const StepWork& work, bool evaluates) {
  const RunConfig& config = run.config;
  return {.log_every = config.quiet ? 0 : config.log_every,
          .show_progress = !config.quiet && isatty(STDOUT_FILENO) != 0,
          .on_card = config.target.kind == DeviceKind::cuda,
          .device_bytes = run.device_bytes,
          .work = work,
          .ahead = {.steps = config.steps,
                    .eval_every = config.trainer.eval_every,
                    .save_every = config.trainer.save.every,
                    .evaluates = evaluates,
                    .save_s = save_seconds(run)}};
}

}  // namespace

void HaltInStep::progressed(const StepProgress& progress) {
  if (progress.step == step_) std::raise(SIGSTOP);
}

SessionEvents::SessionEvents(const Plan& run, const StepWork& work, std::int64_t first_step, bool evaluates,
                             std::int64_t halt_in_step)
    : log_(run.config.trainer.run_dir, run.config.tensorboard, first_step, work),
      halt_(halt_in_step),
      console_(console_options(run, work, evaluates)) {}

}  // namespace qt
