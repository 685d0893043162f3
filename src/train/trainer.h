// Trainer: the loop around the Engine. Data windows, schedule, checkpoints, evaluation, samples, stopping, and
// what happens when a loss is not finite. What it does it tells to TrainingEvents (src/train/events.h): logs
// and the screen are theirs. Argument parsing and the wiring of a run are src/cli/train_verb.cpp.
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
#include "src/train/energy_account.h"
#include "src/train/engine.h"
#include "src/train/evaluate.h"
#include "src/train/events.h"
#include "src/train/run_state.h"
#include "src/train/save_policy.h"
#include "src/train/step_watch.h"

namespace qt {

struct TrainerOptions {
  std::string run_dir;
  Schedule schedule;
  std::int64_t eval_every = 0;  // steps; 0: only at the end
  SavePolicy save;
  std::int64_t sample_every = 0;  // steps; 0: only at the end
  std::int64_t keep = 2;
  double stop_after_s = 0;  // of this session, which finishes one step at least; 0: never
  SampleOptions sample;
  std::string prompt;
  PowerWatch* power = nullptr;          // must outlive the trainer; nullptr: nothing is known of power
  std::vector<TrainingEvents*> events;  // told in this order; must outlive the trainer
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

class Trainer {
 public:
  // All references must outlive the trainer. `validation` may be null: then nothing is evaluated.
  Trainer(Engine& engine, const TokenBatches& train, const EvalBatches* validation,
          const Tokenizer& tokenizer, TrainerOptions options, RunState& state);

  // Trains to schedule.steps, evaluates, samples and saves. Throws StopRequested after saving the last
  // completed step; DivergedError when three restores did not help.
  TrainResult run();

  // Tests and experiments: called after every completed step, and after the restore that it may have led to.
  std::function<void(const RunState&, const StepStats&)> after_step;

 private:
  using Clock = std::chrono::steady_clock;

  // What save() left: the state as it was, on disk; or, because it was unfit to be saved, an earlier state,
  // restored: training goes on from there.
  enum class SaveOutcome { saved, turned_back };

  struct Session {
    Clock::time_point started = Clock::now();
    double seconds_before = 0;  // of training, in earlier sessions
    std::int64_t steps = 0;
    std::int64_t trouble_step = -1;  // where the last restore began; -1: there was none
  };
  struct LastSave {
    std::int64_t step = -1;  // of the newest checkpoint of this very run; -1: none
    double seconds = 0;      // that it took; 0: none in this session
    Clock::time_point at = Clock::now();
  };
  struct MicroBatch {
    std::vector<std::int32_t> ids, targets;
  };

  // Until the last step is done and saved.
  void train();
  // Whether the run got one step further: not after an overflow, nor where an earlier state was restored.
  bool step();
  HostBatch fetch(std::int64_t micro);
  bool scales_loss() const { return engine_.options().layout.compute == DType::f16; }
  bool overflowed(const StepStats& stats);
  void after_window(const StepStats& stats, double seconds);
  void restore(const std::string& why);

  SaveOutcome save();
  SaveOutcome save_if_due();
  bool evaluates_at(std::int64_t step) const;
  bool samples_at(std::int64_t step) const;
  // Evaluates and samples where the current step is one for it.
  void watch();
  void evaluate_now();
  void sample_now();

  // Throws StopRequested. done: micro-batches of the step in progress; 0: between steps.
  void poll(std::int64_t done);
  // Brings the state's energy up to date; look_now: with a look at the meters.
  void account_energy(bool look_now);
  template <typename... Parameters, typename... Arguments>
  void tell(void (TrainingEvents::*what)(Parameters...), const Arguments&... arguments) {
    for (TrainingEvents* listener : options_.events) (listener->*what)(arguments...);
  }

  Engine& engine_;
  const TokenBatches& train_;
  const EvalBatches* validation_;
  const Tokenizer& tokenizer_;
  TrainerOptions options_;
  RunState& state_;
  CheckpointStore store_;
  EnergyAccount energy_;
  MicroBatch batch_;
  StepWatch step_watch_;
  Session session_;
  Clock::time_point step_started_ = session_.started;
  LastSave last_save_;
  TrainResult result_;  // as far as it is known
};

}  // namespace qt
