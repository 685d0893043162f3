// Looking a product up among those that were measured.
#include "kernels/gemm_routes.h"

#include <algorithm>
#include <bit>

namespace qt {

namespace {

constexpr double kFarthestFactor = 2;  // in each dimension: beyond it another tile or wave count may rule
constexpr double kFusedWorthFactor = 1.05;  // its missing scratch is worth this much time

// How many times larger the larger one is; at least 1.
double factor(std::int64_t a, std::int64_t b) {
  return static_cast<double>(std::max(a, b)) / static_cast<double>(std::min(a, b));
}

}  // namespace

std::optional<GemmRoute> measured_route(std::span<const MeasuredProduct> table, int sm, DType tokens,
                                        GemmLayout layout, std::int64_t M, std::int64_t N, std::int64_t K) {
  if (tokens != DType::bf16) return std::nullopt;  // f32 takes other kernels, with other speeds
  if (M <= 0 || N <= 0 || K <= 0) return std::nullopt;
  const MeasuredProduct* nearest = nullptr;
  double least = 0;
  for (const MeasuredProduct& p : table) {
    if (p.sm != sm || p.layout != layout) continue;
    const double m = factor(M, p.M), n = factor(N, p.N), k = factor(K, p.K);
    if (std::max({m, n, k}) > kFarthestFactor) continue;
    if (nearest != nullptr && m * n * k >= least) continue;
    nearest = &p;
    least = m * n * k;
  }
  if (nearest == nullptr) return std::nullopt;
  return nearest->fused_us <= kFusedWorthFactor * nearest->scratch_us ? GemmRoute::fused : GemmRoute::scratch;
}

std::uint64_t routes_fingerprint(std::span<const MeasuredProduct> table, int sm) {
  std::uint64_t hash = 0;
  const auto take = [&](std::uint64_t value) {  // FNV-1a, a word at a time
    if (hash == 0) hash = 0xCBF29CE484222325u;
    hash = (hash ^ value) * 0x100000001B3u;
  };
  for (const MeasuredProduct& p : table) {
    if (p.sm != sm) continue;
    take(static_cast<std::uint64_t>(p.layout));
    for (const std::int64_t size : {p.M, p.N, p.K}) take(static_cast<std::uint64_t>(size));
    for (const double us : {p.fused_us, p.scratch_us}) take(std::bit_cast<std::uint64_t>(us));
  }
  return hash;
}

std::optional<GemmRoute> measured_route(int sm, DType tokens, GemmLayout layout, std::int64_t M,
                                        std::int64_t N, std::int64_t K) {
  return measured_route(measured_products(), sm, tokens, layout, M, N, K);
}

}  // namespace qt
