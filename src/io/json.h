// JSON that came from a file: parsed under limits, duplicate keys refused, fields read with their type and
// range checked. Everything that is wrong becomes a DataError naming file and field.
// Text bodies only; corpora in JSON lines are read elsewhere, with a faster parser.
#pragma once

#include <cstdint>
#include <filesystem>
#include <limits>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace qt {

using Json = nlohmann::json;

// A value takes up to about 180 bytes of memory for a few bytes of text, so the number of values is what
// bounds memory: the default keeps a hostile file below 64 MiB beside its text.
struct JsonLimits {
  std::uint64_t max_bytes = std::uint64_t{8} << 20;
  int max_depth = 32;
  std::int64_t max_values = 250'000;
};

// `file` is only named in messages. Beyond the grammar, this refuses NUL bytes (the parser would take one for
// the end of the text and never look at what follows), a byte order mark, and a key twice in one object.
Json parse_json(std::string_view text, const std::string& file, const JsonLimits& limits = {});
Json read_json_file(const std::filesystem::path& path, const JsonLimits& limits = {});

// Fields of an object. `where` names file and place in messages: "manifest.json", "manifest.json: files[3]".
bool json_has(const Json& object, std::string_view field);
const Json& json_field(const Json& object, std::string_view field, const std::string& where);
std::int64_t json_int(const Json& object, std::string_view field, const std::string& where,
                      std::int64_t min = std::numeric_limits<std::int64_t>::min(),
                      std::int64_t max = std::numeric_limits<std::int64_t>::max());
std::uint64_t json_uint(const Json& object, std::string_view field, const std::string& where,
                        std::uint64_t max = std::numeric_limits<std::uint64_t>::max());
double json_number(const Json& object, std::string_view field, const std::string& where);  // finite
bool json_bool(const Json& object, std::string_view field, const std::string& where);
const std::string& json_string(const Json& object, std::string_view field, const std::string& where);
const Json& json_array(const Json& object, std::string_view field, const std::string& where);
const Json& json_object(const Json& object, std::string_view field, const std::string& where);

// Throws the DataError for what nlohmann's parser reports, without its internals and with hostile text cut.
[[noreturn]] void throw_json_error(const std::string& file, std::size_t byte,
                                   std::string_view parser_message);

}  // namespace qt
