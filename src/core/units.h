// Numbers as a person reads them: bytes, durations, counts.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace qt {

inline constexpr std::int64_t kKiB = 1024;
inline constexpr std::int64_t kMiB = 1024 * kKiB;
inline constexpr std::int64_t kGiB = 1024 * kMiB;

std::string format_bytes(std::int64_t bytes);  // "512 B", "3.2 MiB", "11.0 GiB"
std::string format_duration(double seconds);   // "0.8 s", "3 min 12 s", "12 d 4 h"
// For columns: "850ms", "45s", "3m 12s", "4h 5m", "3d 4h", "120d".
std::string format_duration_short(double seconds);
std::string format_count(std::int64_t count);      // "950", "36.7M", "1.88B"
std::string format_thousands(std::int64_t count);  // "37,580,963,840"

// Takes a number that starts with a digit or a point off the front of text: no sign, no "inf", no "nan".
// Nothing where there is none, or one that no double holds.
std::optional<double> take_number(std::string_view& text);

// "12GiB" (also "12G"), "900MiB", "8GB" (10^9), "4096": ConfigError names `option` when the text is not a
// size.
std::int64_t parse_bytes(std::string_view text, std::string_view option);
// "8h", "90m", "30s", "2d", "1h30m", plain seconds.
double parse_duration(std::string_view text, std::string_view option);
// "524288", "37.6B", "600k", "1.5M": a count of tokens or steps.
std::int64_t parse_count(std::string_view text, std::string_view option);

}  // namespace qt
