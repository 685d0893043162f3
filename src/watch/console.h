// What a user reads while a run trains: the text of step lines and progress, and Console, which prints it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "src/core/range.h"
#include "src/train/events.h"
#include "src/train/pace.h"

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

struct ConsoleOptions {
  std::int64_t log_every = 1;     // steps between lines; 0: no header and no step lines
  bool show_progress = false;     // a terminal
  bool on_card = false;           // where the run trains
  std::int64_t device_bytes = 0;  // planned, for step lines
  StepWork work;
  // Of the whole run: steps, eval_every, save_every, evaluates, and what a save takes until one was measured.
  // The rest is filled in as the run goes.
  WorkAhead ahead;
};

// Prints steps, evaluations and samples to standard output. Restores, overflows and slow steps are log messages.
class Console : public TrainingEvents {
 public:
  explicit Console(const ConsoleOptions& options) : options_(options) {}

  void began(const RunState& state) override;
  void progressed(const StepProgress& progress) override;
  void stepped(const StepDone& done) override;
  void slow(std::int64_t step, double times) override;
  void overflowed(const Overflow& overflow) override;
  void evaluated(std::int64_t step, const EvalResult& result, double seconds) override;
  void sampled(std::int64_t step, const std::string& text) override;
  void saved(std::int64_t step, double seconds) override;
  void restored(const Restored& restored) override;
  void stopping() override;

 private:
  void print(const std::string& line);
  void clear_progress();

  ConsoleOptions options_;
  Pace pace_;
};

}  // namespace qt
