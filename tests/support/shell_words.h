// Reading a command as a POSIX shell would, as far as src/plan/command.h writes it.
#pragma once

#include <string>
#include <vector>

namespace qt::test {

inline std::vector<std::string> shell_words(const std::string& command) {
  std::vector<std::string> words{""};
  bool quoted = false;
  for (std::size_t i = 0; i < command.size(); ++i) {
    const char c = command[i];
    if (c == '\'') {
      quoted = !quoted;
    } else if (c == '\\' && !quoted) {
      words.back() += command[++i];
    } else if (c == ' ' && !quoted) {
      words.emplace_back();
    } else {
      words.back() += c;
    }
  }
  return words;
}

// Without the program's name.
inline std::vector<std::string> arguments_of(const std::string& command) {
  std::vector<std::string> words = shell_words(command);
  words.erase(words.begin());
  return words;
}

}  // namespace qt::test
