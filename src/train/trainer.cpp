#include "src/train/trainer.h"

#include <algorithm>
#include <cmath>

#include "src/core/units.h"
#include "src/train/pace.h"
#include "src/train/stop.h"

namespace qt {

namespace {

constexpr std::int64_t kBadWindowsBeforeRestore = 3;
constexpr std::int64_t kMaxRestores = 3;
// So far past the trouble that it was an episode: restores of months ago do not end a run.
constexpr std::int64_t kStepsThatForgive = 100;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

Trainer::Trainer(Engine& engine, const TokenBatches& train, const EvalBatches* validation,
                 const Tokenizer& tokenizer, TrainerOptions options, RunState& state)
    : engine_(engine),
      train_(train),
      validation_(validation),
      tokenizer_(tokenizer),
      options_(std::move(options)),
      state_(state),
      store_(options_.run_dir, options_.keep),
      energy_(options_.power, state.energy),
      session_{.seconds_before = state.seconds} {
  const auto tokens = static_cast<std::size_t>(engine_.options().micro_batch_tokens());
  batch_ = {.ids = std::vector<std::int32_t>(tokens), .targets = std::vector<std::int32_t>(tokens)};
  if (state_.step > 0) last_save_.step = state_.step;
}

TrainResult Trainer::run() {
  tell(&TrainingEvents::began, state_);
  try {
    // What a stop or a kill kept from being looked at, right after the save that came before it.
    if (last_save_.step == state_.step && state_.evaluated_step != state_.step) watch();
    train();
    if (validation_ != nullptr) evaluate_now();
    if (engine_.options().sample_tokens > 0) sample_now();
  } catch (const StopRequested&) {
    tell(&TrainingEvents::stopping);
    if (save() == SaveOutcome::turned_back) {
      last_save_.step = -1;  // the restored step once more, with what is now known to be left out
      save();
    }
    account_energy(true);
    tell(&TrainingEvents::stopped, state_);
    throw;
  }
  account_energy(true);
  result_.step = state_.step;
  result_.tokens = state_.tokens;
  result_.seconds = state_.seconds;
  result_.energy = state_.energy;
  result_.state_hash = state_hash(engine_);
  tell(&TrainingEvents::finished, state_, result_.state_hash);
  return result_;
}

void Trainer::train() {
  for (;;) {
    if (state_.step >= options_.schedule.steps) {
      if (save() == SaveOutcome::saved) return;
    } else if (step() && save_if_due() == SaveOutcome::saved) {
      watch();
    }
  }
}

bool Trainer::step() {
  poll(0);
  const std::int64_t before = state_.step;
  const std::vector<std::int64_t>& bad = state_.bad_windows;
  while (std::find(bad.begin(), bad.end(), state_.window) != bad.end()) ++state_.window;

  step_started_ = Clock::now();
  StepStats stats;
  try {
    stats = engine_.train_step([this](std::int64_t micro) { return fetch(micro); },
                               [this](std::int64_t done) { poll(done); },
                               options_.schedule.multiplier(state_.step), state_.applied + 1,
                               scales_loss() ? state_.loss_scale.scale : 1.0);
  } catch (const DivergedError& e) {
    // A weight overflowed in the update itself: what is in memory is lost.
    state_.bad_windows.push_back(state_.window);
    restore(e.what());
    return false;
  }
  if (overflowed(stats)) return false;
  after_window(stats, seconds_since(step_started_));
  if (after_step) after_step(state_, stats);
  return state_.step > before;
}

HostBatch Trainer::fetch(std::int64_t micro) {
  const std::int64_t rows = engine_.options().layout.micro_batch_rows;
  const std::int64_t first = (state_.window * engine_.options().accumulation + micro) * rows;
  train_.fill(first, rows, batch_.ids, batch_.targets);
  return HostBatch{.ids = batch_.ids, .targets = batch_.targets, .first_row = first};
}

// A loss scale that was too large is no fault of the run: the window is left out, and neither the schedule
// nor Adam's t counts it.
bool Trainer::overflowed(const StepStats& stats) {
  if (!scales_loss() || !std::isfinite(stats.loss)) return false;
  if (stats.finite) {
    state_.loss_scale.succeed();
    return false;
  }
  const double before = state_.loss_scale.scale;
  if (!state_.loss_scale.back_off()) return false;
  const std::int64_t window = state_.window++;
  state_.tokens += engine_.options().step_tokens();
  tell(&TrainingEvents::overflowed, Overflow{.step = state_.step,
                                             .window = window,
                                             .loss = stats.loss,
                                             .scale_before = before,
                                             .scale_now = state_.loss_scale.scale});
  return true;
}

void Trainer::after_window(const StepStats& stats, double seconds) {
  const std::int64_t window = state_.window;
  ++state_.step;
  ++state_.window;
  state_.tokens += engine_.options().step_tokens();
  if (stats.applied()) ++state_.applied;
  state_.seconds = session_.seconds_before + seconds_since(session_.started);
  account_energy(false);
  result_.train_loss = stats.loss;
  const bool is_warmup = ++session_.steps <= kWarmupSteps;
  if (!is_warmup) {
    if (const std::optional<double> times = step_watch_.take(seconds))
      tell(&TrainingEvents::slow, state_.step, *times);
  }
  tell(&TrainingEvents::stepped,
       StepDone{.state = state_,
                .stats = stats,
                .window = window,
                .tokens = engine_.options().step_tokens(),
                .seconds = seconds,
                .lr = options_.schedule.multiplier(state_.step - 1) *
                      engine_.options().optim.peak_lr[static_cast<std::size_t>(ParamGroup::matrix)],
                .is_warmup = is_warmup,
                .card = energy_.card()});

  state_.bad_in_a_row = stats.finite ? 0 : state_.bad_in_a_row + 1;
  if (state_.bad_in_a_row < kBadWindowsBeforeRestore) return;
  // Only the first of the three is known to be bad of itself; the others may have suffered from the same
  // weights.
  state_.bad_windows.push_back(window - (kBadWindowsBeforeRestore - 1));
  restore(
      fmt::format("loss or gradient norm was not finite in {} windows in a row", kBadWindowsBeforeRestore));
}

void Trainer::restore(const std::string& why) {
  session_.trouble_step = std::max(session_.trouble_step, state_.step);
  const std::vector<std::int64_t> bad = state_.bad_windows;
  const std::int64_t restores = state_.restores + 1;
  if (restores > kMaxRestores) {
    tell(&TrainingEvents::diverged, state_.step, why);
    throw DivergedError(fmt::format("{}, and {} restores did not help", why, kMaxRestores),
                        "lower the learning rates (--matrix-lr, --embedding-lr, --head-lr), then continue "
                        "from the last checkpoint");
  }
  std::string explanation;
  std::string checkpoint = store_.newest_trusted();
  if (checkpoint.empty()) checkpoint = store_.newest(explanation);
  state_.bad_in_a_row = 0;
  if (checkpoint.empty()) {
    engine_.init_weights(state_.seed);
    state_.step = state_.applied = state_.window = state_.tokens = 0;
    state_.loss_scale = {};
    state_.evaluated_step = 0;
  } else {
    // Options, seed and hashes are this run's: they may have been changed on purpose since the checkpoint.
    const RunState good = store_.load(checkpoint, engine_);
    state_.step = good.step;
    state_.applied = good.applied;
    state_.window = good.window;
    state_.tokens = good.tokens;
    state_.loss_scale = good.loss_scale;
    state_.evaluated_step = good.evaluated_step;
  }
  last_save_.step = checkpoint.empty() ? -1 : state_.step;
  state_.restores = restores;
  state_.bad_windows = bad;
  tell(&TrainingEvents::restored,
       Restored{.step = state_.step, .checkpoint = checkpoint, .why = why, .left_out_window = bad.back()});
}

Trainer::SaveOutcome Trainer::save() {
  if (last_save_.step == state_.step) return SaveOutcome::saved;
  const auto start = Clock::now();
  if (state_.bad_in_a_row == 0 && session_.trouble_step >= 0 &&
      state_.step >= session_.trouble_step + kStepsThatForgive) {
    state_.restores = 0;
    session_.trouble_step = -1;
  }
  account_energy(true);
  try {
    store_.save(engine_, state_);
  } catch (const DivergedError& e) {
    // An update made a weight or a moment overflow, and no loss has shown it yet: the window before did it.
    state_.bad_windows.push_back(state_.window - 1);
    restore(e.what());
    return SaveOutcome::turned_back;
  }
  last_save_ = {.step = state_.step, .seconds = seconds_since(start), .at = Clock::now()};
  tell(&TrainingEvents::saved, state_.step, last_save_.seconds);
  return SaveOutcome::saved;
}

Trainer::SaveOutcome Trainer::save_if_due() {
  // After a window that was not finite the state is under suspicion until one is: only a stop or the end of
  // the run saves it then, marked, so that a restore goes further back.
  if (state_.bad_in_a_row > 0) return SaveOutcome::saved;
  // Saved before an evaluation starts: whatever it does, the training behind it is safe.
  const bool due = evaluates_at(state_.step) ||
                   options_.save.is_due(state_.step, seconds_since(last_save_.at), last_save_.seconds);
  return due ? save() : SaveOutcome::saved;
}

bool Trainer::evaluates_at(std::int64_t step) const {
  return validation_ != nullptr && options_.eval_every > 0 && step > 0 && step % options_.eval_every == 0 &&
         step < options_.schedule.steps;
}

bool Trainer::samples_at(std::int64_t step) const {
  return engine_.options().sample_tokens > 0 && options_.sample_every > 0 && step > 0 &&
         step % options_.sample_every == 0 && step < options_.schedule.steps;
}

void Trainer::watch() {
  if (evaluates_at(state_.step)) evaluate_now();
  if (samples_at(state_.step)) sample_now();
}

void Trainer::evaluate_now() {
  const auto start = Clock::now();
  const EvalResult result = evaluate(engine_, *validation_, [this] { poll(0); });
  result_.eval = result;
  tell(&TrainingEvents::evaluated, state_.step, result, seconds_since(start));
  // Last, because a kill before it costs a second evaluation, and a kill after an earlier note the result.
  state_.evaluated_step = state_.step;
  if (last_save_.step == state_.step) store_.mark_evaluated(state_.step);
}

void Trainer::sample_now() {
  std::vector<std::int32_t> prompt;
  if (tokenizer_.bos() >= 0) prompt.push_back(tokenizer_.bos());
  tokenizer_.encode(options_.prompt, prompt);
  const std::int64_t room = engine_.options().sample_tokens;
  // A prompt longer than the plan keeps its end: that is what continues.
  if (static_cast<std::int64_t>(prompt.size()) >= room)
    prompt.erase(prompt.begin(), prompt.end() - (room - 1));
  if (prompt.empty()) prompt.push_back(0);
  SampleOptions how = options_.sample;
  how.stream = static_cast<std::uint64_t>(state_.step);
  how.ids = tokenizer_.vocab_size();
  const std::vector<std::int32_t> text = engine_.sample(prompt, how, [this](std::int64_t) { poll(0); });
  result_.sample = options_.prompt + tokenizer_.decode(text);
  tell(&TrainingEvents::sampled, state_.step, result_.sample);
}

void Trainer::poll(std::int64_t done) {
  poll_stop();
  // Not before the first step is done: a limit shorter than a step would never get anywhere.
  const double session_s = seconds_since(session_.started);
  if (options_.stop_after_s > 0 && session_.steps > 0 && session_s >= options_.stop_after_s) {
    throw StopRequested(fmt::format("stopped after {} (--stop-after)", format_duration(session_s)),
                        "the same command again continues from here");
  }
  if (done <= 0) return;
  tell(&TrainingEvents::progressed, StepProgress{.step = state_.step + 1,
                                                 .done = done,
                                                 .total = engine_.options().accumulation,
                                                 .seconds = seconds_since(step_started_)});
}

void Trainer::account_energy(bool look_now) {
  state_.energy = energy_.so_far(seconds_since(session_.started), look_now);
}

}  // namespace qt
