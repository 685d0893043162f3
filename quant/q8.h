// 8-bit codes: blocks of 256 elements share one f32 scale, and a code is an index into a map of 256 values
// spaced like a float with up to seven decimal exponents. Used for Adam's moments.
//
// Two maps: `signed` for first moments, `unsigned` for second moments. Two rules come on
// top of the nearest entry for moments; see FirstMoment and SecondMoment.
//
//   8 + 32/256 = 8.125 bits per element
//
// Like quant/nf4.h, this is the scalar reference that every backend must equal bit for bit.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <span>

#include "quant/block.h"
#include "src/core/device.h"

namespace qt {

inline constexpr int kQ8BlockElems = 256;

constexpr std::int64_t q8_scale_count(std::int64_t elems) {
  return (elems + kQ8BlockElems - 1) / kQ8BlockElems;
}

using Q8Map = std::array<float, 256>;

// The threshold between two neighbouring entries of a map.
QT_HOST_DEVICE constexpr float q8_midpoint(float low, float high) {
  return static_cast<float>((static_cast<double>(low) + static_cast<double>(high)) / 2);
}

namespace detail {

// The dynamic map of 8-bit Adam (Dettmers et al., arXiv 2110.02861) as bitsandbytes builds it: decade i of 7
// has 2^i (signed) or 2^(i+1) (unsigned) values, the midpoints of equally spaced bounds from 0.1 to 1, times
// 10^(i-6); plus 0 and 1. There is no -1. Each bound is start + step * j rounded once, as torch's linspace
// does on x86: rounding the product too would move 42 (31) entries by one ulp.
constexpr Q8Map make_dynamic_map(bool with_negatives) {
  constexpr float kScale[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  Q8Map map{};
  std::size_t n = 0;
  for (int i = 0; i < 7; ++i) {
    const int values = 1 << (with_negatives ? i : i + 1);
    const float start = 0.1f, end = 1.0f;
    const float step = (end - start) / static_cast<float>(values);
    const auto bound = [&](int j) {  // a double holds product and sum exactly enough for one rounding
      const double d = step;
      return j < (values + 1) / 2 ? static_cast<float>(start + d * j)
                                  : static_cast<float>(end - d * (values - j));
    };
    for (int j = 0; j < values; ++j) {
      const float value = (bound(j) + bound(j + 1)) / 2.0f * kScale[i];
      map[n++] = value;
      if (with_negatives) map[n++] = -value;
    }
  }
  map[n++] = 0.0f;
  map[n++] = 1.0f;
  std::sort(map.begin(), map.end());
  return map;
}

// Threshold c lies between codes c and c + 1; the last entry is infinite, so that a search can always
// compare once more.
constexpr Q8Map make_midpoints(const Q8Map& map) {
  Q8Map mid{};
  for (std::size_t c = 0; c + 1 < map.size(); ++c) mid[c] = q8_midpoint(map[c], map[c + 1]);
  mid[255] = std::numeric_limits<float>::infinity();
  return mid;
}

}  // namespace detail

inline constexpr Q8Map kQ8Signed = detail::make_dynamic_map(true);
inline constexpr Q8Map kQ8Unsigned = detail::make_dynamic_map(false);
inline constexpr Q8Map kQ8SignedMid = detail::make_midpoints(kQ8Signed);
inline constexpr Q8Map kQ8UnsignedMid = detail::make_midpoints(kQ8Unsigned);

// The search in one table look-up and one compare. Floats are cut into cells by sign, exponent and the top
// 8 bits of the mantissa: cells of relative width 2^-8, finer than any two thresholds are apart, so that a
// cell holds at most one. A cell's entry is the code of its lowest value; one compare with the next
// threshold finishes. Magnitudes below 2^-23 (the smallest threshold is 1.6e-7) and from 1 up share the
// first and the last cell.
struct Q8Cells {
  static constexpr int kShift = 15;
  static constexpr std::uint32_t kFirst = 0x34000000u >> kShift;  // 2^-23
  static constexpr std::uint32_t kLast = 0x3F800000u >> kShift;   // 1
  static constexpr std::uint32_t kPerSign = kLast - kFirst + 1;

