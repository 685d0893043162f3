// Packing of weights, bit for bit as the reference of their format has it: one pass over memory, eight elements
// a lane. Unpacking is kernels/cuda/expand.cu.
#include "kernels/aligned.h"
#include "kernels/cuda/block_scale.cuh"
#include "kernels/cuda/context.h"
#include "kernels/cuda/expand.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/vector.cuh"
#include "quant/block.h"
#include "quant/format.h"
#include "quant/tiles.h"

namespace qt::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpThreads;
template <class F>
constexpr int kBlockLanes = F::kBlockElems / kVectorElems;  // a block of the format has so many lanes
constexpr int kWarpElems = kWarpThreads * kVectorElems;

LaunchShape warps_shape(const char* kernel, std::int64_t warps, const Context& context) {
  return filling_shape(kernel, blocks_for(warps, kWarps), kThreads, context);
}

// ---- packing -----------------------------------------------------------------------------------------

// Over the lanes of one block of the format, the same in all of them. The whole warp must come.
template <class F, class T>
__device__ T block_max(T x) {
  static_assert(kWarpThreads % kBlockLanes<F> == 0);
#pragma unroll
  for (int offset = kBlockLanes<F> / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(kFullWarp, x, offset);
    x = x < other ? other : x;
  }
  return x;
}

// The bits of the largest magnitude in the lane's block.
template <class F>
__device__ unsigned block_top(const Floats& f) {
  return block_max<F>(top_magnitude(f));
}

// A lane's eight codes, as the bytes of the flat layout.
template <class F>
__device__ typename F::Eight encode(const Floats& f, typename F::Scale scale) {
  typename F::Eight codes = 0;
  const float value = F::value_of(scale);
  if (value == 0) {
#pragma unroll
    for (int i = 0; i < kVectorElems; ++i) codes |= F::eight_of(F::kZeroCode, i);
    return codes;
  }
  const Floats y = normalised(f, Normaliser(value));
#pragma unroll
  for (int i = 0; i < kVectorElems; ++i) codes |= F::eight_of(F::encode(y.x[i]), i);
  return codes;
}

// Lowers *bad_index, a double passed as bits, to 1 + index; 0 stands for none. The smallest wins in
// whatever order they come.
__device__ void note_bad(unsigned long long* bad_index, std::int64_t index) {
  const double found = static_cast<double>(index) + 1;
  unsigned long long seen = *bad_index;
  for (;;) {
    const double before = __longlong_as_double(static_cast<long long>(seen));
    if (before != 0 && before <= found) return;
    const auto bits = static_cast<unsigned long long>(__double_as_longlong(found));
    const unsigned long long now = atomicCAS(bad_index, seen, bits);
    if (now == seen) return;
    seen = now;
  }
}

// For a warp in which some block is not finite: each of these notes its first such value. index: of the
// lane's first element in the matrix.
template <class F>
__device__ void note_bad_blocks(const Floats& f, unsigned top, std::int64_t index,
                                unsigned long long* bad_index) {
  const int at = lane_id() % kBlockLanes<F> * kVectorElems;
  int before_end = 0;  // of the first bad element, counted from the end of the block; a maximum finds it
#pragma unroll
  for (int i = 0; i < kVectorElems; ++i) {
    if (before_end == 0 && magnitude_bits(f.x[i]) >= kInfinityBits) before_end = F::kBlockElems - at - i;
  }
  before_end = block_max<F>(before_end);
  if (top >= kInfinityBits && at == 0) note_bad(bad_index, index + (F::kBlockElems - before_end));
}

