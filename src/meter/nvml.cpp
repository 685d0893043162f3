#include "src/meter/nvml.h"

#include <algorithm>
#include <array>
#include <cstdlib>

#include <fmt/format.h>

#include "src/core/nvml_library.h"

namespace qt {

namespace {

using nvml::Call;
using nvml::Handle;
using nvml::Status;

constexpr const char* kOtherLibrary = "QTRAIN_NVML";

constexpr int kCoreSensor = 0;  // of the kinds of temperature
constexpr int kSmClock = 1;     // of the kinds of clocks

struct Process {
  unsigned pid = 0;
  unsigned long long used = 0;
  unsigned gpu_instance = 0, compute_instance = 0;
};

// Why the clocks of a card are held back: bits of one word. Bit 0, idle, is no reason to worry.
struct Reason {
  unsigned long long bit;
  const char* words;
};
constexpr Reason kReasons[] = {{0x2, "clocks set by an application"},
                               {0x4, "power limit"},
                               {0x8, "hardware slowdown"},
                               {0x10, "kept in step with other cards"},
                               {0x20, "heat"},
                               {0x40, "heat (hardware)"},
                               {0x80, "power supply (hardware)"},
                               {0x100, "clocks of the display"}};
constexpr unsigned long long kMostReasons = 0xFFFF;  // beyond: no set of reasons

constexpr double kLeastWatts = 0.1;
constexpr double kLeastCelsius = 1, kMostCelsius = 150;
constexpr double kLeastMhz = 1, kMostMhz = 20'000;
constexpr unsigned long long kMostBytes = 1ULL << 50;
constexpr double kMostJoules = 1e13;  // at 10 kW: thirty years
constexpr unsigned kMostPcieGeneration = 16, kMostPcieWidth = 64;
constexpr unsigned kMostProcesses = 4096;
constexpr unsigned kNameBytes = 256;

template <class T>
std::optional<T> within(T value, T least, T most) {
  return value >= least && value <= most ? std::optional<T>(value) : std::nullopt;
}

using AskNumber = Call<Handle, unsigned*>;

std::optional<double> watts_of(const AskNumber& ask, Handle card) {
  unsigned milliwatts = 0;
  if (!ask(card, &milliwatts)) return std::nullopt;
  return within(milliwatts * 1e-3, kLeastWatts, kMostCardWatts);
}

std::optional<int> link_of(const AskNumber& ask, Handle card, unsigned most) {
  unsigned value = 0;
  if (!ask(card, &value) || !within(value, 1U, most)) return std::nullopt;
  return static_cast<int>(value);
}

std::optional<std::int64_t> bytes_of(unsigned long long bytes) {
  if (bytes > kMostBytes) return std::nullopt;
  return static_cast<std::int64_t>(bytes);
}

}  // namespace

struct Nvml::Driver {
  explicit Driver(const char* library_name) : library(library_name) {}

  std::string name_of_process(unsigned pid) const {
    std::array<char, kNameBytes> text{};
    return process_name(pid, text.data(), kNameBytes - 1) ? std::string(text.data()) : std::string();
  }
  // Those of one list that are not among `found` yet. False where there is no such list.
  bool add_processes(const Call<Handle, unsigned*, Process*>& ask, Handle card,
                     std::vector<CardProcess>& found) const {
    std::vector<Process> list(64);
    auto count = static_cast<unsigned>(list.size());
    Status status = ask.status(card, &count, list.data());
    if (status == nvml::kInsufficientSize && count <= kMostProcesses) {
      list.resize(count + 16);  // some may have come meanwhile
      count = static_cast<unsigned>(list.size());
      status = ask.status(card, &count, list.data());
    }
    if (status != nvml::kSuccess || count > list.size()) return false;
    for (unsigned i = 0; i < count; ++i) {
      const Process& p = list[i];
      const auto same = [&](const CardProcess& c) { return c.pid == static_cast<std::int64_t>(p.pid); };
      if (std::any_of(found.begin(), found.end(), same)) continue;
      found.push_back({.pid = p.pid, .name = name_of_process(p.pid), .bytes = bytes_of(p.used)});
    }
    return true;
  }

  nvml::Library library;

