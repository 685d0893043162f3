// Energy: what a run has drawn so far, from counters and powers that may be missing, stand still or start
// anew. What is not known is never 0. EnergyMeter is arithmetic on readings at moments; Rapl reads what
// processors count; who reads when is power_watch.h's affair.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace qt {

inline constexpr double kJoulesPerKwh = 3.6e6;

// Of a run over all its sessions, or of one session.
struct Energy {
  double joules = 0;     // as far as anything is known of them; 0: nothing is
  double missing_s = 0;  // of the time: when nothing was measured
  std::string source;    // what measured: "the card's energy counter"; several with commas; empty: nothing

  // Nothing where nothing is known. Less than was drawn unless is_whole().
  std::optional<double> kwh() const;
  // Whether all of `seconds` but what makes no difference was measured.
  bool is_whole(double seconds) const;
};

// One after the other.
Energy joined(Energy a, const Energy& b);

// "1.23 kWh (the card's energy counter)", "at least ..." where a part of `seconds` was not measured,
// "unknown".
std::string energy_text(const Energy& energy, double seconds);
std::string kwh_text(double kwh);  // "675 kWh", "1.23 kWh", "4.56 Wh"

// Adds up readings. The counter decides where it counts; else the power, taken as a straight line between
// readings; what neither covers is missing.
class EnergyMeter {
 public:
  // at_s: of a clock that only runs forward. counter_joules: of a counter that grows until it starts anew, or
  // whatever a broken one says. watts: at this moment.
  void take(double at_s, std::optional<double> counter_joules, std::optional<double> watts);

  double joules() const { return by_counter_ + by_watts_; }
  // Until the reading taken last.
  double missing_s() const { return missing_s_ + (last_s_ - base_s_); }
  double joules_by_counter() const { return by_counter_; }
  double joules_by_watts() const { return by_watts_; }

  // A counter that stands still for so long is broken: cards count several times a second.
  static constexpr double kStillSeconds = 10;
  // What no card and no processor draws: a counter that leaps further is not believed.
  static constexpr double kMostWatts = 10'000;

 private:
  void settle_by_watts(double at_s, std::optional<double> counter_joules);

  bool begun_ = false;
  double base_s_ = 0;                   // until here all is settled
  std::optional<double> base_counter_;  // then
  bool stands_still_ = false;           // the counter: where it moves again it counts anew
  double last_s_ = 0;
  std::optional<double> last_watts_;
  double open_joules_ = 0, open_missing_s_ = 0;  // since base_s_, by watts
  double by_counter_ = 0, by_watts_ = 0, missing_s_ = 0;
};

// What processors count of their own energy, by Linux's powercap: all packages together, without memory,
// disks and the rest of the machine. Readable for root only on most systems.
class Rapl {
 public:
  // folder: empty: QTRAIN_POWERCAP, for tests, or /sys/class/powercap.
  explicit Rapl(std::filesystem::path folder = {});

  // Since the first reading, over wrap-arounds. Nothing where a package does not tell; then the count starts
  // anew.
  std::optional<double> joules();

 private:
  struct Package {
    std::filesystem::path counter;
    std::int64_t range_uj = 0;  // where it wraps around; 0: not known
    std::int64_t last_uj = -1;  // -1: not read yet
  };
  std::vector<Package> packages_;
  double joules_ = 0;
};

}  // namespace qt