// src [n] is elements [first, first + n) of the matrix that codes and scales begin with.
template <class F, class T>
__global__ __launch_bounds__(kThreads) void quantize_kernel(const T* src, std::int64_t first, std::int64_t n,
                                                            std::uint8_t* codes, typename F::Scale* scales,
                                                            unsigned long long* bad_index) {
  using Eight = typename F::Eight;
  constexpr int kGroupBytes = F::kGroupElems * F::kCodeBits / 8;
  // Eight codes of n bits are n bytes.
  const bool aligned = sizeof(Eight) == F::kCodeBits && is_aligned<sizeof(Eight)>(codes);
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * kWarps;
  for (std::int64_t w = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp_id(); w * kWarpElems < n;
       w += warps) {
    const std::int64_t at = w * kWarpElems + lane_id() * kVectorElems;
    const std::int64_t left = n - at;
    const int count = left >= kVectorElems ? kVectorElems : left > 0 ? static_cast<int>(left) : 0;
    const Floats f = load_floats(src + at, count);
    const unsigned top = block_top<F>(f);
    if (__any_sync(kFullWarp, top >= kInfinityBits)) note_bad_blocks<F>(f, top, first + at, bad_index);
    if (count == 0 || top >= kInfinityBits) continue;
    const typename F::Scale scale = F::scale_of(__uint_as_float(top));
    const Eight bytes = encode<F>(f, scale);
    std::uint8_t* const to = codes + code_offset<F>(first + at);
    if (aligned && count == kVectorElems) {
      write_global(to, bytes);
    } else {
#pragma unroll
      for (int b = 0; b < F::kCodeBits; ++b) {
        if (b / kGroupBytes * F::kGroupElems < count) to[b] = static_cast<std::uint8_t>(bytes >> (8 * b));
      }
    }
    if (lane_id() % kBlockLanes<F> == 0) scales[(first + at) / F::kBlockElems] = scale;
  }
}

// ---- packing into tiles (quant/tiles.h) --------------------------------------------------------------

// Elements [first, first + n) of a matrix, whole blocks of 64, as seen from its tiles.
struct TiledRange {
  std::int64_t first_block, end_block;  // in the flat order
  std::int64_t tiles_per_row;
  std::int64_t first_tile, tiles;  // that the range touches: all of some rows of tiles

  __device__ bool has(std::int64_t block) const { return block >= first_block && block < end_block; }
  // The block that row `row` of a tile holds.
  __device__ std::int64_t block_of(std::int64_t tile, int row) const {
    return (tile / tiles_per_row * kTileSide + row) * tiles_per_row + tile % tiles_per_row;
  }
};

TiledRange tiled_range(const PackedView& w, std::int64_t first, std::int64_t n) {
  TiledRange range;
  range.first_block = first / kTileSide;
  range.end_block = (first + n) / kTileSide;
  range.tiles_per_row = w.K / kTileSide;
  const std::int64_t blocks_per_row_of_tiles = range.tiles_per_row * kTileSide;
  const std::int64_t first_row = range.first_block / blocks_per_row_of_tiles;
  range.first_tile = first_row * range.tiles_per_row;
  range.tiles = (blocks_for(range.end_block, blocks_per_row_of_tiles) - first_row) * range.tiles_per_row;
  return range;
}

constexpr int kRowPairs = kTileSide / 2;
constexpr int kRowPairLanes = kTileSide / kVectorElems;
static_assert(kThreads == kRowPairs * kRowPairLanes);

