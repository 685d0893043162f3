// qtrain: takes the verb, calls src/cli/run.h, and turns errors into one message and an exit code.
#include <algorithm>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "kernels/built_backends.h"
#include "src/cli/run.h"
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

struct Verb {
  const char* name;
  const char* help;
};
constexpr Verb kVerbs[] = {
    {"train", "train, or continue the run in --out (the default verb)"},
    {"plan",
     "what the run needs on device, host and disk, and what would make it fit (exit 3); --rehearse tries it"},
    {"estimate", "days, energy and cost of the run on a --card, which need not be there; --compare"},
    {"doctor", "looks at card, memory, copies, disk and plan before a long run, and says what to do; --json"},
    {"tokenize", "text to token shards: --data TEXT --cache FOLDER"},
    {"sample", "continue --prompt with the newest checkpoint in --out, or the folder of --init-from"},
    {"eval", "validation loss and bits per byte of the newest checkpoint in --out"},
    {"export", "that model as a Hugging Face folder: --to FOLDER"},
    {"status", "how the run in a folder is doing, also while it runs: step, loss, time left; --json"},
    {"report", "one HTML page of the run in a folder: curves, memory, power, samples, what happened"},
};

void print_help() {
  std::cout << "qtrain " << qt::kVersion
            << ": trains language models on one consumer GPU (this build: " << kDevices << ")\n\n"
            << "  qtrain [verb] [--option value ...]\n\n";
  for (const Verb& verb : kVerbs) std::cout << fmt::format("  {:<10} {}\n", verb.name, verb.help);
  std::cout << "\n  --config FILE     read options from an INI file or nanoGPT's .py; QTRAIN_<OPTION> in the "
               "environment "
               "comes next,\n"
               "                    the command line last\n"
               "  --print-config    show every option, its value and where it came from\n";
  qt::print_option_help(std::cout);
  std::string_view verb;
  for (const qt::VerbWord& word : qt::verb_words()) {
    if (verb != word.verb) std::cout << fmt::format("\n[qtrain {}]\n", verb = word.verb);
    const std::string name = word.stands_alone       ? word.value
                             : word.value == nullptr ? fmt::format("--{}", word.name)
                                                     : fmt::format("--{} {}", word.name, word.value);
    std::cout << fmt::format("  {:<29} {}\n", name, word.help);
  }
  std::cout << "\nExit codes: 0 done, 1 a defect, 2 usage, 3 does not fit, 4 bad data, 5 diverged, 6 device, "
               "7 disk, 75 "
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

std::string take_verb(std::vector<std::string>& args) {
  if (args.empty() || args.front().starts_with("-")) return "train";
  const std::string verb = args.front();
  args.erase(args.begin());
  std::vector<std::string_view> names;
  for (const Verb& v : kVerbs) names.emplace_back(v.name);
  if (std::find(names.begin(), names.end(), verb) == names.end()) {
    const std::string_view similar = qt::similar_name(verb, names);
    throw qt::ConfigError(
        fmt::format("unknown verb '{}'", verb),
        fmt::format("{}verbs are: {}; options start with --",
                    similar.empty() ? std::string() : fmt::format("did you mean `qtrain {}`? ", similar),
                    fmt::join(names, ", ")));
  }
  return verb;
}

void run(std::vector<std::string> args) {
  if (take(args, "--help") || take(args, "-h") || (args.size() == 1 && args.front() == "help"))
    return print_help();
  if (take(args, "--version")) {
    std::cout << "qtrain " << qt::kVersion << "\n";
    return;
  }
  const bool only_print = take(args, "--print-config");
  const std::string verb = take_verb(args);
  const qt::VerbValues words = qt::take_verb_words(verb, args);
  const qt::LoadedOptions loaded = qt::load_options(args);
  if (only_print) return qt::print_config(std::cout, loaded);
  if (loaded.options.quiet) qt::set_log_level(qt::LogLevel::warning);
  if (verb == "train") return qt::run_train(loaded, words, qt::make_backend, std::cout);
  if (verb == "tokenize") return qt::run_tokenize(loaded, std::cout);
  if (verb == "sample") return qt::run_sample(loaded, qt::make_backend, std::cout);
  if (verb == "eval") return qt::run_eval(loaded, qt::make_backend, std::cout);
  if (verb == "status") return qt::run_status(loaded, words, std::cout);
  if (verb == "report") return qt::run_report(loaded, words, std::cout);
  if (verb == "estimate") return qt::run_estimate(loaded, words, qt::make_backend, std::cout);
  if (verb == "doctor") return qt::run_doctor(loaded, qt::make_backend, words.has("json"), std::cout);
  if (verb == "export") return qt::run_export(loaded, std::cout);
  return qt::run_plan(loaded, words, std::cout);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    qt::add_built_backends();
    run(std::vector<std::string>(argv + 1, argv + argc));
    // A result that reached nobody is no success: `qtrain plan --json > full-disk.json`.
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
