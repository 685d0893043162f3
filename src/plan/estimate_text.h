// What `qtrain estimate` shows: a screen, one line of JSON, the table of --compare. Text only.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/plan/estimate.h"

namespace qt {

// Beside the numbers: where they come from, and what the user wants to see them in.
struct EstimateView {
  std::string efficiency_why;  // "no card was measured; ..."
  std::optional<Price> price;
  std::optional<Claim> claim;
  std::int64_t now_unix_s = 0;  // dates are in UTC
  bool eval_tokens_assumed = false;
};

std::string estimate_text(const Plan& run, const EstimateInput& in, const Estimate& e,
                          const EstimateView& view);

// The lines of a start screen: the time that is left, with the day it ends and where that comes from, its
// energy and its cost. Without an estimate: that nothing was measured yet.
std::string outlook_text(const EstimateInput& in, const std::optional<Estimate>& e, const EstimateView& view);

// "1.05 TWD at 3.5 TWD a kWh"
std::string cost_text(Range kwh, const Price& price);

// Keys are frozen: flops_total, executed_flops_total, limit_days, limit_days_recompute, floor_days, days_low,
// days_high, kwh_low, kwh_high, efficiency_source ("measured" or "assumed") and those after them. What is not
// known is null.
std::string estimate_json(const Plan& run, const EstimateInput& in, const Estimate& e,
                          const EstimateView& view);

// One choice beside others. Days by nanochat's count are at the high end of the rates.
struct CompareRow {
  std::string name;     // "d32 in 16 bits"
  std::string options;  // what to change; empty: nothing. In parentheses: not to be typed
  bool fits = false;
  std::int64_t device_bytes = 0;
  double counted_days = 0;
  Range days;
  std::optional<Range> kwh;
  double loss = 0;  // nats per token above the first row
};
struct CompareTable {
  std::vector<CompareRow> rows;
  double rate_flops = 0;             // of counted_days
  std::int64_t available_bytes = 0;  // on the card, after what display and driver keep
  std::vector<std::string> notes;
};
std::string compare_text(const CompareTable& table);

}  // namespace qt
