// Looking at a run folder from outside, while its process lives or after it died.
#pragma once

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "src/core/error.h"
#include "src/io/file.h"
#include "src/io/json.h"
#include "tests/support/process.h"

namespace qt::test {

// Lines of a log that end in a line break: a process that is killed may leave one more, torn.
inline std::vector<std::string> whole_lines(const std::string& text) {
  std::vector<std::string> lines;
  for (std::size_t from = 0, to = 0; (to = text.find('\n', from)) != std::string::npos; from = to + 1)
    lines.push_back(text.substr(from, to - from));
  return lines;
}

// Those of them that are no JSON record.
inline std::vector<std::string> unreadable_lines(const std::string& log) {
  std::vector<std::string> bad;
  for (const std::string& line : whole_lines(log)) {
    try {
      json_string(parse_json(line, "log.jsonl"), "kind", "log.jsonl");
    } catch (const DataError&) {
      bad.push_back(line);
    }
  }
  return bad;
}

// The record written last; empty where there is none.
inline Json last_record(const std::string& run) {
  const auto lines = whole_lines(read_text(run + "/log.jsonl"));
  return lines.empty() ? Json() : parse_json(lines.back(), "log.jsonl");
}
inline std::string last_kind(const std::string& run) {
  const Json record = last_record(run);
  return record.is_object() ? json_string(record, "kind", "log.jsonl") : "";
}

// Whether process `pid` has a save in progress. A killed save leaves its folder behind, under that process's
// number.
inline bool is_saving(const std::string& run, pid_t pid) {
  std::error_code error;
  const std::string ending = "-" + std::to_string(pid);
  for (const auto& entry : std::filesystem::directory_iterator(run, error)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(".tmp-step-") && name.ends_with(ending)) return true;
  }
  return false;
}

// Names and contents below a folder, but for locks, log and event files, which every start touches.
inline std::string tree_of(const std::filesystem::path& folder) {
  std::vector<std::string> lines;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!entry.is_regular_file() || name == "lock" || name == ".lock" || name == "log.jsonl") continue;
    if (entry.path().parent_path().filename() == "tensorboard") continue;
    lines.push_back(entry.path().lexically_relative(folder).string() + " " +
                    xxh3_hex(bytes_of(read_text(entry.path()))) + "\n");
  }
  std::sort(lines.begin(), lines.end());
  std::string text;
  for (const std::string& line : lines) text += line;
  return text;
}

}  // namespace qt::test