  Call<unsigned*> card_count{library, {"nvmlDeviceGetCount_v2"}};
  nvml::CardAt card_at{library};
  Call<unsigned, Handle*> card_number{library, {"nvmlDeviceGetHandleByIndex_v2"}};
  Call<Handle, char*, unsigned> name{library, {"nvmlDeviceGetName"}};
  AskNumber power{library, {"nvmlDeviceGetPowerUsage"}};
  AskNumber limit{library, {"nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetPowerManagementLimit"}};
  AskNumber default_limit{library, {"nvmlDeviceGetPowerManagementDefaultLimit"}};
  Call<Handle, unsigned*, unsigned*> limits{library, {"nvmlDeviceGetPowerManagementLimitConstraints"}};
  Call<Handle, unsigned long long*> energy{library, {"nvmlDeviceGetTotalEnergyConsumption"}};
  Call<Handle, int, unsigned*> temperature{library, {"nvmlDeviceGetTemperature"}};
  Call<Handle, int, unsigned*> clock{library, {"nvmlDeviceGetClockInfo"}};
  Call<Handle, unsigned long long*> reasons{
      library, {"nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetCurrentClocksEventReasons"}};
  nvml::MemoryOf memory{library};
  Call<Handle, unsigned*, Process*> compute_processes{
      library, {"nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"}};
  Call<Handle, unsigned*, Process*> graphics_processes{
      library, {"nvmlDeviceGetGraphicsRunningProcesses_v3", "nvmlDeviceGetGraphicsRunningProcesses_v2"}};
  Call<unsigned, char*, unsigned> process_name{library, {"nvmlSystemGetProcessName"}};
  AskNumber pcie_generation{library, {"nvmlDeviceGetCurrPcieLinkGeneration"}};
  AskNumber pcie_width{library, {"nvmlDeviceGetCurrPcieLinkWidth"}};
  AskNumber most_pcie_generation{library, {"nvmlDeviceGetMaxPcieLinkGeneration"}};
  AskNumber most_pcie_width{library, {"nvmlDeviceGetMaxPcieLinkWidth"}};
};

Nvml::Nvml(const std::string& pci_bus_id) {
  const char* other = std::getenv(kOtherLibrary);
  const char* name = other != nullptr && *other != '\0' ? other : nvml::kLibrary;
  driver_ = std::make_unique<Driver>(name);
  if (!driver_->library.loaded()) {
    why_not_ = fmt::format("{} cannot be loaded: it comes with NVIDIA's driver", name);
    return;
  }
  if (const Status status = driver_->library.start_status(); status != nvml::kSuccess) {
    why_not_ = fmt::format("{} does not start (code {})", name, status);
    return;
  }
  Handle card = nullptr;
  bool known = false;
  if (pci_bus_id.empty()) {
    unsigned count = 0;
    known = driver_->card_count(&count) && count == 1 && driver_->card_number(0, &card);
  } else {
    known = driver_->card_at(pci_bus_id.c_str(), &card);
  }
  if (known && card != nullptr) {
    card_ = card;
  } else {
    why_not_ = pci_bus_id.empty() ? fmt::format("{} does not know of exactly one card", name)
                                  : fmt::format("{} knows no card at {}", name, pci_bus_id);
  }
}

Nvml::~Nvml() = default;

CardReading Nvml::read() const {
  CardReading r;
  if (!found()) return r;
  const Driver& d = *driver_;
  r.watts = watts_of(d.power, card_);
  if (unsigned long long millijoules = 0; d.energy(card_, &millijoules))
    r.joules = within(static_cast<double>(millijoules) * 1e-3, 0.0, kMostJoules);
  if (unsigned celsius = 0; d.temperature(card_, kCoreSensor, &celsius))
    r.celsius = within(static_cast<double>(celsius), kLeastCelsius, kMostCelsius);
  if (unsigned mhz = 0; d.clock(card_, kSmClock, &mhz))
    r.sm_mhz = within(static_cast<double>(mhz), kLeastMhz, kMostMhz);
  if (unsigned long long bits = 0; d.reasons(card_, &bits) && bits <= kMostReasons) {
    r.throttle.emplace();
    for (const Reason& reason : kReasons) {
      if ((bits & reason.bit) != 0) r.throttle->emplace_back(reason.words);
    }
  }
  if (nvml::Memory m; d.memory(card_, &m) && m.total > 0 && m.used <= m.total)
    r.used_bytes = bytes_of(m.used);
  return r;
}

CardDescription Nvml::describe() const {
  CardDescription c;
  if (!found()) return c;
  const Driver& d = *driver_;
  std::array<char, kNameBytes> name{};
  if (d.name(card_, name.data(), kNameBytes - 1) && name.front() != '\0') c.name = name.data();
  c.limit_watts = watts_of(d.limit, card_);
  c.default_limit_watts = watts_of(d.default_limit, card_);
  if (unsigned least = 0, most = 0; d.limits(card_, &least, &most))
    c.most_limit_watts = within(most * 1e-3, kLeastWatts, kMostCardWatts);
  if (nvml::Memory m; d.memory(card_, &m) && m.total > 0) c.total_bytes = bytes_of(m.total);
  std::vector<CardProcess> processes;
  const bool computes = d.add_processes(d.compute_processes, card_, processes);
  const bool draws = d.add_processes(d.graphics_processes, card_, processes);
  if (computes || draws) c.processes = std::move(processes);
  c.pcie_generation = link_of(d.pcie_generation, card_, kMostPcieGeneration);
  c.pcie_width = link_of(d.pcie_width, card_, kMostPcieWidth);
  c.most_pcie_generation = link_of(d.most_pcie_generation, card_, kMostPcieGeneration);
  c.most_pcie_width = link_of(d.most_pcie_width, card_, kMostPcieWidth);
  return c;
}

}  // namespace qt
