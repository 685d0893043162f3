// What a Trainer tells while a run trains. It writes no log and prints nothing itself: who listens does.
#pragma once

#include <cstdint>
#include <string>

#include "optim/optimizer.h"
#include "src/meter/nvml.h"
#include "src/train/evaluate.h"
#include "src/train/run_state.h"

namespace qt {

// Inside the step that leads to `step`, after a micro-batch.
struct StepProgress {
  std::int64_t step = 0;
  std::int64_t done = 0, total = 0;  // micro-batches
  double seconds = 0;                // since the step began
};

struct StepDone {
  const RunState& state;  // with this step counted; bad_in_a_row is still that of the step before
  const StepStats& stats;
  std::int64_t window = 0;  // that was trained on
  std::int64_t tokens = 0;  // of the step
  double seconds = 0;       // of the step
  double lr = 0;            // of matrices
  bool is_warmup = false;   // one of the first of the session: Pace leaves its time out
  CardReading card;         // what was seen last
};

// fp16 alone: a gradient overflowed, and the window is left out.
struct Overflow {
  std::int64_t step = 0;  // done before
  std::int64_t window = 0;
  double loss = 0;
  double scale_before = 0, scale_now = 0;  // the loss scale
};

struct Restored {
  std::int64_t step = 0;   // of the state that was restored
  std::string checkpoint;  // its path; empty: fresh weights
  std::string why;
  std::int64_t left_out_window = 0;
};

// Calls come from the trainer's thread, one listener after the other, in the order of things. What a listener
// throws ends the run.
class TrainingEvents {
 public:
  virtual ~TrainingEvents() = default;

  virtual void began(const RunState& /*state*/) {}
  virtual void progressed(const StepProgress& /*progress*/) {}
  virtual void stepped(const StepDone& /*done*/) {}
  // Steps take `times` as long as they used to. Comes before stepped().
  virtual void slow(std::int64_t /*step*/, double /*times*/) {}
  virtual void overflowed(const Overflow& /*overflow*/) {}
  virtual void evaluated(std::int64_t /*step*/, const EvalResult& /*result*/, double /*seconds*/) {}
  virtual void sampled(std::int64_t /*step*/, const std::string& /*text*/) {}
  virtual void saved(std::int64_t /*step*/, double /*seconds*/) {}
  virtual void restored(const Restored& /*restored*/) {}
  // No further restore is tried; DivergedError follows.
  virtual void diverged(std::int64_t /*step*/, const std::string& /*why*/) {}
  // A stop was asked for; the save that comes before stopped() is still to come.
  virtual void stopping() {}
  virtual void stopped(const RunState& /*state*/) {}
  virtual void finished(const RunState& /*state*/, const std::string& /*state_hash*/) {}
};

}  // namespace qt
