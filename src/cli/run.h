// The verbs, wired: options to data, plan, engine and trainer. src/cli only parses and prints errors.
#pragma once

#include <iosfwd>

#include "src/cli/trained_model.h"
#include "src/options/option_table.h"
#include "src/options/verb_words.h"

namespace qt {

// Trains, or continues, the run in --out. Prints the start screen before step 0. `words` are the verb's own.
// Throws ConfigError, FitError (the plan does not fit), DataError, DivergedError, DiskError, StopRequested.
void run_train(const LoadedOptions& loaded, const VerbValues& words, BackendFactory make_backend,
               std::ostream& out);

// The plan of the same run, without a byte allocated or a file written. FitError, after printing it with what
// would make it fit, when it does not fit. With --rehearse what rehearse.h says instead.
void run_plan(const LoadedOptions& loaded, const VerbValues& words, std::ostream& out);

// Days, energy and cost of the same run on a card that need not be there; `words` are the verb's own.
// ConfigError where there is neither a card nor anything measured. A run that does not fit is estimated all
// the same, and said not to.
void run_estimate(const LoadedOptions& loaded, const VerbValues& words, BackendFactory make_backend,
                  std::ostream& out);

// Looks at machine, card, disk and plan before a long run, and prints findings (src/cli/doctor.h). Throws
// an Error of the first problem's code, after printing.
void run_doctor(const LoadedOptions& loaded, BackendFactory make_backend, bool json, std::ostream& out);

// Text to shards, with --data, --val-data, --tokenizer-kind, --vocab-size, --cache.
void run_tokenize(const LoadedOptions& loaded, std::ostream& out);

// Continues --prompt with the model of --out or --init-from (src/cli/trained_model.h).
void run_sample(const LoadedOptions& loaded, BackendFactory make_backend, std::ostream& out);

// Validation loss and bits per byte of the newest checkpoint in --out; on --val-data when given.
void run_eval(const LoadedOptions& loaded, BackendFactory make_backend, std::ostream& out);

// Writes that model as a Hugging Face folder (src/convert/export.h).
void run_export(const LoadedOptions& loaded, std::ostream& out);

// How the run in a folder is doing; `words` are the verb's own. Takes no lock and writes nothing. ConfigError
// where there is no run, DataError for a damaged log.
void run_status(const LoadedOptions& loaded, const VerbValues& words, std::ostream& out);

// One HTML page of that run, written atomically. As run_status(), and DiskError.
void run_report(const LoadedOptions& loaded, const VerbValues& words, std::ostream& out);

}  // namespace qt
