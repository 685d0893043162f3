#include "src/core/units.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <limits>
#include <optional>
#include <span>

#include "src/core/error.h"

namespace qt {

namespace {

struct Unit {
  std::string_view name;  // lower case
  double factor;
};

// A bare letter means the binary unit, as in ulimit, docker and the sizes printed on graphics cards.
constexpr Unit kByteUnits[] = {{"", 1.0},       {"b", 1.0},     {"k", 0x1p10},   {"kb", 1e3},
                               {"kib", 0x1p10}, {"m", 0x1p20},  {"mb", 1e6},     {"mib", 0x1p20},
                               {"g", 0x1p30},   {"gb", 1e9},    {"gib", 0x1p30}, {"t", 0x1p40},
                               {"tb", 1e12},    {"tib", 0x1p40}};
constexpr Unit kCountUnits[] = {{"", 1.0}, {"k", 1e3}, {"m", 1e6}, {"b", 1e9}, {"g", 1e9}, {"t", 1e12}};
constexpr Unit kTimeUnits[] = {{"d", 86400.0}, {"h", 3600.0}, {"m", 60.0},
                               {"min", 60.0},  {"s", 1.0},    {"", 1.0}};

std::string_view skip_blanks(std::string_view text) {
  while (!text.empty() && text.front() == ' ') text.remove_prefix(1);
  return text;
}

const Unit* find_unit(std::span<const Unit> units, std::string_view name) {
  std::string lower;
  for (const char c : name) lower += (c >= 'A' && c <= 'Z') ? static_cast<char>(c - 'A' + 'a') : c;
  for (const Unit& unit : units) {
    if (unit.name == lower) return &unit;
  }
  return nullptr;
}

// number * unit as a whole number. Digits alone are read exactly; with a unit the product is exact up to
// 2^53, which is what sizes and token counts stay below. Absent: not a number, not a unit, not whole, out of
// range.
std::optional<std::int64_t> parse_whole(std::string_view text, std::span<const Unit> units) {
  text = skip_blanks(text);
  std::int64_t exact = 0;
  if (!text.empty() && text.front() >= '0' && text.front() <= '9') {
    const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), exact);
    if (status == std::errc{} && end == text.data() + text.size()) return exact;
  }
  const std::optional<double> number = take_number(text);
  if (!number) return std::nullopt;
  const Unit* unit = find_unit(units, skip_blanks(text));
  if (unit == nullptr) return std::nullopt;
  const double value = *number * unit->factor;
  if (!(value < 0x1p63)) return std::nullopt;
  const double whole = std::round(value);
  // 37.6 * 1e9 may miss its integer by a rounding, 1.2345 k misses it by far more.
  if (std::abs(value - whole) > 1e-9 * value) return std::nullopt;
  return static_cast<std::int64_t>(whole);
}

// What a duration of a minute or more is shown as. Rounded once to the smaller of the two units, then split:
// no "59 min 60 s".
struct TwoUnits {
  std::int64_t large = 0, small = 0;
  std::size_t unit = 0;  // of the larger one: minutes, hours, days
};

TwoUnits in_two_units(double seconds) {
  constexpr double kShown[] = {1, 60, 3600};  // the smaller one
  constexpr std::int64_t kOfLarger[] = {60, 60, 24};
  const std::size_t unit = seconds < 3599.5 ? 0 : seconds < 86400.0 - 30.0 ? 1 : 2;
  const std::int64_t count = std::llround(seconds / kShown[unit]);
  return {.large = count / kOfLarger[unit], .small = count % kOfLarger[unit], .unit = unit};
}

// Days beyond these are no durations that anybody splits.
constexpr double kMostSplitSeconds = 1e15;

}  // namespace

std::optional<double> take_number(std::string_view& text) {
  if (text.empty() || (text.front() != '.' && (text.front() < '0' || text.front() > '9')))
    return std::nullopt;
  double value = 0;
  const auto [end, status] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (status != std::errc{}) return std::nullopt;
  text.remove_prefix(static_cast<std::size_t>(end - text.data()));
  return value;
}

std::string format_bytes(std::int64_t bytes) {
  constexpr std::array<const char*, 5> kNames = {"B", "KiB", "MiB", "GiB", "TiB"};
  if (bytes > -kKiB && bytes < kKiB) return fmt::format("{} B", bytes);
  double value = static_cast<double>(bytes);
  std::size_t unit = 0;
  // 1023.95 is where one decimal would print 1024.0 of the smaller unit.
  while (std::abs(value) >= 1023.95 && unit + 1 < kNames.size()) {
    value /= 1024.0;
    ++unit;
  }
  return fmt::format("{:.1f} {}", value, kNames[unit]);
}

