// Estimate: days, energy and cost of a planned run. Pure arithmetic on a plan, a card and what is assumed or
// was measured; it reads nothing, prints nothing and knows no clock.
//
// Two counts of operations are kept apart. Nanochat's, in which MFU is quoted: attention as a full square,
// nothing computed twice, no evaluation. And what the kernels of this program execute, which the plan's
// rehearsal counts: causal tiles, recomputed blocks, the seven products of attention's backward, evaluation.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "src/core/range.h"
#include "src/meter/cards.h"
#include "src/plan/planner.h"
#include "src/train/time_ahead.h"

namespace qt {

// What an hour of a kilowatt costs, in whatever the user pays with.
struct Price {
  double per_kwh = 0;
  std::string currency;  // "TWD", as typed
};

// "3.5TWD", "0.30 EUR", "$0.15", "3.5 TWD/kWh". `label` names the option in messages. ConfigError.
Price parse_price(std::string_view text, std::string_view label);

// What --price says; nothing where it says nothing. ConfigError.
std::optional<Price> price_given(std::string_view text);

// A number above zero and not above `most`, with its unit or without: "225", "225W". ConfigError.
double parse_positive(std::string_view text, std::string_view label, std::string_view unit, double most);

// What --watts says: 0 where it says nothing. ConfigError.
double watts_given(std::string_view text);

// "70%", "0.7", "45TFLOP/s", and each as a range, "60-80%": the share of peak_flops (> 0) at which operations
// are executed. ConfigError for what is not above 0 or is above the peak.
Range parse_efficiency(std::string_view text, double peak_flops, std::string_view label);

// Of a card that nothing was measured on: the share of the peak at which a whole step's operations run. The
// upper end is what others' tuned trainers report on such cards (0.69 to 0.85); kernels that leave more to be
// done reach half.
inline constexpr Range kAssumedEfficiency{.low = 0.50, .high = 0.80};

// The size of an evaluation where --eval-tokens does not tell: nanochat's 20 steps of 524,288 tokens. Without
// it a run evaluates its whole validation split, and its size is not known yet.
inline constexpr std::int64_t kAssumedEvalTokens = 20 * 524288;

// Micro-batches of one evaluation.
double evaluation_batches(const Plan& run, std::int64_t eval_tokens);

// What a checkpoint is written at, the whole way to the platter: an ordinary and a fast solid-state disk.
inline constexpr double kDiskBytesPerSecond = 5e8, kFastDiskBytesPerSecond = 2e9;
// What a save takes at these.
Range save_seconds(const Plan& run);

struct EstimateInput {
  const Card* card = nullptr;  // nullptr: a device with an unknown peak
  Range efficiency = kAssumedEfficiency;
  // The efficiency is that of whole steps that were measured, without the least their copies take: what
  // expansion and copies took beyond that is in it, and is not counted again.
  bool efficiency_of_steps = false;
  std::optional<Range> step_seconds;  // measured whole steps: they take the place of card and efficiency
  std::optional<Range> evaluation_seconds;        // measured, of one evaluation; absent: at the rate of steps
  double weight_bits = 0;                         // per weight of a block as stored; 0: the plan's format
  std::int64_t eval_every = 0;                    // steps; 0: only at the end
  std::int64_t eval_tokens = kAssumedEvalTokens;  // of one evaluation
  double disk_bytes_s = 0;                        // measured while saving; 0: a range is assumed
  std::int64_t save_every = 0;                    // steps; 0: so that saving takes at most 1 % of the time
  std::int64_t steps_done = 0;  // of a run that has begun: times and energy are of what is ahead
  double watts = 0;             // drawn while it runs; 0: the card's board power, unknown without a card
};

inline constexpr double kSecondsPerDay = 86400;

// Of the whole run unless said otherwise. What depends on a peak is absent where there is none.
struct Estimate {
  std::int64_t steps = 0;
  std::int64_t tokens = 0;
  double flops_total = 0;            // by nanochat's count
  double flops_total_recompute = 0;  // the same with every block's forward pass twice
  double executed_flops_total = 0;   // evaluation included
  double executed_flops_step = 0;    // one step
  double flops_step = 0;             // one step by nanochat's count
  std::optional<double> peak_flops;
  std::optional<double> limit_days, limit_days_recompute;  // by nanochat's count at 100 % of the peak
  std::optional<double> floor_days;  // executed_flops_total / peak: no estimate is below
  std::optional<Range> rate_flops;   // executed operations per second; low is the slower
  Range step_s;
  bool measured = false;

  // Parts of the time, seconds: low is the sooner.
  Range training_s;   // products and what hides behind them
  Range expansion_s;  // packed weights to 16 bits and back out of the way; 0: hidden inside the products
  Range paging_s;     // master and moments in and out of the device
  Range evaluation_s;
  Range saves_s;
  double disk_measured_bytes_s = 0;  // 0: assumed
  bool held_at_floor = false;        // what was measured or assumed is faster than the peak allows
  Range days;

  std::optional<double> watts;
  bool watts_given = false;
  std::optional<Range> kwh;
};

Estimate estimate_run(const Plan& run, const EstimateInput& input);

// Energy of `days` at `watts`.
inline double energy_kwh(double days, double watts) { return days * 24 * watts * 1e-3; }

// By which factor a claim contradicts itself: the time that `flops` operations take at the claimed rate, over
// the claimed time.
struct Claim {
  double tflops = 0;
  double days = 0;
  double kwh = 0;  // 0: none
};
double claim_factor(double flops, const Claim& claim);

// Loss in nats per token by which a model of `params` weights in blocks, trained on `tokens`, is expected to
// lie above that of `reference_*` with 16-bit weights. From a published scaling fit of weights quantized
// through straight-through gradients; good to some 30 %, and not measured with qtrain. bits: 16, 4.5, 3.125
// or 2.625.
double expected_loss_cost(double params, double tokens, double bits, double reference_params,
                          double reference_tokens);

}  // namespace qt
