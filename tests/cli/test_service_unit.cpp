// configs/qtrain.service against the exit codes that there are.
#include <fstream>
#include <map>
#include <set>
#include <sstream>
#include <string>

#include <gtest/gtest.h>

#include "src/core/error.h"

namespace qt::test {
namespace {

// The last value of each key: no key comes twice.
std::map<std::string, std::string> unit() {
  std::ifstream in(QTRAIN_SOURCE_DIR "/configs/qtrain.service");
  std::map<std::string, std::string> values;
  for (std::string line; std::getline(in, line);) {
    const std::size_t equals = line.find('=');
    if (line.empty() || line.front() == '#' || line.front() == '[' || equals == std::string::npos) continue;
    EXPECT_TRUE(values.emplace(line.substr(0, equals), line.substr(equals + 1)).second) << line;
  }
  return values;
}

TEST(ServiceUnit, StartsAgainAfterACrashAndALostDeviceAndNothingElse) {
  const auto values = unit();
  EXPECT_EQ(values.at("Restart"), "on-failure");  // signals and exit codes; not a clean end
  std::set<int> prevented;
  std::istringstream words(values.at("RestartPreventExitStatus"));
  for (int code = 0; words >> code;) prevented.insert(code);
  const ExitCode codes[] = {ExitCode::internal, ExitCode::usage, ExitCode::no_fit, ExitCode::bad_data,
                            ExitCode::diverged, ExitCode::disk,  ExitCode::stopped};
  std::set<int> expected;
  for (const ExitCode code : codes) expected.insert(static_cast<int>(code));
  EXPECT_EQ(prevented, expected);
  EXPECT_FALSE(prevented.contains(static_cast<int>(ExitCode::device)));
  EXPECT_EQ(values.at("SuccessExitStatus"), std::to_string(static_cast<int>(ExitCode::stopped)));
  EXPECT_EQ(values.at("WantedBy"), "multi-user.target");
  EXPECT_TRUE(values.contains("StartLimitBurst"));
}

}  // namespace
}  // namespace qt::test
