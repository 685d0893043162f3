// Shared memory of a block with a shadow: what each pair of bytes was last written and read by, and whether
// anything valid is in it. Finds reads of unwritten memory, reads before a cp.async has landed, accesses out
// of bounds or misaligned, and accesses of two threads that no barrier orders.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "kernels/sim/where.h"

namespace qt::sim {

// A defect of a kernel, found while it ran.
class SimError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

std::string place(const Where& where);  // "attention.cuh:120"

// For an access of `bytes` to global memory. Throws SimError where the address is no multiple of them.
void check_aligned(const void* p, std::size_t bytes, const char* what, const Where& where);

// Who touches memory, and since when what others did is ordered before it. Stamps count barriers and warp
// barriers of the block: an access with stamp s by another thread of the same warp is ordered if s <
// warp_since, one of another warp if s < block_since.
struct AccessBy {
  std::uint16_t thread = 0;  // number in the block, or kWholeWarp + warp
  std::uint16_t warp = 0;
  std::uint32_t now = 0;
  std::uint32_t warp_since = 0;
  std::uint32_t block_since = 0;

  static constexpr std::uint16_t kWholeWarp = 0x8000;
  static constexpr std::uint16_t kManyWarps = 0xFFFF;
};

class SharedShadow {
 public:
  SharedShadow();

  // For a new block: nothing is valid, whatever the bytes hold.
  void reset(std::int64_t bytes);
  std::int64_t bytes() const { return bytes_; }

  // [offset, offset + size) within [begin, end) of an array; size is 2, 4, 8 or 16 and divides offset.
  struct Span {
    std::int64_t offset = 0;
    int size = 0;
    std::int64_t begin = 0;
    std::int64_t end = 0;
  };
  const std::byte* read(const Span& span, const AccessBy& by, const Where& where);
  std::byte* write(const Span& span, const AccessBy& by, const Where& where);

  // A cp.async into the span began: no thread may touch it until land().
  void poison(const Span& span, const AccessBy& by, const Where& where);
  void land(const Span& span, const std::byte* from, const AccessBy& by);

 private:
  // Of two bytes: the smallest element that kernels keep in shared memory.
  struct Unit {
    std::uint32_t write_stamp = 0;
    std::uint32_t read_stamp = 0;
    std::uint16_t writer = 0;
    std::uint16_t reader = 0;
    bool valid = false;
    bool read_once = false;
    bool pending = false;
  };
  static constexpr int kUnitBytes = 2;

  void check_span(const Span& span, const char* what, const Where& where) const;
  void check_write(Unit& unit, const AccessBy& by, const Where& where) const;

  std::int64_t bytes_ = 0;
  std::vector<std::byte> data_;
  std::vector<Unit> units_;
};

}  // namespace qt::sim
