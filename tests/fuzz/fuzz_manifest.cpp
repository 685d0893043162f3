// Any text given to the manifest parser is refused with a DataError or accepted as a manifest that names
// plain files only. Each input is tried as it is and with the right hash appended, because no mutation finds
// that. The general JSON reader, under tight limits, comes first.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "src/core/error.h"
#include "src/io/json.h"
#include "src/io/manifest.h"

namespace {

void try_manifest(std::string_view text) {
  try {
    const auto manifest = qt::parse_manifest(text, "fuzz");
    if (manifest.files.empty() || manifest.step < 0) std::abort();
    for (const auto& file : manifest.files) {
      if (!qt::plain_file_name(file.name) || file.bytes < 0 || file.xxh3_128.size() != 32) std::abort();
    }
    // What was read can be written, and read again as the same.
    if (qt::parse_manifest(qt::format_manifest(manifest), "again").files.size() != manifest.files.size())
      std::abort();
  } catch (const qt::DataError&) {
    return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    qt::parse_json(text, "fuzz", {.max_bytes = 1 << 20, .max_depth = 8, .max_values = 10'000}).dump();
  } catch (const qt::DataError&) {
    // Most inputs end here; the manifest parser gets them all the same.
  }
  try_manifest(text);
  try_manifest(qt::seal_manifest(text));
  return 0;
}
