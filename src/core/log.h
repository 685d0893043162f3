// Records for people and for programs: leveled one-line messages on stderr, and append-only JSON-lines files.
// What is worth saying, and which fields a record has, is the caller's business.
#pragma once

#include <concepts>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include <fmt/format.h>

namespace qt {

enum class LogLevel : std::uint8_t { info, warning, error };

// Messages below this level are dropped; `--quiet` asks for LogLevel::warning. Process-wide, any thread.
void set_log_level(LogLevel least);

// One line on stderr, in one write: lines of several threads never mix. A line break in the text becomes
// "\n".
void log_line(LogLevel level, std::string_view text);

template <class... Args>
void log_info(fmt::format_string<Args...> text, Args&&... args) {
  log_line(LogLevel::info, fmt::format(text, std::forward<Args>(args)...));
}
template <class... Args>
void log_warning(fmt::format_string<Args...> text, Args&&... args) {
  log_line(LogLevel::warning, fmt::format(text, std::forward<Args>(args)...));
}
template <class... Args>
void log_error(fmt::format_string<Args...> text, Args&&... args) {
  log_line(LogLevel::error, fmt::format(text, std::forward<Args>(args)...));
}

// The text as a JSON string, quotes included. Bytes that are not UTF-8 (a sample cut inside a character)
// become U+FFFD one by one, so that the line can always be read back.
std::string json_string(std::string_view text);

// The time of day in seconds since 1970, to the millisecond: for readers of a log, never for durations.
double unix_seconds();

// One JSON object, fields in the order of the calls. Floating point prints the shortest digits that read back
// to the same value; NaN and infinities, which JSON does not have, print as null.
class JsonRecord {
 public:
  JsonRecord& add(std::string_view key, std::string_view value) { return add_raw(key, json_string(value)); }
  // Without this one a string literal would convert to bool.
  JsonRecord& add(std::string_view key, const char* value) { return add(key, std::string_view(value)); }
  JsonRecord& add(std::string_view key, bool value) { return add_raw(key, value ? "true" : "false"); }
  template <std::integral T>
  JsonRecord& add(std::string_view key, T value) {
    return add_raw(key, fmt::format("{}", value));
  }
  JsonRecord& add(std::string_view key, double value);
  JsonRecord& add(std::string_view key, float value);
  // `json` is inserted as it is: an array or object made by the caller.
  JsonRecord& add_raw(std::string_view key, std::string_view json);

  std::string str() const { return fields_ + "}"; }

 private:
  std::string fields_ = "{";
};

// Appends records to a file, one line each, handed to the kernel before write() returns: a killed process
// loses at most the line it was writing. Opening removes such a torn last line. Not for several threads at
// once.
class JsonLines {
 public:
  // Creates the file where it is missing. Throws DiskError.
  explicit JsonLines(std::string path);
  ~JsonLines();
  JsonLines(const JsonLines&) = delete;
  JsonLines& operator=(const JsonLines&) = delete;

  // Throws DiskError naming path and reason; the file then ends with the record before.
  void write(const JsonRecord& record);

  const std::string& path() const { return path_; }
  // Length of the torn line that opening removed; 0 for a whole file.
  std::int64_t removed_bytes() const { return removed_bytes_; }

 private:
  void remove_torn_line();

  std::string path_;
  int file_ = -1;
  std::int64_t removed_bytes_ = 0;
};

}  // namespace qt
