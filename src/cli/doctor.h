// `qtrain doctor`: what a run that lasts for weeks meets on this machine, looked at before it starts, and for
// each finding what to do. Facts and measurements are doctor_probe.h's; here they are judged and put in
// words. Nothing here reads or measures anything.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "src/core/error.h"
#include "src/meter/nvml.h"
#include "src/plan/planner.h"

namespace qt {

// Rates of copies between host and device, in bytes a second. `both`: in and out at once, together.
struct CopyRates {
  double in = 0, out = 0, both = 0;
  std::int64_t bytes = 0;  // of the buffer that was copied
};

struct HostFacts {
  std::string processor;
  int threads = 0;  // that a run would use
  bool native_bf16 = false;
  std::int64_t total_bytes = 0, available_bytes = 0;
  std::int64_t swap_used_bytes = 0;
  std::optional<std::int64_t> group_limit_bytes;  // of the control group (container) that this process is in
  bool under_wsl = false;
};

struct CardFacts {
  bool wanted = false;         // --device cuda
  bool unwanted = false;       // --device cpu: nothing below was looked at
  bool built_without = false;  // this program cannot use any
  std::string why_not;         // no card: the reason
  std::string driver;          // "550.54.14"; empty: not known
  std::string nvml_why_not;    // the management library does not answer: the reason
  std::optional<DeviceFacts> device;
  CardDescription description;  // after the copies: cards that idle slow their link down
  CardReading reading;
};

struct DiskFacts {
  std::string folder;      // where the run folder is or will be
  std::string filesystem;  // "ext4", "tmpfs"; empty: not known
  bool is_memory = false;  // gone after a restart, and counted as host memory
  bool is_remote = false;  // a network's or another system's
  std::optional<std::int64_t> free_bytes;
  std::int64_t written_bytes = 0;  // by the measurement; 0: none was made
  double write_s = 0;              // with fsync
  std::string error;               // that the measurement met
};

struct Checkup {
  HostFacts host;
  CardFacts card;
  std::optional<CopyRates> copies;           // of the device that a run would use
  std::string copies_error;                  // why there are none, where that is news
  std::optional<std::int64_t> pinned_bytes;  // locked in memory at once, as far as the plan needs it
  DiskFacts disk;
  Plan plan;
  Limits limits;
  std::optional<std::int64_t> run_holder;  // process that has the run folder
};

enum class Severity { good, note, problem };

struct Finding {
  Severity severity = Severity::good;
  std::string area;              // "card", "copies", "memory", "disk", "plan", "run", "processor"
  std::string text;              // what was found
  std::string advice;            // what to do; empty where there is nothing to
  ExitCode code = ExitCode::ok;  // of a problem
};

// All that is to be said, in the order in which it is read. A problem is what keeps the run from working; a
// note what costs time or safety.
std::vector<Finding> judge(const Checkup& checkup);

// The first problem's code, or ok.
ExitCode exit_code_of(const std::vector<Finding>& findings);

// A line for each, its advice below it, and a last line with the sum.
std::string findings_text(const std::vector<Finding>& findings);
// {"problems", "notes", "findings": [{"severity", "area", "text", "advice"}]} on one line.
std::string findings_json(const std::vector<Finding>& findings);

// Raw rate of a PCIe link one way, in bytes a second, with its encoding; 0 for generations that are none.
double pcie_link_bytes_s(int generation, int lanes);

}  // namespace qt
