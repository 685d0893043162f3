// Scratch an op needs on a target, in bytes: pure functions, no device, no toolkit. The caller allocates that
// much, aligned to kScratchAlignment, and passes it in the op's `scratch` field; ops never allocate. 0 means: leave the
// field undefined.
#pragma once

#include <concepts>
#include <cstdint>

#include "kernels/ops.h"
#include "kernels/target.h"

namespace qt {

// Of the address, in bytes: ops keep doubles in their scratch. Backend::run checks it.
inline constexpr std::int64_t kScratchAlignment = 8;

std::int64_t scratch_bytes(const EmbeddingBwd& op, const Target& target);
std::int64_t scratch_bytes(const LayerNormBwd& op, const Target& target);
std::int64_t scratch_bytes(const AttentionFwd& op, const Target& target);
std::int64_t scratch_bytes(const AttentionBwd& op, const Target& target);
std::int64_t scratch_bytes(const Matmul& op, const Target& target);
std::int64_t scratch_bytes(const PackedMatmul& op, const Target& target);
std::int64_t scratch_bytes(const ColumnSum& op, const Target& target);
std::int64_t scratch_bytes(const SumSquares& op, const Target& target);

// The order that a packed matrix of a format lies in on a target: tiles on a card where the format has them and they
// cover the matrix, else flat.
PackedLayout packed_layout(FormatId format, std::int64_t N, std::int64_t K, const Target& target);

// The route a packed product takes on a target: what scratch_bytes and the implementations both ask.
// Automatic: as measured on such a card (kernels/gemm_routes.h); elsewhere fused for few tokens, scratch for
// many.
GemmRoute packed_route(const PackedMatmul& op, const Target& target);

// The ops that need scratch.
template <class Op>
concept TakesScratch = requires(const Op& op, const Target& target) {
  { scratch_bytes(op, target) } -> std::same_as<std::int64_t>;
};

}  // namespace qt
