// nanoGPT's configuration files: Python in name, but assignments of literals in fact, and read as such. They
// are never executed. What the names mean is nanogpt.h's.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace qt {

struct NanogptLine {
  std::string key;     // as written
  std::string value;   // as an option takes it: "12", "0.1", "True", "text"
  std::string origin;  // "train.py:3"
};

struct NanogptFile {
  std::vector<NanogptLine> lines;  // one per name: the last assignment counts
  std::vector<std::string> notes;  // lines that were left out, and why
};

// Whether --config reads the file by these rules: its name ends in .py.
bool is_nanogpt_file(std::string_view path);

// Throws ConfigError naming file and line for anything but literals, sums and products of numbers and sums of
// texts, and where the file cannot be read.
NanogptFile read_nanogpt_file(const std::string& path);
// The same for text; `path` names it.
NanogptFile parse_nanogpt_file(std::string_view text, const std::string& path);

// What nanoGPT's train.py sets before it reads a file, in its own words.
std::span<const NanogptLine> nanogpt_train_defaults();

}  // namespace qt
