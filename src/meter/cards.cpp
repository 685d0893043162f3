#include "src/meter/cards.h"

#include <algorithm>
#include <cctype>
#include <iterator>
#include <vector>

#include "src/core/error.h"
#include "src/core/suggest.h"
#include "src/core/units.h"

namespace qt {

namespace {

// FMAs of one tensor core and clock. GeForce cards run 16-bit products with f32 sums at half the rate of
// those with 16-bit sums: 64 of Ampere's, Ada's and Blackwell's 128. Cards for data centres have no such
// halving: 512 on Hopper. Rates printed on boxes are with 16-bit sums, in 8 or 4 bits, or for matrices half
// of zeros.
constexpr int kGeForceFma = 64;
constexpr int kHopperFma = 512;
constexpr int kTensorCores = 4;  // of a multiprocessor, in all of them

// Cross-checks against vendors' tables: 3090 71, 4090 165.2, 5090 209.5, H200 989 TFLOP/s dense with f32
// sums. The laptop 4070's clock is the highest of the range that makers may choose from: most reach less.
constexpr Card kTable[] = {
    {"3060", "GeForce RTX 3060", 86, 28, kTensorCores, kGeForceFma, 1.777, 12 * kGiB, 192, 15, 4, 16, 170},
    {"3090", "GeForce RTX 3090", 86, 82, kTensorCores, kGeForceFma, 1.695, 24 * kGiB, 384, 19.5, 4, 16, 350},
    {"4060-ti", "GeForce RTX 4060 Ti", 89, 34, kTensorCores, kGeForceFma, 2.535, 16 * kGiB, 128, 18, 4, 8,
     165},
    {"4070", "GeForce RTX 4070", 89, 46, kTensorCores, kGeForceFma, 2.475, 12 * kGiB, 192, 21, 4, 16, 200},
    {"4070-laptop", "GeForce RTX 4070 Laptop GPU", 89, 36, kTensorCores, kGeForceFma, 2.175, 8 * kGiB, 128,
     16, 4, 8, 115},
    {"4090", "GeForce RTX 4090", 89, 128, kTensorCores, kGeForceFma, 2.520, 24 * kGiB, 384, 21, 4, 16, 450},
    {"5060-ti", "GeForce RTX 5060 Ti", 120, 36, kTensorCores, kGeForceFma, 2.572, 16 * kGiB, 128, 28, 5, 8,
     180},
    {"5070", "GeForce RTX 5070", 120, 48, kTensorCores, kGeForceFma, 2.512, 12 * kGiB, 192, 28, 5, 16, 250},
    {"5090", "GeForce RTX 5090", 120, 170, kTensorCores, kGeForceFma, 2.407, 32 * kGiB, 512, 28, 5, 16, 575},
    {"h200", "H200", 90, 132, kTensorCores, kHopperFma, 1.830, 141 * kGiB, 6144, 6.25, 5, 16, 700},
};

// A card reports a little less than its memory (what error correction and the firmware keep), never 10 %
// less.
constexpr double kReportedShare = 0.9;

constexpr double kPcieLaneGt[] = {8, 16, 32};        // gigatransfers a second, generations 3 to 5
constexpr double kPcieEncoding = 128.0 / 130.0 / 8;  // bytes per transfer
constexpr double kPcieReached = 0.8;  // of the raw rate, by copies of megabytes: 25 of 31.5 GB/s on 4.0 x16

double pcie_raw_bytes_s(const Card& c) {
  return kPcieLaneGt[c.pcie_generation - 3] * 1e9 * kPcieEncoding * c.pcie_lanes;
}

// Lower case, letters and digits only, without the words that every card's name has.
std::string key_of(std::string_view name) {
  std::string key;
  for (const char c : name) {
    if (std::isalnum(static_cast<unsigned char>(c)) != 0)
      key += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  for (const std::string_view word : {"nvidia", "geforce", "rtx", "gpu"}) {
    if (const std::size_t at = key.find(word); at != std::string::npos) key.erase(at, word.size());
  }
  constexpr std::string_view kLaptop = "laptop";
  if (key.starts_with(kLaptop)) key = key.substr(kLaptop.size()) + std::string(kLaptop);
  return key;
}

// All spellings of one card: with its memory before or after "laptop", or without.
bool has_key(const Card& card, const std::string& key) {
  constexpr std::string_view kLaptop = "laptop";
  const std::string own = key_of(card.name);
  std::string stem = own, ending;
  if (own.ends_with(kLaptop)) {
    stem = own.substr(0, own.size() - kLaptop.size());
    ending = kLaptop;
  }
  for (const char* unit : {"g", "gb", "gib"}) {
    const std::string memory = std::to_string(card.memory_bytes / kGiB) + unit;
    if (key == fmt::format("{}{}{}", stem, memory, ending) || key == own + memory) return true;
  }
  return key == own;
}

}  // namespace

double Card::peak_flops() const { return 2.0 * multiprocessors * tensor_cores * core_fma * boost_ghz * 1e9; }

double Card::bandwidth_bytes_s() const { return bus_bits * pin_gbit_s / 8 * 1e9; }

double Card::pcie_bytes_s() const { return kPcieReached * pcie_raw_bytes_s(*this); }

std::string Card::peak_derivation() const {
  return fmt::format("{} multiprocessors x {} tensor cores x {} FMA x 2 x {:.3f} GHz", multiprocessors,
                     tensor_cores, core_fma, boost_ghz);
}

std::string Card::bandwidth_derivation() const {
  return fmt::format("{} bits x {:g} Gbit/s", bus_bits, pin_gbit_s);
}

std::string Card::pcie_derivation() const {
  return fmt::format("PCIe {}.0 x{}, {:.0f} % of {:.1f} GB/s", pcie_generation, pcie_lanes,
                     100 * kPcieReached, pcie_raw_bytes_s(*this) * 1e-9);
}

std::span<const Card> card_table() { return kTable; }

const Card& card_by_name(std::string_view name) {
  const std::string key = key_of(name);
  for (const Card& card : kTable) {
    if (has_key(card, key)) return card;
  }
  std::vector<std::string_view> names;
  for (const Card& card : kTable) names.emplace_back(card.name);
  const std::string_view similar = similar_name(key, names);
  throw ConfigError(fmt::format("--card '{}' is not known", name),
                    fmt::format("{}cards are: {}",
                                similar.empty() ? std::string() : fmt::format("did you mean {}? ", similar),
                                fmt::join(names, ", ")));
}

const Card* card_of_device(const DeviceFacts& facts) {
  constexpr std::string_view kMaker = "NVIDIA ";
  std::string_view name = facts.name;
  if (name.starts_with(kMaker)) name.remove_prefix(kMaker.size());
  const auto is_it = [&](const Card& card) {
    const auto nominal = static_cast<double>(card.memory_bytes),
               there = static_cast<double>(facts.total_bytes);
    return name == card.driver_name && there >= kReportedShare * nominal && there <= nominal / kReportedShare;
  };
  const auto* const it = std::find_if(std::begin(kTable), std::end(kTable), is_it);
  return it == std::end(kTable) ? nullptr : it;
}

}  // namespace qt
