// `qtrain plan`: the plan of a run, without a byte allocated or a file written. FitError, after printing it with what would
// make it fit, when it does not fit; --rehearse does what src/cli/rehearse.h says.
#include <ostream>

#include "src/cli/rehearse.h"
#include "src/cli/resume.h"
#include "src/cli/run_data.h"
#include "src/cli/verb.h"
#include "src/plan/machine.h"
#include "src/plan/planner.h"
#include "src/plan/remedies.h"
#include "src/plan/screen.h"
#include "src/train/stop.h"

namespace qt {

namespace {

constexpr VerbWord kWords[] = {
    {"json", nullptr, "one line for programs"},
    {"rehearse", nullptr,
     "before months: five steps, evaluation, sample and save for real, a kill -9, the same again from the "
     "checkpoint"},
};

void run_plan(const VerbCall& call) {
  const bool json = call.words.has("json"), rehearse = call.words.has("rehearse");
  if (json && rehearse) {
    throw ConfigError("--rehearse and --json exclude each other",
                      "--json is for the plan alone; a rehearsal prints a report");
  }
  if (rehearse) install_stop_handlers();
  PlanRequest request{.options = call.loaded.options};
  adopt_named_weights(request.options);
  request.target = target_from_options(request.options);
  request.limits = limits_from_options(request.options, request.target);
  request.vocab_size = RunData(request.options).expected_vocab_size();
  Plan run = plan_run(request);
  if (!run.fits()) propose_changes(run, request, remedy_scope(request.options));
  if (!rehearse || !run.fits()) {
    call.out << (json ? plan_json(run, request.limits) + "\n" : plan_text(run, request.limits));
    call.out.flush();
  }
  if (!run.fits()) throw FitError("the run does not fit (see the plan)", fit_hint(run));
  if (rehearse) rehearse_run(call.loaded, call.out);
}

}  // namespace

const Verb verbs::plan{
    .name = "plan",
    .help =
        "what the run needs on device, host and disk, and what would make it fit (exit 3); --rehearse tries it",
    .words = kWords,
    .run = run_plan,
};

}  // namespace qt
