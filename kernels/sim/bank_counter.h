// Counts bank conflicts: shared memory has 32 banks of 4 bytes, and the accesses of a warp take as many turns
// as the busiest bank has different words. Accesses of 16 bytes go by quarter warps, of 8 by half warps.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/sim/where.h"

namespace qt::sim {

struct BankAccess {
  int lane = 0;
  std::int64_t offset_bytes = 0;
  int bytes = 0;
  Where where;
};

struct BankSite {
  std::string place;             // "gemm.cuh:88"
  std::int64_t accesses = 0;     // of whole warps, or of what part of one came
  std::int64_t turns = 0;        // that they took
  std::int64_t least_turns = 0;  // that they would have taken without conflicts
  std::int64_t conflicts() const { return turns - least_turns; }
};

// Listens while it lives; one at a time.
class BankCounter {
 public:
  BankCounter();
  ~BankCounter();
  BankCounter(const BankCounter&) = delete;
  BankCounter& operator=(const BankCounter&) = delete;

  // Every place that touched shared memory, by place.
  std::vector<BankSite> sites() const;
  std::int64_t conflicts() const;
};

bool counting_banks();
void record_bank_access(const BankAccess& access);
// The lanes of a warp have come to a collective: what they did since the last one happened together.
void flush_bank_accesses();
// One phase of ldmatrix: eight rows of 16 bytes, at these offsets.
void record_matrix_rows(const std::int64_t (&offsets)[8], const Where& where);

}  // namespace qt::sim
