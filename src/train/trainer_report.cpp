// What a trainer tells of its steps: the line on the screen, the record in log.jsonl, the time that is left
// and the energy so far. The loop itself is trainer.cpp.
#include <cstdio>

#include "src/train/console.h"
#include "src/train/trainer.h"

namespace qt {

namespace {

std::string json_list(const std::vector<std::string>& words) {
  std::string list;
  for (const std::string& word : words) list += (list.empty() ? "" : ",") + json_string(word);
  return "[" + list + "]";
}

}  // namespace

void Trainer::log_step(const StepStats& stats, std::int64_t window, double seconds, double lr,
                       bool is_warmup) {
  const StepWork& work = options_.work;
  JsonRecord record;
  record.add("kind", "step")
      .add("step", state_.step)
      .add("window", window)
      .add("loss", stats.loss)
      .add("norm", stats.norm)
      .add("lr", lr)
      .add("seconds", seconds)
      .add("tokens_per_s", static_cast<double>(engine_.options().step_tokens()) / seconds)
      .add("tokens", state_.tokens)
      .add("skipped", !stats.applied());
  if (is_warmup) record.add("warmup", true);
  record.add("unix_s", unix_seconds());
  if (work.peak_flops > 0) record.add("mfu", work.model_flops / seconds / work.peak_flops);
  if (work.executed_flops > 0) record.add("executed_flops_s", work.executed_flops / seconds);
  if (options_.power != nullptr) {
    const CardReading card = options_.power->newest();
    if (card.watts) record.add("watts", *card.watts);
    if (card.celsius) record.add("celsius", *card.celsius);
    if (card.sm_mhz) record.add("sm_mhz", *card.sm_mhz);
    if (card.throttle && !card.throttle->empty()) record.add_raw("throttle", json_list(*card.throttle));
    if (card.used_bytes) record.add("device_used_bytes", *card.used_bytes);
  }
  add_energy(record);
  log_.write(record);
}

void Trainer::print_step(const StepStats& stats, double seconds, double lr) {
  const Speed speed = speed_of(pace_, seconds, engine_.options().step_tokens(), options_.work, work_ahead());
  const CardReading card = options_.power != nullptr ? options_.power->newest() : CardReading();
  const StepLine line{.step = state_.step,
                      .steps = options_.schedule.steps,
                      .loss = stats.loss,
                      .norm = stats.norm,
                      .lr = lr,
                      .seconds = seconds,
                      .tokens_per_s = speed.tokens_per_s,
                      .mfu = speed.mfu,
                      .device_bytes = card.used_bytes.value_or(options_.device_bytes),
                      .watts = card.watts,
                      .eta_s = speed.eta_s,
                      .skipped = !stats.finite};
  clear_progress();
  std::puts(step_line(line).c_str());
  std::fflush(stdout);
}

WorkAhead Trainer::work_ahead() const {
  WorkAhead ahead{.step = state_.step,
                  .steps = options_.schedule.steps,
                  .eval_every = options_.eval_every,
                  .save_every = options_.save_every,
                  .evaluates = validation_ != nullptr,
                  .save_s = options_.save_s};
  // What was measured takes the place of what is assumed.
  if (save_seconds_ > 0) ahead.save_s = {.low = save_seconds_, .high = save_seconds_};
  if (evaluation_seconds_ > 0) ahead.evaluation_s = {.low = evaluation_seconds_, .high = evaluation_seconds_};
  return ahead;
}

void Trainer::account_energy(bool measure) {
  state_.energy =
      joined(energy_before_, options_.power != nullptr
                                 ? options_.power->energy(measure)
                                 : Energy{.joules = 0, .missing_s = session_seconds(), .source = {}});
}

void Trainer::add_energy(JsonRecord& record) const {
  if (const std::optional<double> kwh = state_.energy.kwh())
    record.add(state_.energy.is_whole(state_.seconds) ? "kwh" : "kwh_at_least", *kwh);
}

}  // namespace qt
