// A verb of the command line: its line in --help, the words that are its own, and its function. Each verb is one
// file, src/cli/<name>_verb.cpp, which defines its Verb, and one row of QT_FOR_EACH_VERB.
#pragma once

#include <iosfwd>
#include <span>

#include "kernels/backend.h"
#include "src/options/option_table.h"
#include "src/options/verb_words.h"

namespace qt {

// What a verb is called with. Results go to `out`; messages to the log.
struct VerbCall {
  const LoadedOptions& loaded;
  const VerbValues& words;  // the verb's own
  BackendFactory make_backend = nullptr;
  std::ostream& out;
};

struct Verb {
  const char* name;
  const char* help;
  std::span<const VerbWord> words;
  void (*run)(const VerbCall& call);  // throws an Error of the exit code that the verb ends with
};

// In the order of --help; the first is the verb of a command without one.
#define QT_FOR_EACH_VERB(X) \
  X(train) X(plan) X(estimate) X(doctor) X(tokenize) X(sample) X(eval) X(export_) X(status) X(report)

namespace verbs {
#define QT_DECLARE_VERB(name) extern const Verb name;
QT_FOR_EACH_VERB(QT_DECLARE_VERB)
#undef QT_DECLARE_VERB
}  // namespace verbs

}  // namespace qt
