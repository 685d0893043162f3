// Scratch formulas, per op and target. The cuda formulas are the sizes its kernels are designed to; the cuda
// backend consumes them, and a build without it plans with them.
#include "kernels/scratch.h"

#include <algorithm>

#include "kernels/gemm_grid.h"
#include "kernels/gemm_routes.h"
#include "kernels/row_blocks.h"
#include "kernels/sum_tree.h"
#include "quant/tiles.h"
#include "src/core/units.h"

namespace qt {

namespace {

// Temporary memory of the radix sort that a card runs. The sort library states its need at run time only
// (kernels/cuda/sort.h then checks it); for pairs of 32 bits and digits of 8 it is, rounded up to 256 bytes a
// piece, the histograms of up to 4 passes (4 KiB), a counter for each, and 1 KiB for each tile of pairs, to
// hand offsets on. Its tiles are 8064 pairs and more on every card from sm_80 on; 1024 and 64 KiB leave room
// for other versions.
constexpr std::int64_t radix_sort_temp_bytes(std::int64_t n) {
  constexpr std::int64_t kFixedBytes = 64 * kKiB, kTilePairs = 1024, kTileBytes = 1 * kKiB;
  return kFixedBytes + (n + kTilePairs - 1) / kTilePairs * kTileBytes;
}

// A slice of a packed matrix, expanded for the dense library: large enough to hide the launches, small enough
// to stay in reach of the second-level cache.
constexpr std::int64_t kExpandedSliceBytes = 32 * kMiB;

constexpr std::int64_t kFusedBelowTokens = 2048;  // fewer: the expansion is not worth its traffic

bool on_cpu(const Target& target) { return target.kind == DeviceKind::cpu; }

}  // namespace

std::int64_t scratch_bytes(const EmbeddingBwd& op, const Target& target) {
  const std::int64_t N = op.ids.dim(0);
  // (id, token) in 8 bytes to sort in place, then the first position of each distinct id and the end.
  if (on_cpu(target)) return N * 8 + (N + 1) * 4;
  // Keys and values of the radix sort, double-buffered.
  return 4 * N * 4 + radix_sort_temp_bytes(N);
}

// Sums of each block of rows, f32: of dy h, then of dy.
std::int64_t scratch_bytes(const LayerNormBwd& op, const Target&) {
  return row_blocks(op.x.dim(0)).count * 2 * op.x.dim(1) * 4;
}

std::int64_t scratch_bytes(const ColumnSum& op, const Target&) {
  return row_blocks(op.x.dim(0)).count * op.x.dim(1) * 4;
}

std::int64_t scratch_bytes(const AttentionFwd&, const Target&) { return 0; }

std::int64_t scratch_bytes(const AttentionBwd& op, const Target&) {
  return op.q.dim(0) * op.q.dim(2) * op.q.dim(1) * 4;  // delta [B, H, T] f32
}

std::int64_t scratch_bytes(const Matmul& op, const Target& target) {
  if (!on_cpu(target)) return 0;  // the library's workspace is the Target's
  const GemmShape shape = gemm_shape(op);
  return cpu_gemm_grid(shape, op.layout).scratch_bytes(shape);
}

PackedLayout packed_layout(FormatId format, std::int64_t N, std::int64_t K, const Target& target) {
  return !on_cpu(target) && can_be_tiled(format, N, K) ? PackedLayout::tiles : PackedLayout::flat;
}

GemmRoute packed_route(const PackedMatmul& op, const Target& target) {
  if (on_cpu(target)) return GemmRoute::fused;
  if (target.gemm != GemmRoute::automatic) return target.gemm;
  if (const auto measured = measured_route(target.sm, op.x.dtype, op.layout, op.x.dim(0), op.w.N, op.w.K))
    return *measured;
  return op.x.dim(0) < kFusedBelowTokens ? GemmRoute::fused : GemmRoute::scratch;
}

std::int64_t scratch_bytes(const PackedMatmul& op, const Target& target) {
  if (packed_route(op, target) == GemmRoute::fused) return 0;
  const std::int64_t row_bytes = op.w.K * dtype_bytes(op.x.dtype);
  // A slice never cuts a tile.
  const std::int64_t slice_rows =
      std::max<std::int64_t>(kTileSide, kExpandedSliceBytes / row_bytes / kTileSide * kTileSide);
  return std::min(op.w.N, slice_rows) * row_bytes;
}

std::int64_t scratch_bytes(const SumSquares& op, const Target&) {
  return tree_blocks(op.x.elems()) * 8;  // one f64 per block
}

}  // namespace qt
