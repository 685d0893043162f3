#include "src/watch/run_status.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <filesystem>
#include <vector>

#include "src/core/error.h"
#include "src/core/units.h"
#include "src/io/checkpoint.h"
#include "src/io/run_folder.h"
#include "src/options/options.h"
#include "src/train/run_state.h"
#include "src/watch/step_log.h"

namespace qt {

namespace {

namespace fs = std::filesystem;

std::int64_t unix_s_of(fs::file_time_type time) {
  const auto since = std::chrono::file_clock::to_sys(time).time_since_epoch();
  return std::chrono::duration_cast<std::chrono::seconds>(since).count();
}

// A save may delete the checkpoint that is being looked at: then as much as was seen.
void look_at_checkpoint(RunFacts& facts) {
  std::vector<Checkpoint> checkpoints;
  try {
    checkpoints = find_checkpoints(facts.folder);
    if (const std::optional<RunState> state = newest_readable_state(facts.folder))
      facts.options = state->options;
  } catch (const Error&) {
  }
  if (checkpoints.empty()) return;
  const Checkpoint& newest = checkpoints.back();
  std::error_code error;
  const fs::file_time_type time = fs::last_write_time(newest.path, error);
  if (!error) facts.saved_unix_s = unix_s_of(time);
  facts.saved_step = newest.step;
  fs::directory_iterator files(newest.path, error);
  for (; !error && files != fs::directory_iterator(); files.increment(error)) {
    std::error_code no_size;
    const std::uintmax_t bytes = files->file_size(no_size);
    if (!no_size) facts.checkpoint_bytes += static_cast<std::int64_t>(bytes);
  }
}

// As typed: "20000"; 0 and what is none of ours: not known.
std::optional<std::int64_t> count_option(const RunFacts& facts, const char* name) {
  const auto it = facts.options.find(name);
  if (it == facts.options.end()) return std::nullopt;
  try {
    const std::int64_t count = parse_count(it->second, name);
    return count > 0 ? std::optional(count) : std::nullopt;
  } catch (const ConfigError&) {
    return std::nullopt;
  }
}

std::optional<std::int64_t> steps_of(const RunFacts& facts) {
  const RunLog::Start* start = facts.log.start();
  if (start != nullptr && start->steps) return start->steps;
  if (const auto steps = count_option(facts, "steps")) return steps;
  const auto tokens = count_option(facts, "tokens"), batch = count_option(facts, "batch-tokens");
  if (tokens && batch) return std::max<std::int64_t>(1, *tokens / *batch);
  return std::nullopt;
}

RunPhase phase_of(const RunFacts& facts, const RunStatus& status) {
  const RunLog& log = facts.log;
  const RunLog::Session* last = log.sessions.empty() ? nullptr : &log.sessions.back();
  const std::string end = last == nullptr ? std::string() : last->end;
  if (facts.holder)
    return last == nullptr || last->steps == 0 || !end.empty() ? RunPhase::starting : RunPhase::running;
  if (end == "done" && (!status.steps || status.step >= *status.steps)) return RunPhase::finished;
  if (end == "diverged") return RunPhase::diverged;
  return end == "stop" || end == "done" ? RunPhase::stopped : RunPhase::interrupted;
}

// Means over the measured steps among the last thousand, each weighted by its time.
void set_speed(const RunLog& log, RunStatus& status) {
  constexpr std::size_t kMost = 1000;
  double tokens = 0, token_s = 0, mfu = 0, mfu_s = 0;
  std::vector<double> seconds;
  for (auto it = log.steps.rbegin(); it != log.steps.rend() && seconds.size() < kMost; ++it) {
    if (it->warmup || !(it->seconds > 0)) continue;
    seconds.push_back(static_cast<double>(it->seconds));
    if (!std::isnan(it->tokens_per_s)) {
      tokens += static_cast<double>(it->tokens_per_s) * seconds.back();
      token_s += seconds.back();
    }
    if (!std::isnan(it->mfu)) {
      mfu += static_cast<double>(it->mfu) * seconds.back();
      mfu_s += seconds.back();
    }
  }
  constexpr double kMostRate = 1e15;  // beyond it, a damaged log
  if (token_s > 0 && tokens / token_s < kMostRate) status.tokens_per_s = tokens / token_s;
  if (mfu_s > 0) status.mfu = mfu / mfu_s;
  if (const std::optional<StepTimes> times = step_times_of(std::move(seconds)))
    status.step_s = times->seconds;
}

void set_loss(const RunLog& log, RunStatus& status) {
  double sum = 0;
  std::int64_t count = 0;
  for (auto it = log.steps.rbegin(); it != log.steps.rend() && count < RunStatus::kSmoothSteps; ++it) {
    if (std::isnan(it->loss)) continue;
    if (!status.loss) status.loss = static_cast<double>(it->loss);
    sum += static_cast<double>(it->loss);
    ++count;
  }
  if (count > 0) status.loss_smoothed = sum / static_cast<double>(count);
}

std::optional<double> known(float value) {
  return std::isnan(value) ? std::nullopt : std::optional(static_cast<double>(value));
}

}  // namespace

RunFacts read_run(const std::string& folder) {
  constexpr const char* kHint =
      "name the run folder, as given to --out when the run began: qtrain status runs/books";
  std::error_code error;
  if (!fs::is_directory(folder, error)) {
    throw ConfigError(fs::exists(folder, error) ? fmt::format("{} is no folder", in_quotes(folder))
                                                : fmt::format("there is no folder {}", in_quotes(folder)),
                      kHint);
  }
  RunFacts facts;
  facts.folder = folder;
  facts.now_unix_s = std::time(nullptr);
  facts.holder = lock_holder(folder);
  look_at_checkpoint(facts);
  const fs::path log = RunFolder(folder).log();
  const bool has_log = fs::symlink_status(log, error).type() != fs::file_type::not_found;
  if (has_log) facts.log = read_run_log(log);
  if (!has_log && !facts.holder && !facts.saved_step) {
    throw ConfigError(fmt::format("there is no run in {}: neither a log nor a checkpoint", in_quotes(folder)),
                      kHint);
  }
  if (const std::int64_t free = posix_fs().free_bytes(folder); free >= 0) facts.disk_free_bytes = free;
  return facts;
}

const char* phase_name(RunPhase phase) {
  switch (phase) {
    case RunPhase::starting: return "starting";
    case RunPhase::running: return "running";
    case RunPhase::finished: return "finished";
    case RunPhase::stopped: return "stopped";
    case RunPhase::diverged: return "diverged";
    case RunPhase::interrupted: return "interrupted";
  }
  return "unknown";
}

RunStatus status_of(const RunFacts& facts) {
  const RunLog& log = facts.log;
  RunStatus s;
  s.pid = facts.holder;
  const auto option = [&](const char* name) {
    const auto it = facts.options.find(name);
    return it == facts.options.end() ? std::string() : it->second;
  };
  const RunLog::Start* start = log.start();
  s.model = start != nullptr && !start->model.empty() ? start->model : option("model");
  s.device = start != nullptr && !start->device.empty() ? start->device : option("device");
  s.step = !log.steps.empty() ? log.steps.back().step : facts.saved_step.value_or(0);
  s.steps = steps_of(facts);
  s.tokens = log.tokens;
  set_loss(log, s);
  if (!log.evals.empty()) s.eval = log.evals.back();
  set_speed(log, s);
  s.trained_s = log.step_seconds + log.eval_seconds + log.save_seconds;
  s.restarts = std::max<std::int64_t>(0, static_cast<std::int64_t>(log.sessions.size()) - 1);
  s.phase = phase_of(facts, s);
  if (s.steps && s.step_s && s.step < *s.steps) {
    // Counted as the run itself counts it; what evaluations and saves took so far, they will take.
    const auto mean = [](double seconds, std::int64_t count) {
      const double each = count > 0 ? seconds / static_cast<double>(count) : 0;
      return Range{.low = each, .high = each};
    };
    const Options defaults;
    const bool is_stored = !facts.options.empty();
    s.left_s =
        time_ahead(
            {.step = s.step,
             .steps = *s.steps,
             .eval_every = is_stored ? count_option(facts, "eval-every").value_or(0) : defaults.eval_every,
             .save_every = is_stored ? count_option(facts, "save-every").value_or(0) : defaults.save_every,
             .evaluates = log.evaluations > 0,
             .step_s = *s.step_s,
             .evaluation_s = mean(log.eval_seconds, log.evaluations),
             .save_s = mean(log.save_seconds, log.saves)})
            .total_s;
  }
  if (!log.steps.empty()) {
    const RunLog::Step& last = log.steps.back();
    s.watts = known(last.watts);
    s.celsius = known(last.celsius);
    if (!std::isnan(last.unix_s)) s.last_step_unix_s = std::llround(last.unix_s);
  }
  s.kwh = log.kwh;
  s.kwh_at_least = log.kwh_at_least;
  std::string price = start != nullptr ? start->price : std::string();
  if (price.empty()) price = option("price");
  try {
    if (const double watts = watts_given(option("watts")); watts > 0 && !s.watts) s.watts_assumed = watts;
    if (!price.empty()) {
      const Price per = parse_price(price, "price");
      s.currency = per.currency;
      if (s.kwh) s.cost = *s.kwh * per.per_kwh;
    }
  } catch (const ConfigError&) {  // a later version may write them otherwise: then no more is known
  }
  return s;
}

}  // namespace qt
