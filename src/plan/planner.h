// Planner: from what was asked for to a run that fits, with its bytes, before the first step.
//
// It decides what `auto` means (dtypes, micro-batch) by rehearsing candidates on the null backend, and holds
// the result against device, host and disk. It prints nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/target.h"
#include "src/options/options.h"
#include "src/plan/run_config.h"
#include "src/train/engine.h"

namespace qt {

// What the run has to live in. 0: unknown, not judged.
struct Limits {
  std::int64_t device_bytes = 0;           // --vram, or what the device has
  std::int64_t host_bytes = 0;             // --ram, or what the machine has free
  std::optional<std::int64_t> disk_bytes;  // free where the run folder lies: 0 is a full disk
  std::int64_t reserve_bytes = 0;          // of device_bytes: left to a display or the driver
  bool device_assumed = false;             // no card was asked, no option named a size
  bool device_capped = false;              // --vram names it
  std::string device_name;                 // of a card that is there
};

// What a run is planned from: what was asked for, and the machine that it is to run on.
struct PlanRequest {
  Options options;
  Target target;  // before a route is chosen
  Limits limits;
  std::int64_t vocab_size = 0;  // the tokenizer's; 0: there is none, and the model's own is taken
};

struct PlanRow {
  std::string name;
  std::int64_t bytes = 0;
  std::string note;
};

enum class Resource : std::uint8_t { device, host, disk };
std::string_view resource_name(Resource resource);  // as its enumerator

// The verdict for one resource.
struct Verdict {
  Resource resource = Resource::device;
  std::int64_t needed_bytes = 0;
  std::optional<std::int64_t> available_bytes;  // after the reserve; none: unknown
  bool fits = true;
};

// A change of options that makes a run fit, planned before it was proposed.
struct FitChange {
  std::string options;  // what to say beside the run's other options: "--ckpt-activations"
  std::string command;  // whole
  std::string cost;     // in time, in loss, in what the user loses
  bool other_model = false;
};

struct Plan {
  RunConfig config;
  Rehearsed rehearsed;
  std::vector<std::string> decisions;  // what auto became and why, one line each
  std::vector<std::string> notes;      // what else the user should know
  std::vector<FitChange> changes;      // where it does not fit: what would (src/plan/remedies.h)
  std::string command;                 // that repeats this plan (src/plan/command.h)

  // device
  std::vector<PlanRow> device_rows;
  std::int64_t device_bytes = 0;   // arenas, workspace and context
  std::int64_t reserve_bytes = 0;  // left to the display or the driver
  // host
  std::vector<PlanRow> host_rows;
  std::int64_t host_bytes = 0;
  // disk
  std::vector<PlanRow> disk_rows;
  std::int64_t checkpoint_bytes = 0;       // one
  std::int64_t disk_bytes = 0;             // kept checkpoints, one being written, logs
  std::int64_t token_cache_bytes = 0;      // if every token of the run came from text tokenized here
  std::int64_t written_bytes_per_day = 0;  // at most: saving is held to 1 % of the time
  std::vector<Verdict> verdicts;
  int rehearsals = 0;  // that finding this one took

  bool fits() const;
  bool fits_memory() const;  // device and host
};

// The model that the options name. vocab_size: the tokenizer's, for options without one; 0: the model's own.
ModelConfig model_from_options(const Options& options, std::int64_t vocab_size);

// What can be judged of the values alone, before any work: names, ranges, values that exclude each other.
// ConfigError.
void check_options(const Options& options);

// ConfigError where gradients of that dtype do not go with what is computed in.
void require_gradient_dtype(DType compute, std::optional<DType> gradient);

// A configuration that does not fit is returned with its verdicts, not thrown. ConfigError as check_options(), and for sizes
// that do not go together.
Plan plan_run(const PlanRequest& request);

// The same without notes on what else would fit, for those who plan many. A larger micro-batch is taken to
// need no less than a smaller one: where the smallest does not fit, no other is tried.
Plan plan_choice(const PlanRequest& request);

// What `auto` may choose with the least memory: the fewest rows, the narrowest gradients, no scratch. Where
// it does not fit, plan_run() does not; one rehearsal, or two where paging is open.
Plan plan_least(const PlanRequest& request);

}  // namespace qt
