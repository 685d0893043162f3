#include "src/io/json.h"

#include <cmath>
#include <set>
#include <vector>

#include "src/core/error.h"
#include "src/io/file.h"

namespace qt {
namespace {

// What a value is, for "must be ..., got ...".
std::string describe(const Json& value) {
  if (value.is_string()) return "the string " + in_quotes(value.get_ref<const std::string&>());
  if (value.is_number() || value.is_boolean()) return value.dump();
  return value.is_null() ? "null" : fmt::format("an {}", value.type_name());
}

[[noreturn]] void throw_type(const Json& value, std::string_view field, const std::string& where,
                             const std::string& want) {
  throw DataError(
      fmt::format("{}: field {} must be {}, got {}", where, in_quotes(field), want, describe(value)));
}

}  // namespace

void throw_json_error(const std::string& file, std::size_t byte, std::string_view parser_message) {
  // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error while ...": line and
  // column say no more than the byte does.
  auto at = parser_message.find("syntax error");
  if (at == std::string_view::npos) {
    at = parser_message.find("] ");
    if (at != std::string_view::npos) at += 2;
  }
  if (at != std::string_view::npos) parser_message.remove_prefix(at);
  throw DataError(fmt::format("{}: not valid JSON at byte {}: {}", file, byte, in_quotes(parser_message)));
}

Json parse_json(std::string_view text, const std::string& file, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes) {
    throw DataError(
        fmt::format("{}: has {} bytes of JSON; at most {} are read", file, text.size(), limits.max_bytes));
  }
  if (const auto at = text.find('\0'); at != std::string_view::npos) {
    throw DataError(fmt::format("{}: a NUL byte at byte {}: this is not text", file, at));
  }
  if (text.starts_with("\xEF\xBB\xBF")) {
    throw DataError(fmt::format("{}: starts with a byte order mark; JSON has none", file));
  }

  std::vector<std::set<std::string, std::less<>>> keys;  // of each object that is open
  std::int64_t values = 0;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    using Event = Json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      if (depth >= limits.max_depth) {
        throw DataError(fmt::format("{}: nested more than {} levels deep", file, limits.max_depth));
      }
      if (event == Event::object_start) keys.emplace_back();
    }
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key) {
      const auto& key = parsed.get_ref<const std::string&>();
      if (!keys.back().insert(key).second) {
        throw DataError(fmt::format("{}: the key {} appears twice in one object", file, in_quotes(key)));
      }
    }
    if (event == Event::value || event == Event::object_start || event == Event::array_start) {
      if (++values > limits.max_values) {
        throw DataError(fmt::format("{}: more than {} values", file, limits.max_values));
      }
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), watch);
  } catch (const Json::parse_error& e) {
    throw_json_error(file, e.byte, e.what());
  } catch (const Json::exception& e) {  // a number out of range has no position
    throw DataError(fmt::format("{}: not valid JSON: {}", file, in_quotes(e.what())));
  }
}

Json read_json_file(const std::filesystem::path& path, const JsonLimits& limits) {
  return parse_json(read_file(path, limits.max_bytes), path.string(), limits);
}

bool json_has(const Json& object, std::string_view field) {
  return object.is_object() && object.contains(field);
}

const Json& json_field(const Json& object, std::string_view field, const std::string& where) {
  if (!object.is_object())
    throw DataError(fmt::format("{}: must be an object, got {}", where, describe(object)));
  const auto it = object.find(field);
  if (it == object.end()) throw DataError(fmt::format("{}: field {} is missing", where, in_quotes(field)));
  return *it;
}

std::int64_t json_int(const Json& object, std::string_view field, const std::string& where, std::int64_t min,
                      std::int64_t max) {
  const Json& value = json_field(object, field, where);
  // is_number_integer() is true for unsigned numbers too; those above INT64_MAX would wrap in get<int64_t>().
  const bool fits =
      value.is_number_integer() &&
      !(value.is_number_unsigned() &&
        value.get<std::uint64_t>() > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()));
  if (!fits || value.get<std::int64_t>() < min || value.get<std::int64_t>() > max) {
    throw_type(value, field, where, fmt::format("a whole number from {} to {}", min, max));
  }
  return value.get<std::int64_t>();
}

std::uint64_t json_uint(const Json& object, std::string_view field, const std::string& where,
                        std::uint64_t max) {
  const Json& value = json_field(object, field, where);
  // nlohmann parses every number without a sign as unsigned; one made in memory may be a signed type.
  const bool fits =
      value.is_number_unsigned() || (value.is_number_integer() && value.get<std::int64_t>() >= 0);
  if (!fits || value.get<std::uint64_t>() > max) {
    throw_type(value, field, where, fmt::format("a whole number from 0 to {}", max));
  }
  return value.get<std::uint64_t>();
}

double json_number(const Json& object, std::string_view field, const std::string& where) {
  const Json& value = json_field(object, field, where);
  if (!value.is_number() || !std::isfinite(value.get<double>())) throw_type(value, field, where, "a number");
  return value.get<double>();
}

bool json_bool(const Json& object, std::string_view field, const std::string& where) {
  const Json& value = json_field(object, field, where);
  if (!value.is_boolean()) throw_type(value, field, where, "true or false");
  return value.get<bool>();
}

const std::string& json_string(const Json& object, std::string_view field, const std::string& where) {
  const Json& value = json_field(object, field, where);
  if (!value.is_string()) throw_type(value, field, where, "a string");
  return value.get_ref<const std::string&>();
}

const Json& json_array(const Json& object, std::string_view field, const std::string& where) {
  const Json& value = json_field(object, field, where);
  if (!value.is_array()) throw_type(value, field, where, "an array");
  return value;
}

const Json& json_object(const Json& object, std::string_view field, const std::string& where) {
  const Json& value = json_field(object, field, where);
  if (!value.is_object()) throw_type(value, field, where, "an object");
  return value;
}

}  // namespace qt
