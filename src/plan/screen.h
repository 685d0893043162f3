// What a user reads before the first step: the plan and the start screen. Text only; nothing here decides or measures.
#pragma once

#include <cstdint>
#include <string>

#include "src/plan/estimate.h"
#include "src/plan/planner.h"

namespace qt {

// Where every byte goes on device, host and disk, with shares, against what there is; a verdict for each and
// one for all; for a run that does not fit what would make it (run.changes).
std::string plan_text(const Plan& run, const Limits& limits);

// {"fits", "device_bytes", "host_bytes", "disk_bytes", "micro_batch", "accumulation", "margin_bytes", ...,
// "changes": [{"options", "command", "cost"}]} on one line; the keys are frozen. margin_bytes is the
// device's.
std::string plan_json(const Plan& run, const Limits& limits);

// The screen before step 0: hardware, model, quantization, plan, tokens per step, steps, files.
struct StartInfo {
  std::string run_folder;
  std::string data;       // "3 shards, 12.3M tokens; validation 1.1M tokens"
  std::string tokenizer;  // "bpe 4096"
  std::int64_t first_step = 0;
  std::string resumed;  // why this checkpoint; empty: a fresh run
  std::string saves;    // "every 250 steps"
  std::string outlook;  // outlook_text() of src/plan/estimate_text.h
};
std::string start_screen(const Plan& run, const Limits& limits, const StartInfo& info);

// What paging costs: "12.0 GiB in and out of the device once per step, 1.1 s at 23.1 GB/s each way".
std::string paging_text(std::int64_t bytes, double seconds);

}  // namespace qt
