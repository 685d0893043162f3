// What `qtrain doctor` looks at and measures; doctor.h says what it means. All of it takes some seconds and
// leaves nothing behind.
#pragma once

#include <filesystem>

#include "kernels/backend.h"
#include "src/cli/doctor.h"
#include "src/io/file_system.h"
#include "src/options/option_table.h"

namespace qt {

// How much host memory can be pinned at once, up to `wanted` bytes, in pieces of 512 MiB: what pins less than
// the run needs is slow after hours of tokenizing otherwise.
std::int64_t pinnable_bytes(Backend& backend, std::int64_t wanted);

// Copies a buffer of at most `bytes` in each direction. Throws what the backend throws.
CopyRates measure_copies(Backend& backend, std::int64_t bytes);

// Writes at most `bytes` to a file of its own in the folder, or above it where it does not exist yet, syncs
// and removes it. What goes wrong is in the result.
DiskFacts look_at_disk(const std::filesystem::path& folder, std::int64_t bytes, FileSystem& fs = posix_fs());

// proc: "/proc"; groups: where the control group's limits lie, "/sys/fs/cgroup". A field that is not there or
// makes no sense stays empty.
HostFacts look_at_host(const Target& target, const std::filesystem::path& proc = "/proc",
                       const std::filesystem::path& groups = "/sys/fs/cgroup");

// All of it, for the run that the options name. ConfigError for options that name none.
Checkup examine(const Options& options, BackendFactory make_backend, FileSystem& fs = posix_fs());

}  // namespace qt
