#include "src/plan/estimate_text.h"

#include <cmath>
#include <ctime>

#include <fmt/chrono.h>

#include "src/core/log.h"
#include "src/core/units.h"
#include "src/model/family.h"

namespace qt {

namespace {

constexpr double kTera = 1e12;

std::string days_text(double days) {
  if (days < 1) return format_duration(days * kSecondsPerDay);
  return fmt::format("{:.1f} d", days);
}

// "90.1 d", or where there is a difference to be seen "90.1 to 101.2 d".
template <class Text>
std::string range_text(Range r, Text text) {
  const std::string low = text(r.low), high = text(r.high);
  return low == high ? low : low + " to " + high;
}

std::string share_text(Range r) {
  return range_text(r, [](double share) { return fmt::format("{:.0f} %", 100 * share); });
}

// The day of a moment `days` ahead; dates further away than this mean nothing.
constexpr double kMostDays = 36525;
std::string date_text(std::int64_t now_unix_s, double days) {
  if (!(days < kMostDays)) return "in more than a century";
  const auto then = static_cast<std::time_t>(now_unix_s + std::llround(days * kSecondsPerDay));
  return fmt::format("{:%Y-%m-%d}", fmt::gmtime(then));
}

std::string time_range_text(Range seconds) {
  return seconds.low > 0 ? range_text(seconds, format_duration) : "up to " + format_duration(seconds.high);
}

std::string memory_text(const Plan& run) {
  std::string text, missing;
  for (const Verdict& v : run.verdicts) {
    if (!v.available_bytes) continue;
    std::string part = fmt::format("{} of {} on the {}", format_bytes(v.needed_bytes),
                                   format_bytes(*v.available_bytes), resource_name(v.resource));
    std::string& list = v.fits ? text : missing;
    list += (list.empty() ? "" : ", ") + std::move(part);
  }
  if (!missing.empty())
    return fmt::format("DOES NOT FIT: {}; `qtrain plan` tells what would. The times below pretend it did",
                       missing);
  return text.empty() ? fmt::format("{} on the device", format_bytes(run.device_bytes)) : "fits: " + text;
}

void append_counts(std::string& text, const Plan& run, const Estimate& e) {
  const double peak = *e.peak_flops;
  const Range rate = *e.rate_flops;
  const bool one_rate = rate.high - rate.low < 1e-3 * rate.high;
  const auto at = [&](double flops, double rate_flops) {
    return days_text(flops / rate_flops / kSecondsPerDay);
  };
  const auto heading = [&](double r) { return fmt::format("at {:.1f} T/s", r / kTera); };
  const auto row = [&](const char* name, double flops) {
    text +=
        fmt::format("    {:<44} {:>10.3e} {:>13} {:>13}", name, flops, at(flops, peak), at(flops, rate.high));
    if (!one_rate) text += fmt::format(" {:>13}", at(flops, rate.low));
    text += "\n";
  };
  text += fmt::format("\n    {:<44} {:>10} {:>13} {:>13}", "operations", "in all", "100 % of peak",
                      heading(rate.high));
  if (!one_rate) text += fmt::format(" {:>13}", heading(rate.low));
  text += "\n";
  row("nanochat's count, what MFU is quoted in", e.flops_total);
  row("the same, every block's forward twice", e.flops_total_recompute);
  row("what this program executes: the floor", e.executed_flops_total);
  text += fmt::format(
      "\n    nanochat counts attention as a full square and nothing twice. Executed are its causal tiles, seven\n"
      "    products in its backward pass, {}and evaluation.\n"
      "    No estimate is below the floor at 100 % of the peak.\n",
      run.config.engine.layout.checkpoint_activations ? "every block's forward again (--ckpt-activations), "
                                                      : "");
}

void append_parts(std::string& text, const Plan& run, const Estimate& e, const EstimateView& view) {
  text += fmt::format("    {:<22} {}\n", e.measured ? "steps, as measured" : "forward and backward",
                      time_range_text(e.training_s));
  if (e.expansion_s.high > 0) {
    text += fmt::format("    {:<22} {} (hidden inside products, or not)\n", "expanding weights",
                        time_range_text(e.expansion_s));
  }
  if (!e.measured) {
    text +=
        fmt::format("    {:<22} {}\n", run.config.engine.optim.paged ? "optimizer and paging" : "optimizer",
                    time_range_text(e.paging_s));
  }
  text += fmt::format("    {:<22} {}{}\n", "evaluation", time_range_text(e.evaluation_s),
                      view.eval_tokens_assumed
                          ? fmt::format(" ({} tokens each assumed; without --eval-tokens it is "
                                        "the whole validation split)",
                                        format_count(kAssumedEvalTokens))
                          : "");
  const std::string disk = e.disk_measured_bytes_s > 0
                               ? fmt::format("{:.2g} GB/s, measured", e.disk_measured_bytes_s * 1e-9)
                               : std::string("2 to 0.5 GB/s, assumed");
  text += fmt::format("    {:<22} {} (disk at {})\n", "saves", time_range_text(e.saves_s), disk);
}

std::string energy_range_text(const EstimateInput& in, const Estimate& e) {
  const auto kwh = [](double x) {
    return x < 0.01 ? fmt::format("{:.2g}", x) : fmt::format("{:.{}f}", x, x < 10 ? 2 : 0);
  };
  return fmt::format("{} kWh at {:g} W ({})", range_text(*e.kwh, kwh), *e.watts,
                     e.watts_given || in.card == nullptr
                         ? "--watts"
                         : "the card's board power alone: the machine around it takes more; --watts W");
}

void append_money(std::string& text, const EstimateInput& in, const Estimate& e, const EstimateView& view) {
  if (!e.kwh) {
    text += "  energy      unknown: --watts W, best measured at the wall\n";
    return;
  }
  text += fmt::format("  energy      {}\n", energy_range_text(in, e));
  text += fmt::format("  cost        {}\n",
                      view.price ? cost_text(*e.kwh, *view.price) : "--price, as 3.5TWD for a kWh");
}

void append_claim(std::string& text, const Estimate& e, const EstimateView& view) {
  const Claim& c = *view.claim;
  const double factor = claim_factor(e.flops_total, c), needed_days = c.days * factor;
  const double needed_flops = c.tflops * kTera * factor;
  text += fmt::format("\n  claim: {:g} TFLOP/s and {:g} days\n", c.tflops, c.days);
  if (factor > 1) {
    text += fmt::format(
        "    contradicts itself by a factor of {:.1f}:\n"
        "    at {:g} TFLOP/s these {} tokens take {:.1f} days",
        factor, c.tflops, format_count(e.tokens), needed_days);
    text += fmt::format(" ({:.1f} with every block's forward twice)\n",
                        needed_days * e.flops_total_recompute / e.flops_total);
    text += fmt::format("    in {:g} days that rate trains on {} tokens, {:.0f} % of them\n", c.days,
                        format_count(std::llround(static_cast<double>(e.tokens) / factor)), 100 / factor);
  } else {
    text += fmt::format("    agrees with itself: that rate needs {:.1f} days for these {} tokens\n",
                        needed_days, format_count(e.tokens));
  }
  text += fmt::format("    {:g} days need {:.1f} TFLOP/s", c.days, needed_flops / kTera);
  if (e.peak_flops) text += fmt::format(", {:.2f} times the card's peak", needed_flops / *e.peak_flops);
  text += " (nanochat's count, nothing computed twice)\n";
  if (e.peak_flops && c.tflops * kTera > *e.peak_flops) {
    text += fmt::format("    the rate itself is {:.1f} times the card's peak\n",
                        c.tflops * kTera / *e.peak_flops);
  }
  if (c.kwh <= 0) return;
  const double claimed_watts = c.kwh * 1000 / (c.days * 24);
  text += fmt::format("    {:g} kWh in {:g} days are {:.0f} W; at that power the {:.1f} days take {:.0f} kWh",
                      c.kwh, c.days, claimed_watts, needed_days, energy_kwh(needed_days, claimed_watts));
  if (e.watts) {
    text += fmt::format(", at {:g} W {:.0f} kWh: {:.1f} times the claim", *e.watts,
                        energy_kwh(needed_days, *e.watts), energy_kwh(needed_days, *e.watts) / c.kwh);
  }
  text += "\n";
}

}  // namespace

std::string estimate_text(const Plan& run, const EstimateInput& in, const Estimate& e,
                          const EstimateView& view) {
  const ModelConfig& m = run.config.engine.model;
  std::string text =
      fmt::format("  model       {} {}: {} parameters ({} in blocks), {:.4g} GFLOP per token\n",
                  m.family->name, m.name, format_thousands(m.param_count()),
                  format_thousands(m.matrix_params()), m.model_flops_per_token() * 1e-9);
  text += fmt::format("  tokens      {} = {} steps x {}\n", format_thousands(e.tokens),
                      format_thousands(e.steps), format_thousands(run.config.engine.step_tokens()));
  if (in.card != nullptr) {
    const Card& c = *in.card;
    text += fmt::format("  card        {}: {}, {:.0f} GB/s ({}), {:g} W\n              {}\n", c.driver_name,
                        format_bytes(c.memory_bytes), c.bandwidth_bytes_s() * 1e-9, c.bandwidth_derivation(),
                        c.board_watts, c.pcie_derivation());
    text +=
        fmt::format("  peak        {:.1f} TFLOP/s, dense 16-bit products with f32 sums:\n              {}\n",
                    c.peak_flops() / kTera, c.peak_derivation());
  }
  text += fmt::format("  memory      {}\n  efficiency  {}", memory_text(run),
                      e.measured ? "measured" : "assumed");
  if (e.peak_flops) {
    const Range share{.low = e.rate_flops->low / *e.peak_flops, .high = e.rate_flops->high / *e.peak_flops};
    text += fmt::format(", {} of the peak", share_text(share));
  }
  text += fmt::format(": {}\n", view.efficiency_why);
  if (e.peak_flops) append_counts(text, run, e);

  text += fmt::format("\n  step        {}", time_range_text(e.step_s));
  if (e.peak_flops)
    text += fmt::format("; {} at 100 % of the peak by nanochat's count",
                        format_duration(e.flops_step / *e.peak_flops));
  text += fmt::format("\n  time        {}\n", range_text(e.days, days_text));
  append_parts(text, run, e, view);
  if (e.held_at_floor) text += "    the rate is above the card's peak: held at the floor\n";
  text += fmt::format("  finish      {}, if it starts now and never waits\n",
                      range_text(e.days, [&](double d) { return date_text(view.now_unix_s, d); }));
  append_money(text, in, e, view);
  if (view.claim) append_claim(text, e, view);
  return text;
}

std::string cost_text(Range kwh, const Price& price) {
  return fmt::format("{} {} at {:g} {} a kWh",
                     range_text({kwh.low * price.per_kwh, kwh.high * price.per_kwh},
                                [](double x) { return fmt::format("{:.2f}", x); }),
                     price.currency, price.per_kwh, price.currency);
}

std::string outlook_text(const EstimateInput& in, const std::optional<Estimate>& e,
                         const EstimateView& view) {
  if (!e) return "  time       not known before steps were measured: the column ETA tells then\n";
  std::string text =
      fmt::format("  time       {} {}: {}\n  finish     {}, if it never waits\n",
                  range_text(e->days, days_text), e->measured ? "measured" : "assumed", view.efficiency_why,
                  range_text(e->days, [&](double d) { return date_text(view.now_unix_s, d); }));
  if (e->kwh) {
    text += fmt::format("  energy     {}\n", energy_range_text(in, *e));
    if (view.price) text += fmt::format("  cost       {}\n", cost_text(*e->kwh, *view.price));
  }
  return text;
}

std::string estimate_json(const Plan& run, const EstimateInput& in, const Estimate& e,
                          const EstimateView& view) {
  JsonRecord json;
  const auto number = [&](const char* key, std::optional<double> value) {
    if (value)
      json.add(key, *value);
    else
      json.add_raw(key, "null");
  };
  const auto text = [&](const char* key, const std::string& value) {
    if (value.empty())
      json.add_raw(key, "null");
    else
      json.add(key, value);
  };
  const auto low = [](const std::optional<Range>& r) { return r ? std::optional(r->low) : std::nullopt; };
  const auto high = [](const std::optional<Range>& r) { return r ? std::optional(r->high) : std::nullopt; };
  json.add("flops_total", e.flops_total).add("executed_flops_total", e.executed_flops_total);
  number("limit_days", e.limit_days);
  number("limit_days_recompute", e.limit_days_recompute);
  number("floor_days", e.floor_days);
  json.add("days_low", e.days.low).add("days_high", e.days.high);
  number("kwh_low", low(e.kwh));
  number("kwh_high", high(e.kwh));
  json.add("efficiency_source", e.measured ? "measured" : "assumed");
  text("card", in.card == nullptr ? "" : in.card->name);
  number("peak_flops", e.peak_flops);
  number("rate_flops_low", low(e.rate_flops));
  number("rate_flops_high", high(e.rate_flops));
  json.add("flops_total_recompute", e.flops_total_recompute).add("tokens", e.tokens).add("steps", e.steps);
  number("limit_step_seconds", e.peak_flops ? std::optional(e.flops_step / *e.peak_flops) : std::nullopt);
  json.add("step_seconds_low", e.step_s.low).add("step_seconds_high", e.step_s.high);
  number("watts", e.watts);
  const bool priced = e.kwh && view.price;
  number("cost_low", priced ? std::optional(e.kwh->low * view.price->per_kwh) : std::nullopt);
  number("cost_high", priced ? std::optional(e.kwh->high * view.price->per_kwh) : std::nullopt);
  text("currency", view.price ? view.price->currency : "");
  number("claim_factor", view.claim ? std::optional(claim_factor(e.flops_total, *view.claim)) : std::nullopt);
  json.add("fits", run.fits()).add("device_bytes", run.device_bytes);
  return json.str();
}

std::string compare_text(const CompareTable& table) {
  std::string text = fmt::format("  {:<34} {:>4} {:>9} {:>10} {:>18} {:>14} {:>7}\n", "", "fits", "device",
                                 fmt::format("at {:.1f} T", table.rate_flops / kTera), "days", "kWh", "loss");
  for (const CompareRow& row : table.rows) {
    const auto plain = [](double x) { return fmt::format("{:.{}f}", x, x < 10 ? 1 : 0); };
    const auto one = [](double x) { return fmt::format("{:.1f}", x); };
    text += fmt::format("  {:<34} {:>4} {:>9} {:>10.1f} {:>18} {:>14} {:>7}\n", row.name,
                        row.fits ? "yes" : "NO", format_bytes(row.device_bytes), row.counted_days,
                        range_text(row.days, one), row.kwh ? range_text(*row.kwh, plain) : "unknown",
                        std::abs(row.loss) < 5e-4 ? "0" : fmt::format("{:+.3f}", row.loss));
    if (!row.options.empty()) text += fmt::format("      {}\n", row.options);
  }
  text += fmt::format(
      "\n  device: of {} there. at {:.1f} T: days at {:.1f} TFLOP/s by nanochat's count. days: as executed, with all\n"
      "  that comes on top. loss: nats per token above the first row, expected from a published fit of quantized\n"
      "  training (QuEST), good to 30 % and not measured here; docs/estimate.md tells more.\n",
      format_bytes(table.available_bytes), table.rate_flops / kTera, table.rate_flops / kTera);
  for (const std::string& note : table.notes) text += fmt::format("  {}\n", note);
  return text;
}

}  // namespace qt
