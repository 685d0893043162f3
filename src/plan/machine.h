// The machine a run is planned for: a card or the processor, and how much of it the run may take.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string_view>

#include "kernels/backend.h"
#include "src/meter/cards.h"
#include "src/options/options.h"
#include "src/plan/planner.h"

namespace qt {

// --device auto: the card where this program can use one, else the threads of this machine. --device cuda:
// the card, and for plans without one what --arch names. ConfigError for names that do not exist.
Target target_from_options(const Options& options);

// --vram and --ram, else what card and machine report; disk from the run folder's file system. A card that
// drives a display keeps 1 GiB to itself, another one 256 MiB, and a card without facts 1 GiB.
Limits limits_from_options(const Options& options, const Target& target);

// A line of /proc/meminfo, as "MemAvailable"; 0 where there is none.
std::int64_t meminfo_bytes(std::string_view key, const std::filesystem::path& file = "/proc/meminfo");

// The card that this program can use, as the driver describes it.
std::optional<DeviceFacts> device_here();

// The same for a card that need not be here: its memory, or --vram where that is less, of which a display
// keeps 1 GiB; --ram, and no other limit of an unknown machine.
Target target_with_card(const Options& options, const Card& card);
Limits limits_with_card(const Options& options, const Card& card);

// What an open backend knows better: the context as it was measured, and what others left free of the card.
void adopt_facts(const DeviceFacts& facts, Target& target, Limits& limits);

// Opens the backend of `target`. Throws what the factory throws for a backend that this build does not have.
std::unique_ptr<Backend> open_backend(BackendFactory make_backend, const Target& target);

}  // namespace qt
