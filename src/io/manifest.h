// manifest.json of a checkpoint: the list of its files with size and hash, sealed by a hash of its own, so
// that no bit of a checkpoint can change unseen. The seal finds damage; the parser expects malice all the
// same.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qt {

inline constexpr int kCheckpointFormat = 1;
inline constexpr std::uint64_t kMaxManifestBytes = std::uint64_t{4} << 20;
inline constexpr std::string_view kManifestName = "manifest.json";

struct ManifestFile {
  std::string name;  // in the checkpoint's folder: no '/', not hidden
  std::int64_t bytes = 0;
  std::string xxh3_128;  // 32 lower-case hex digits
};

struct Manifest {
  int format_version = kCheckpointFormat;
  std::string program;  // who wrote it: "qtrain 0.1.0"
  std::int64_t step = 0;
  std::string created;  // UTC: "2026-01-31T09:30:00Z"
  std::vector<ManifestFile> files;
};

std::string format_manifest(const Manifest& manifest);
// Throws DataError naming `file` and field. Refuses names that would lead out of the folder.
Manifest parse_manifest(std::string_view text, const std::string& file);
// Ends a manifest's JSON object with the field that holds the hash of all bytes before it. For the tests of
// hostile manifests; format_manifest has done it.
std::string seal_manifest(std::string_view json_object);

// True for the name of a file directly in a folder: no separators, no control characters, not hidden, not the
// manifest itself.
bool plain_file_name(std::string_view name);

}  // namespace qt
