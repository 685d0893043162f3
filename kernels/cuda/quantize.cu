// Packing and unpacking of NF4, bit for bit as quant/nf4.h has it: one pass over memory, eight elements a
// lane.
#include "kernels/aligned.h"
#include "kernels/cuda/block_scale.cuh"
#include "kernels/cuda/code_points.cuh"
#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/vector.cuh"
#include "quant/block.h"
#include "quant/nf4.h"
#include "quant/tiles.h"

namespace qt::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpThreads;
constexpr int kBlock = Nf4::kBlockElems;
constexpr int kBlockLanes = kBlock / kVectorElems;  // a block of the format has so many lanes
constexpr int kWarpElems = kWarpThreads * kVectorElems;

LaunchShape warps_shape(const char* kernel, std::int64_t warps, const Context& context) {
  return filling_shape(kernel, blocks_for(warps, kWarps), kThreads, context);
}

// ---- packing -----------------------------------------------------------------------------------------

// Over the lanes of one block of the format, the same in all of them. The whole warp must come.
template <class T>
__device__ T block_max(T x) {
#pragma unroll
  for (int offset = kBlockLanes / 2; offset > 0; offset /= 2) {
    const T other = __shfl_xor_sync(kFullWarp, x, offset);
    x = x < other ? other : x;
  }
  return x;
}

// The bits of the largest magnitude in the lane's block.
__device__ unsigned block_top(const Floats& f) { return block_max(top_magnitude(f)); }

// A lane's eight codes, as the four bytes of the flat layout.
__device__ unsigned encode(const Floats& f, unsigned top) {
  if (top == 0) return (Nf4::kZeroCode << 4 | Nf4::kZeroCode) * 0x01010101u;
  const Floats y = normalised(f, Normaliser(__uint_as_float(top)));
  unsigned bytes = 0;
#pragma unroll
  for (int i = 0; i < kVectorElems; ++i) {
    bytes |= static_cast<unsigned>(Nf4::encode(y.x[i])) << (8 * (i / 2) + (i % 2 == 0 ? 4 : 0));
  }
  return bytes;
}

// Lowers *bad_index, a double whose bits are passed, to 1 + index; 0 stands for none. The smallest wins in
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
__device__ void note_bad_blocks(const Floats& f, unsigned top, std::int64_t index,
                                unsigned long long* bad_index) {
  const int at = lane_id() % kBlockLanes * kVectorElems;
  int before_end = 0;  // of the first bad element, counted from the end of the block; a maximum finds it
#pragma unroll
  for (int i = 0; i < kVectorElems; ++i) {
    if (before_end == 0 && magnitude_bits(f.x[i]) >= kInfinityBits) before_end = kBlock - at - i;
  }
  before_end = block_max(before_end);
  if (top >= kInfinityBits && at == 0) note_bad(bad_index, index + (kBlock - before_end));
}

