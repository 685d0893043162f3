// What a user reads: the plan, the start screen, the step line. Text only; nothing here decides or measures.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "src/train/estimate.h"
#include "src/train/planner.h"

namespace qt {

// Where every byte goes on device, host and disk, with shares, against what there is; a verdict for each and
// one for all; for a run that does not fit what would make it (run.changes).
std::string plan_text(const PlannedRun& run, const Limits& limits);

// {"fits", "device_bytes", "host_bytes", "disk_bytes", "micro_batch", "accumulation", "margin_bytes", ...,
// "changes": [{"options", "command", "cost"}]} on one line; the keys are frozen. margin_bytes is the
// device's.
std::string plan_json(const PlannedRun& run, const Limits& limits);

// The screen before step 0: hardware, model, quantization, plan, tokens per step, steps, files.
struct StartInfo {
  std::string run_folder;
  std::string data;       // "3 shards, 12.3M tokens; validation 1.1M tokens"
  std::string tokenizer;  // "bpe 4096"
  std::int64_t first_step = 0;
  std::string resumed;  // why this checkpoint; empty: a fresh run
  std::string saves;    // "every 250 steps"
  std::string outlook;  // outlook_text() of src/train/estimate_text.h
};
std::string start_screen(const PlannedRun& run, const Limits& limits, const StartInfo& info);

// One line a step, fixed columns. Times and rates of warm-up steps do not reach `rate`.
struct StepLine {
  std::int64_t step = 0;  // done, counted from 1
  std::int64_t steps = 0;
  double loss = 0;
  double norm = 0;
  double lr = 0;
  double seconds = 0;
  double tokens_per_s = 0;
  std::optional<double> mfu;      // share of the card's peak
  std::int64_t device_bytes = 0;  // of the card in use, where its driver tells; else as planned
  std::optional<double> watts;
  std::optional<Range> eta_s;
  bool skipped = false;
};
// What paging costs: "12.0 GiB in and out of the device once per step, 1.1 s at 23.1 GB/s each way".
std::string paging_text(std::int64_t bytes, double seconds);
// "3d 4h-3d 9h", or one of the two where they read the same.
std::string eta_text(Range seconds);
std::string step_header();
std::string step_line(const StepLine& line);

// Progress inside a step, redrawn in place; only for terminals. Empty when there is nothing to show.
std::string progress_line(std::int64_t step, std::int64_t done, std::int64_t total, double seconds);

}  // namespace qt
