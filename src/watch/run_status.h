// How a run is doing, from what lies in its folder: the log, the lock, the newest checkpoint. Nothing is
// locked and nothing is written, so it can be asked at any time, also of a run that has no checkpoint yet.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "src/plan/estimate.h"
#include "src/watch/run_log.h"

namespace qt {

// What the folder says, as it was read.
struct RunFacts {
  std::string folder;
  RunLog log;
  std::optional<pid_t> holder;                 // the process that uses the folder
  std::optional<std::int64_t> saved_step;      // of the newest checkpoint
  std::optional<std::int64_t> saved_unix_s;    // when it was published
  std::int64_t checkpoint_bytes = 0;           // on disk; 0: there is none
  std::map<std::string, std::string> options;  // of the newest checkpoint that can be read
  std::optional<std::int64_t> disk_free_bytes;
  std::int64_t now_unix_s = 0;
};

// ConfigError where there is no such folder, or nothing of a run in it; DataError for a damaged log.
RunFacts read_run(const std::string& folder);

enum class RunPhase : std::uint8_t {
  starting,     // the folder is in use, and the session has done no step
  running,      // the folder is in use
  finished,     // all steps are done
  stopped,      // on request
  diverged,     // after all restores
  interrupted,  // ended without a word: killed, a crash, a power cut
};
const char* phase_name(RunPhase phase);

struct RunStatus {
  RunPhase phase = RunPhase::interrupted;
  std::optional<pid_t> pid;
  std::string model, device;  // empty: not known; likewise what is absent below
  std::int64_t step = 0;      // done
  std::optional<std::int64_t> steps, tokens;
  std::optional<double> loss, loss_smoothed;  // smoothed: the mean of the last kSmoothSteps
  std::optional<RunLog::Eval> eval;
  std::optional<double> tokens_per_s, mfu;  // over the measured steps among the last thousand
  std::optional<Range> step_s;              // their quartiles, at least 5 % from the median
  std::optional<Range> left_s;              // of what is still to do, evaluations and saves included
  std::optional<double> watts, celsius;     // at the last step
  std::optional<double> kwh, cost;          // of the whole run so far
  std::optional<double>
      kwh_at_least;  // the same where a part was not measured; kwh and cost are unknown then
  std::string currency;
  std::optional<double> watts_assumed;  // --watts, where nothing was measured
  std::optional<std::int64_t> last_step_unix_s;
  double trained_s = 0;  // steps, evaluations and saves, those of lost steps included
  std::int64_t restarts = 0;

  static constexpr std::int64_t kSmoothSteps = 100;
};

// Pure.
RunStatus status_of(const RunFacts& facts);

// A screen, and one line for programs. Keys are frozen: run, state, pid, step, steps, percent, tokens, loss,
// loss_smoothed, val_step, val_loss, val_bpb, tokens_per_s, mfu, step_seconds_low, step_seconds_high,
// left_seconds_low, left_seconds_high, finish_unix_s_low, finish_unix_s_high, watts, celsius, kwh,
// kwh_at_least, cost, currency, saved_step, saved_unix_s, last_step_unix_s, trained_seconds, restarts,
// restores, overflows, skipped, slow, lost_steps, disk_free_bytes, checkpoint_bytes. What is not known is
// null.
std::string status_text(const RunFacts& facts, const RunStatus& status);
std::string status_json(const RunFacts& facts, const RunStatus& status);

// "2026-11-21 22:05 UTC"; "in more than a century" for what is too far away to mean anything.
std::string moment_text(double unix_s);
// "1 restart", "1,200 restarts".
std::string counted(std::int64_t count, const char* what);
// "0.00042 kWh", "1.23 kWh", "675.0 kWh".
std::string energy_text(double kwh);
std::string money_text(double amount, const std::string& currency);  // "7.00 TWD", "0.00042 EUR"

}  // namespace qt
