// Trainer: the loop around the Engine. Data windows, schedule, logging, checkpoints, evaluation, samples,
// stopping, and what happens when a loss is not finite. Argument parsing and the wiring of a run are
// src/cli/train_verb.cpp.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "optim/schedule.h"
#include "src/data/batches.h"
#include "src/meter/power_watch.h"
#include "src/tokenizer/tokenizer.h"
#include "src/train/engine.h"
#include "src/train/pace.h"
#include "src/train/run_log_writer.h"
#include "src/train/run_state.h"
#include "src/train/step_watch.h"
#include "src/train/time_ahead.h"

namespace qt {

struct TrainerOptions {
  std::string run_dir;
  Schedule schedule;
  std::uint64_t seed = 42;
  std::int64_t eval_every = 0;    // steps; 0: only at the end
  std::int64_t save_every = 0;    // steps; 0: by time, so that saving stays below 1 % of it
  std::int64_t sample_every = 0;  // steps; 0: only at the end
  std::int64_t log_every = 1;
  std::int64_t keep = 2;
  double stop_after_s = 0;  // of this session, which finishes one step at least; 0: never
  SampleOptions sample;
  std::string prompt;
  bool tensorboard = false;       // event files beside log.jsonl
  bool show_progress = false;     // a terminal
  std::int64_t device_bytes = 0;  // planned, for the step line
  StepWork work;
  Range save_s;                     // of one save, until one was measured
  PowerWatch* power = nullptr;      // must outlive the trainer; nullptr: nothing is known of power
  std::optional<JsonRecord> start;  // goes to the log when the session begins
  std::int64_t halt_in_step = 0;    // stops its own process (SIGSTOP) after a micro-batch of it; 0: never
};

struct EvalResult {
  double loss = 0;            // nats per token of text
  std::optional<double> bpb;  // bits per byte of text; none where nobody knows which bytes a token stands for
  std::int64_t tokens = 0;
  std::int64_t bytes = 0;
};

struct TrainResult {
  std::int64_t step = 0;
  std::int64_t tokens = 0;
  double train_loss = 0;  // of the last step
  std::optional<EvalResult> eval;
  std::string sample;
  double seconds = 0;  // of training, over all sessions of the run
  Energy energy;       // likewise
  std::string state_hash;
};

// "1.2345 bits per byte, loss 3.2100 over 65,536 tokens"
std::string eval_text(const EvalResult& result);

// Whether a run without --save-every saves now, `since_s` after the last save, which took `save_s`: so that
// saving stays below 1 % of the time, and at most once a minute.
bool save_is_due(double since_s, double save_s);

// One pass over a validation split, in micro-batches of the engine's shape. `poll` is called between them and
// may throw.
EvalResult evaluate(Engine& engine, const EvalBatches& validation, const std::function<void()>& poll);

class Trainer {
 public:
  // All references must outlive the trainer. `validation` may be null: then nothing is evaluated.
  Trainer(Engine& engine, const TokenBatches& train, const EvalBatches* validation,
          const Tokenizer& tokenizer, TrainerOptions options, RunState& state);

  // Trains to schedule.steps, evaluates, samples and saves. Throws StopRequested after saving the last
  // completed step; DivergedError when three restores did not help.
  TrainResult run();

  std::string sample_text();

  // Tests and experiments: called after every completed step.
  std::function<void(const RunState&, const StepStats&)> after_step;

 private:
  using Clock = std::chrono::steady_clock;

  void step();
  HostBatch fetch(std::int64_t micro);
  bool scales_loss() const { return engine_.options().memory.compute == DType::f16; }
  bool overflowed(const StepStats& stats);
  void after_window(const StepStats& stats, double seconds);
  // src/train/trainer_report.cpp
  void log_step(const StepStats& stats, std::int64_t window, double seconds, double lr, bool is_warmup);
  void print_step(const StepStats& stats, double seconds, double lr);
  WorkAhead work_ahead() const;
  // Brings the state's energy up to date; measure: with a look at the meters.
  void account_energy(bool measure);
  // Adds "kwh", or "kwh_at_least" where some of the run's time was not measured, where anything is known.
  void add_energy(JsonRecord& record) const;
  void name_slow_steps(double times);
  void restore(const std::string& why);
  bool evaluates_at(std::int64_t step) const;
  bool samples_at(std::int64_t step) const;
  void watch();
  // False when the state turned out to be unfit and an earlier one was restored.
  bool save();
  bool maybe_save();  // as save()
  bool evaluated(std::int64_t step) const;
  void clear_progress();
  void evaluate_and_log();
  void sample_and_log();
  void poll(std::int64_t done);
  double session_seconds() const;

  Engine& engine_;
  const TokenBatches& train_;
  const EvalBatches* validation_;
  const Tokenizer& tokenizer_;
  TrainerOptions options_;
  RunState& state_;
  CheckpointStore store_;
  RunLogWriter log_;

  std::vector<std::int32_t> ids_, targets_;  // one micro-batch
  std::int64_t saved_step_ = -1;
  std::int64_t session_steps_ = 0;
  Pace pace_;
  StepWatch step_watch_;
  double save_seconds_ = 0;         // of the last one; 0: none in this session
  double evaluation_seconds_ = 0;   // likewise
  std::int64_t trouble_step_ = -1;  // where the last restore began; -1: none in this session
  double last_loss_ = 0;
  Clock::time_point started_ = Clock::now();
  Clock::time_point window_started_ = started_;
  Clock::time_point last_save_ = started_;
  double seconds_before_ = 0;
  Energy energy_before_;
  std::optional<EvalResult> last_eval_;
  std::string last_sample_;
};

}  // namespace qt
