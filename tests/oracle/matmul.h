// The three products of kernels/ops.h, one dot product at a time, and the weights of a packed operand.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/ops.h"
#include "quant/nf4.h"
#include "tests/oracle/scalar.h"

namespace qt::oracle {

// op(a) op(b) for the layout: rows x cols, each a dot product of `inner` terms. a and b dense, row-major.
//   nt: a [rows, inner] b [cols, inner]   nn: a [rows, inner] b [inner, cols]   tn: a [inner, rows] b [inner,
//   cols]
template <class T>
std::vector<T> matmul(GemmLayout layout, std::span<const T> a, std::span<const T> b, std::size_t rows,
                      std::size_t cols, std::size_t inner, Adding adding = Adding::rounded) {
  std::vector<T> c;
  c.reserve(rows * cols);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t k = 0; k < cols; ++k) {
      Sum<T> dot;
      for (std::size_t i = 0; i < inner; ++i) {
        const std::size_t at_a = layout == GemmLayout::tn ? i * rows + r : r * inner + i;
        const std::size_t at_b = layout == GemmLayout::nt ? k * inner + i : i * cols + k;
        dot.add(a[at_a] * b[at_b]);
      }
      c.push_back(dot.value(adding));
    }
  }
  return c;
}

// How a packed matrix is unfolded; the defaults are the contract.
struct UnpackRule {
  bool rounds_to_bf16 = true;
  bool low_nibble_first = false;
  bool blocks_restart_in_rows = false;
};

// The weights behind NF4 codes: code book times the scale of the flat block of 64, as one f32 product,
// rounded to bf16.
inline std::vector<double> unpack_nf4(std::span<const std::uint8_t> codes, std::span<const double> absmax,
                                      std::size_t N, std::size_t K, UnpackRule rule = {}) {
  std::vector<double> w(N * K);
  const std::size_t row_blocks = (K + 63) / 64;
  for (std::size_t i = 0; i < w.size(); ++i) {
    const bool low = (i % 2 == 0) == rule.low_nibble_first;
    const int code = low ? codes[i / 2] & 15 : codes[i / 2] >> 4;
    const std::size_t block = rule.blocks_restart_in_rows ? (i / K) * row_blocks + (i % K) / 64 : i / 64;
    const double scale = absmax[std::min(block, absmax.size() - 1)];
    // 48 bits at most: exact in double, so that this is the one f32 rounding of the contract.
    const double product = static_cast<double>(Nf4::kCodebook[static_cast<std::size_t>(code)]) * scale;
    const double rounded = round_to(product, DType::f32);
    w[i] = rule.rounds_to_bf16 ? round_to(rounded, DType::bf16) : rounded;
  }
  return w;
}

}  // namespace qt::oracle
