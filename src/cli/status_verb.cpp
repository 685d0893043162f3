// `qtrain status`: how the run in a folder is doing. Takes no lock and writes nothing. ConfigError where there is no run,
// DataError for a damaged log.
#include <ostream>

#include "src/cli/run_argument.h"
#include "src/cli/verb.h"
#include "src/watch/run_status.h"

namespace qt {

namespace {

constexpr VerbWord kWords[] = {
    {"run", "RUN", "run folder; absent: --out", true},
    {"json", nullptr, "one line for programs"},
};

void run_status(const VerbCall& call) {
  const RunFacts facts = read_run(run_argument(call.loaded, call.words));
  const RunStatus status = status_of(facts);
  call.out << (call.words.has("json") ? status_json(facts, status) + "\n" : status_text(facts, status));
  call.out.flush();
}

}  // namespace

const Verb verbs::status{
    .name = "status",
    .help = "how the run in a folder is doing, also while it runs: step, loss, time left; --json",
    .words = kWords,
    .run = run_status,
};

}  // namespace qt
