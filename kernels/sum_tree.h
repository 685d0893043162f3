// The tree of the sums with the same bits on every backend (SumSquares, SumLoss): blocks of 4096
// elements; in a block eight double lanes, lane l adding elements l, l + 8, l + 16, ... in ascending order;
// the lanes as
// ((0 + 1) + (2 + 3)) + ((4 + 5) + (6 + 7)); the blocks in ascending order onto 0. The square of a float is
// exact in double, so that a fused multiply-add gives the same bits.
#pragma once

#include <cstdint>

namespace qt {

inline constexpr std::int64_t kTreeBlock = 4096;
inline constexpr std::int64_t kTreeLanes = 8;

constexpr std::int64_t tree_blocks(std::int64_t n) { return (n + kTreeBlock - 1) / kTreeBlock; }

}  // namespace qt
