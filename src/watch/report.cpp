#include "src/watch/report.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iterator>
#include <string_view>
#include <vector>

#include "src/core/units.h"
#include "src/options/option_table.h"
#include "src/watch/chart.h"
#include "src/watch/html.h"

namespace qt {

namespace {

constexpr std::size_t kShownSamples = 3;  // the newest; earlier ones are folded away
constexpr std::size_t kShownEvents = 200;
// Curves are smoothed over this share of the steps to either side.
constexpr std::size_t kSmoothPart = 60;
constexpr std::size_t kLeastForSmooth = 20;
constexpr std::size_t kLeastForHalf = 200;

std::string thousands(std::int64_t count) { return html_text(format_thousands(count)); }

std::string name_of_run(const RunFacts& facts) {
  std::error_code error;
  const std::filesystem::path whole = std::filesystem::absolute(facts.folder, error).lexically_normal();
  const std::string name = (whole.has_filename() ? whole : whole.parent_path()).filename().string();
  return name.empty() ? facts.folder : name;
}

std::string option_of(const RunFacts& facts, const char* name) {
  const auto it = facts.options.find(name);
  return it == facts.options.end() ? std::string() : it->second;
}

std::string header(const RunFacts& facts, const RunStatus& s) {
  std::string about;
  const auto add = [&](const std::string& text) {
    if (!text.empty()) about += (about.empty() ? "" : " · ") + html_text(text);
  };
  const RunLog::Start* start = facts.log.start();
  add(s.model);
  if (start != nullptr && start->params) add(format_count(*start->params) + " parameters");
  const std::string quant =
      start != nullptr && !start->quant.empty() ? start->quant : option_of(facts, "quant");
  add(quant == "none" ? "weights not packed" : quant);
  add(start != nullptr && !start->dtype.empty() ? start->dtype : option_of(facts, "dtype"));
  add(s.device);
  std::string html = fmt::format(
      "<header><div class=\"head\"><h1>{}</h1><span class=\"state {}\">{}</span></div>\n"
      "<p class=\"about\">{}</p>\n",
      html_text(name_of_run(facts)), phase_name(s.phase), phase_name(s.phase), about);
  if (s.steps) {
    const double share =
        static_cast<double>(s.step) / static_cast<double>(std::max<std::int64_t>(*s.steps, 1));
    html += fmt::format(
        "<div class=\"bar\" role=\"img\" aria-label=\"{0:.1f} % done\"><i style=\"width:{0:.2f}%\">"
        "</i></div>\n",
        100 * std::clamp(share, 0.0, 1.0));
  }
  return html + "</header>\n";
}

// `value` in large figures; one that is a word rather than a number is set smaller.
std::string tile(const char* name, const std::string& value, const std::string& more) {
  const bool words = value.empty() || value.front() < '0' || value.front() > '9';
  return fmt::format(
      "<div><div class=\"name\">{}</div><div class=\"value{}\">{}</div><div class=\"more\">{}</div></div>\n",
      name, words ? " words" : "", html_text(value), html_text(more));
}

std::string left_text(const RunFacts& facts, const RunStatus& s) {
  if (s.phase == RunPhase::finished) return "nothing left to do";
  if (!s.left_s) return "time left unknown";
  const std::string low = format_duration(s.left_s->low), high = format_duration(s.left_s->high);
  std::string text = (low == high ? low : low + " to " + high) + " left";
  if (s.phase == RunPhase::running)
    text += ", until " + moment_text(static_cast<double>(facts.now_unix_s) + s.left_s->high) + " at most";
  return text;
}

std::string tiles(const RunFacts& facts, const RunStatus& s) {
  std::string html = "<section class=\"tiles\">\n";
  if (s.eval && s.eval->bpb) {
    html += tile("Bits per byte, validation", fmt::format("{:.4f}", *s.eval->bpb),
                 fmt::format("loss {:.4f} at step {}", s.eval->loss, format_thousands(s.eval->step)));
  } else if (s.eval) {
    html += tile("Validation loss", fmt::format("{:.4f}", s.eval->loss),
                 fmt::format("nats per token, at step {}", format_thousands(s.eval->step)));
  } else {
    html += tile("Bits per byte, validation", "not evaluated yet", "");
  }
  html += s.loss
              ? tile("Training loss", fmt::format("{:.4f}", *s.loss_smoothed),
                     fmt::format("mean of the last {} steps; now {:.4f}",
                                 std::min<std::int64_t>(RunStatus::kSmoothSteps, std::ssize(facts.log.steps)),
                                 *s.loss))
              : tile("Training loss", "no finite loss yet", "");
  html += tile("Steps", format_thousands(s.step),
               fmt::format("of {}{}", s.steps ? format_thousands(*s.steps) : "an unknown number",
                           s.tokens ? ", " + format_count(*s.tokens) + " tokens" : std::string()));
  html += tile("Trained for", format_duration(s.trained_s), left_text(facts, s));
  html += s.tokens_per_s
              ? tile("Tokens per second", format_thousands(std::llround(*s.tokens_per_s)),
                     s.mfu ? fmt::format("MFU {:.1f} %", 100 * *s.mfu) : "MFU unknown: no known peak")
              : tile("Tokens per second", "unknown", "warm-up steps do not count");
  html += s.kwh ? tile("Energy", energy_text(*s.kwh),
                       s.cost ? money_text(*s.cost, s.currency) : "cost unknown: no --price")
          : s.kwh_at_least
              ? tile("Energy", energy_text(*s.kwh_at_least), "at least: a part of the run was not measured")
              : tile("Energy", "unknown", "nothing here measures power");
  return html + "</section>\n";
}

std::vector<ChartPoint> points_of(const RunLog& log, float RunLog::Step::*field) {
  std::vector<ChartPoint> points;
  points.reserve(log.steps.size());
  for (const RunLog::Step& s : log.steps)
    points.push_back({static_cast<double>(s.step), static_cast<double>(s.*field)});
  return points;
}

bool has_any(const std::vector<ChartPoint>& points) {
  return std::any_of(points.begin(), points.end(), [](const ChartPoint& p) { return std::isfinite(p.y); });
}

// Each step as a band, and its mean over a part of the run where there are enough of them.
void add_curve(Chart& chart, std::vector<ChartPoint> points, const char* each, const char* mean, int colour) {
  if (!has_any(points)) return;
  const std::size_t half = points.size() / kSmoothPart;
  std::vector<ChartPoint> line;
  if (points.size() >= kLeastForSmooth) line = smoothed(points, std::max<std::size_t>(half, 2));
  chart.series.push_back(
      {each, line.empty() ? ChartSeries::Kind::line : ChartSeries::Kind::band, colour, std::move(points)});
  if (!line.empty()) chart.series.push_back({mean, ChartSeries::Kind::line, colour, std::move(line)});
}

// Curves of one run share their axis of steps.
Chart chart_of(const RunLog& log, const char* title, const char* y_label, const char* empty = "") {
  return {.title = title,
          .x_label = "steps",
          .y_label = y_label,
          .x_high = log.steps.empty() ? 0 : static_cast<double>(log.steps.back().step),
          .empty = empty};
}

std::string curves(const RunLog& log) {
  std::string html = "<h2>Progress</h2>\n<section class=\"charts\">\n";
  Chart loss = chart_of(log, "Loss", "nats per token", "No step with a finite loss yet.");
  add_curve(loss, points_of(log, &RunLog::Step::loss), "each training step", "training, smoothed", 1);
  ChartSeries val{.name = "validation", .kind = ChartSeries::Kind::dots, .colour = 2};
  ChartSeries bpb{.name = "validation", .kind = ChartSeries::Kind::dots, .colour = 2};
  for (const RunLog::Eval& e : log.evals) {
    val.points.push_back({static_cast<double>(e.step), e.loss});
    if (e.bpb) bpb.points.push_back({static_cast<double>(e.step), *e.bpb});
  }
  Chart bits = chart_of(log, "Bits per byte", "bits per byte of validation text",
                        log.evals.empty()
                            ? "Not evaluated yet: --eval-every sets how often, and it is done at the end."
                            : "Evaluated on tokens whose bytes are not known: no bits per byte.");
  if (!val.points.empty()) loss.series.push_back(std::move(val));
  if (!bpb.points.empty()) bits.series.push_back(std::move(bpb));
  html += chart_html(loss);
  // The first steps fall so far that the others look flat beside them.
  if (log.steps.size() >= kLeastForHalf) {
    loss.title = "Loss, latter half";
    const std::size_t middle = log.steps.size() / 2;
    loss.x_low = static_cast<double>(log.steps[middle].step);
    html += chart_html(loss);
  }
  html += chart_html(bits) + "</section>\n<section class=\"charts pair\">\n";

  Chart norm = chart_of(log, "Gradient norm", "norm before clipping", "No step yet.");
  norm.from_zero = true;
  add_curve(norm, points_of(log, &RunLog::Step::norm), "each step", "smoothed", 1);
  Chart lr = chart_of(log, "Learning rate", "of the block matrices", "No step yet.");
  lr.from_zero = true;
  if (auto points = points_of(log, &RunLog::Step::lr); has_any(points))
    lr.series.push_back({"learning rate", ChartSeries::Kind::line, 3, std::move(points)});
  return html + chart_html(norm) + chart_html(lr) + "</section>\n";
}

std::string throughput(const RunLog& log) {
  Chart speed = chart_of(log, "Throughput", "tokens per second; warm-up steps left out",
                         "No measured step yet: the first two of a session are warm-up.");
  speed.y_numbers = ChartNumbers::counts;
  Chart mfu = chart_of(log, "MFU", "% of this device's peak");
  if (const RunLog::Start* start = log.start(); start != nullptr && start->peak_flops)
    mfu.y_label += fmt::format(", {:.1f} TFLOP/s", *start->peak_flops * 1e-12);
  speed.from_zero = mfu.from_zero = true;
  std::vector<ChartPoint> rate, share;
  for (const RunLog::Step& s : log.steps) {
    if (s.warmup) continue;
    rate.push_back({static_cast<double>(s.step), static_cast<double>(s.tokens_per_s)});
    share.push_back({static_cast<double>(s.step), 100 * static_cast<double>(s.mfu)});
  }
  add_curve(speed, std::move(rate), "each step", "smoothed", 1);
  add_curve(mfu, std::move(share), "each step", "smoothed", 3);
  std::string html = "<h2>Throughput</h2>\n<section class=\"charts\">\n" + chart_html(speed);
  if (!mfu.series.empty()) html += chart_html(mfu);
  html += "</section>\n";
  if (!log.throttle_steps.empty()) {
    std::string reasons;
    for (const auto& [reason, steps] : log.throttle_steps)
      reasons +=
          fmt::format("{}{} (in {} steps)", reasons.empty() ? "" : ", ", html_text(reason), thousands(steps));
    html += fmt::format("<p class=\"note\">The device held its clock down: {}.</p>\n", reasons);
  }
  return html;
}

std::string memory_rows(const char* title, std::vector<std::pair<std::string, std::int64_t>> rows,
                        std::optional<std::int64_t> total) {
  std::sort(rows.begin(), rows.end(), [](const auto& a, const auto& b) { return a.second > b.second; });
  std::int64_t sum = 0;
  for (const auto& [name, bytes] : rows) sum += bytes;
  const std::int64_t all = std::max<std::int64_t>({total.value_or(sum), sum, 1});
  std::string html = fmt::format("<div class=\"card\"><h3>{}</h3><table>\n", title);
  const auto row = [&](std::string_view name, std::int64_t bytes, const char* tag) {
    html += fmt::format(
        "<tr><{0}>{1}</{0}><td class=\"n\">{2}</td><td style=\"width:45%\"><div class=\"bar\"><i "
        "style=\"width:{3:.2f}%\"></i></div></td></tr>\n",
        tag, html_text(name), html_text(format_bytes(bytes)),
        100 * static_cast<double>(bytes) / static_cast<double>(all));
  };
  for (const auto& [name, bytes] : rows) row(name, bytes, "td");
  row("planned in all", total.value_or(sum), "th");
  return html + "</table>";
}

std::string memory(const RunLog& log) {
  std::string html = "<h2>Memory</h2>\n";
  const RunLog::Start* start = log.start();
  if (start == nullptr || (start->device_rows.empty() && !start->device_bytes)) {
    return html +
           "<div class=\"card\"><p class=\"empty\">The log does not hold the plan of this run, so there is "
           "nothing to compare. `qtrain plan` with the same options tells it.</p></div>\n";
  }
  html += memory_rows("Device", start->device_rows, start->device_bytes);
  if (log.device_used_bytes && start->device_bytes) {
    const std::int64_t used = *log.device_used_bytes, planned = *start->device_bytes;
    html += fmt::format("<p class=\"note\">In use at most: {}, {}.</p>", html_text(format_bytes(used)),
                        used <= planned
                            ? html_text(format_bytes(planned - used)) + " less than planned"
                            : html_text(format_bytes(used - planned)) +
                                  " more than planned, what other programs hold of the device included");
  } else if (log.device_used_bytes) {
    html += fmt::format("<p class=\"note\">In use at most: {}.</p>",
                        html_text(format_bytes(*log.device_used_bytes)));
  } else {
    html += "<p class=\"note\">What was in use was not measured.</p>";
  }
  html += "</div>\n";
  if (!start->host_rows.empty()) html += memory_rows("Host", start->host_rows, std::nullopt) + "</div>\n";
  return html;
}

std::string power(const RunLog& log, const RunStatus& s) {
  std::string html = "<h2>Power and cost</h2>\n";
  Chart watts = chart_of(log, "Power", "watts");
  watts.from_zero = true;
  add_curve(watts, points_of(log, &RunLog::Step::watts), "each step", "smoothed", 2);
  Chart celsius = chart_of(log, "Temperature", "°C");
  add_curve(celsius, points_of(log, &RunLog::Step::celsius), "each step", "smoothed", 1);
  if (!watts.series.empty()) {
    html +=
        fmt::format("<section class=\"charts{}\">\n{}{}</section>\n", celsius.series.empty() ? "" : " pair",
                    chart_html(watts), celsius.series.empty() ? "" : chart_html(celsius));
  }
  html += "<div class=\"card\"" + std::string(watts.series.empty() ? "" : " style=\"margin-top:.7rem\"") +
          "><table>\n";
  const auto row = [&](const char* name, const std::string& value) {
    html += fmt::format("<tr><th>{}</th><td>{}</td></tr>\n", name, html_text(value));
  };
  row("Energy", s.kwh            ? energy_text(*s.kwh) + ", over all sessions"
                : s.kwh_at_least ? "at least " + energy_text(*s.kwh_at_least) + ": a part was not measured"
                                 : "unknown");
  row("Cost", s.cost  ? money_text(*s.cost, s.currency)
              : s.kwh ? "unknown: the run was given no --price"
                      : "unknown, as the energy is");
  row("Power at the last step",
      s.watts           ? fmt::format("{:.0f} W", *s.watts)
      : s.watts_assumed ? fmt::format("{:g} W, not measured but given (--watts)", *s.watts_assumed)
                        : "unknown: nothing on this machine measures it");
  return html + "</table></div>\n";
}

std::string samples(const RunLog& log) {
  std::string html = "<h2>Samples</h2>\n";
  if (log.samples.empty())
    return html +
           "<div class=\"card\"><p class=\"empty\">None yet: --sample-every sets how often, and there is "
           "one at the end.</p></div>\n";
  std::size_t shown = 0;
  for (auto it = log.samples.rbegin(); it != log.samples.rend(); ++it, ++shown) {
    if (shown == kShownSamples) {
      html += fmt::format("<details><summary>{} earlier</summary>\n", log.samples.size() - kShownSamples);
    }
    html += fmt::format(
        "<div class=\"card\"><div class=\"step\">step {}</div><pre class=\"sample\" "
        "dir=\"auto\">{}</pre></div>\n",
        thousands(it->step), html_text(it->text));
  }
  return html + (shown > kShownSamples ? "</details>\n" : "");
}

std::string event_text(const RunLog::Event& e) {
  if (e.kind == "start") return "a session began" + (e.text.empty() ? "" : ": " + e.text);
  if (e.kind == "restore") return "went back to an earlier state: " + e.text;
  if (e.kind == "overflow") {
    return std::isnan(e.value)
               ? "a gradient overflowed; the window was left out"
               : fmt::format("a gradient overflowed at loss scale {:g}; the window was left out", e.value);
  }
  if (e.kind == "slow") return fmt::format("steps took {:.1f} times as long as usual", e.value);
  if (e.kind == "stop") return "stopped on request";
  if (e.kind == "done") return "done";
  if (e.kind == "diverged") return "gave up: " + e.text;
  return e.kind;
}

std::string events(const RunLog& log, const RunStatus& s) {
  std::string html = "<h2>Events</h2>\n<div class=\"card\">\n";
  std::string counts = fmt::format("<p>{}, {}, {}, {}, {}, {}", counted(s.restarts, "restart"),
                                   counted(log.restores, "restore"), counted(log.overflows, "overflow"),
                                   counted(log.skipped, "skipped step"), counted(log.slow, "slow-down"),
                                   counted(log.saves, "save"));
  if (log.lost_steps > 0)
    counts += fmt::format("; {} lost to kills or restores and done again", counted(log.lost_steps, "step"));
  html += counts + ".</p>\n";
  if (log.events.empty()) return html + "<p class=\"empty\">Nothing else is on record.</p></div>\n";
  const std::size_t shown = std::min(log.events.size(), kShownEvents);
  html += "<table class=\"events\">\n";
  for (std::size_t i = log.events.size(); i-- > log.events.size() - shown;) {
    const RunLog::Event& e = log.events[i];
    html += fmt::format("<tr><td class=\"t\">step {}{}</td><td class=\"w\">{}</td></tr>\n", thousands(e.step),
                        std::isnan(e.unix_s) ? std::string() : " · " + html_text(moment_text(e.unix_s)),
                        html_text(event_text(e)));
  }
  html += "</table>\n";
  if (shown < log.events.size())
    html += fmt::format("<p class=\"note\">The newest {} of {}.</p>\n", shown, log.events.size());
  return html + "</div>\n";
}

// Words with a hyphen stay on a line, so that a command can be read; to be copied it is text as any other.
std::string command_html(const std::string& command) {
  constexpr std::size_t kMostOnALine = 32;
  std::string html;
  for (std::size_t at = 0; at < command.size();) {
    const std::size_t end = std::min(command.find(' ', at), command.size());
    const std::string word = html_text(std::string_view(command).substr(at, end - at));
    html += end - at <= kMostOnALine ? "<span class=\"word\">" + word + "</span>" : word;
    if (end < command.size()) html += ' ';
    at = end + 1;
  }
  return html;
}

std::string configuration(const RunFacts& facts) {
  std::string html = "<h2>Configuration</h2>\n";
  const RunLog::Start* start = facts.log.start();
  if (start != nullptr && !start->command.empty())
    html += fmt::format("<div class=\"card\"><pre>{}</pre></div>\n", command_html(start->command));
  if (facts.options.empty()) {
    return html +
           "<div class=\"card\"><p class=\"empty\">All options are stored with the first checkpoint; there is "
           "none yet that can be read.</p></div>\n";
  }
  const Options defaults;
  std::string set, rest;
  for (const auto& [name, value] : facts.options) {
    const OptionSpec* spec = find_option(name);
    const bool is_default = spec != nullptr && option_text(defaults, *spec) == value;
    (is_default ? rest : set) +=
        fmt::format("<tr><th>{}</th><td class=\"w\">{}</td></tr>\n", html_text(name),
                    value.empty() ? "<span class=\"empty\">empty</span>" : html_text(value));
  }
  html += "<div class=\"card\"><h3>Other than the defaults</h3>" +
          (set.empty() ? "<p class=\"empty\">Nothing.</p>"
                       : "<div class=\"columns\"><table>\n" + set + "</table></div>");
  return html + "<details><summary>Defaults</summary><div class=\"columns\"><table>\n" + rest +
         "</table></div></details></div>\n";
}

}  // namespace

std::string report_html(const RunFacts& facts, const RunStatus& s) {
  const RunLog& log = facts.log;
  std::string body = header(facts, s) + tiles(facts, s);
  body += curves(log) + throughput(log) + memory(log) + power(log, s) + samples(log) + events(log, s) +
          configuration(facts);
  body += fmt::format("<footer>Made by qtrain from {} on {}.{}</footer>\n", html_text(facts.folder),
                      html_text(moment_text(static_cast<double>(facts.now_unix_s))),
                      log.steps.empty() ? " The log holds no step yet." : "");
  return html_page(name_of_run(facts) + " · qtrain report", body);
}

}  // namespace qt
