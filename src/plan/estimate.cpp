#include "src/plan/estimate.h"

#include <algorithm>
#include <cmath>

#include "src/core/error.h"
#include "src/core/units.h"

namespace qt {

namespace {

constexpr double kScratchBytes = 2;  // of a weight in 16 bits
constexpr double kMostWatts = 100'000;

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  while (!text.empty() && text.back() == ' ') text.remove_suffix(1);
  return text;
}

// What one optimizer step takes, in the parts that a card's figures tell.
struct StepParts {
  Range products, expansion, paging;
};

StepParts parts_of_step(const Plan& run, const EstimateInput& in) {
  const Card& card = *in.card;
  const Rehearsed& plan = run.rehearsed;
  const auto micro_batches = static_cast<double>(run.config.engine.accumulation);
  const double bandwidth = card.bandwidth_bytes_s();
  const auto moved = [&](const BackendTotals& t) { return (t.read_bytes + t.written_bytes) / bandwidth; };

  StepParts parts;
  // A micro-batch waits for its operations or for its memory, whichever takes longer.
  const auto micro_batch = [&](double efficiency) {
    const double operations = plan.micro_step.executed_flops / (efficiency * card.peak_flops());
    return micro_batches * std::max(operations, moved(plan.micro_step));
  };
  parts.products = {.low = micro_batch(in.efficiency.high), .high = micro_batch(in.efficiency.low)};

  // The optimizer comes after the last micro-batch, so nothing hides its copies; the ways in and out run side
  // by side at best, one after the other at worst. Its operations are few and wait for memory.
  const double in_s = plan.optimizer_step.host_to_device_bytes / card.pcie_bytes_s();
  const double out_s = plan.optimizer_step.device_to_host_bytes / card.pcie_bytes_s();
  const double memory_s = moved(plan.optimizer_step);
  parts.paging = {.low = std::max({in_s, out_s, memory_s}), .high = in_s + out_s + memory_s};
  if (in.efficiency_of_steps) {
    parts.paging.high = parts.paging.low;
    return parts;
  }

  // Forward and the gradient of the input read the weights; recomputing reads them once more. At worst every
  // read writes the weight in 16 bits first, at best that hides inside the products.
  if (run.config.engine.layout.weights != FormatId::none) {
    const double bits =
        in.weight_bits > 0 ? in.weight_bits : format_info(run.config.engine.layout.weights).bits_per_weight;
    const double passes = run.config.engine.layout.checkpoint_activations ? 3 : 2;
    const auto weights = static_cast<double>(run.config.engine.model.matrix_params());
    parts.expansion.high = micro_batches * passes * weights * (bits / 8 + kScratchBytes) / bandwidth;
  }
  return parts;
}

}  // namespace

Price parse_price(std::string_view text, std::string_view label) {
  const auto refuse = [&] {
    return ConfigError(fmt::format("{}: '{}' is not a price", label, text),
                       "write what a kWh costs and in which currency, like 3.5TWD, 0.30EUR or $0.15");
  };
  constexpr std::string_view kPerKwh = "/kWh";
  constexpr std::size_t kLongest = 16;
  std::string_view rest = trimmed(text);
  if (rest.ends_with(kPerKwh)) rest = trimmed(rest.substr(0, rest.size() - kPerKwh.size()));
  const std::size_t digit = rest.find_first_of("0123456789.");
  if (digit == std::string_view::npos) throw refuse();
  const std::string_view before = trimmed(rest.substr(0, digit));
  rest.remove_prefix(digit);
  const std::optional<double> number = take_number(rest);
  const std::string_view after = trimmed(rest);
  if (!number || *number > 1e9 || before.empty() == after.empty()) throw refuse();
  const std::string_view currency = before.empty() ? after : before;
  // Letters and signs of any script; what would break a line, a table or JSON is none.
  const auto is_part = [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte > ' ' && byte != 0x7F &&
           std::string_view("0123456789.,+-\"\\").find(c) == std::string_view::npos;
  };
  if (currency.size() > kLongest || !std::all_of(currency.begin(), currency.end(), is_part)) throw refuse();
  return {.per_kwh = *number, .currency = std::string(currency)};
}

