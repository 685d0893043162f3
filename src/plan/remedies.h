// Remedies: which changes of options make a run fit that does not, the cheapest first, and what each costs.
// Every one is planned before it is proposed. Nothing is printed, and nothing chosen for the user.
#pragma once

#include <string>

#include "src/meter/cards.h"
#include "src/options/options.h"
#include "src/plan/planner.h"

namespace qt {

struct RemedyScope {
  bool begun = false;          // --out holds a run: what its tensors are, and what it trains on, stays
  bool has_weights = false;    // --init-from: the model is theirs
  const Card* card = nullptr;  // the one that is there: costs are told in days too
};

// Of the run that the options name, on this machine.
RemedyScope remedy_scope(const Options& options);

// Fills run.changes where the run, planned from `request`, does not fit: three at most.
//
//   single changes that make it fit; where none does, pairs, then more at once;
//   fewer than three of these: a shorter sequence, which is another task;
//   none at all: the largest smaller model that fits, alone and said to be another one; not where only the
//   disk is too small.
//
// Changes that cost time alone come before those that change rounding, and those before packed weights.
// At most kMostRehearsals of the plan, counted in run.rehearsals with its own.
void propose_changes(Plan& run, const PlanRequest& request, const RemedyScope& scope);

inline constexpr int kMostRehearsals = 60;
inline constexpr std::size_t kMostChanges = 3;

// What to do about a run that does not fit, in one line, for FitError.
std::string fit_hint(const Plan& run);

// FitError with the plan and what would make it fit, where the run, planned from `request` on this machine, does not fit.
void require_fit(Plan& run, const PlanRequest& request);

}  // namespace qt
