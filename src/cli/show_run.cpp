// The verbs `status` and `report`: a run folder to text, JSON or a page.
#include <filesystem>
#include <ostream>

#include "src/cli/run.h"
#include "src/core/error.h"
#include "src/core/units.h"
#include "src/io/file.h"
#include "src/watch/report.h"
#include "src/watch/run_status.h"

namespace qt {

namespace {

// Named by itself, or as the run's own option.
std::string folder_of(const LoadedOptions& loaded, const VerbValues& words) {
  const std::string* folder = words.find("run");
  if (folder == nullptr) return loaded.options.out;
  if (loaded.source_of("out") == OptionSource::command_line) {
    throw ConfigError(fmt::format("'{}' and --out {} both name a run", *folder, loaded.options.out),
                      "name it once");
  }
  return *folder;
}

}  // namespace

void run_status(const LoadedOptions& loaded, const VerbValues& words, std::ostream& out) {
  const RunFacts facts = read_run(folder_of(loaded, words));
  const RunStatus status = status_of(facts);
  out << (words.has("json") ? status_json(facts, status) + "\n" : status_text(facts, status));
  out.flush();
}

void run_report(const LoadedOptions& loaded, const VerbValues& words, std::ostream& out) {
  const RunFacts facts = read_run(folder_of(loaded, words));
  const std::string* to = words.find("to");
  const std::filesystem::path target =
      to != nullptr ? std::filesystem::path(*to) : std::filesystem::path(facts.folder) / "report.html";
  std::error_code error;
  // Replacing is what makes the write atomic: of a device or a folder that would be the end.
  if (std::filesystem::exists(target, error) && !std::filesystem::is_regular_file(target, error)) {
    throw ConfigError(
        fmt::format("the report cannot take the place of {}: that is no file", in_quotes(target.string())),
        "name a file: --to report.html");
  }
  const std::string page = report_html(facts, status_of(facts));
  write_file_atomically(posix_fs(), target, bytes_of(page));
  out << fmt::format("wrote {} ({}): open it in any browser, it needs nothing else\n", target.string(),
                     format_bytes(static_cast<std::int64_t>(page.size())));
  out.flush();
}

}  // namespace qt
