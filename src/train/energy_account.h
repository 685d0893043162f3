// The energy of a run over all its sessions, as far as a PowerWatch knows it.
#pragma once

#include "src/meter/power_watch.h"

namespace qt {

class EnergyAccount {
 public:
  // power: of this session, must outlive the account; nullptr: nothing is known of power. before: of the
  // sessions before.
  EnergyAccount(PowerWatch* power, Energy before);

  // Of the run until now, session_s into this session; look_now: with a look at the meters.
  Energy so_far(double session_s, bool look_now) const;
  // What was seen last.
  CardReading card() const;

 private:
  PowerWatch* power_;
  Energy before_;
};

}  // namespace qt