  std::array<std::uint8_t, 2 * kPerSign> code{};  // non-negative cells first, then negative ones

  static constexpr std::uint32_t index(float y) {
    const std::uint32_t bits = std::bit_cast<std::uint32_t>(y);
    return std::clamp((bits & 0x7FFFFFFFu) >> kShift, kFirst, kLast) - kFirst + (bits >> 31) * kPerSign;
  }
};

namespace detail {

constexpr Q8Cells make_cells(const Q8Map& mid) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  Q8Cells cells{};
  // Ascending in y: negative cells from the largest magnitude down, then the others up.
  std::size_t below = 0;  // thresholds below the lowest value of the cell
  const auto fill = [&](std::uint32_t at, float lowest, float highest) {
    while (lowest > mid[below]) ++below;
    if (highest > mid[below] && highest > mid[below + 1]) throw "a cell holds two thresholds";
    cells.code[at] = static_cast<std::uint8_t>(below);
  };
  for (std::uint32_t c = Q8Cells::kPerSign; c-- > 0;) {
    const std::uint32_t bits = (c + Q8Cells::kFirst) << Q8Cells::kShift;
    const float near = c == 0 ? -0.0f : -std::bit_cast<float>(bits);
    const float far =
        c + 1 == Q8Cells::kPerSign ? -kInf : -std::bit_cast<float>(bits + (1u << Q8Cells::kShift) - 1);
    fill(c + Q8Cells::kPerSign, far, near);
  }
  for (std::uint32_t c = 0; c < Q8Cells::kPerSign; ++c) {
    const std::uint32_t bits = (c + Q8Cells::kFirst) << Q8Cells::kShift;
    const float near = c == 0 ? 0.0f : std::bit_cast<float>(bits);
    // Finite, because the last threshold is infinite.
    const float far = c + 1 == Q8Cells::kPerSign ? std::numeric_limits<float>::max()
                                                 : std::bit_cast<float>(bits + (1u << Q8Cells::kShift) - 1);
    fill(c, near, far);
  }
  return cells;
}

}  // namespace detail

inline constexpr Q8Cells kQ8SignedCells = detail::make_cells(kQ8SignedMid);
inline constexpr Q8Cells kQ8UnsignedCells = detail::make_cells(kQ8UnsignedMid);

// The code of a normalised value: the number of thresholds below y; a tie takes the lower code.
constexpr std::uint8_t q8_search_signed(float y) {
  const std::uint8_t code = kQ8SignedCells.code[Q8Cells::index(y)];
  return static_cast<std::uint8_t>(code + (y > kQ8SignedMid[code] ? 1 : 0));
}
constexpr std::uint8_t q8_search_unsigned(float y) {
  const std::uint8_t code = kQ8UnsignedCells.code[Q8Cells::index(y)];
  return static_cast<std::uint8_t>(code + (y > kQ8UnsignedMid[code] ? 1 : 0));
}

// The search without a table of cells, for devices. Both maps put 2^i (or twice as many) values into decade i
// at equal distances, so the place of a magnitude in its map is linear within a decade. The slope falls from
// decade to decade, so the whole is the least of seven lines. In units of the signed map, where the positive
// values are numbered from 1: value r lies at r + 1/2, thresholds within a decade at whole numbers, those
// between decades 0.2 above one, and 1.0 at 128.
QT_HOST_DEVICE inline float q8_place(float magnitude) {
  float slope = 1e6f / 0.9f, offset = 0.8f / 0.9f;
  float place = 128;  // also what a NaN gets
  for (int decade = 0; decade < 7; ++decade) {
    place = std::fmin(place, std::fma(slope, magnitude, offset));
    slope *= 0.2f;
    offset *= 2;
  }
  return place;
}
// The code of y or the one below it, whatever y is: one compare with the threshold above finishes. Half a
// value is taken off the place, which is more than it is rounded by and than thresholds lie above whole
// numbers.
QT_HOST_DEVICE inline int q8_code_below_signed(float y) {
  const int rank = static_cast<int>(q8_place(std::fabs(y)) - 0.5f);
  const int negative = rank < 126 ? 126 - rank : 0;  // there is no -1
  return y < 0 ? negative : 127 + rank;
}
QT_HOST_DEVICE inline int q8_code_below_unsigned(float y) {
  return y < 0 ? 0 : static_cast<int>(2 * q8_place(y) - 0.5f) - 1;
}

// Four ways to encode. encode(x, y): the code of element x with y = x / absmax; kZeroCode: all codes of a
// block with absmax 0, and what a state begins with.

struct Q8Signed {
  static constexpr const Q8Map& kMap = kQ8Signed;
  static constexpr std::uint8_t kZeroCode = 127;
  static constexpr std::uint8_t encode(float, float y) { return q8_search_signed(y); }
};

// For x >= 0.
struct Q8Unsigned {
  static constexpr const Q8Map& kMap = kQ8Unsigned;
  static constexpr std::uint8_t kZeroCode = 0;
  static constexpr std::uint8_t encode(float, float y) { return q8_search_unsigned(y); }
};

// Adam's m. A negative value keeps its sign: where the nearest entry is 0 it takes the smallest negative
// one. (Positive values may become 0: the rule is bitsandbytes'.) -0 counts as 0; bitsandbytes moves it to
// -5.5e-7 * absmax, which would let a moment drift that never saw a gradient.
struct FirstMoment {
  static constexpr const Q8Map& kMap = kQ8Signed;
  static constexpr std::uint8_t kZeroCode = 127;
  static constexpr std::uint8_t encode(float x, float y) {
    return static_cast<std::uint8_t>(keep_sign(x, q8_search_signed(y)));
  }
  QT_HOST_DEVICE static int code_below(float y) { return q8_code_below_signed(y); }
  QT_HOST_DEVICE static constexpr int keep_sign(float x, int nearest) {
    return nearest == kZeroCode && x < 0 ? kZeroCode - 1 : nearest;
  }
};

// Adam's v. A value > 0 never becomes 0: it would leave epsilon alone in the denominator of the next step,
// and with it updates hundreds of times the learning rate. The smallest entry, 3.25e-7 * absmax, is at
// least as large as what it replaces, so the step errs on the short side.
struct SecondMoment {
  static constexpr const Q8Map& kMap = kQ8Unsigned;
  static constexpr std::uint8_t kZeroCode = 0;
  static constexpr std::uint8_t encode(float x, float y) {
    return static_cast<std::uint8_t>(keep_sign(x, q8_search_unsigned(y)));
  }
  QT_HOST_DEVICE static int code_below(float y) { return q8_code_below_unsigned(y); }
  QT_HOST_DEVICE static constexpr int keep_sign(float x, int nearest) {
    return nearest == kZeroCode && x > 0 ? 1 : nearest;
  }
};

// Encodes a range that begins at a block boundary of its tensor.
//   codes  out [x.size()], absmax out [q8_scale_count(x.size())]; neither may overlap x
// Returns the index of the first NaN or Inf, if any: then the blocks before it are written, nothing else.
// Instantiated for the four encoders above.
template <class Code>
std::optional<std::int64_t> q8_quantize(std::span<const float> x, std::uint8_t* codes, float* absmax);

// out[i] = map[codes[i]] * absmax[i / 256], for a range that begins at a block boundary.
template <class Code>
void q8_dequantize(const std::uint8_t* codes, const float* absmax, std::span<float> out);

}  // namespace qt
