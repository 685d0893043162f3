// How a sum over the rows of a matrix (tokens, mostly) is cut: blocks of rows are summed apart, then the
// blocks in ascending order. A function of the number of rows alone, so that the sum has the same bits
// whatever the number of threads; scratch_bytes() and the implementations both ask here.
#pragma once

#include <algorithm>
#include <cstdint>

namespace qt {

struct RowBlocks {
  std::int64_t rows = 1;   // of a block; the last may be shorter
  std::int64_t count = 0;  // of blocks
};

// At most 64 blocks: tasks for many threads, and scratch that does not grow with the batch.
constexpr RowBlocks row_blocks(std::int64_t N) {
  constexpr std::int64_t kMinRows = 16, kMaxBlocks = 64;
  const std::int64_t rows = std::max(kMinRows, (N + kMaxBlocks - 1) / kMaxBlocks);
  return {.rows = rows, .count = (N + rows - 1) / rows};
}

}  // namespace qt