std::optional<Price> price_given(std::string_view text) {
  if (text.empty()) return std::nullopt;
  return parse_price(text, "--price");
}

double parse_positive(std::string_view text, std::string_view label, std::string_view unit, double most) {
  std::string_view rest = text;
  const std::optional<double> value = take_number(rest);
  if (!value || !(rest.empty() || rest == unit) || !(*value > 0) || *value > most) {
    throw ConfigError(fmt::format("{}: '{}' is not a number above zero", label, text),
                      fmt::format("write it as 225 or 225{}; at most {:g}", unit, most));
  }
  return *value;
}

double watts_given(std::string_view text) {
  return text.empty() ? 0.0 : parse_positive(text, "--watts", "W", kMostWatts);
}

Range parse_efficiency(std::string_view text, double peak_flops, std::string_view label) {
  const auto refuse = [&] {
    return ConfigError(fmt::format("{}: '{}' is not an efficiency", label, text),
                       "write a share of the card's peak or a rate, like 70%, 0.7, 45TFLOP/s or 60-80%");
  };
  std::string_view rest = trimmed(text);
  const std::optional<double> first = take_number(rest);
  if (!first) throw refuse();
  std::optional<double> second = first;
  rest = trimmed(rest);
  if (rest.starts_with('-')) {
    rest = trimmed(rest.substr(1));
    second = take_number(rest);
    if (!second) throw refuse();
  }
  const std::string_view unit = trimmed(rest);
  const bool rate = unit == "TFLOP/s" || unit == "TFLOPS" || unit == "TFLOP" || unit == "T";
  if (!rate && unit != "%" && !unit.empty()) throw refuse();
  const double factor = rate ? 1e12 / peak_flops : unit == "%" ? 0.01 : 1.0;
  const Range share = times({.low = *first, .high = *second}, factor);
  if (!(share.low > 0) || share.high < share.low) throw refuse();
  if (share.high > 1) {
    throw ConfigError(
        fmt::format("{} {} is above the card's peak of {:.1f} TFLOP/s", label, text, peak_flops * 1e-12),
        "a share of 70% is written with its sign; peaks of advertisements are for 8 or 4 bits, or "
        "for matrices half of zeros");
  }
  return share;
}

double evaluation_batches(const Plan& run, std::int64_t eval_tokens) {
  return std::ceil(static_cast<double>(eval_tokens) /
                   static_cast<double>(run.config.engine.micro_batch_tokens()));
}

Range save_seconds(const Plan& run) {
  const auto checkpoint = static_cast<double>(run.checkpoint_bytes);
  return {.low = checkpoint / kFastDiskBytesPerSecond, .high = checkpoint / kDiskBytesPerSecond};
}

