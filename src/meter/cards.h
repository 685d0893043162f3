// Cards: the one table of what estimates know of a graphics card, each figure with what it follows from. What
// a card really reaches is measured elsewhere; nothing here is a promise of speed.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "kernels/backend.h"

namespace qt {

struct Card {
  const char* name;         // as --card takes it: "4070"
  const char* driver_name;  // as the driver reports it, without "NVIDIA "
  int sm;                   // compute capability times ten
  int multiprocessors;
  int tensor_cores;  // of one multiprocessor
  int core_fma;      // 16-bit multiply-adds of one tensor core and clock: dense, summed in f32
  double boost_ghz;  // as published; boards that are cool and not power-limited clock higher
  std::int64_t memory_bytes;
  int bus_bits;
  double pin_gbit_s;
  int pcie_generation;
  int pcie_lanes;
  double board_watts;

  double peak_flops() const;            // dense 16-bit products with f32 sums, per second
  double bandwidth_bytes_s() const;     // of its memory
  double pcie_bytes_s() const;          // one way, as copies from pinned memory reach it
  std::string peak_derivation() const;  // "46 multiprocessors x 4 tensor cores x 64 FMA x 2 x 2.475 GHz"
  std::string bandwidth_derivation() const;
  std::string pcie_derivation() const;
};

std::span<const Card> card_table();

// "4070", "RTX 4070", "rtx-4060-ti", "4070 laptop", "RTX 3060 12G". Throws ConfigError with the list of
// cards.
const Card& card_by_name(std::string_view name);

// The row of a card that is there; nullptr where the table has none (a 3060 with 8 GB is not the one with
// 12).
const Card* card_of_device(const DeviceFacts& facts);

}  // namespace qt
