// The machine a run is planned for: a card or the processor, and how much of it the run may take.
#pragma once

#include "kernels/backend.h"
#include "src/train/options.h"
#include "src/train/planner.h"

namespace qt {

// --device auto: the card where this program can use one, else the threads of this machine. --device cuda:
// the card, and for plans without one what --arch names. ConfigError for names that do not exist.
Target target_from_options(const Options& options);

// --vram and --ram, else what card and machine report; disk from the run folder's file system. A card that
// drives a display keeps 1 GiB to itself, another one 256 MiB, and one that nobody has looked at 1 GiB.
Limits limits_from_options(const Options& options, const Target& target);

// What an open backend knows better: the context as it was measured, and what others left free of the card.
void adopt_facts(const DeviceFacts& facts, Target& target, Limits& limits);

}  // namespace qt