// One block of threads per tile. Eight lanes have a pair of rows 2 r, 2 r + 1, which share words of two
// bytes; the tile is put together in shared memory and leaves in 16-byte pieces. Where a row is not in the
// range or is not finite its bytes stay as they are: then the others are written one by one.
template <class F, class T>
__global__ __launch_bounds__(kThreads) void quantize_tiles_kernel(const T* src, std::int64_t first,
                                                                  TiledRange range, std::uint8_t* codes,
                                                                  typename F::Scale* scales,
                                                                  unsigned long long* bad_index) {
  static_assert(kFitsTiles<F> && kBlockLanes<F> == kRowPairLanes);
  SharedMemory shared;
  const auto words = shared.take<std::uint16_t>(kTileCodeBytes / 2);
  const auto warp_is_whole = shared.take<int>(kWarps);
  const std::int64_t tile = range.first_tile + blockIdx.x;
  const int pair = static_cast<int>(threadIdx.x) / kRowPairLanes,
            lane = static_cast<int>(threadIdx.x) % kRowPairLanes;
  unsigned bytes[2];
  bool written[2];
#pragma unroll
  for (int dn = 0; dn < 2; ++dn) {
    const int row = 2 * pair + dn;
    const std::int64_t block = range.block_of(tile, row);
    const bool in_range = range.has(block);
    const std::int64_t index = block * kTileSide + lane * kVectorElems;
    const Floats f = in_range ? load_floats(src + (index - first), kVectorElems) : Floats{};
    const unsigned top = block_top<F>(f);
    if (__any_sync(kFullWarp, top >= kInfinityBits)) note_bad_blocks<F>(f, top, index, bad_index);
    written[dn] = in_range && top < kInfinityBits;
    const typename F::Scale scale = F::scale_of(__uint_as_float(top));
    bytes[dn] = written[dn] ? encode<F>(f, scale) : 0;
    if (written[dn] && lane == 0) scales[tile * kTileSide + row] = scale;
  }
#pragma unroll
  for (int b = 0; b < kVectorElems / 2; ++b) {
    const unsigned low = bytes[0] >> (8 * b) & 0xFFu, high = bytes[1] >> (8 * b) & 0xFFu;
    words.write(tile_byte(2 * pair, kVectorElems * lane + 2 * b) / 2,
                static_cast<std::uint16_t>(low | high << 8));
  }
  const int whole = __all_sync(kFullWarp, written[0] && written[1]);
  if (lane_id() == 0) warp_is_whole.write(warp_id(), whole);
  __syncthreads();
  bool tile_is_whole = true;
#pragma unroll
  for (int w = 0; w < kWarps; ++w) tile_is_whole = tile_is_whole && warp_is_whole.read(w) != 0;

  std::uint8_t* const to = codes + tile * kTileCodeBytes;
  if (tile_is_whole && is_aligned<kTileSlotBytes>(to)) {
    const int slot = static_cast<int>(threadIdx.x);
    if (slot < kTileSlots) write_global(to + slot * kTileSlotBytes, words.read_as<uint4>(8 * slot));
    return;
  }
#pragma unroll
  for (int dn = 0; dn < 2; ++dn) {
    if (!written[dn]) continue;
#pragma unroll
    for (int b = 0; b < kVectorElems / 2; ++b) {
      to[tile_byte(2 * pair + dn, kVectorElems * lane + 2 * b)] =
          static_cast<std::uint8_t>(bytes[dn] >> (8 * b));
    }
  }
}

}  // namespace

void run(const Quantize& op, const Context& context) {
  const auto run_as = [&]<class F, class T>() {
    const T* const src = op.src.as<T>();
    std::uint8_t* const codes = op.w.codes.as<std::uint8_t>();
    auto* const scales = op.w.absmax.as<typename F::Scale>();
    auto* const bad_index = reinterpret_cast<unsigned long long*>(op.bad_index.data);
    if constexpr (kFitsTiles<F>) {
      if (op.w.layout == PackedLayout::tiles) {
        const TiledRange range = tiled_range(op.w, op.first, op.src.elems());
        return launch({.name = "quantize_tiles_kernel",
                       .blocks = range.tiles,
                       .threads = kThreads,
                       .shared_bytes = shared_array_bytes(kTileCodeBytes, 1) + shared_array_bytes(kWarps, 4),
                       .stream = context.stream},
                      quantize_tiles_kernel<F, T>, src, op.first, range, codes, scales, bad_index);
      }
    }
    launch(warps_shape("quantize_kernel", blocks_for(op.src.elems(), kWarpElems), context),
           quantize_kernel<F, T>, src, op.first, op.src.elems(), codes, scales, bad_index);
  };
  dispatch_format(op.w.format, [&]<class F>() {
    if (op.src.dtype == DType::bf16) {
      run_as.template operator()<F, bf16>();
    } else {
      run_as.template operator()<F, float>();
    }
  });
}

void run(const Dequantize& op, const Context& context) {
  if (op.dst.dtype == DType::bf16) {
    expand(op.w, op.first, op.dst.elems(), op.dst.as<bf16>(), context);
  } else {
    expand(op.w, op.first, op.dst.elems(), op.dst.as<float>(), context);
  }
}

}  // namespace qt::cuda
