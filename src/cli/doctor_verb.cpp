// `qtrain doctor`: looks at machine, card, disk and plan before a long run, and prints findings (src/cli/doctor.h). Throws an
// Error of the first problem's code, after printing.
#include <ostream>

#include "src/cli/doctor.h"
#include "src/cli/doctor_probe.h"
#include "src/cli/verb.h"

namespace qt {

namespace {

constexpr VerbWord kWords[] = {
    {"json", nullptr, "one line for programs"},
};

void run_doctor(const VerbCall& call) {
  const std::vector<Finding> findings = judge(examine(call.loaded.options, call.make_backend));
  call.out << (call.words.has("json") ? findings_json(findings) + "\n" : findings_text(findings));
  call.out.flush();
  const ExitCode code = exit_code_of(findings);
  if (code != ExitCode::ok)
    throw Error(code, "a run would fail here (see the findings)", "fix the items marked FAIL");
}

}  // namespace

const Verb verbs::doctor{
    .name = "doctor",
    .help = "looks at card, memory, copies, disk and plan before a long run, and says what to do; --json",
    .words = kWords,
    .run = run_doctor,
};

}  // namespace qt
