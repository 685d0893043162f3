// Who listens to a training run of the train verb: its log, the screen, and a rehearsal that looks on.
#pragma once

#include <cstdint>
#include <vector>

#include "src/plan/planner.h"
#include "src/train/run_log_writer.h"
#include "src/watch/console.h"

namespace qt {

// Stops its own process (SIGSTOP) after a micro-batch of `step`; 0: never.
class HaltInStep : public TrainingEvents {
 public:
  explicit HaltInStep(std::int64_t step) : step_(step) {}
  void progressed(const StepProgress& progress) override;

 private:
  std::int64_t step_;
};

// The listeners of one session, which must outlive its trainer.
class SessionEvents {
 public:
  // Opens the log in the run's folder (DiskError). first_step: of this session; evaluates: whether there is
  // anything to evaluate on; halt_in_step: as HaltInStep.
  SessionEvents(const Plan& run, const StepWork& work, std::int64_t first_step, bool evaluates,
                std::int64_t halt_in_step);
  SessionEvents(const SessionEvents&) = delete;
  SessionEvents& operator=(const SessionEvents&) = delete;

  RunLogWriter& log() { return log_; }
  // In the order in which they are told: what the log does not hold is not shown either.
  std::vector<TrainingEvents*> listeners() { return {&log_, &halt_, &console_}; }

 private:
  RunLogWriter log_;
  HaltInStep halt_;
  Console console_;
};

}  // namespace qt
