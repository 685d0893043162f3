// What a run's log.jsonl says about its speed, and about what is done.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "kernels/target.h"
#include "src/plan/estimate.h"
#include "src/train/pace.h"

namespace qt {

struct StepTimes {
  Range seconds;           // of a step: between the quartiles, and never closer to the median than 5 %
  std::int64_t steps = 0;  // measured
};

// Of measured steps in the order in which they were done; the newest thousand count. Nothing for fewer than
// five.
std::optional<StepTimes> step_times_of(std::vector<double> seconds);

// From the newest steps of the log, without those that pay for warm-up: the first of each session, whether it
// ended with a stop or was killed.
// Sessions that name another device than `device`, as log_device_name() has it, are left out.
// Nothing where there is no log, or fewer than five such steps, or where steps have another number of tokens
// than step_tokens. A line torn by a kill at the end is left out; DataError for any other that is no record.
std::optional<StepTimes> read_step_times(const std::filesystem::path& log, std::int64_t step_tokens,
                                         const std::string& device);

// The last step up to `step` that the newest records of the log name as evaluated: what checkpoints from
// before RunState::evaluated_step do not tell. 0: none, or no log that can be read. Nothing is read beyond a
// line that is no record.
std::int64_t evaluated_step_in_log(const std::filesystem::path& log, std::int64_t step);

// The field "device" of a session's first record: the card's name, or "cpu".
std::string log_device_name(DeviceKind kind, const std::string& card_name);

}  // namespace qt
