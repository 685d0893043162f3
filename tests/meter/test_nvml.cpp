// What a driver's library says of a card: each function valid, absent, failing and talking nonsense. Whatever
// one of them does costs its own field and no other.
#include <map>
#include <set>
#include <string>

#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include "src/meter/nvml.h"
#include "tests/support/fake_driver.h"

namespace qt::test {
namespace {

using Fields = std::map<std::string, std::string>;
constexpr const char* kAddress = "0000:01:00.0";

template <class T>
std::string text_of(const std::optional<T>& value) {
  return value ? fmt::format("{}", *value) : "unknown";
}

Fields fields_of(const Nvml& nvml) {
  const CardReading r = nvml.read();
  const CardDescription c = nvml.describe();
  Fields f{{"name", text_of(c.name)},
           {"watts", text_of(r.watts)},
           {"limit", text_of(c.limit_watts)},
           {"default limit", text_of(c.default_limit_watts)},
           {"most limit", text_of(c.most_limit_watts)},
           {"joules", r.joules ? "a count" : "unknown"},
           {"celsius", text_of(r.celsius)},
           {"sm_mhz", text_of(r.sm_mhz)},
           {"throttle", text_of(r.throttle)},
           {"used", text_of(r.used_bytes)},
           {"total", text_of(c.total_bytes)},
           {"pcie generation", text_of(c.pcie_generation)},
           {"pcie width", text_of(c.pcie_width)},
           {"most pcie generation", text_of(c.most_pcie_generation)},
           {"most pcie width", text_of(c.most_pcie_width)}};
  f["processes"] = f["process names"] = c.processes ? "" : "unknown";
  if (c.processes) {
    for (const CardProcess& p : *c.processes) {
      f["processes"] += fmt::format("{} {}, ", p.pid, text_of(p.bytes));
      f["process names"] += p.name.empty() ? "unknown" : p.name + ", ";
    }
  }
  return f;
}

const std::map<std::string, std::set<std::string>>& fields_by_function() {
  static const std::map<std::string, std::set<std::string>> fields{
      {"nvmlDeviceGetName", {"name"}},
      {"nvmlDeviceGetPowerUsage", {"watts"}},
      {"nvmlDeviceGetEnforcedPowerLimit", {"limit"}},
      {"nvmlDeviceGetPowerManagementDefaultLimit", {"default limit"}},
      {"nvmlDeviceGetPowerManagementLimitConstraints", {"most limit"}},
      {"nvmlDeviceGetTotalEnergyConsumption", {"joules"}},
      {"nvmlDeviceGetTemperature", {"celsius"}},
      {"nvmlDeviceGetClockInfo", {"sm_mhz"}},
      {"nvmlDeviceGetCurrentClocksThrottleReasons", {"throttle"}},
      {"nvmlDeviceGetMemoryInfo", {"used", "total"}},
      {"nvmlDeviceGetComputeRunningProcesses_v3", {"processes", "process names"}},
      {"nvmlSystemGetProcessName", {"process names"}},
      {"nvmlDeviceGetCurrPcieLinkGeneration", {"pcie generation"}},
      {"nvmlDeviceGetCurrPcieLinkWidth", {"pcie width"}},
      {"nvmlDeviceGetMaxPcieLinkGeneration", {"most pcie generation"}},
      {"nvmlDeviceGetMaxPcieLinkWidth", {"most pcie width"}}};
  return fields;
}

const Fields& all_fields() {
  static const Fields fields = [] {
    const FakeDriver driver;
    return fields_of(Nvml(kAddress));
  }();
  return fields;
}

// Where these fields are unknown, and all others what they are.
void expect_unknown(const Fields& fields, const std::set<std::string>& unknown) {
  for (const auto& [name, value] : all_fields()) {
    if (unknown.contains(name)) {
      EXPECT_EQ(fields.at(name).substr(0, 7), "unknown") << name;
    } else {
      EXPECT_EQ(fields.at(name), value) << name;
    }
  }
}

TEST(ManagementLibrary, TellsWhatThereIsToTell) {
  const Fields want{{"name", "NVIDIA GeForce RTX 4070"},
                    {"watts", "200"},
                    {"limit", "180"},
                    {"default limit", "200"},
                    {"most limit", "215"},
                    {"joules", "a count"},
                    {"celsius", "66"},
                    {"sm_mhz", "2475"},
                    {"throttle", "[\"power limit\", \"heat\"]"},
                    {"used", "3000000000"},
                    {"total", "12878610432"},
                    {"processes", "100 2000000000, 101 unknown, "},
                    {"process names", "/usr/bin/qtrain, Xorg, "},
                    {"pcie generation", "1"},
                    {"pcie width", "8"},
                    {"most pcie generation", "4"},
                    {"most pcie width", "16"}};
  EXPECT_EQ(all_fields(), want);
  std::set<std::string> covered;
  for (const std::string& function : nvml_functions())
    covered.merge(std::set(fields_by_function().at(function)));
  EXPECT_EQ(covered.size(), want.size()) << "each field is some function's";
}

TEST(ManagementLibrary, WithoutAFunctionLacksItsFieldAndNoOther) {
  for (const std::string& function : nvml_functions()) {
    SCOPED_TRACE(function);
    const FakeDriver driver("", {function});
    expect_unknown(fields_of(Nvml(kAddress)), fields_by_function().at(function));
  }
}

TEST(ManagementLibrary, WithAFunctionThatFailsLacksItsFieldAndNoOther) {
  for (const std::string& function : nvml_functions()) {
    SCOPED_TRACE(function);
    const FakeDriver driver(function + "=fail");
    expect_unknown(fields_of(Nvml(kAddress)), fields_by_function().at(function));
  }
}

TEST(ManagementLibrary, WithAFunctionThatTalksNonsenseLacksItsFieldAndNoOther) {
  for (const std::string& function : nvml_functions()) {
    for (const char* how : {"zero", "ones", "huge"}) {
      // No reasons, no processes and no energy yet are answers; 10^9 mJ are; texts have no such values.
      const std::string nonsense = how;
      const bool list = function == "nvmlDeviceGetComputeRunningProcesses_v3";
      const bool text = function == "nvmlDeviceGetName" || function == "nvmlSystemGetProcessName";
      const bool memory = function == "nvmlDeviceGetMemoryInfo";
      const bool counter = function == "nvmlDeviceGetTotalEnergyConsumption";
      const bool reasons = function == "nvmlDeviceGetCurrentClocksThrottleReasons";
      if (nonsense == "zero" && (list || counter || reasons || function == "nvmlSystemGetProcessName"))
        continue;
      if (nonsense == "ones" && text) continue;
      if (nonsense == "huge" && (list || text || memory || counter)) continue;
      SCOPED_TRACE(function + "=" + how);
      const FakeDriver driver(function + "=" + how);
      expect_unknown(fields_of(Nvml(kAddress)), fields_by_function().at(function));
    }
  }
}

TEST(ManagementLibrary, AnswersThatAreNoneAreNotTakenForNonsense) {
  const FakeDriver driver(
      "nvmlDeviceGetCurrentClocksThrottleReasons=zero nvmlDeviceGetComputeRunningProcesses_v3=zero");
  const Nvml nvml(kAddress);
  EXPECT_EQ(text_of(nvml.read().throttle), "[]") << "nothing holds it back";
  ASSERT_TRUE(nvml.describe().processes);
  EXPECT_TRUE(nvml.describe().processes->empty());
}

TEST(ManagementLibrary, ListsAsManyProcessesAsThereAre) {
  const FakeDriver driver("nvmlDeviceGetComputeRunningProcesses_v3=many");
  ASSERT_TRUE(Nvml(kAddress).describe().processes);
  EXPECT_EQ(Nvml(kAddress).describe().processes->size(), 100u);
}

TEST(ManagementLibrary, KnowsCardsByTheirAddressAndOnlyASingleOneWithout) {
  {
    const FakeDriver driver;
    EXPECT_EQ(Nvml("0000:02:00.0").read().watts, 20) << "the first by number, not by address";
    const Nvml none("0000:03:00.0"), any("");
    EXPECT_FALSE(none.found());
    EXPECT_NE(none.why_not().find("no card at 0000:03:00.0"), std::string::npos);
    EXPECT_FALSE(any.found()) << "there are two";
    EXPECT_NE(any.why_not().find("exactly one"), std::string::npos);
  }
  const FakeDriver driver("nvmlDeviceGetHandleByIndex_v2=fail");
  EXPECT_FALSE(Nvml("").found());
}

TEST(ManagementLibrary, ThatDoesNotOpenLeavesEverythingUnknown) {
  std::set<std::string> all;
  for (const auto& [name, value] : all_fields()) all.insert(name);
  const auto expect_nothing = [&](const char* why) {
    const Nvml nvml(kAddress);
    EXPECT_FALSE(nvml.found());
    EXPECT_NE(nvml.why_not().find(why), std::string::npos) << nvml.why_not();
    expect_unknown(fields_of(nvml), all);
  };
  {
    const FakeDriver driver("nvmlInit_v2=fail");
    expect_nothing("does not start (code 999)");
  }
  {
    const FakeDriver driver("nvmlDeviceGetHandleByPciBusId_v2=fail");
    expect_nothing("knows no card");
  }
  for (const char* lacking : {"nvmlInit_v2", "nvmlDeviceGetHandleByPciBusId_v2"}) {
    const FakeDriver driver("", {lacking});
    expect_nothing("");
  }
  {
    const FakeDriver driver("", {"nvmlShutdown"});
    EXPECT_TRUE(Nvml(kAddress).found()) << "what is not needed is not missed";
  }
  setenv("QTRAIN_NVML", "/nowhere/libnvidia-ml.so.1", 1);
  expect_nothing("cannot be loaded");
  unsetenv("QTRAIN_NVML");
}

}  // namespace
}  // namespace qt::test