// src [n] is elements [first, first + n) of the matrix that codes and absmax begin with.
template <class T>
__global__ __launch_bounds__(kThreads) void quantize_kernel(const T* src, std::int64_t first, std::int64_t n,
                                                            std::uint8_t* codes, float* absmax,
                                                            unsigned long long* bad_index) {
  const bool aligned = is_aligned<4>(codes);
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * kWarps;
  for (std::int64_t w = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp_id(); w * kWarpElems < n;
       w += warps) {
    const std::int64_t at = w * kWarpElems + lane_id() * kVectorElems;
    const std::int64_t left = n - at;
    const int count = left >= kVectorElems ? kVectorElems : left > 0 ? static_cast<int>(left) : 0;
    const Floats f = load_floats(src + at, count);
    const unsigned top = block_top(f);
    if (__any_sync(kFullWarp, top >= kInfinityBits)) note_bad_blocks(f, top, first + at, bad_index);
    if (count == 0 || top >= kInfinityBits) continue;
    const unsigned bytes = encode(f, top);
    std::uint8_t* const to = codes + (first + at) / 2;
    if (aligned && count == kVectorElems) {
      write_global(to, bytes);
    } else {
#pragma unroll
      for (int b = 0; b < kVectorElems / 2; ++b) {
        if (2 * b < count) to[b] = static_cast<std::uint8_t>(bytes >> (8 * b));
      }
    }
    if (lane_id() % kBlockLanes == 0) absmax[(first + at) / kBlock] = __uint_as_float(top);
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
static_assert(kThreads == kRowPairs * kRowPairLanes && kBlock == kTileSide && kBlockLanes == kRowPairLanes);

// One block of threads per tile. Eight lanes have a pair of rows 2 r, 2 r + 1, which share words of two
// bytes; the tile is put together in shared memory and leaves in 16-byte pieces. Where a row is not in the
// range or is not finite its bytes stay as they are: then the others are written one by one.
template <class T>
__global__ __launch_bounds__(kThreads) void quantize_tiles_kernel(const T* src, std::int64_t first,
                                                                  TiledRange range, std::uint8_t* codes,
                                                                  float* absmax,
                                                                  unsigned long long* bad_index) {
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
    const std::int64_t index = block * kBlock + lane * kVectorElems;
    const Floats f = in_range ? load_floats(src + (index - first), kVectorElems) : Floats{};
    const unsigned top = block_top(f);
    if (__any_sync(kFullWarp, top >= kInfinityBits)) note_bad_blocks(f, top, index, bad_index);
    written[dn] = in_range && top < kInfinityBits;
    bytes[dn] = written[dn] ? encode(f, top) : 0;
    if (written[dn] && lane == 0) absmax[tile * kTileSide + row] = __uint_as_float(top);
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

// ---- unpacking ---------------------------------------------------------------------------------------

// What the canonical weight is rounded from (Nf4::decode).
__device__ float product(const SharedArray<float>& table, unsigned code, float absmax) {
  return table.read(static_cast<int>(code)) * absmax;
}

// Stores canonical weights, which are bf16 whatever they are stored as.
__device__ void store_weights(bf16* p, int count, const Floats& products) {
  store_floats(p, count, products);
}
__device__ void store_weights(float* p, int count, const Floats& products) {
  Floats rounded;
#pragma unroll
  for (int i = 0; i < kVectorElems; ++i) rounded.x[i] = widen(cvt_bf16(products.x[i]));
  store_floats(p, count, rounded);
}

// dst [n] is elements [first, first + n). Where first is a multiple of 8 and codes are aligned, a thread's
// eight codes are one load and have one scale; else each is looked for on its own.
template <class T>
__global__ __launch_bounds__(kThreads) void dequantize_kernel(const std::uint8_t* codes, const float* absmax,
                                                              std::int64_t first, T* dst, std::int64_t n,
                                                              CodePoints points) {
  SharedMemory shared;
  const SharedArray<float> table = take_code_points(shared, points);
  __syncthreads();
  const bool aligned = is_aligned<4>(codes) && first % kVectorElems == 0;
  for_each_vector(n, [&](std::int64_t at, int count) {
    const std::int64_t element = first + at;
    Floats f = {};
    if (aligned && count == kVectorElems) {
      const unsigned bytes = read_global<unsigned>(codes + element / 2);
      const float scale = absmax[element / kBlock];
#pragma unroll
      for (int i = 0; i < kVectorElems; ++i) {
        f.x[i] = product(table, bytes >> (8 * (i / 2) + (i % 2 == 0 ? 4 : 0)) & 0xFu, scale);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kVectorElems; ++i) {
        if (i >= count) continue;
        const std::int64_t e = element + i;
        f.x[i] = product(table, codes[e / 2] >> (e % 2 == 0 ? 4 : 0) & 0xFu, absmax[e / kBlock]);
      }
    }
    store_weights(dst + at, count, f);
  });
}

// Two weights side by side.
__device__ void store_pair(bf16* p, float low, float high) {
  if (is_aligned<4>(p)) {
    write_global(p, cvt_pair<bf16>(low, high));
  } else {
    p[0] = cvt_bf16(low), p[1] = cvt_bf16(high);
  }
}
__device__ void store_pair(float* p, float low, float high) {
  const float2 pair = make_float2(widen(cvt_bf16(low)), widen(cvt_bf16(high)));
  if (is_aligned<8>(p)) {
    write_global(p, pair);
  } else {
    p[0] = pair.x, p[1] = pair.y;
  }
}

// The 16 bytes of a slot.
__device__ uint4 load_slot(const std::uint8_t* p) {
  if (is_aligned<kTileSlotBytes>(p)) return read_global<uint4>(p);
  unsigned words[4] = {};
#pragma unroll
  for (int b = 0; b < kTileSlotBytes; ++b) words[b / 4] |= static_cast<unsigned>(p[b]) << (8 * (b % 4));
  return make_uint4(words[0], words[1], words[2], words[3]);
}

// A thread has a slot, which is pairs of columns of eight rows. Neighbouring lanes have neighbouring pairs,
// so that rows are written in whole sectors of 32 bytes.
template <class T>
__global__ __launch_bounds__(kThreads) void dequantize_tiles_kernel(const std::uint8_t* codes,
                                                                    const float* absmax, std::int64_t first,
                                                                    TiledRange range, T* dst,
                                                                    CodePoints points) {
  SharedMemory shared;
  const SharedArray<float> table = take_code_points(shared, points);
  __syncthreads();
  for (std::int64_t t = global_thread(); t < range.tiles * kTileSlots; t += global_threads()) {
    const std::int64_t tile = range.first_tile + t / kTileSlots;
    const int slot = static_cast<int>(t % kTileSlots);
    const int half = slot / (kTileSlots / 2), p = slot / 8 % 8, q = slot % 8 ^ tile_swizzle(p);
    const uint4 loaded = load_slot(codes + tile * kTileCodeBytes + slot * kTileSlotBytes);
    const unsigned words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int dn = 0; dn < 2; ++dn) {
        const int row = 2 * (8 * i + p) + dn;
        const std::int64_t block = range.block_of(tile, row);
        const float scale = range.has(block) ? absmax[tile * kTileSide + row] : 0;
        T* const to = dst + (block * kBlock - first) + 32 * half + 2 * q;
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          const unsigned byte = words[2 * s + i / 2] >> (16 * (i % 2) + 8 * dn);
          const float low = product(table, byte >> 4 & 0xFu, scale),
                      high = product(table, byte & 0xFu, scale);
          if (range.has(block)) store_pair(to + 16 * s, low, high);
        }
      }
    }
  }
}

}  // namespace

