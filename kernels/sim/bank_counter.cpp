#include "kernels/sim/bank_counter.h"

#include <algorithm>
#include <array>
#include <map>
#include <set>
#include <span>
#include <tuple>

#include "kernels/sim/shared_memory.h"

namespace qt::sim {

namespace {

constexpr int kBanks = 32, kBankBytes = 4, kLanes = 32;

using Key = std::tuple<std::string, unsigned, unsigned, int>;  // file, line, column, bytes of one access

struct Counts {
  bool listening = false;
  std::map<Key, std::array<std::vector<std::int64_t>, kLanes>> open;  // offsets by lane, in order
  std::map<std::string, BankSite> sites;
};

Counts& counts() {
  static Counts counts;
  return counts;
}

// Turns that these accesses take together: the most different words that any bank has to give.
std::int64_t turns_of(std::span<const std::int64_t> offsets, int bytes) {
  std::array<std::set<std::int64_t>, kBanks> words;
  for (const std::int64_t offset : offsets) {
    for (std::int64_t word = offset / kBankBytes; word * kBankBytes < offset + bytes; ++word) {
      words[static_cast<std::size_t>(word % kBanks)].insert(word);
    }
  }
  std::size_t most = 0;
  for (const auto& bank : words) most = std::max(most, bank.size());
  return static_cast<std::int64_t>(most);
}

constexpr std::int64_t kNoAccess = -1;

// One access of a warp: offsets by lane, kNoAccess for lanes that stayed away.
void add(const std::string& where, const std::array<std::int64_t, kLanes>& offsets, int bytes) {
  BankSite& site = counts().sites[where];
  site.place = where;
  ++site.accesses;
  const int lanes_a_turn = std::min(kLanes, kBanks * kBankBytes / std::max(bytes, kBankBytes));
  for (int first = 0; first < kLanes; first += lanes_a_turn) {
    std::vector<std::int64_t> part;
    for (int lane = first; lane < first + lanes_a_turn; ++lane) {
      if (offsets[static_cast<std::size_t>(lane)] != kNoAccess)
        part.push_back(offsets[static_cast<std::size_t>(lane)]);
    }
    if (part.empty()) continue;
    site.turns += turns_of(part, bytes);
    ++site.least_turns;
  }
}

}  // namespace

BankCounter::BankCounter() {
  if (counts().listening) throw SimError("two bank counters at once");
  counts() = Counts{.listening = true};
}
BankCounter::~BankCounter() { counts() = Counts{}; }

std::vector<BankSite> BankCounter::sites() const {
  std::vector<BankSite> all;
  for (const auto& [where, site] : counts().sites) all.push_back(site);
  return all;
}

std::int64_t BankCounter::conflicts() const {
  std::int64_t sum = 0;
  for (const BankSite& site : sites()) sum += site.conflicts();
  return sum;
}

bool counting_banks() { return counts().listening; }

void record_bank_access(const BankAccess& access) {
  const Key key{access.where.file_name(), access.where.line(), access.where.column(), access.bytes};
  counts().open[key][static_cast<std::size_t>(access.lane)].push_back(access.offset_bytes);
}

void flush_bank_accesses() {
  if (!counting_banks()) return;
  for (const auto& [key, lanes] : counts().open) {
    std::size_t longest = 0;
    for (const auto& lane : lanes) longest = std::max(longest, lane.size());
    const std::string& file = std::get<0>(key);
    const std::string where = file.substr(file.rfind('/') + 1) + ":" + std::to_string(std::get<1>(key));
    for (std::size_t i = 0; i < longest; ++i) {
      std::array<std::int64_t, kLanes> offsets;
      for (std::size_t lane = 0; lane < kLanes; ++lane)
        offsets[lane] = i < lanes[lane].size() ? lanes[lane][i] : kNoAccess;
      add(where, offsets, std::get<3>(key));
    }
  }
  counts().open.clear();
}

void record_matrix_rows(const std::int64_t (&offsets)[8], const Where& where) {
  if (!counting_banks()) return;
  constexpr int kRowBytes = 16;
  BankSite& site = counts().sites[place(where)];
  site.place = place(where);
  ++site.accesses;
  site.turns += turns_of(offsets, kRowBytes);
  ++site.least_turns;
}

}  // namespace qt::sim