Estimate estimate_run(const Plan& run, const EstimateInput& in) {
  Estimate e;
  const ModelConfig& model = run.config.engine.model;
  const auto step_tokens = static_cast<double>(run.config.engine.step_tokens());
  e.steps = run.config.steps;
  e.tokens = run.config.steps * run.config.engine.step_tokens();
  const auto tokens = static_cast<double>(e.tokens);
  e.flops_step = model.model_flops_per_token() * step_tokens;
  e.flops_total = model.model_flops_per_token() * tokens;
  // A third of what blocks do, embedding and head left out: two operations a weight, and the full square.
  const double forward_of_blocks =
      2.0 * static_cast<double>(model.matrix_params()) +
      4.0 * static_cast<double>(model.n_layer * model.q_width()) * static_cast<double>(model.seq_len);
  e.flops_total_recompute = e.flops_total + forward_of_blocks * tokens;

  const double eval_batches = evaluation_batches(run, in.eval_tokens);
  WorkAhead work{.step = in.steps_done,
                 .steps = e.steps,
                 .eval_every = in.eval_every,
                 .save_every = in.save_every,
                 .evaluates = in.eval_tokens > 0,
                 .save_s = save_seconds(run),
                 .step_flops = run.rehearsed.train_step(run.config.engine.accumulation).executed_flops,
                 .evaluation_flops = eval_batches * run.rehearsed.eval_step.executed_flops};
  e.executed_flops_step = work.step_flops;
  WorkAhead whole = work;
  whole.step = 0;
  e.executed_flops_total = time_ahead(whole).flops;

  Range rate;
  if (in.card != nullptr) {
    const double peak = in.card->peak_flops();
    e.peak_flops = work.peak_flops = peak;
    e.limit_days = e.flops_total / peak / kSecondsPerDay;
    e.limit_days_recompute = e.flops_total_recompute / peak / kSecondsPerDay;
    e.floor_days = e.executed_flops_total / peak / kSecondsPerDay;
    rate = times(in.efficiency, peak);
  }
  if (in.step_seconds) {
    e.measured = true;
    e.step_s = *in.step_seconds;
    rate = {.low = e.executed_flops_step / e.step_s.high, .high = e.executed_flops_step / e.step_s.low};
  } else {
    QT_CHECK(in.card != nullptr, ConfigError, "an estimate needs a card, or times that were measured");
    const StepParts parts = parts_of_step(run, in);
    e.step_s = plus(plus(parts.products, parts.expansion), parts.paging);
    const auto steps_ahead = static_cast<double>(e.steps - in.steps_done);
    e.training_s = times(parts.products, steps_ahead);
    e.expansion_s = times(parts.expansion, steps_ahead);
    e.paging_s = times(parts.paging, steps_ahead);
  }
  e.rate_flops = rate;
  work.step_s = e.step_s;
  work.evaluation_s = {.low = work.evaluation_flops / rate.high, .high = work.evaluation_flops / rate.low};
  if (in.evaluation_seconds) work.evaluation_s = *in.evaluation_seconds;
  e.disk_measured_bytes_s = in.disk_bytes_s;
  if (in.disk_bytes_s > 0) {
    const double save_s = static_cast<double>(run.checkpoint_bytes) / in.disk_bytes_s;
    work.save_s = {.low = save_s, .high = save_s};
  }
  const TimeAhead ahead = time_ahead(work);
  if (e.measured) e.training_s = ahead.training_s;
  e.evaluation_s = ahead.evaluation_s;
  e.saves_s = ahead.saves_s;
  e.held_at_floor = ahead.held_at_floor;
  e.days = {.low = ahead.total_s.low / kSecondsPerDay, .high = ahead.total_s.high / kSecondsPerDay};

  e.watts_given = in.watts > 0;
  if (e.watts_given)
    e.watts = in.watts;
  else if (in.card != nullptr)
    e.watts = in.card->board_watts;
  if (e.watts)
    e.kwh = Range{.low = energy_kwh(e.days.low, *e.watts), .high = energy_kwh(e.days.high, *e.watts)};
  return e;
}

double claim_factor(double flops, const Claim& claim) {
  return flops / (claim.tflops * 1e12) / (claim.days * kSecondsPerDay);
}

double expected_loss_cost(double params, double tokens, double bits, double reference_params,
                          double reference_tokens) {
  // L = A / (N eff)^alpha + B / D^beta + E, fitted to models of 30 to 200 million weights trained with 4, 3,
  // 2 and 1 bits (QuEST); eff is by how much fewer weights would do in 16 bits. 2.625 bits lie between two of
  // the fit.
  constexpr double kA = 8.134, kAlpha = 0.0627, kB = 86.4, kBeta = 0.2413;
  const double eff = bits >= 16 ? 1.0 : bits >= 4 ? 0.840 : bits >= 3 ? 0.653 : 0.52;
  const auto loss = [&](double n, double d) { return kA / std::pow(n, kAlpha) + kB / std::pow(d, kBeta); };
  return loss(params * eff, tokens) - loss(reference_params, reference_tokens);
}

}  // namespace qt
