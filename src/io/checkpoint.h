// The checkpoint folder protocol, whatever is stored: written beside under a temporary name, every file
// fsynced, listed in a manifest with size and XXH3-128, then renamed and the run folder fsynced. A folder
// with its final name is complete, or it does not verify.
//
//   <run>/lock                        who uses the run folder (RunLock)
//   <run>/step-000000100/             one checkpoint: files, and manifest.json, which carries its own hash, too
//   <run>/.tmp-step-000000120-4711/   a save in progress, or one that was killed
//   <run>/.trash-step-000000080-4711/ a deletion in progress, or one that was killed
//
// A run folder has one writer, the holder of its RunLock; nothing else here is safe against two.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "src/io/file.h"
#include "src/io/manifest.h"

namespace qt {

struct Checkpoint {
  std::filesystem::path path;
  std::int64_t step = 0;
};

std::string checkpoint_name(std::int64_t step);  // "step-000000100"

// Folders with a checkpoint's name, oldest first. Nothing is opened. A missing run folder has none.
std::vector<Checkpoint> find_checkpoints(const std::filesystem::path& run_dir);

// `sizes` reads the manifest and looks at the sizes; `hashes` reads every byte.
enum class VerifyDepth { sizes, hashes };

// Throws DataError with the file and the reason. Files that the manifest does not list are no error.
Manifest verify_checkpoint(const std::filesystem::path& path, VerifyDepth depth = VerifyDepth::hashes);

struct CheckpointChoice {
  std::optional<Checkpoint> checkpoint;
  Manifest manifest;  // of the chosen one
  std::vector<std::string>
      rejected;  // newer ones and why: "step-000000120: weights.safetensors: hash differs ..."

  // One line per rejected one, then what is used instead; empty when the newest verified at once.
  std::string explain() const;
};

// The newest checkpoint that verifies. Nothing chosen with a non-empty `rejected` means that a run is there
// and cannot be continued: the caller must stop, not start a fresh one over it.
CheckpointChoice choose_checkpoint(const std::filesystem::path& run_dir,
                                   VerifyDepth depth = VerifyDepth::hashes);

// Deletes what killed saves and deletions left behind; returns their names. Never throws for a folder that
// cannot be deleted: it is left, and the next start tries again. Needs the RunLock.
std::vector<std::string> remove_stale_folders(FileSystem& fs, const std::filesystem::path& run_dir);

struct PruneResult {
  std::vector<std::int64_t> removed_steps;
  std::vector<std::string> warnings;  // a deletion that failed; training goes on
};

// Keeps the newest `keep` checkpoints that verify, and everything newer than the last of these; deletes the
// rest. ConfigError for keep < 2: one checkpoint alone would be gone with the first damaged block.
// A folder is first renamed away, so that a half-deleted one is never mistaken for a checkpoint.
PruneResult prune_checkpoints(FileSystem& fs, const std::filesystem::path& run_dir, int keep,
                              VerifyDepth depth = VerifyDepth::hashes);

struct SaveOptions {
  std::int64_t expected_bytes = 0;  // of all files; the save is refused unless this and a tenth more are free
  std::string program = "qtrain";   // name and version, for the manifest
};

// One save. Any failure throws DiskError, removes the temporary folder as far as possible and leaves earlier
// checkpoints as they were; so does destruction before finish().
class CheckpointWriter {
 public:
  CheckpointWriter(FileSystem& fs, const std::filesystem::path& run_dir, std::int64_t step,
                   const SaveOptions& options = {});
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // A new file; the one before is finished (fsynced, hashed). The reference lives until the next add_file()
  // or finish(). ConfigError for a name that is not a plain file name.
  OutputFile& add_file(const std::string& name);
  // Publishes under the final name. An existing checkpoint of the same step is replaced: swapped
  // in one step where the filesystem can, else moved away first.
  Checkpoint finish();

 private:
  // How far the final name has come; what discard() has to take back.
  enum class Name { temporary, displaced, renamed, exchanged };

  void close_file();
  void publish();
  void discard() noexcept;

  FileSystem& fs_;
  std::filesystem::path run_dir_, temporary_, final_;
  std::filesystem::path displaced_;  // where an older checkpoint of this step went; empty: there was none
  Manifest manifest_;
  std::optional<OutputFile> file_;
  Name name_ = Name::temporary;
  bool done_ = false;  // finished or discarded
};

// Exclusive use of a run folder while it lives; the system gives it back when the process ends, however it
// ends. A second process gets ConfigError naming the holder.
class RunLock {
 public:
  explicit RunLock(const std::filesystem::path& run_dir);  // the folder must exist
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int fd_ = -1;
};

// The process that holds the folder's RunLock, found without taking the lock: a run that starts just then is not
// turned away. Nothing if no process holds it, also if a process that ended long ago left its number and another
// process has that number now (as far as /proc may be looked at).
std::optional<pid_t> lock_holder(const std::filesystem::path& run_dir);

}  // namespace qt
