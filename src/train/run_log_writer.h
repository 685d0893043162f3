// What a run says of itself for programs: each record into log.jsonl, which is the account of the run, and
// its scalars into TensorBoard's event files beside it. Who makes the records is the trainer; who reads them
// back is src/watch/run_log.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "src/core/log.h"
#include "src/io/json.h"
#include "src/train/event_file.h"

namespace qt {

// The scalars of a record under TensorBoard's names: train/loss, train/norm, train/lr, train/tokens_per_s,
// train/mfu, power/watts, val/loss, val/bpb. What the record lacks, or what is null, is left out.
std::vector<Scalar> scalars_of(const Json& record);

class RunLogWriter {
 public:
  // Opens RUN/log.jsonl (DiskError), and with `tensorboard` a file below RUN/tensorboard/ once there is
  // something to write. `first_step`: of this session.
  RunLogWriter(const std::string& run_dir, bool tensorboard, std::int64_t first_step);

  // DiskError where log.jsonl cannot be written; event files never throw.
  void write(const JsonRecord& record);

  const std::string& path() const { return lines_.path(); }  // of log.jsonl

 private:
  JsonLines lines_;
  std::optional<EventFile> events_;
};

}  // namespace qt
