// `qtrain doctor`, wired.
#include <ostream>

#include "src/cli/doctor.h"
#include "src/cli/doctor_probe.h"
#include "src/cli/run.h"

namespace qt {

void run_doctor(const LoadedOptions& loaded, BackendFactory make_backend, bool json, std::ostream& out) {
  const std::vector<Finding> findings = judge(examine(loaded.options, make_backend));
  out << (json ? findings_json(findings) + "\n" : findings_text(findings));
  out.flush();
  const ExitCode code = exit_code_of(findings);
  if (code != ExitCode::ok)
    throw Error(code, "a run would fail here (see the findings)", "mend what is marked FAIL first");
}

}  // namespace qt
