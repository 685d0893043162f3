// The card: whether the machine has one, whether it is new enough, and its properties. Host code.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/backend.h"
#include "kernels/target.h"

namespace qt::cuda {

// The first card, without opening it: none of its memory is taken, and free_bytes and context_bytes stay 0.
// Throws DeviceError without a card or driver, with a driver that is too old for this build, and with a card
// older than compute capability 8.0.
DeviceFacts probe_card();

// A card that is open for this process.
struct OpenCard {
  DeviceFacts facts;                    // context_bytes: see measure_context
  std::int64_t used_bytes_before = -1;  // of the card by anyone, before it was opened; -1: unknown
};

// Selects the first card. Throws as probe_card(), ConfigError when the target was planned for a newer one,
// and DeviceError when the build has no code for the card.
OpenCard open_card(const Target& target);

// Whether the build has code that the selected card runs; asks for one kernel, which stands for all. In
// elementwise.cu.
bool has_code_for_card();

// Sets facts.context_bytes to what the card has lost since it was opened, beyond `own_bytes` that qtrain
// allocated: the driver's context and what libraries took. Kernels are loaded when they first run, so it
// holds the code that has run by now and grows by the rest. Stays 0 where the driver does not say, where this
// process had opened the card before, and, with a line in the log, where the reading cannot be right: it
// covers everybody on the card, so memory that others take or give back meanwhile enters it. facts.free_bytes
// becomes what is free beside all that.
void measure_context(OpenCard& card, const Target& target, std::int64_t own_bytes);

}  // namespace qt::cuda
