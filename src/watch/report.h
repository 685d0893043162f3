// The report of a run: one HTML page from what lies in its folder. It is made of the same facts and figures
// as `qtrain status`; how curves are drawn is src/watch/chart.h.
#pragma once

#include <string>

#include "src/watch/run_status.h"

namespace qt {

// The whole page. What is not known is said to be, in words. Texts that a model or a user wrote are text on
// it, whatever they hold. The same facts give the same bytes.
std::string report_html(const RunFacts& facts, const RunStatus& status);

}  // namespace qt
