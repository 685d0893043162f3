#include "src/core/log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>
#include <vector>

#include "src/core/error.h"

namespace qt {

namespace {

std::atomic<LogLevel> least_level{LogLevel::info};

// All of it, through interruptions and short writes. Returns 0 or an errno.
int write_all(int file, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(file, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return errno;
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
  return 0;
}

DiskError disk_error(const std::string& path, const char* operation, int reason) {
  return DiskError(fmt::format("{}: {} failed: {}", path, operation, std::strerror(reason)),
                   "make room or correct the permissions, then give the same command again");
}

// Length of the well-formed UTF-8 character that text starts with; 0 if there is none (RFC 3629: no
// surrogates, no overlong forms, nothing above U+10FFFF).
std::size_t utf8_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
  if (first < 0xC2 || first > 0xF4 || text.size() < length) return 0;
  const unsigned char second = byte(1);
  if ((first == 0xE0 && second < 0xA0) || (first == 0xED && second > 0x9F) ||
      (first == 0xF0 && second < 0x90) || (first == 0xF4 && second > 0x8F)) {
    return 0;
  }
  for (std::size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  return length;
}

template <class Real>
std::string json_number(Real value) {
  return std::isfinite(value) ? fmt::format("{}", value) : "null";
}

}  // namespace

void set_log_level(LogLevel least) { least_level = least; }

void log_line(LogLevel level, std::string_view text) {
  if (level < least_level.load()) return;
  constexpr const char* kPrefix[] = {"info: ", "warning: ", "error: "};
  std::string line = kPrefix[static_cast<int>(level)];
  for (const char c : text) {
    if (c == '\n') {
      line += "\\n";
    } else {
      line += c;
    }
  }
  line += '\n';
  // A closed stderr is no reason to stop a run of months.
  (void)write_all(STDERR_FILENO, line);
}

std::string json_string(std::string_view text) {
  std::string out = "\"";
  while (!text.empty()) {
    const std::size_t length = utf8_length(text);
    const char c = text.front();
    if (length == 0) {
      out += "\\ufffd";
    } else if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20) {
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return out + '"';
}

double unix_seconds() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return static_cast<double>(std::chrono::duration_cast<std::chrono::milliseconds>(now).count()) / 1e3;
}

JsonRecord& JsonRecord::add(std::string_view key, double value) { return add_raw(key, json_number(value)); }
JsonRecord& JsonRecord::add(std::string_view key, float value) { return add_raw(key, json_number(value)); }

JsonRecord& JsonRecord::add_raw(std::string_view key, std::string_view json) {
  if (fields_.size() > 1) fields_ += ',';
  fields_ += json_string(key);
  fields_ += ':';
  fields_ += json;
  return *this;
}

JsonLines::JsonLines(std::string path) : path_(std::move(path)) {
  file_ = ::open(path_.c_str(), O_RDWR | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  if (file_ < 0) throw disk_error(path_, "opening", errno);
  try {
    remove_torn_line();
  } catch (...) {
    ::close(file_);
    throw;
  }
}

JsonLines::~JsonLines() { ::close(file_); }

void JsonLines::remove_torn_line() {
  struct stat status {};
  if (::fstat(file_, &status) != 0) throw disk_error(path_, "reading its size", errno);
  const std::int64_t size = status.st_size;
  // Backwards in pieces to the last newline: a log of months is large, its last line is not.
  std::vector<char> piece(64 * 1024);
  std::int64_t keep = size;
  bool found = false;
  while (keep > 0 && !found) {
    const std::int64_t from = std::max<std::int64_t>(0, keep - static_cast<std::int64_t>(piece.size()));
    const ssize_t got = ::pread(file_, piece.data(), static_cast<std::size_t>(keep - from), from);
    if (got != keep - from) throw disk_error(path_, "reading", got < 0 ? errno : EIO);
    while (keep > from && !found) {
      found = piece[static_cast<std::size_t>(keep - from - 1)] == '\n';
      if (!found) --keep;
    }
  }
  removed_bytes_ = size - keep;
  if (removed_bytes_ > 0 && ::ftruncate(file_, keep) != 0)
    throw disk_error(path_, "removing a torn line", errno);
}

void JsonLines::write(const JsonRecord& record) {
  struct stat before {};
  if (::fstat(file_, &before) != 0) throw disk_error(path_, "reading its size", errno);
  const int reason = write_all(file_, record.str() + "\n");
  if (reason == 0) return;
  // Half a line would swallow the next record. Where even this fails, the next opening removes the half.
  const bool whole_again = ::ftruncate(file_, before.st_size) == 0;
  throw disk_error(path_, whole_again ? "writing" : "writing (the last line stays torn)", reason);
}

}  // namespace qt
