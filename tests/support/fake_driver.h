// The driver's library of tests/support/fake_nvml.cpp in the place of the real one, for as long as it lives.
#pragma once

#include <cstdlib>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/support/process.h"
#include "tests/support/tiny_run.h"

namespace qt::test {

class FakeDriver {
 public:
  // behaviour: as in FAKE_NVML. lacking: functions that the library does not have.
  explicit FakeDriver(const std::string& behaviour = "", const std::vector<std::string>& lacking = {}) {
    std::string library = read_text(QTRAIN_FAKE_NVML);
    // Under another name in the table of symbols it is not found: its hash is of the name it had.
    for (const std::string& function : lacking) {
      const std::string symbol = function + '\0';
      std::size_t found = 0;
      for (std::size_t at = 0; (at = library.find(symbol, at)) != std::string::npos; ++at, ++found)
        library[at] = 'x';
      EXPECT_GT(found, 0u) << function;
    }
    write_text(folder_ / "libfake.so", library);
    setenv("QTRAIN_NVML", (folder_ / "libfake.so").c_str(), 1);
    setenv("FAKE_NVML", behaviour.c_str(), 1);
  }
  ~FakeDriver() {
    unsetenv("QTRAIN_NVML");
    unsetenv("FAKE_NVML");
  }
  FakeDriver(const FakeDriver&) = delete;
  FakeDriver& operator=(const FakeDriver&) = delete;

 private:
  TempDir folder_;
};

// What a card of it answers is asked for by these, one each.
inline const std::vector<std::string>& nvml_functions() {
  static const std::vector<std::string> names{"nvmlDeviceGetName",
                                              "nvmlDeviceGetPowerUsage",
                                              "nvmlDeviceGetEnforcedPowerLimit",
                                              "nvmlDeviceGetPowerManagementDefaultLimit",
                                              "nvmlDeviceGetPowerManagementLimitConstraints",
                                              "nvmlDeviceGetTotalEnergyConsumption",
                                              "nvmlDeviceGetTemperature",
                                              "nvmlDeviceGetClockInfo",
                                              "nvmlDeviceGetCurrentClocksThrottleReasons",
                                              "nvmlDeviceGetMemoryInfo",
                                              "nvmlDeviceGetComputeRunningProcesses_v3",
                                              "nvmlSystemGetProcessName",
                                              "nvmlDeviceGetCurrPcieLinkGeneration",
                                              "nvmlDeviceGetCurrPcieLinkWidth",
                                              "nvmlDeviceGetMaxPcieLinkGeneration",
                                              "nvmlDeviceGetMaxPcieLinkWidth"};
  return names;
}

}  // namespace qt::test
