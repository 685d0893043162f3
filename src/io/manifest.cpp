#include "src/io/manifest.h"

#include <algorithm>
#include <set>

#include "src/core/error.h"
#include "src/io/file.h"
#include "src/io/json.h"

namespace qt {
namespace {

constexpr std::size_t kMaxFiles = 10'000;
constexpr std::string_view kSealField = "manifest_xxh3_128";

// The last lines of a manifest. They are compared as text: a flipped bit in them has no other way to show.
std::string seal_of(std::string_view head) {
  return fmt::format(",\n  \"{}\": \"{}\"\n}}\n", kSealField, xxh3_hex(bytes_of(head)));
}

bool is_hash(std::string_view text) {
  return text.size() == Xxh3::kHexChars && std::all_of(text.begin(), text.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
         });
}

}  // namespace

bool plain_file_name(std::string_view name) {
  return !name.empty() && name.size() <= 200 && name.front() != '.' && name != kManifestName &&
         std::none_of(name.begin(), name.end(), [](char c) {
           return c == '/' || c == '\\' || static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
         });
}

std::string seal_manifest(std::string_view json_object) {
  const auto end = json_object.find_last_of('}');
  auto head = json_object.substr(0, end == std::string_view::npos ? 0 : end);
  while (!head.empty() && (head.back() == '\n' || head.back() == ' ')) head.remove_suffix(1);
  return std::string(head) + seal_of(head);
}

std::string format_manifest(const Manifest& manifest) {
  nlohmann::ordered_json json;
  json["format_version"] = manifest.format_version;
  json["program"] = manifest.program;
  json["step"] = manifest.step;
  json["created"] = manifest.created;
  auto& files = json["files"] = nlohmann::ordered_json::array();
  for (const auto& file : manifest.files) {
    nlohmann::ordered_json entry;
    entry["name"] = file.name;
    entry["bytes"] = file.bytes;
    entry["xxh3_128"] = file.xxh3_128;
    files.push_back(std::move(entry));
  }
  return seal_manifest(json.dump(2));
}

Manifest parse_manifest(std::string_view text, const std::string& file) {
  if (text.size() > kMaxManifestBytes) {
    throw DataError(
        fmt::format("{}: has {} bytes; a manifest has at most {}", file, text.size(), kMaxManifestBytes));
  }
  const std::size_t seal_bytes = seal_of({}).size();
  if (text.size() <= seal_bytes) {
    throw DataError(
        fmt::format("{}: has {} bytes, too few for a manifest: the file is cut short", file, text.size()));
  }
  const auto head = text.substr(0, text.size() - seal_bytes);
  if (text.substr(head.size()) != seal_of(head)) {
    throw DataError(fmt::format("{}: does not match its own hash (file damaged or edited)", file));
  }

  // Values: a handful, and four for each file.
  const JsonLimits limits{.max_bytes = kMaxManifestBytes,
                          .max_depth = 3,
                          .max_values = 4 * static_cast<std::int64_t>(kMaxFiles) + 16};
  const Json json = parse_json(text, file, limits);
  Manifest manifest;
  manifest.format_version = static_cast<int>(json_int(json, "format_version", file, 1, 1'000'000));
  if (manifest.format_version > kCheckpointFormat) {
    throw DataError(fmt::format("{}: format {} was written by a newer qtrain; this one reads up to {}", file,
                                manifest.format_version, kCheckpointFormat));
  }
  manifest.program = json_string(json, "program", file);
  manifest.step = json_int(json, "step", file, 0);
  manifest.created = json_string(json, "created", file);

  const Json& files = json_array(json, "files", file);
  if (files.empty()) throw DataError(fmt::format("{}: lists no files", file));
  if (files.size() > kMaxFiles) {
    throw DataError(fmt::format("{}: lists {} files; at most {} are read", file, files.size(), kMaxFiles));
  }
  std::set<std::string_view> names;
  for (std::size_t i = 0; i < files.size(); ++i) {
    const std::string where = fmt::format("{}: files[{}]", file, i);
    ManifestFile entry{json_string(files[i], "name", where), json_int(files[i], "bytes", where, 0),
                       json_string(files[i], "xxh3_128", where)};
    if (!plain_file_name(entry.name)) {
      throw DataError(fmt::format("{}: {} is not the name of a file in the checkpoint's folder", where,
                                  in_quotes(entry.name)));
    }
    if (!is_hash(entry.xxh3_128)) {
      throw DataError(fmt::format("{}: field 'xxh3_128' must be {} lower-case hex digits, got {}", where,
                                  Xxh3::kHexChars, in_quotes(entry.xxh3_128)));
    }
    if (!names.insert(json_string(files[i], "name", where)).second) {
      throw DataError(fmt::format("{}: {} is listed twice", where, in_quotes(entry.name)));
    }
    manifest.files.push_back(std::move(entry));
  }
  return manifest;
}

}  // namespace qt
