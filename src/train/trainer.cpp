#include "src/train/trainer.h"

#include <algorithm>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <numbers>

#include "src/core/units.h"
#include "src/train/console.h"
#include "src/train/stop.h"

namespace qt {

namespace {

constexpr std::int64_t kBadWindowsBeforeRestore = 3;
constexpr std::int64_t kMaxRestores = 3;
// So far past the trouble that it was an episode: restores of months ago do not end a run.
constexpr std::int64_t kStepsThatForgive = 100;
// A save may cost 1 % of the time; and nobody needs one every few seconds.
constexpr double kSaveShare = 0.01;
constexpr double kMinSaveIntervalSeconds = 60;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

std::string eval_text(const EvalResult& result) {
  const std::string bpb = result.bpb ? fmt::format("{:.4f} bits per byte, ", *result.bpb) : std::string();
  return fmt::format("{}loss {:.4f} over {} tokens", bpb, result.loss, format_thousands(result.tokens));
}

bool save_is_due(double since_s, double save_s) {
  return since_s >= std::max(kMinSaveIntervalSeconds, save_s / kSaveShare);
}

EvalResult evaluate(Engine& engine, const EvalBatches& validation, const std::function<void()>& poll) {
  const std::int64_t rows = engine.options().memory.micro_batch_rows;
  std::vector<std::int32_t> ids(static_cast<std::size_t>(engine.options().micro_batch_tokens())),
      targets(ids.size());
  EvalResult result;
  double nats = 0;
  for (std::int64_t first = 0; first < validation.rows(); first += rows) {
    poll();
    validation.fill(first, rows, ids, targets);
    for (std::int32_t& target : targets) {
      result.bytes += validation.bytes_of(target);
      // Special tokens stand for no text: neither their loss nor their bytes count, as in nanochat.
      if (!validation.scored(target)) target = EvalBatches::kIgnore;
    }
    const Engine::EvalSums sums = engine.evaluate(HostBatch{ids, targets});
    nats += sums.nats;
    result.tokens += static_cast<std::int64_t>(sums.targets);
  }
  result.loss = nats / static_cast<double>(std::max<std::int64_t>(result.tokens, 1));
  if (result.bytes > 0) result.bpb = nats / std::numbers::ln2 / static_cast<double>(result.bytes);
  return result;
}

Trainer::Trainer(Engine& engine, const TokenBatches& train, const EvalBatches* validation,
                 const Tokenizer& tokenizer, TrainerOptions options, RunState& state)
    : engine_(engine),
      train_(train),
      validation_(validation),
      tokenizer_(tokenizer),
      options_(std::move(options)),
      state_(state),
      store_(options_.run_dir, options_.keep),
      log_(options_.run_dir, options_.tensorboard, state.step + 1),
      seconds_before_(state.seconds),
      energy_before_(state.energy) {
  const auto tokens = static_cast<std::size_t>(engine_.options().micro_batch_tokens());
  ids_.resize(tokens);
  targets_.resize(tokens);
  if (state_.step > 0) saved_step_ = state_.step;
}

double Trainer::session_seconds() const { return seconds_since(started_); }

void Trainer::poll(std::int64_t done) {
  poll_stop();
  // Not before the first step is done: a limit shorter than a step would never get anywhere.
  if (options_.stop_after_s > 0 && session_steps_ > 0 && session_seconds() >= options_.stop_after_s) {
    throw StopRequested(fmt::format("stopped after {} (--stop-after)", format_duration(session_seconds())),
                        "the same command again continues from here");
  }
  if (done > 0 && state_.step + 1 == options_.halt_in_step) std::raise(SIGSTOP);
  if (!options_.show_progress || done <= 0) return;
  const std::string line =
      progress_line(state_.step + 1, done, engine_.options().accumulation, seconds_since(window_started_));
  std::fputs(line.c_str(), stdout);
  std::fflush(stdout);
}

HostBatch Trainer::fetch(std::int64_t micro) {
  const std::int64_t rows = engine_.options().memory.micro_batch_rows;
  const std::int64_t first = (state_.window * engine_.options().accumulation + micro) * rows;
  train_.fill(first, rows, ids_, targets_);
  return HostBatch{.ids = ids_, .targets = targets_, .first_row = first};
}

TrainResult Trainer::run() {
  if (options_.schedule.steps <= state_.step) {
    log_info("the run is complete: {} of {} steps", state_.step, options_.schedule.steps);
  } else if (options_.log_every > 0) {
    std::puts(step_header().c_str());
  }
  if (options_.start) log_.write(*options_.start);
  try {
    // What a stop or a kill kept from being looked at, right after the save that came before it.
    if (saved_step_ == state_.step && !evaluated(state_.step)) watch();
    do {
      while (state_.step < options_.schedule.steps) {
        const std::int64_t before = state_.step;
        step();
        if (state_.step <= before) continue;  // an overflow, or an earlier state was restored
        // Saved before an evaluation starts: whatever it does, the training behind it is safe.
        if (evaluates_at(state_.step) && state_.bad_in_a_row == 0) {
          if (!save()) continue;
        } else if (!maybe_save()) {
          continue;
        }
        watch();
      }
    } while (!save());
    if (validation_ != nullptr) evaluate_and_log();
    if (engine_.options().sample_tokens > 0) sample_and_log();
  } catch (const StopRequested&) {
    if (options_.show_progress) std::fputs("\n", stdout);
    if (!save()) {
      saved_step_ = -1;  // the restored step once more, with what is now known to be left out
      save();
    }
    account_energy(true);
    JsonRecord record;
    record.add("kind", "stop").add("step", state_.step).add("seconds", state_.seconds);
    add_energy(record);
    log_.write(record);
    throw;
  }
  account_energy(true);
  TrainResult result;
  result.step = state_.step;
  result.tokens = state_.tokens;
  result.train_loss = last_loss_;
  result.eval = last_eval_;
  result.sample = last_sample_;
  result.seconds = state_.seconds;
  result.energy = state_.energy;
  result.state_hash = state_hash(engine_);
  JsonRecord record;
  record.add("kind", "done").add("step", state_.step).add("seconds", state_.seconds);
  add_energy(record);
  log_.write(record.add("state_hash", result.state_hash));
  return result;
}

void Trainer::step() {
  poll(0);
  const std::vector<std::int64_t>& bad = state_.bad_windows;
  while (std::find(bad.begin(), bad.end(), state_.window) != bad.end()) ++state_.window;

  window_started_ = Clock::now();
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
    return;
  }
  if (overflowed(stats)) return;
  after_window(stats, seconds_since(window_started_));
  if (after_step) after_step(state_, stats);
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
  log_.write(JsonRecord()
                 .add("kind", "overflow")
                 .add("step", state_.step)
                 .add("window", window)
                 .add("loss", stats.loss)
                 .add("loss_scale", before));
  log_info("a gradient overflowed fp16 at loss scale {:g}: this window is left out, the scale is now {:g}",
           before, state_.loss_scale.scale);
  return true;
}

void Trainer::after_window(const StepStats& stats, double seconds) {
  const std::int64_t window = state_.window;
  ++state_.step;
  ++state_.window;
  state_.tokens += engine_.options().step_tokens();
  if (stats.applied()) ++state_.applied;
  state_.seconds = seconds_before_ + session_seconds();
  account_energy(false);
  last_loss_ = stats.loss;
  ++session_steps_;
  const bool is_measured = pace_.take(seconds);
  if (is_measured) {
    if (const std::optional<double> times = step_watch_.take(seconds)) name_slow_steps(*times);
  }
  const double lr = options_.schedule.multiplier(state_.step - 1) *
                    engine_.options().optim.peak_lr[static_cast<std::size_t>(ParamGroup::matrix)];
  log_step(stats, window, seconds, lr, !is_measured);
  if (options_.log_every > 0 &&
      (state_.step % options_.log_every == 0 || !stats.finite || state_.step == options_.schedule.steps))
    print_step(stats, seconds, lr);

  state_.bad_in_a_row = stats.finite ? 0 : state_.bad_in_a_row + 1;
  if (state_.bad_in_a_row < kBadWindowsBeforeRestore) return;
  // Only the first of the three is known to be bad of itself; the others may have suffered from the same
  // weights.
  state_.bad_windows.push_back(window - (kBadWindowsBeforeRestore - 1));
  restore(
      fmt::format("loss or gradient norm was not finite in {} windows in a row", kBadWindowsBeforeRestore));
}

void Trainer::name_slow_steps(double times) {
  log_.write(JsonRecord().add("kind", "slow").add("step", state_.step).add("times_slower", times));
  clear_progress();
  log_warning("the last {} steps took {:.1f} times as long as usual: {}", StepWatch::kInARow, times,
              engine_.backend().target().kind == DeviceKind::cuda
                  ? "the card may be throttling (heat, power limit), or another program may use its memory, "
                    "which Windows and WSL then move to the host without a word; nvidia-smi tells"
                  : "another program may be using the machine, or it is throttling");
}

void Trainer::restore(const std::string& why) {
  trouble_step_ = std::max(trouble_step_, state_.step);
  const std::vector<std::int64_t> bad = state_.bad_windows;
  const std::int64_t restores = state_.restores + 1;
  if (restores > kMaxRestores) {
    log_.write(JsonRecord().add("kind", "diverged").add("step", state_.step).add("why", why));
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
  } else {
    // Options, seed and hashes are this run's: they may have been changed on purpose since the checkpoint.
    const RunState good = store_.load(checkpoint, engine_);
    state_.step = good.step;
    state_.applied = good.applied;
    state_.window = good.window;
    state_.tokens = good.tokens;
    state_.loss_scale = good.loss_scale;
  }
  saved_step_ = checkpoint.empty() ? -1 : state_.step;
  state_.restores = restores;
  state_.bad_windows = bad;
  log_warning("{}; back at step {} ({}), leaving out data window {}", why, state_.step,
              checkpoint.empty() ? "fresh weights" : checkpoint, bad.back());
  log_.write(JsonRecord()
                 .add("kind", "restore")
                 .add("step", state_.step)
                 .add("why", why)
                 .add("left_out_window", bad.back()));
}

bool Trainer::save() {
  if (saved_step_ == state_.step) return true;
  const auto start = Clock::now();
  if (state_.bad_in_a_row == 0 && trouble_step_ >= 0 && state_.step >= trouble_step_ + kStepsThatForgive) {
    state_.restores = 0;
    trouble_step_ = -1;
  }
  account_energy(true);
  try {
    store_.save(engine_, state_);
  } catch (const DivergedError& e) {
    // An update made a weight or a moment overflow, and no loss has shown it yet: the window before did it.
    state_.bad_windows.push_back(state_.window - 1);
    restore(e.what());
    return false;
  }
  saved_step_ = state_.step;
  save_seconds_ = seconds_since(start);
  last_save_ = Clock::now();
  log_.write(JsonRecord().add("kind", "save").add("step", state_.step).add("seconds", save_seconds_));
  return true;
}

bool Trainer::maybe_save() {
  // After a window that was not finite the state is under suspicion until one is: only a stop or the end of
  // the run saves it then, marked, so that a restore goes further back.
  if (state_.bad_in_a_row > 0) return true;
  const bool due = options_.save_every > 0 ? state_.step % options_.save_every == 0
                                           : save_is_due(seconds_since(last_save_), save_seconds_);
  return !due || save();
}

// Whether the log says so, among its last lines.
bool Trainer::evaluated(std::int64_t step) const {
  constexpr std::streamoff kTailBytes = 65536;
  std::ifstream in(log_.path(), std::ios::binary | std::ios::ate);
  const std::streamoff size = in.tellg();
  in.seekg(std::max<std::streamoff>(0, size - kTailBytes));
  const std::string tail{std::istreambuf_iterator<char>(in), {}};
  return tail.find(fmt::format("\"kind\":\"eval\",\"step\":{},", step)) != std::string::npos;
}

bool Trainer::evaluates_at(std::int64_t step) const {
  return validation_ != nullptr && options_.eval_every > 0 && step > 0 && step % options_.eval_every == 0 &&
         step < options_.schedule.steps;
}

bool Trainer::samples_at(std::int64_t step) const {
  return engine_.options().sample_tokens > 0 && options_.sample_every > 0 && step > 0 &&
         step % options_.sample_every == 0 && step < options_.schedule.steps;
}

// Evaluates and samples where the current step is one for it.
void Trainer::watch() {
  if (evaluates_at(state_.step)) evaluate_and_log();
  if (samples_at(state_.step)) sample_and_log();
}

void Trainer::clear_progress() {
  if (options_.show_progress) std::fputs("\r\x1b[K", stdout);
}

void Trainer::evaluate_and_log() {
  const auto start = Clock::now();
  last_eval_ = evaluate(engine_, *validation_, [this] { poll(0); });
  evaluation_seconds_ = seconds_since(start);
  JsonRecord record;
  record.add("kind", "eval").add("step", state_.step).add("val_loss", last_eval_->loss);
  if (last_eval_->bpb) record.add("val_bpb", *last_eval_->bpb);
  log_.write(record.add("val_tokens", last_eval_->tokens)
                 .add("val_bytes", last_eval_->bytes)
                 .add("seconds", evaluation_seconds_));
  clear_progress();
  std::puts(fmt::format("  validation at step {}: {}", state_.step, eval_text(*last_eval_)).c_str());
  std::fflush(stdout);
}

std::string Trainer::sample_text() {
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
  return options_.prompt + tokenizer_.decode(text);
}

void Trainer::sample_and_log() {
  last_sample_ = sample_text();
  log_.write(JsonRecord().add("kind", "sample").add("step", state_.step).add("text", last_sample_));
  clear_progress();
  std::puts(fmt::format("  sample at step {}: {}", state_.step, last_sample_).c_str());
  std::fflush(stdout);
}

}  // namespace qt
