#include "src/meter/energy_meter.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <system_error>

#include <fmt/format.h>

#include "src/core/units.h"

namespace qt {

namespace {

// Of the time: meters are no better than this.
constexpr double kNoDifference = 0.01;
constexpr std::size_t kLongestSource = 200;

std::optional<std::int64_t> number_in(const std::filesystem::path& path) {
  std::ifstream in(path);
  std::int64_t value = 0;
  if (!(in >> value) || value < 0) return std::nullopt;
  return value;
}

}  // namespace

std::optional<double> Energy::kwh() const {
  if (!(joules > 0)) return std::nullopt;
  return joules / kJoulesPerKwh;
}

bool Energy::is_whole(double seconds) const { return missing_s <= kNoDifference * seconds; }

Energy joined(Energy a, const Energy& b) {
  a.joules += b.joules;
  a.missing_s += b.missing_s;
  if (a.source.empty()) {
    a.source = b.source;
  } else if (a.source.find(b.source) == std::string::npos && a.source.size() < kLongestSource) {
    a.source += ", " + b.source;
  }
  return a;
}

std::string kwh_text(double kwh) {
  if (kwh < 0.01) return fmt::format("{:.3g} Wh", kwh * 1e3);
  return fmt::format("{:.{}f} kWh", kwh, kwh < 10 ? 2 : kwh < 100 ? 1 : 0);
}

std::string energy_text(const Energy& energy, double seconds) {
  const std::optional<double> kwh = energy.kwh();
  if (!kwh) return "unknown: nothing that can be read here measures it; --watts W assumes a power";
  if (energy.is_whole(seconds)) return fmt::format("{} ({})", kwh_text(*kwh), energy.source);
  return fmt::format("at least {} ({}; nothing was measured for {})", kwh_text(*kwh), energy.source,
                     format_duration(energy.missing_s));
}

// ---- EnergyMeter --------------------------------------------------------------------------------------

void EnergyMeter::take(double at_s, std::optional<double> counter_joules, std::optional<double> watts) {
  if (!begun_) {
    begun_ = true;
    base_s_ = last_s_ = at_s;
    base_counter_ = counter_joules;
    last_watts_ = watts;
    return;
  }
  const double since_last_s = at_s - last_s_;
  if (last_watts_ && watts) {
    open_joules_ += (*last_watts_ + *watts) / 2 * since_last_s;
  } else {
    open_missing_s_ += since_last_s;
  }
  last_s_ = at_s;
  last_watts_ = watts;

  const double open_s = at_s - base_s_;
  if (!base_counter_) return settle_by_watts(at_s, counter_joules);
  if (!counter_joules) {
    // The next reading may bridge the gap.
    if (open_s >= kStillSeconds) settle_by_watts(at_s, counter_joules);
    return;
  }
  const double counted = *counter_joules - *base_counter_;
  if (counted == 0) {
    if (stands_still_ || open_s >= kStillSeconds) {
      settle_by_watts(at_s, counter_joules);
      stands_still_ = true;
    }
    return;
  }
  // A meter that stood still may have counted for any time since; a decrease is a new beginning.
  if (stands_still_ || counted < 0 || counted > kMostWatts * open_s)
    return settle_by_watts(at_s, counter_joules);
  by_counter_ += counted;
  base_s_ = at_s;
  base_counter_ = counter_joules;
  open_joules_ = open_missing_s_ = 0;
}

void EnergyMeter::settle_by_watts(double at_s, std::optional<double> counter_joules) {
  by_watts_ += open_joules_;
  missing_s_ += open_missing_s_;
  open_joules_ = open_missing_s_ = 0;
  base_s_ = at_s;
  base_counter_ = counter_joules;
  stands_still_ = false;
}

// ---- Rapl ---------------------------------------------------------------------------------------------

Rapl::Rapl(std::filesystem::path folder) {
  if (folder.empty()) {
    const char* other = std::getenv("QTRAIN_POWERCAP");
    folder = other != nullptr && *other != '\0' ? other : "/sys/class/powercap";
  }
  std::error_code error;
  std::filesystem::directory_iterator zones(folder, error);
  for (; !error && zones != std::filesystem::directory_iterator(); zones.increment(error)) {
    const std::filesystem::directory_entry& entry = *zones;
    // intel-rapl:0 is a package, also of AMD's processors, or the whole board (psys); intel-rapl:0:1 a part.
    const std::string zone = entry.path().filename().string();
    if (!zone.starts_with("intel-rapl:") || std::count(zone.begin(), zone.end(), ':') != 1) continue;
    std::ifstream in(entry.path() / "name");
    std::string name;
    if (!(in >> name) || !name.starts_with("package")) continue;
    packages_.push_back({.counter = entry.path() / "energy_uj",
                         .range_uj = number_in(entry.path() / "max_energy_range_uj").value_or(0)});
  }
}

std::optional<double> Rapl::joules() {
  bool complete = !packages_.empty();
  for (Package& p : packages_) {
    const std::optional<std::int64_t> now_uj = number_in(p.counter);
    if (!now_uj || (*now_uj < p.last_uj && (p.range_uj == 0 || p.last_uj > p.range_uj))) {
      complete = false;
      break;
    }
    if (p.last_uj >= 0) {
      std::int64_t uj = *now_uj - p.last_uj;
      if (uj < 0) uj += p.range_uj;
      joules_ += static_cast<double>(uj) * 1e-6;
    }
    p.last_uj = *now_uj;
  }
  if (complete) return joules_;
  joules_ = 0;
  for (Package& p : packages_) p.last_uj = -1;
  return std::nullopt;
}

}  // namespace qt
