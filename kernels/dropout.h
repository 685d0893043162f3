// Which elements dropout keeps: a comparison of integers, so that every backend, every number of threads and
// a recomputation agree on every element. Element e of a mask takes draw e of its stream (rng_u32).
#pragma once

#include <cmath>
#include <cstdint>

#include "src/core/rng.h"

namespace qt {

// Draws below it are dropped. rate in [0, 1): a share of round(rate * 2^32) / 2^32, and 0 drops nothing.
inline std::uint32_t dropout_threshold(float rate) {
  return static_cast<std::uint32_t>(std::nearbyint(static_cast<double>(rate) * 0x1p32));
}

// What is kept is multiplied by it.
inline float dropout_scale(float rate) { return static_cast<float>(1.0 / (1.0 - static_cast<double>(rate))); }

// The mask of attention: one row per (row of the batch, head, query), with a draw for each key. Rows
// begin at whole generator blocks of four draws.
struct AttentionMaskRows {
  std::int64_t H = 1;
  std::int64_t T = 1;  // queries and keys

  QT_HOST_DEVICE std::uint64_t blocks_per_row() const { return (static_cast<std::uint64_t>(T) + 3) / 4; }
  QT_HOST_DEVICE std::uint64_t first_block(std::int64_t row, std::int64_t h, std::int64_t query) const {
    return static_cast<std::uint64_t>((row * H + h) * T + query) * blocks_per_row();
  }
  QT_HOST_DEVICE std::uint64_t element(std::int64_t row, std::int64_t h, std::int64_t query,
                                       std::int64_t key) const {
    return first_block(row, h, query) * 4 + static_cast<std::uint64_t>(key);
  }
};

}  // namespace qt
