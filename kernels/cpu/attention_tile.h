// The arithmetic of attention between its products, one tile of scores at a time: softmax forward and
// backward. attention.cpp and attention_bwd.cpp walk the tiles.
#pragma once

#include <cstdint>

#include "src/core/rng.h"
#include "src/core/tensor.h"

namespace qt::cpu {

inline constexpr std::int64_t kMaxTileKeys = 128;

// Which keys dropout keeps: the draws of row i of the tile begin at block first_block + i * row_blocks of
// rng. threshold 0: all are kept.
struct TileDropout {
  std::uint32_t threshold = 0;
  float scale = 1;
  RngStream rng;
  std::uint64_t first_block = 0;
  std::uint64_t row_blocks = 0;
};

// A tile of raw scores q k^T and the probabilities that come of it. Rows of all tile buffers lie `pitch`
// elements apart, a multiple of 16: the last vector of a row may reach beyond its last key. Row i sees the
// first `first_visible + i` keys of the tile (none when that is negative).
struct ScoreTile {
  float* scores = nullptr;  // in, destroyed
  void* probs = nullptr;    // out, dtype; 0 for hidden keys and dropped ones, the factor of dropout left out
  DType dtype = DType::f32;
  std::int64_t pitch = 0;
  std::int64_t queries = 0;
  std::int64_t keys = 0;
  std::int64_t first_visible = 0;
  float scale = 1;
  TileDropout dropout;
};

// Running state of a streaming softmax, per row of the tile. max starts at -inf and sum at 0; rows of `out`
// are the weighted sums so far, rescaled when the maximum grows, with a gap as in ScoreTile. out_cols 0:
// nothing there yet.
struct SoftmaxState {
  float* max = nullptr;
  float* sum = nullptr;
  float* out = nullptr;
  std::int64_t out_pitch = 0;
  std::int64_t out_cols = 0;
};
void softmax_tile(const ScoreTile& tile, const SoftmaxState& state);

// p = exp(scale * score - lse), dscores = p * (dprobs - delta) before the factor `scale`, 0 for hidden keys;
// with dropout dprobs counts dropout.scale times or not at all.
struct GradRows {
  const float* lse = nullptr;     // [queries]
  const float* delta = nullptr;   // [queries]
  const float* dprobs = nullptr;  // in  [queries, keys] at the tile's pitch
  void* dscores = nullptr;        // out [queries, keys] at the tile's pitch, the tile's dtype
};
void grad_tile(const ScoreTile& tile, const GradRows& rows);

// to[row, col] = from[row, col] * factor, the factor divided by row_divisor[row] where that is given; one
// rounding into dtype.
struct ScaledRows {
  const float* from = nullptr;
  std::int64_t from_pitch = 0;
  void* to = nullptr;
  DType dtype = DType::f32;
  std::int64_t to_pitch = 0;
  std::int64_t rows = 0;
  std::int64_t cols = 0;
  float factor = 1;
  const float* row_divisor = nullptr;
};
void store_scaled(const ScaledRows& rows);

// delta[h * T] = sum over D of y * dy for the H heads of one token, in f32.
void head_dots(const std::byte* y, const std::byte* dy, DType dtype, std::int64_t H, std::int64_t D,
               float* delta, std::int64_t T);

}  // namespace qt::cpu
