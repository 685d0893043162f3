// The card: is there one, is it new enough, what does it have. Host code.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/target.h"

namespace qt::cuda {

struct Device {
  std::string name;
  int sm = 0;  // compute capability times ten
  int multiprocessors = 0;
  bool drives_display = false;
  std::int64_t total_bytes = 0;
  std::int64_t free_bytes = 0;     // when it was opened, before qtrain allocated anything
  std::int64_t context_bytes = 0;  // what opening it took
};

// Selects the first card and measures it. Throws DeviceError without a card or driver, with a driver that is
// too old for this build, and with a card older than compute capability 8.0; ConfigError when the target was
// planned for another one.
Device open_device(const Target& target);

}  // namespace qt::cuda
