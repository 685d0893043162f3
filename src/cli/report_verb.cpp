// `qtrain report`: one HTML page of the run in a folder, written atomically. ConfigError where there is no run, DataError for
// a damaged log, DiskError.
#include <filesystem>
#include <ostream>

#include "src/cli/run_argument.h"
#include "src/cli/verb.h"
#include "src/core/error.h"
#include "src/core/units.h"
#include "src/io/file.h"
#include "src/io/run_folder.h"
#include "src/watch/report.h"
#include "src/watch/run_status.h"

namespace qt {

namespace {

constexpr VerbWord kWords[] = {
    {"run", "RUN", "run folder; absent: --out", true},
    {"to", "FILE", "HTML file to write; absent: report.html in the run folder"},
};

void run_report(const VerbCall& call) {
  const RunFacts facts = read_run(run_argument(call.loaded, call.words));
  const std::string* to = call.words.find("to");
  const std::filesystem::path target =
      to != nullptr ? std::filesystem::path(*to) : RunFolder(facts.folder).report();
  std::error_code error;
  // Replacing is what makes the write atomic: of a device or a folder that would be the end.
  if (std::filesystem::exists(target, error) && !std::filesystem::is_regular_file(target, error)) {
    throw ConfigError(
        fmt::format("the report cannot take the place of {}: that is no file", in_quotes(target.string())),
        "name a file: --to report.html");
  }
  const std::string page = report_html(facts, status_of(facts));
  write_file_atomically(posix_fs(), target, bytes_of(page));
  call.out << fmt::format("wrote {} ({}): open it in any browser, it needs nothing else\n", target.string(),
                          format_bytes(static_cast<std::int64_t>(page.size())));
  call.out.flush();
}

}  // namespace

const Verb verbs::report{
    .name = "report",
    .help = "one HTML page of the run in a folder: curves, memory, power, samples, what happened",
    .words = kWords,
    .run = run_report,
};

}  // namespace qt