void run(const Quantize& op, const Context& context) {
  const auto run_as = [&]<class T>() {
    const T* const src = op.src.as<T>();
    std::uint8_t* const codes = op.w.codes.as<std::uint8_t>();
    float* const absmax = op.w.absmax.as<float>();
    auto* const bad_index = reinterpret_cast<unsigned long long*>(op.bad_index.data);
    if (op.w.layout == PackedLayout::flat) {
      launch(warps_shape("quantize_kernel", blocks_for(op.src.elems(), kWarpElems), context),
             quantize_kernel<T>, src, op.first, op.src.elems(), codes, absmax, bad_index);
    } else {
      const TiledRange range = tiled_range(op.w, op.first, op.src.elems());
      launch({.name = "quantize_tiles_kernel",
              .blocks = range.tiles,
              .threads = kThreads,
              .shared_bytes = shared_array_bytes(kTileCodeBytes, 1) + shared_array_bytes(kWarps, 4),
              .stream = context.stream},
             quantize_tiles_kernel<T>, src, op.first, range, codes, absmax, bad_index);
    }
  };
  dispatch_format(op.w.format, [&]<class F>() {
    static_assert(std::is_same_v<F, Nf4>, "a format of its own needs kernels of its own");
    if (op.src.dtype == DType::bf16) {
      run_as.template operator()<bf16>();
    } else {
      run_as.template operator()<float>();
    }
  });
}

void run(const Dequantize& op, const Context& context) {
  const auto run_as = [&]<class T>() {
    const std::int64_t n = op.dst.elems();
    const std::uint8_t* const codes = op.w.codes.as<std::uint8_t>();
    const float* const absmax = op.w.absmax.as<float>();
    T* const dst = op.dst.as<T>();
    const CodePoints points = code_points_of(op.w.format);
    if (op.w.layout == PackedLayout::flat) {
      LaunchShape shape = elementwise_shape("dequantize_kernel", n, context);
      shape.shared_bytes = kCodePointBytes;
      launch(shape, dequantize_kernel<T>, codes, absmax, op.first, dst, n, points);
    } else {
      const TiledRange range = tiled_range(op.w, op.first, n);
      LaunchShape shape =
          warps_shape("dequantize_tiles_kernel", range.tiles * (kTileSlots / kWarpThreads), context);
      shape.shared_bytes = kCodePointBytes;
      launch(shape, dequantize_tiles_kernel<T>, codes, absmax, op.first, range, dst, points);
    }
  };
  dispatch_format(op.w.format, [&]<class F>() {
    static_assert(std::is_same_v<F, Nf4>, "a format of its own needs kernels of its own");
    if (op.dst.dtype == DType::bf16) {
      run_as.template operator()<bf16>();
    } else {
      run_as.template operator()<float>();
    }
  });
}

}  // namespace qt::cuda
