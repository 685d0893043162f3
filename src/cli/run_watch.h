// What a training run tells of itself at its start, gathered from plan, card and meters: for the start screen
// and for the first record of a session in log.jsonl.
#pragma once

#include <string>

#include "src/core/log.h"
#include "src/meter/cards.h"
#include "src/meter/power_watch.h"
#include "src/plan/planner.h"
#include "src/train/pace.h"
#include "src/train/run_state.h"
#include "src/train/trainer.h"

namespace qt {

// card: nullptr where its peak is not known. validation: nullptr where nothing is evaluated.
StepWork step_work(const Plan& run, const Card* card, const EvalBatches* validation);

// Kind "start": what a reader of the log cannot know otherwise. `state`: the run's, as the session finds it.
JsonRecord start_record(const Plan& run, const DeviceFacts& facts, const Card* card, const RunState& state);

// Time, finish, energy and cost of what is ahead; what meters the energy. `begun`: what the newest checkpoint
// says, where the run is continued: its log then tells how long steps are.
std::string run_outlook(const Plan& run, const DeviceFacts& facts, const Card* card,
                        const EvalBatches* validation, const RunState* begun, const PowerWatch& power);

// The energy and the cost of a run at its end: "0.12 kWh (...), 0.42 TWD at 3.5 TWD a kWh".
std::string spent_text(const RunConfig& config, const TrainResult& result);

}  // namespace qt
