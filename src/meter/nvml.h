// What the driver's management library (NVML) says of a card: power, heat, clocks, memory, who uses it. The
// library is loaded by name (src/core/nvml_library.h), so that a machine without a driver runs this program
// too. Who asks how often, and what follows, is power_watch.h's affair.
//
// Every answer is optional: a function that the library lacks, a call that fails, a value that no card can
// have make that one field absent and touch no other.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace qt {

// What no single card draws: readings above are nonsense.
inline constexpr double kMostCardWatts = 10'000;

// What changes from second to second.
struct CardReading {
  std::optional<double> watts;
  std::optional<double> joules;  // drawn since the driver was loaded
  std::optional<double> celsius;
  std::optional<double> sm_mhz;
  std::optional<std::vector<std::string>>
      throttle;                            // why clocks are held back, in words; empty: they are not
  std::optional<std::int64_t> used_bytes;  // of the card's memory, by anybody
};

struct CardProcess {
  std::int64_t pid = 0;
  std::string name;                   // empty: not known
  std::optional<std::int64_t> bytes;  // of the card's memory
};

// What seldom changes.
struct CardDescription {
  std::optional<std::string> name;
  std::optional<double> limit_watts, default_limit_watts, most_limit_watts;  // in force, as sold, settable
  std::optional<std::int64_t> total_bytes;
  std::optional<std::vector<CardProcess>> processes;  // that hold memory of the card
  std::optional<int> pcie_generation, pcie_width;     // now: cards that idle take fewer
  std::optional<int> most_pcie_generation, most_pcie_width;
};

class Nvml {
 public:
  // The card at this PCI address, as DeviceFacts has it: numbers of cards differ between NVML and a program
  // that sees some of them only (CUDA_VISIBLE_DEVICES). Empty: the only card there is. Never throws for what
  // the library does; QTRAIN_NVML names another library, for tests.
  explicit Nvml(const std::string& pci_bus_id);
  ~Nvml();
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  // Whether there is a library that knows the card. Without, all that is read is absent.
  bool found() const { return card_ != nullptr; }
  const std::string& why_not() const { return why_not_; }  // empty where it is found

  // Any thread.
  CardReading read() const;
  CardDescription describe() const;

 private:
  struct Driver;
  std::unique_ptr<Driver> driver_;
  void* card_ = nullptr;
  std::string why_not_;
};

}  // namespace qt
