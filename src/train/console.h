// What a user reads while a run trains: the step line under its header, and progress inside a step. Text only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "src/core/range.h"

namespace qt {

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
// "3d 4h-3d 9h", or one of the two where they read the same.
std::string eta_text(Range seconds);
std::string step_header();
std::string step_line(const StepLine& line);

// Progress inside a step, redrawn in place; only for terminals. Empty when there is nothing to show.
std::string progress_line(std::int64_t step, std::int64_t done, std::int64_t total, double seconds);

}  // namespace qt
