#include "src/watch/console.h"

#include <algorithm>
#include <cstdio>

#include <fmt/format.h>

#include "src/core/log.h"
#include "src/core/units.h"
#include "src/train/step_watch.h"

namespace qt {

std::string eta_text(Range seconds) {
  const std::string low = format_duration_short(seconds.low), high = format_duration_short(seconds.high);
  return low == high ? low : low + "-" + high;
}

std::string step_header() {
  return fmt::format("{:>15} {:>6} {:>8} {:>8} {:>9} {:>8} {:>8} {:>6} {:>9} {:>5} {:>16}", "step/total", "%",
                     "loss", "norm", "lr", "ms", "tok/s", "MFU%", "VRAM", "W", "ETA");
}

std::string step_line(const StepLine& l) {
  const double percent =
      100.0 * static_cast<double>(l.step) / static_cast<double>(std::max<std::int64_t>(l.steps, 1));
  return fmt::format(
      "{:>15} {:>6.2f} {:>8.4f} {:>8.3g} {:>9.3g} {:>8.0f} {:>8.0f} {:>6} {:>9} {:>5} {:>16}{}",
      fmt::format("{}/{}", l.step, l.steps), percent, l.loss, l.norm, l.lr, l.seconds * 1e3, l.tokens_per_s,
      l.mfu ? fmt::format("{:.1f}", 100 * *l.mfu) : "-", format_bytes(l.device_bytes),
      l.watts ? fmt::format("{:.0f}", *l.watts) : "-", l.eta_s ? eta_text(*l.eta_s) : "-",
      l.skipped ? "  SKIPPED: not finite" : "");
}

std::string progress_line(std::int64_t step, std::int64_t done, std::int64_t total, double seconds) {
  if (total <= 1) return {};
  constexpr std::int64_t kWidth = 30;
  const std::int64_t filled = kWidth * done / total;
  return fmt::format("\r  step {} [{:{}}] {}/{} micro-batches, {:.0f} s ", step,
                     std::string(static_cast<std::size_t>(filled), '='), kWidth, done, total, seconds);
}

void Console::began(const RunState& state) {
  const std::int64_t steps = options_.ahead.steps;
  if (steps <= state.step) {
    log_info("the run is complete: {} of {} steps", state.step, steps);
  } else if (options_.log_every > 0) {
    std::puts(step_header().c_str());
  }
}

void Console::progressed(const StepProgress& p) {
  if (!options_.show_progress) return;
  const std::string line = progress_line(p.step, p.done, p.total, p.seconds);
  std::fputs(line.c_str(), stdout);
  std::fflush(stdout);
}

void Console::stepped(const StepDone& done) {
  pace_.take(done.seconds);
  const std::int64_t step = done.state.step, every = options_.log_every;
  if (every == 0 || (step % every != 0 && done.stats.finite && step != options_.ahead.steps)) return;
  WorkAhead ahead = options_.ahead;
  ahead.step = step;
  const Speed speed = speed_of(pace_, done.seconds, done.tokens, options_.work, ahead);
  print(step_line({.step = step,
                   .steps = ahead.steps,
                   .loss = done.stats.loss,
                   .norm = done.stats.norm,
                   .lr = done.lr,
                   .seconds = done.seconds,
                   .tokens_per_s = speed.tokens_per_s,
                   .mfu = speed.mfu,
                   .device_bytes = done.card.used_bytes.value_or(options_.device_bytes),
                   .watts = done.card.watts,
                   .eta_s = speed.eta_s,
                   .skipped = !done.stats.finite}));
}

void Console::slow(std::int64_t /*step*/, double times) {
  clear_progress();
  log_warning("the last {} steps took {:.1f} times as long as usual: {}", StepWatch::kInARow, times,
              options_.on_card
                  ? "the card may be throttling (heat, power limit), or another program may use its memory, "
                    "which Windows and WSL then move to the host without a word; nvidia-smi tells"
                  : "another program may be using the machine, or it is throttling");
}

void Console::overflowed(const Overflow& o) {
  log_info("a gradient overflowed fp16 at loss scale {:g}: this window is left out, the scale is now {:g}",
           o.scale_before, o.scale_now);
}

void Console::evaluated(std::int64_t step, const EvalResult& result, double seconds) {
  // What was measured takes the place of what is assumed.
  options_.ahead.evaluation_s = {.low = seconds, .high = seconds};
  print(fmt::format("  validation at step {}: {}", step, eval_text(result)));
}

void Console::sampled(std::int64_t step, const std::string& text) {
  print(fmt::format("  sample at step {}: {}", step, text));
}

void Console::saved(std::int64_t /*step*/, double seconds) {
  options_.ahead.save_s = {.low = seconds, .high = seconds};
}

void Console::restored(const Restored& r) {
  log_warning("{}; back at step {} ({}), leaving out data window {}", r.why, r.step,
              r.checkpoint.empty() ? "fresh weights" : r.checkpoint, r.left_out_window);
}

void Console::stopping() {
  if (options_.show_progress) std::fputs("\n", stdout);
}

void Console::print(const std::string& line) {
  clear_progress();
  std::puts(line.c_str());
  std::fflush(stdout);
}

void Console::clear_progress() {
  if (options_.show_progress) std::fputs("\r\x1b[K", stdout);
}

}  // namespace qt
