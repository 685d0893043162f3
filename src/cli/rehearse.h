// Rehearsal: what one runs before months. The run itself, its data and its options, for a few steps in a
// folder beside --out: trained, evaluated, sampled, saved, killed and continued, and held against its plan.
#pragma once

#include <cstdint>
#include <filesystem>
#include <iosfwd>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "src/options/option_table.h"
#include "src/plan/estimate.h"

namespace qt {

// What happens in one: steps, evaluation, sample and save after kRehearsedSteps; kComparedSteps more and a
// save; kill -9 in the middle of the step after them; from the first save kComparedSteps again; kill.
inline constexpr std::int64_t kRehearsedSteps = 3, kComparedSteps = 2;

struct Rehearsal {
  Range step_s;                        // of steps after warm-up
  std::int64_t resident_bytes = 0;     // most of the process; 0: not known
  std::int64_t device_used_bytes = 0;  // of the card, as the driver tells; 0: not known
  std::int64_t checkpoint_bytes = 0;   // files of one
  double save_s = 0;                   // of the slowest save
  double eval_s = 0;                   // 0: there is nothing to evaluate on
  std::int64_t eval_tokens = 0;
};

// "planned" beside "measured", a line each, then by how much a step differs from what was assumed.
// `assumed`: the estimate before anything was measured; nothing where no card is known.
std::string rehearsal_text(const Plan& run, const Rehearsal& measured,
                           const std::optional<Estimate>& assumed);

// What a session of it did, as far as bits go.
struct PlayedBits {
  std::int64_t first_step = 0;
  std::map<std::int64_t, double> loss;  // by step
  std::string state;                    // tensors_hash() of its last checkpoint
};

// Error (a defect) unless the session after the kill began with the step after kRehearsedSteps, and its
// losses and its state are those of the run before.
void require_same_bits(const PlayedBits& before, const PlayedBits& after);

// A hash of all tensors of a checkpoint, by its manifest. DataError where it is damaged.
std::string tensors_hash(const std::filesystem::path& checkpoint);

// Runs it and prints it. What is in --out is not touched; text given as --data is tokenized into its cache,
// which the run itself will use. The folder beside --out is gone afterwards, whatever happens; the next
// rehearsal removes one that a kill -9 left.
// Throws as run_train(), with the message of the run; StopRequested; Error (a defect) where the continued run
// differs from the undisturbed one.
void rehearse_run(const LoadedOptions& loaded, std::ostream& out);

}  // namespace qt
