// What a checkpoint holds beside tensors, and moving both between an Engine and a run folder.
//
// A checkpoint folder: weights.safetensors (compute copies in stored form), state.safetensors (master and
// moments in stored form), run.json (this struct), manifest.json. Tensors stream through one small buffer;
// there is no second copy in memory. An empty file `evaluated` beside them, outside the manifest: the step was
// evaluated after it was saved.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "optim/loss_scale.h"
#include "src/io/file_system.h"
#include "src/meter/energy_meter.h"
#include "src/train/engine.h"

namespace qt {

struct RunState {
  std::int64_t step = 0;                  // windows trained on, skipped ones included: the schedule's clock
  std::int64_t applied = 0;               // updates applied: Adam's t
  std::int64_t window = 0;                // next data window: row window * rows per step of the data order
  std::int64_t tokens = 0;                // trained on, skipped windows included
  std::int64_t bad_in_a_row = 0;          // windows before this moment that were not finite: 0 is trusted
  std::vector<std::int64_t> bad_windows;  // left out since a restore
  std::int64_t restores = 0;
  LossScale loss_scale;  // --dtype fp16 only
  double seconds = 0;    // of training, over all sessions
  Energy energy;         // likewise; its missing_s are of these seconds
  // The last step that was evaluated on the way; 0: none. Nothing: not known, of a checkpoint from before it
  // was stored.
  std::optional<std::int64_t> evaluated_step = 0;
  std::uint64_t seed = 0;
  std::string vocab_hash;
  std::string data_hash;                       // of the training shards
  std::map<std::string, std::string> options;  // effective values as typed, auto resolved
  // Backend::algorithms() when it was saved; save() fills it, load() hands it back to the backend.
  std::string algorithms;
};

inline constexpr int kRunFormatVersion = 1;

// Strict; every complaint is a DataError naming file and field.
std::string run_state_json(const RunState& state);
RunState parse_run_state(const std::string& text, const std::string& origin);

// XXH3-128 over names, shapes and bytes of all weights and state: equal hashes mean equal runs.
std::string state_hash(Engine& engine);

class CheckpointStore {
 public:
  // keep >= 2 (ConfigError). The run folder is created where it is missing.
  CheckpointStore(std::string run_dir, std::int64_t keep, FileSystem& fs = posix_fs());

  // Deletes what killed saves left behind. Only for the holder of the folder's RunLock: another's save in
  // progress looks the same.
  void remove_leftovers();

  // Writes step-<N> and removes what --keep no longer wants. DiskError: nothing changed. DivergedError: a
  // weight or moment is not finite; nothing changed.
  void save(Engine& engine, const RunState& state);

  // Notes that `step`, which save() has stored, is evaluated now: a save comes before the
  // evaluation of its step, so its run.json cannot say it. Not fsynced, and a failure is only a warning: a
  // note that is lost has the step evaluated once more. Nothing happens where the checkpoint is gone.
  void mark_evaluated(std::int64_t step);

  // Newest checkpoint that verifies; empty when the folder never held one. `explanation`: what was rejected,
  // empty when the newest was fine. DataError when there are checkpoints and none verifies: a fresh start
  // would bury them.
  std::string newest(std::string& explanation) const;
  // The same among those saved while the loss was finite: what a diverged run goes back to.
  std::string newest_trusted() const;

  // Fills engine and returns the state; the backend goes on with the algorithms that were saved, and where it
  // cannot, a warning says that bits may differ. Shapes and dtypes must match the engine: DataError naming
  // the tensor otherwise.
  RunState load(const std::string& checkpoint, Engine& engine) const;
  // evaluated_step with what mark_evaluated() has noted since.
  static RunState read_state(const std::string& checkpoint);

 private:
  std::string run_dir_;
  std::int64_t keep_;
  FileSystem& fs_;
  bool pruned_before_ = false;
  mutable std::vector<std::byte> staging_;  // allocated once; every tensor passes through it
};

// What the newest checkpoint that can be read says of the run in a folder; whether it can be used is found
// out later. Nothing where there is none.
std::optional<RunState> newest_readable_state(const std::string& run_dir);

}  // namespace qt