std::string format_duration(double seconds) {
  if (!std::isfinite(seconds)) return "unknown";
  if (seconds < 0) return "-" + format_duration(-seconds);
  if (seconds < 0.0995) return fmt::format("{:.1f} ms", seconds * 1e3);
  if (seconds < 9.95) return fmt::format("{:.1f} s", seconds);
  if (seconds < 59.5) return fmt::format("{:.0f} s", seconds);
  if (seconds >= kMostSplitSeconds) return fmt::format("{:.1e} d", seconds / 86400.0);
  constexpr const char* kNames[] = {"s", "min", "h", "d"};
  const TwoUnits d = in_two_units(seconds);
  return fmt::format("{} {} {} {}", d.large, kNames[d.unit + 1], d.small, kNames[d.unit]);
}

std::string format_duration_short(double seconds) {
  if (!std::isfinite(seconds)) return "unknown";
  if (seconds < 0) return "-" + format_duration_short(-seconds);
  if (seconds < 0.9995) return fmt::format("{:.0f}ms", seconds * 1e3);
  if (seconds < 9.95) return fmt::format("{:.1f}s", seconds);
  if (seconds < 59.5) return fmt::format("{:.0f}s", seconds);
  if (seconds >= kMostSplitSeconds) return fmt::format("{:.1e}d", seconds / 86400.0);
  const TwoUnits d = in_two_units(seconds);
  if (d.unit == 2 && d.large >= 100) return fmt::format("{}d", std::llround(seconds / 86400.0));
  return fmt::format("{}{} {}{}", d.large, "mhd"[d.unit], d.small, "smh"[d.unit]);
}

std::string format_count(std::int64_t count) {
  constexpr std::array<const char*, 5> kNames = {"", "k", "M", "B", "T"};
  if (count > -1000 && count < 1000) return fmt::format("{}", count);
  double value = static_cast<double>(count);
  std::size_t unit = 0;
  while (std::abs(value) >= (unit == 0 ? 1000.0 : 999.5) && unit + 1 < kNames.size()) {
    value /= 1000.0;
    ++unit;
  }
  // Three significant digits, and no trailing zeros: 600k, 1.5M, 1.88B, 36.7M.
  const double magnitude = std::abs(value);
  std::string digits = fmt::format("{:.{}f}", value, magnitude < 9.995 ? 2 : magnitude < 99.95 ? 1 : 0);
  if (digits.find('.') != std::string::npos) {
    digits.erase(digits.find_last_not_of('0') + 1);
    if (digits.back() == '.') digits.pop_back();
  }
  return digits + kNames[unit];
}

std::string format_thousands(std::int64_t count) {
  std::string digits = fmt::format("{}", count);
  const std::size_t first = count < 0 ? 2 : 1;  // never a comma before the first digit
  for (std::size_t at = digits.size(); at >= first + 3; at -= 3) digits.insert(at - 3, ",");
  return digits;
}

std::int64_t parse_bytes(std::string_view text, std::string_view option) {
  const std::optional<std::int64_t> bytes = parse_whole(text, kByteUnits);
  if (bytes) return *bytes;
  // 1.3GiB is no whole number of bytes; rounding it is harmless.
  std::string_view rest = skip_blanks(text);
  const std::optional<double> number = take_number(rest);
  const Unit* unit = number ? find_unit(kByteUnits, skip_blanks(rest)) : nullptr;
  if (unit == nullptr || unit->factor == 1.0 || !(*number * unit->factor < 0x1p63)) {
    throw ConfigError(fmt::format("{}: '{}' is not a size", option, text),
                      "write it like 12GiB, 900MiB, 8GB or 4096 (bytes)");
  }
  return std::llround(*number * unit->factor);
}

double parse_duration(std::string_view text, std::string_view option) {
  const auto refuse = [&]() {
    return ConfigError(fmt::format("{}: '{}' is not a duration", option, text),
                       "write it like 8h, 90m, 30s, 2d, 1h30m or 600 (seconds)");
  };
  std::string_view rest = skip_blanks(text);
  double total = 0;
  double last_factor = std::numeric_limits<double>::infinity();
  do {
    const std::optional<double> number = take_number(rest);
    if (!number) throw refuse();
    rest = skip_blanks(rest);
    const std::size_t length = std::min(rest.find_first_of("0123456789. "), rest.size());
    const Unit* unit = find_unit(kTimeUnits, rest.substr(0, length));
    // Larger units first, each once; a number without a unit stands alone ("1h30" may mean two things).
    if (unit == nullptr || unit->factor >= last_factor) throw refuse();
    if (unit->name.empty() && std::isfinite(last_factor)) throw refuse();
    total += *number * unit->factor;
    last_factor = unit->factor;
    rest = skip_blanks(rest.substr(length));
  } while (!rest.empty());
  if (!std::isfinite(total)) throw refuse();
  return total;
}

std::int64_t parse_count(std::string_view text, std::string_view option) {
  const std::optional<std::int64_t> count = parse_whole(text, kCountUnits);
  if (!count) {
    throw ConfigError(fmt::format("{}: '{}' is not a whole number", option, text),
                      "write it like 524288, 600k, 1.5M or 37.6B");
  }
  return *count;
}

}  // namespace qt
