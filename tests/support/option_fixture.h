// Loading options as a user gives them: files and environment variables that live as long as the test.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/options/option_table.h"

namespace qt::test {

using Words = std::vector<std::string>;

// Environment variables and files live as long as the test.
class OptionFixture : public ::testing::Test {
 protected:
  void TearDown() override {
    for (const std::string& name : variables_) unsetenv(name.c_str());
    for (const std::string& path : files_) std::filesystem::remove(path);
  }

  void set(const std::string& name, const std::string& value) {
    setenv(name.c_str(), value.c_str(), 1);
    variables_.push_back(name);
  }
  std::string file(const std::string& text, const std::string& ending) {
    const std::string name = fmt::format("qtrain-options-{}-{}{}", getpid(), files_.size(), ending);
    const std::string path = (std::filesystem::temp_directory_path() / name).string();
    std::ofstream(path) << text;
    files_.push_back(path);
    return path;
  }
  std::string ini(const std::string& text) { return file(text, ".ini"); }
  std::string python(const std::string& text) { return file(text, ".py"); }

  LoadedOptions load(const Words& args) {
    Words quiet = {"--quiet"};
    quiet.insert(quiet.end(), args.begin(), args.end());
    return load_options(quiet);
  }
  // What a ConfigError says, message and hint.
  std::string refusal(const Words& args) {
    try {
      load(args);
    } catch (const ConfigError& e) {
      return std::string(e.what()) + " | " + e.hint();
    }
    return "accepted";
  }

 private:
  Words variables_, files_;
};

inline void expect_words(const std::string& text, std::initializer_list<std::string_view> words) {
  for (const std::string_view word : words)
    EXPECT_NE(text.find(word), std::string::npos) << "'" << word << "' in: " << text;
}

inline std::string text_of(const LoadedOptions& loaded, const std::string& name) {
  const OptionSpec* spec = find_option(name);
  return spec == nullptr ? "no option " + name : option_text(loaded.options, *spec);
}

// The names of options that differ.
inline std::set<std::string> differences(const LoadedOptions& a, const LoadedOptions& b) {
  std::set<std::string> names;
  for (const OptionSpec& spec : option_table()) {
    if (option_text(a.options, spec) != option_text(b.options, spec)) names.insert(spec.name);
  }
  return names;
}

}  // namespace qt::test
