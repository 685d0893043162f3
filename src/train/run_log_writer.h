// What a run says of itself for programs: each record into log.jsonl, which is the account of the run, and
// its scalars into TensorBoard's event files beside it. Who reads them back is src/watch/run_log.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/core/log.h"
#include "src/io/json.h"
#include "src/train/event_file.h"
#include "src/train/events.h"
#include "src/train/pace.h"

namespace qt {

// The scalars of a record under TensorBoard's names: train/loss, train/norm, train/lr, train/tokens_per_s,
// train/mfu, power/watts, val/loss, val/bpb. What the record lacks, or what is null, is left out.
std::vector<Scalar> scalars_of(const Json& record);

class RunLogWriter : public TrainingEvents {
 public:
  // Opens RUN/log.jsonl (DiskError), and with `tensorboard` a file below RUN/tensorboard/ once there is
  // something to write. `first_step`: of this session. `work`: of a step, for rates.
  RunLogWriter(const std::string& run_dir, bool tensorboard, std::int64_t first_step,
               const StepWork& work = {});

  // DiskError where log.jsonl cannot be written; event files never throw.
  void write(const JsonRecord& record);

  // A record each; DiskError as write().
  void stepped(const StepDone& done) override;
  void slow(std::int64_t step, double times) override;
  void overflowed(const Overflow& overflow) override;
  void evaluated(std::int64_t step, const EvalResult& result, double seconds) override;
  void sampled(std::int64_t step, const std::string& text) override;
  void saved(std::int64_t step, double seconds) override;
  void restored(const Restored& restored) override;
  void diverged(std::int64_t step, const std::string& why) override;
  void stopped(const RunState& state) override;
  void finished(const RunState& state, const std::string& state_hash) override;

 private:
  StepWork work_;
  JsonLines lines_;
  std::optional<EventFile> events_;
};

}  // namespace qt
