#include "src/cli/run_argument.h"

#include "src/core/error.h"

namespace qt {

std::string run_argument(const LoadedOptions& loaded, const VerbValues& words) {
  const std::string* folder = words.find("run");
  if (folder == nullptr) return loaded.options.out;
  if (loaded.source_of("out") == OptionSource::command_line) {
    throw ConfigError(fmt::format("'{}' and --out {} both name a run", *folder, loaded.options.out),
                      "name it once");
  }
  return *folder;
}

}  // namespace qt
