// What `qtrain status` shows.
#include <algorithm>
#include <cmath>
#include <ctime>

#include <fmt/chrono.h>

#include "src/core/log.h"
#include "src/core/units.h"
#include "src/watch/run_status.h"

namespace qt {

namespace {

constexpr double kMostAheadSeconds = 36525 * kSecondsPerDay;

template <class Text>
std::string range_text(Range r, Text text) {
  const std::string low = text(r.low), high = text(r.high);
  return low == high ? low : low + " to " + high;
}

std::string age_text(std::int64_t then, std::int64_t now) {
  // A clock that was set back since: no age is better than a negative one.
  if (then == now) return "just now";
  return then < now ? format_duration(static_cast<double>(now - then)) + " ago" : "by a later clock";
}

// Finer than format_duration() where it matters: most steps take less than some seconds.
std::string step_time_text(double seconds) {
  if (seconds < 1) return fmt::format("{:.0f} ms", 1000 * seconds);
  return seconds < 10 ? fmt::format("{:.2f} s", seconds) : format_duration(seconds);
}

std::string phase_text(const RunStatus& s) {
  switch (s.phase) {
    case RunPhase::starting: return fmt::format("starting (process {}), no step done yet", s.pid.value_or(0));
    case RunPhase::running: return fmt::format("running (process {})", s.pid.value_or(0));
    case RunPhase::finished: return "finished";
    case RunPhase::stopped: return "stopped; the same command continues it";
    case RunPhase::diverged: return "diverged; lower learning rates may continue it";
    case RunPhase::interrupted:
      return "not running, ended without a word (killed, crash or power cut); the same command continues it";
  }
  return {};
}

std::string step_text(const RunStatus& s) {
  std::string step = format_thousands(s.step);
  if (s.steps) {
    step += fmt::format(
        " of {} ({:.1f} %)", format_thousands(*s.steps),
        100 * static_cast<double>(s.step) / static_cast<double>(std::max<std::int64_t>(*s.steps, 1)));
  } else {
    step += " of an unknown number";
  }
  if (s.tokens) step += fmt::format(", {} tokens", format_count(*s.tokens));
  return step;
}

std::string left_text(const RunFacts& facts, const RunStatus& s) {
  if (!s.left_s) {
    const bool at_end = s.phase == RunPhase::finished || (s.steps && s.step >= *s.steps);
    return at_end ? "nothing" : "unknown: five measured steps tell";
  }
  const std::string left = range_text(*s.left_s, format_duration);
  if (s.phase != RunPhase::running) return left + " once it runs";
  if (s.left_s->high >= kMostAheadSeconds) return left + ", until more than a century from now";
  const double now = static_cast<double>(facts.now_unix_s);
  return left + ", until " + range_text({now + s.left_s->low, now + s.left_s->high}, moment_text);
}

std::string power_text(const RunStatus& s) {
  std::string power = s.watts           ? fmt::format("{:.0f} W", *s.watts)
                      : s.watts_assumed ? fmt::format("{:g} W as given (--watts)", *s.watts_assumed)
                                        : "unknown";
  if (s.celsius) power += fmt::format(", {:.0f} °C", *s.celsius);
  power += s.kwh            ? "; " + energy_text(*s.kwh) + " so far"
           : s.kwh_at_least ? "; at least " + energy_text(*s.kwh_at_least) + " so far"
                            : "; energy unknown";
  if (s.cost) power += ", " + money_text(*s.cost, s.currency);
  return power;
}

std::string disk_text(const RunFacts& facts) {
  std::string disk = facts.disk_free_bytes ? format_bytes(*facts.disk_free_bytes) + " free" : "unknown";
  if (facts.checkpoint_bytes > 0) {
    disk += fmt::format("; a checkpoint takes {}", format_bytes(facts.checkpoint_bytes));
    if (facts.disk_free_bytes &&
        *facts.disk_free_bytes < facts.checkpoint_bytes + facts.checkpoint_bytes / 10)
      disk += ": TOO LITTLE for the next save";
  }
  return disk;
}

}  // namespace

std::string moment_text(double unix_s) {
  if (!(std::abs(unix_s) < 100 * kMostAheadSeconds)) return "at a time unknown";
  return fmt::format("{:%Y-%m-%d %H:%M} UTC", fmt::gmtime(static_cast<std::time_t>(std::llround(unix_s))));
}

std::string counted(std::int64_t count, const char* what) {
  return fmt::format("{} {}{}", format_thousands(count), what, count == 1 ? "" : "s");
}

std::string energy_text(double kwh) {
  if (kwh < 1) return fmt::format("{:.2g} kWh", kwh);
  return fmt::format("{:.{}f} kWh", kwh, kwh < 10 ? 2 : 1);
}

std::string money_text(double amount, const std::string& currency) {
  return fmt::format("{} {}", amount < 0.01 ? fmt::format("{:.2g}", amount) : fmt::format("{:.2f}", amount),
                     currency);
}

std::string status_text(const RunFacts& facts, const RunStatus& s) {
  const RunLog& log = facts.log;
  std::string text;
  const auto row = [&](const char* name, const std::string& value) {
    text += fmt::format("  {:<12}{}\n", name, value);
  };
  row("run", fmt::format("{}: {}", facts.folder, phase_text(s)));
  if (!s.model.empty()) row("model", s.device.empty() ? s.model : fmt::format("{} on {}", s.model, s.device));

  row("step", step_text(s));

  row("loss", s.loss ? fmt::format("{:.4f} now, {:.4f} over the last {} steps", *s.loss, *s.loss_smoothed,
                                   RunStatus::kSmoothSteps)
                     : "no step with a finite loss yet");
  if (s.eval) {
    row("validation", fmt::format("{}loss {:.4f} at step {}",
                                  s.eval->bpb ? fmt::format("{:.4f} bits per byte, ", *s.eval->bpb) : "",
                                  s.eval->loss, format_thousands(s.eval->step)));
  } else {
    row("validation", "none yet");
  }
  if (s.tokens_per_s) {
    std::string speed = fmt::format("{} tokens/s", format_thousands(std::llround(*s.tokens_per_s)));
    if (s.step_s) speed += fmt::format(", a step in {}", range_text(*s.step_s, step_time_text));
    row("speed", speed + (s.mfu ? fmt::format(", MFU {:.1f} %", 100 * *s.mfu) : ", MFU unknown"));
  } else {
    row("speed", "unknown: the first two steps of a session are warm-up and do not count");
  }
  row("left", left_text(facts, s));

  row("power", power_text(s));

  if (facts.saved_step) {
    row("saved", fmt::format("step {}{}", format_thousands(*facts.saved_step),
                             facts.saved_unix_s ? ", " + age_text(*facts.saved_unix_s, facts.now_unix_s)
                                                : std::string()));
  } else {
    row("saved", "no checkpoint yet");
  }
  if (s.last_step_unix_s) row("last step", age_text(*s.last_step_unix_s, facts.now_unix_s));
  std::string past =
      fmt::format("{}, {}, {}, {}", counted(s.restarts, "restart"), counted(log.restores, "restore"),
                  counted(log.overflows, "overflow"), counted(log.skipped, "skipped step"));
  if (log.lost_steps > 0) past += fmt::format(", {} done again", counted(log.lost_steps, "step"));
  if (log.slow > 0) past += fmt::format(", slow {}", counted(log.slow, "time"));
  row("so far", past);
  row("disk", disk_text(facts));
  if (log.torn && !facts.holder) row("note", "the log's last line is torn; the next start removes it");
  return text;
}

std::string status_json(const RunFacts& facts, const RunStatus& s) {
  JsonRecord json;
  const auto add = [&](const char* key, const auto& value) {
    if (value)
      json.add(key, *value);
    else
      json.add_raw(key, "null");
  };
  const auto add_range = [&](const std::string& name, std::optional<Range> range) {
    add((name + "_low").c_str(), range ? std::optional(range->low) : std::nullopt);
    add((name + "_high").c_str(), range ? std::optional(range->high) : std::nullopt);
  };
  std::optional<double> percent;
  if (s.steps)
    percent = 100 * static_cast<double>(s.step) / static_cast<double>(std::max<std::int64_t>(*s.steps, 1));
  std::optional<Range> finish;
  if (s.left_s && s.phase == RunPhase::running) {
    finish = Range{.low = static_cast<double>(facts.now_unix_s) + s.left_s->low,
                   .high = static_cast<double>(facts.now_unix_s) + s.left_s->high};
  }
  json.add("run", facts.folder).add("state", phase_name(s.phase));
  add("pid", s.pid);
  json.add("step", s.step);
  add("steps", s.steps);
  add("percent", percent);
  add("tokens", s.tokens);
  add("loss", s.loss);
  add("loss_smoothed", s.loss_smoothed);
  add("val_step", s.eval ? std::optional(s.eval->step) : std::nullopt);
  add("val_loss", s.eval ? std::optional(s.eval->loss) : std::nullopt);
  add("val_bpb", s.eval ? s.eval->bpb : std::nullopt);
  add("tokens_per_s", s.tokens_per_s);
  add("mfu", s.mfu);
  add_range("step_seconds", s.step_s);
  add_range("left_seconds", s.left_s);
  add_range("finish_unix_s", finish);
  add("watts", s.watts);
  add("celsius", s.celsius);
  add("kwh", s.kwh);
  add("kwh_at_least", s.kwh_at_least);
  add("cost", s.cost);
  add("currency", s.currency.empty() ? std::nullopt : std::optional(s.currency));
  add("saved_step", facts.saved_step);
  add("saved_unix_s", facts.saved_unix_s);
  add("last_step_unix_s", s.last_step_unix_s);
  const RunLog& log = facts.log;
  json.add("trained_seconds", s.trained_s)
      .add("restarts", s.restarts)
      .add("restores", log.restores)
      .add("overflows", log.overflows)
      .add("skipped", log.skipped)
      .add("slow", log.slow)
      .add("lost_steps", log.lost_steps);
  add("disk_free_bytes", facts.disk_free_bytes);
  json.add("checkpoint_bytes", facts.checkpoint_bytes);
  return json.str();
}

}  // namespace qt
