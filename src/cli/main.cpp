// qtrain: takes the verb, calls its function (src/cli/verb.h), and turns errors into one message and an exit code.
#include <algorithm>
#include <iostream>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/built_backends.h"
#include "src/cli/verb.h"
#include "src/core/error.h"
#include "src/core/log.h"
#include "src/core/suggest.h"
#include "src/core/version.h"
#include "src/options/option_table.h"

namespace {

#ifdef QTRAIN_HAVE_CUDA
constexpr const char* kDevices = "on a CUDA card or the CPU";
#else
constexpr const char* kDevices = "on the CPU";
#endif

const qt::Verb* const kVerbs[] = {
#define QT_VERB_ROW(name) &qt::verbs::name,
    QT_FOR_EACH_VERB(QT_VERB_ROW)
#undef QT_VERB_ROW
};

void print_help() {
  std::cout << "qtrain " << qt::kVersion
            << ": trains language models on one consumer GPU (this build: " << kDevices << ")\n\n"
            << "  qtrain [verb] [--option value ...]\n\n";
  for (const qt::Verb* verb : kVerbs) std::cout << fmt::format("  {:<10} {}\n", verb->name, verb->help);
  std::cout
      << "\n  --config FILE     read options from an INI file or nanoGPT's .py; QTRAIN_<OPTION> in the environment "
         "comes next,\n"
         "                    the command line last\n"
         "  --print-config    show every option, its value and where it came from\n";
  qt::print_option_help(std::cout);
  for (const qt::Verb* verb : kVerbs) {
    if (!verb->words.empty()) std::cout << fmt::format("\n[qtrain {}]\n", verb->name);
    for (const qt::VerbWord& word : verb->words) {
      const std::string name = word.stands_alone       ? word.value
                               : word.value == nullptr ? fmt::format("--{}", word.name)
                                                       : fmt::format("--{} {}", word.name, word.value);
      std::cout << fmt::format("  {:<29} {}\n", name, word.help);
    }
  }
  std::cout
      << "\nExit codes: 0 done, 1 a defect, 2 usage, 3 does not fit, 4 bad data, 5 diverged, 6 device, 7 disk, 75 "
         "stopped and resumable.\n";
}

// For errors that say all there is to say about their case: where to look next.
const char* general_hint(qt::ExitCode code) {
  switch (code) {
    case qt::ExitCode::usage:
      return "`qtrain --help` lists the options, --print-config shows the values in use and where they come "
             "from";
    case qt::ExitCode::no_fit: return "`qtrain plan` with the same options tells what the run needs";
    case qt::ExitCode::bad_data:
      return "the file is damaged or is not what it is used as: restore it from a copy, or make it again";
    case qt::ExitCode::device: return "the same command continues from the last checkpoint";
    case qt::ExitCode::disk:
      return "check free space and permissions, then give the same command again: a run continues from its "
             "last checkpoint";
    default: return "please report it with the command line and the version";
  }
}

// Removes a word from the list; true when it was there.
bool take(std::vector<std::string>& args, const std::string& word) {
  const auto it = std::find(args.begin(), args.end(), word);
  if (it == args.end()) return false;
  args.erase(it);
  return true;
}

const qt::Verb& take_verb(std::vector<std::string>& args) {
  if (args.empty() || args.front().starts_with("-")) return *kVerbs[0];
  const std::string name = args.front();
  args.erase(args.begin());
  std::vector<std::string_view> names;
  for (const qt::Verb* verb : kVerbs) {
    if (verb->name == name) return *verb;
    names.emplace_back(verb->name);
  }
  const std::string_view similar = qt::similar_name(name, names);
  throw qt::ConfigError(
      fmt::format("unknown verb '{}'", name),
      fmt::format("{}verbs are: {}; options start with --",
                  similar.empty() ? std::string() : fmt::format("did you mean `qtrain {}`? ", similar),
                  fmt::join(names, ", ")));
}

void run(std::vector<std::string> args) {
  if (take(args, "--help") || take(args, "-h") || (args.size() == 1 && args.front() == "help"))
    return print_help();
  if (take(args, "--version")) {
    std::cout << "qtrain " << qt::kVersion << "\n";
    return;
  }
  const bool only_print = take(args, "--print-config");
  const qt::Verb& verb = take_verb(args);
  std::vector<qt::VerbWords> words_of_all;
  for (const qt::Verb* v : kVerbs) words_of_all.push_back({.verb = v->name, .words = v->words});
  const qt::VerbValues words = qt::take_verb_words(words_of_all, verb.name, args);
  const qt::LoadedOptions loaded = qt::load_options(args);
  if (only_print) return qt::print_config(std::cout, loaded);
  if (loaded.options.quiet) qt::set_log_level(qt::LogLevel::warning);
  verb.run({.loaded = loaded, .words = words, .make_backend = qt::make_backend, .out = std::cout});
}

}  // namespace

int main(int argc, char** argv) {
  try {
    qt::add_built_backends();
    run(std::vector<std::string>(argv + 1, argv + argc));
    // A result that was not written is no success: `qtrain plan --json > full-disk.json`.
    if (!std::cout.flush()) throw qt::DiskError("cannot write to standard output");
    return static_cast<int>(qt::ExitCode::ok);
  } catch (const qt::Error& e) {
    std::cout.flush();
    std::cerr << "qtrain: " << e.what() << "\n";
    std::cerr << "        " << (e.hint().empty() ? general_hint(e.code()) : e.hint()) << "\n";
    return static_cast<int>(e.code());
  } catch (const std::bad_alloc&) {
    std::cerr << "qtrain: out of host memory\n        `qtrain plan` with the same options tells what the run "
                 "needs\n";
    return static_cast<int>(qt::ExitCode::no_fit);
  } catch (const std::exception& e) {
    std::cerr << "qtrain: internal error: " << e.what()
              << "\n        please report it with the command line and qtrain " << qt::kVersion << "\n";
    return static_cast<int>(qt::ExitCode::internal);
  }
}
