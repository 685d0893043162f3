// PowerWatch: what a run draws and how its device does, looked at once a second by a thread of its own.
//
// Why a thread: steps last from milliseconds to minutes, and between two of them a card idles; looks at the
// ends of steps would see that moment and nothing else. And a driver that answers slowly holds up nobody.
#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "kernels/backend.h"
#include "src/train/energy_meter.h"
#include "src/train/nvml.h"

namespace qt {

class PowerWatch {
 public:
  // Of a card (what the backend says of it), or of the processor. assumed_watts: --watts, of the whole
  // machine, which then decides about energy; 0: not given. Starts looking; the thread is there only where
  // there is something to look at.
  PowerWatch(DeviceKind kind, const DeviceFacts& facts, double assumed_watts);
  ~PowerWatch();
  PowerWatch(const PowerWatch&) = delete;
  PowerWatch& operator=(const PowerWatch&) = delete;

  // What was seen last: of a card all that it tells, of a processor its power.
  CardReading newest() const;
  // Since the construction until the last look; look_now: until now.
  Energy energy(bool look_now = false);
  // What energy is known by, from what was seen so far; empty: by nothing.
  std::string source() const;

 private:
  using Clock = std::chrono::steady_clock;

  void look();
  void watch();
  std::string source_locked() const;

  const double assumed_watts_;
  std::unique_ptr<Nvml> nvml_;  // of a card
  std::unique_ptr<Rapl> rapl_;  // of the processor
  const Clock::time_point started_ = Clock::now();

  std::mutex looking_;        // held while devices are asked
  mutable std::mutex mutex_;  // of all below
  std::condition_variable stop_;
  bool stopping_ = false;
  CardReading newest_;
  EnergyMeter meter_;
  double last_s_ = 0;
  std::optional<double> last_joules_;  // of the processor's counter
  std::thread thread_;
};

}  // namespace qt
