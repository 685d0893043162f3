// Checkpoints that are wrong and yet verify.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "src/io/checkpoint.h"
#include "src/io/file_system.h"
#include "tests/support/process.h"

namespace qt::test {

// A checkpoint with a changed file in it and a manifest that says so: what damage cannot make, and malice
// can.
inline void reseal(const std::filesystem::path& run, std::int64_t step, const std::string& name,
                   const std::function<void(std::string&)>& change) {
  const std::filesystem::path folder = run / checkpoint_name(step);
  const Manifest manifest = verify_checkpoint(folder);
  CheckpointWriter writer(posix_fs(), run, step);
  for (const auto& file : manifest.files) {
    std::string content = read_text(folder / file.name);
    if (file.name == name) change(content);
    writer.add_file(file.name).write(content);
  }
  writer.finish();
}

}  // namespace qt::test
