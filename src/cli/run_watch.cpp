#include "src/cli/run_watch.h"

#include <algorithm>
#include <ctime>

#include "src/cli/resume.h"
#include "src/core/version.h"
#include "src/io/run_folder.h"
#include "src/plan/estimate_text.h"
#include "src/watch/step_log.h"

namespace qt {

namespace {

std::string rows_json(const std::vector<PlanRow>& rows) {
  JsonRecord record;
  for (const PlanRow& row : rows) record.add(row.name, row.bytes);
  return record.str();
}

// A log that somebody has damaged costs an estimate, not the run.
std::optional<StepTimes> times_in_log(const RunConfig& config, const std::string& device) {
  try {
    return read_step_times(RunFolder(config.trainer.run_dir).log(), config.engine.step_tokens(), device);
  } catch (const DataError& e) {
    log_warning("how long steps took is not known: {}", e.what());
    return std::nullopt;
  }
}

}  // namespace

StepWork step_work(const Plan& run, const Card* card, const EvalBatches* validation) {
  const EngineOptions& e = run.config.engine;
  StepWork work{.model_flops = e.model.model_flops_per_token() * static_cast<double>(e.step_tokens()),
                .executed_flops = run.rehearsed.train_step(e.accumulation).executed_flops};
  if (validation != nullptr) {
    const std::int64_t rows = e.layout.micro_batch_rows;
    const std::int64_t batches = (validation->rows() + rows - 1) / rows;
    work.evaluation_flops = static_cast<double>(batches) * run.rehearsed.eval_step.executed_flops;
  }
  if (card != nullptr) work.peak_flops = card->peak_flops();
  return work;
}

JsonRecord start_record(const Plan& run, const DeviceFacts& facts, const Card* card, const RunState& state) {
  const EngineOptions& e = run.config.engine;
  JsonRecord record;
  record.add("kind", "start")
      .add("version", kVersion)
      .add("step", state.step)
      .add("steps", run.config.steps)
      .add("model", e.model.name)
      .add("params", e.model.param_count())
      .add("quant", format_info(e.layout.weights).name)
      .add("dtype", dtype_name(e.layout.compute))
      .add("device", log_device_name(run.config.target.kind, facts.name))
      .add("step_tokens", e.step_tokens())
      .add("device_bytes", run.device_bytes)
      .add_raw("device_rows", rows_json(run.device_rows))
      .add_raw("host_rows", rows_json(run.host_rows));
  if (card != nullptr) record.add("peak_flops", card->peak_flops());
  record.add("unix_s", unix_seconds());
  if (!run.config.price.empty()) record.add("price", run.config.price);
  return record.add("command", run.command);
}

std::string run_outlook(const Plan& run, const DeviceFacts& facts, const Card* card,
                        const EvalBatches* validation, const RunState* begun, const PowerWatch& power) {
  const RunConfig& config = run.config;
  EstimateInput in;
  in.card = card;
  in.eval_every = config.trainer.eval_every;
  in.eval_tokens = validation != nullptr ? validation->targets() : 0;
  in.save_every = config.trainer.save.every;
  in.watts = watts_given(config.watts);
  EstimateView view;
  view.efficiency_why = "50 to 80 % of the card's peak, until steps were measured";
  view.price = price_given(config.price);
  view.now_unix_s = std::time(nullptr);
  if (begun != nullptr) {
    in.steps_done = std::min(begun->step, config.steps);
    if (is_same_work(*begun, config)) {
      if (const std::optional<StepTimes> times =
              times_in_log(config, log_device_name(config.target.kind, facts.name))) {
        in.step_seconds = times->seconds;
        view.efficiency_why = fmt::format("the last {} steps", times->steps);
      }
    }
  }
  std::optional<Estimate> estimate;
  if (card != nullptr || in.step_seconds) estimate = estimate_run(run, in);
  const std::string source = power.source();
  return outlook_text(in, estimate, view) +
         fmt::format(
             "  meter      {}\n",
             source.empty() ? "none that can be read: kWh stay unknown; --watts W assumes a power" : source);
}

std::string spent_text(const RunConfig& config, const TrainResult& result) {
  std::string text = energy_text(result.energy, result.seconds);
  const std::optional<double> kwh = result.energy.kwh();
  const std::optional<Price> price = price_given(config.price);
  if (kwh && price) text += ", " + cost_text({.low = *kwh, .high = *kwh}, *price);
  return text;
}

}  // namespace qt
