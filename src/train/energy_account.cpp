#include "src/train/energy_account.h"

#include <utility>

namespace qt {

EnergyAccount::EnergyAccount(PowerWatch* power, Energy before) : power_(power), before_(std::move(before)) {}

Energy EnergyAccount::so_far(double session_s, bool look_now) const {
  return joined(before_, power_ != nullptr ? power_->energy(look_now)
                                           : Energy{.joules = 0, .missing_s = session_s, .source = {}});
}

CardReading EnergyAccount::card() const { return power_ != nullptr ? power_->newest() : CardReading(); }

}  // namespace qt
