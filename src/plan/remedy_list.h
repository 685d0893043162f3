// The changes of options that may make a run fit, each with what it costs: what remedies.cpp chooses from.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "src/options/options.h"
#include "src/plan/planner.h"

namespace qt {

// What a change costs, the least first: each kind is preferred to all after it.
enum class Loss : std::uint8_t { time, rounding, weights };

struct Change {
  Loss loss;
  std::function<void(Options&)> apply;  // changes one option; two changes of the same one exclude each other
  std::function<std::string(const Plan&)> cost;  // in words, once the run with it is planned
  bool trades = false;                           // takes less of one resource and more of another
};

// Those that the options of the request leave to be changed, whether they help or not; of two of one option the milder
// first. begun: the run is there already, and what its tensors are stays.
std::vector<Change> changes_for(const Plan& run, const PlanRequest& request, bool begun);

}  // namespace qt
