// PowerWatch: what a run draws and how its device does, looked at once a second by a thread of its own.
//
// Why a thread: steps last from milliseconds to minutes, and between two of them a card idles; looks at the
// ends of steps would see that moment and nothing else. And a driver that does not answer, as those of cards
// that fell off their bus, holds up neither training nor the end of the program.
#pragma once

#include <memory>
#include <string>
#include <thread>

#include "kernels/backend.h"
#include "src/meter/energy_meter.h"
#include "src/meter/nvml.h"

namespace qt {

class PowerWatch {
 public:
  // Of a card (what the backend says of it), or of the processor. assumed_watts: --watts, of the whole
  // machine, which then decides about energy; 0: not given. Looks once; the thread is there only where there
  // is something to look at.
  PowerWatch(DeviceKind kind, const DeviceFacts& facts, double assumed_watts);
  ~PowerWatch();
  PowerWatch(const PowerWatch&) = delete;
  PowerWatch& operator=(const PowerWatch&) = delete;

  // What was seen last: of a card all that it tells, of a processor its power. Nothing once that is older
  // than kStaleSeconds.
  CardReading newest() const;
  // Since the construction until the last look; look_now: until now, if the driver answers soon.
  Energy energy(bool look_now = false);
  // What energy is known by, from what was seen so far; empty: by nothing.
  std::string source() const;

  // How long a driver is waited for.
  static constexpr double kPatienceSeconds = 2;
  static constexpr double kStaleSeconds = 5;

 private:
  struct Looker;

  std::shared_ptr<Looker> looker_;  // the thread's too, which may be stuck in a driver for good
  std::thread thread_;
};

}  // namespace qt
