// The names in a run folder and in a checkpoint, written once. docs/architecture.md says what the files hold.
#pragma once

#include <filesystem>
#include <utility>

namespace qt {

// Of a tokenizer of this program: in a run folder, and beside the shards that were made with it.
inline constexpr const char* kTokenizerFile = "tokenizer.txt";

// Files of a checkpoint, a folder step-... (src/io/checkpoint.h).
inline constexpr const char* kWeightsFile = "weights.safetensors";  // compute copies as stored
inline constexpr const char* kStateFile = "state.safetensors";      // masters and moments as stored
inline constexpr const char* kRunStateFile = "run.json";            // RunState
inline constexpr const char* kEvaluatedFile = "evaluated";          // empty: evaluated since it was saved

// Files of a run. Nothing is looked at on disk.
class RunFolder {
 public:
  explicit RunFolder(std::filesystem::path root) : root_(std::move(root)) {}

  const std::filesystem::path& root() const { return root_; }
  std::filesystem::path log() const { return root_ / "log.jsonl"; }
  std::filesystem::path tokenizer() const { return root_ / kTokenizerFile; }
  std::filesystem::path report() const { return root_ / "report.html"; }

 private:
  std::filesystem::path root_;
};

}  // namespace qt
