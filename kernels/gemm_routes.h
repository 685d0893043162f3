// Which route of a packed product was faster where a card has measured it. Pure functions over a committed
// table (kernels/gemm_routes_table.cpp, which bench/bench_gemm.cpp writes), so that a build without a card
// plans the same bytes.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "kernels/ops.h"
#include "kernels/target.h"

namespace qt {

// One measurement: both routes of the product of M tokens in bf16 with a packed [N, K], forward (nt) or for
// dx (nn).
struct MeasuredProduct {
  int sm = 0;  // compute capability times ten
  GemmLayout layout = GemmLayout::nt;
  std::int64_t M = 0, N = 0, K = 0;
  double fused_us = 0, scratch_us = 0;
};

// All of them, in no particular order. Empty until a card has been measured.
std::span<const MeasuredProduct> measured_products();

// The route of the nearest measurement, or none where the table has nothing like it: tokens in bf16, same sm
// and layout, and each of M, N and K within a factor of two. Nearest is the least product of the three
// factors; of equals the first counts. Fused, which needs no scratch, is taken up to 5 % slower.
std::optional<GemmRoute> measured_route(std::span<const MeasuredProduct> table, int sm, DType tokens,
                                        GemmLayout layout, std::int64_t M, std::int64_t N, std::int64_t K);
std::optional<GemmRoute> measured_route(int sm, DType tokens, GemmLayout layout, std::int64_t M,
                                        std::int64_t N, std::int64_t K);

// Tells one table from another, for cards of one sm: 0 where nothing is measured. Another route is another
// order of sums.
std::uint64_t routes_fingerprint(std::span<const MeasuredProduct> table, int sm);

}  // namespace qt
