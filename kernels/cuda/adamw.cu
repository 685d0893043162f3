// AdamW with f32 and with 8-bit moments: the arithmetic of quant/adam_math.h and the codes of quant/q8.h, bit
// for bit. Both are one pass over memory. A bf16 master is rounded stochastically.
#include <algorithm>

#include "kernels/aligned.h"
#include "kernels/cuda/block_scale.cuh"
#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/vector.cuh"
#include "kernels/step_scalars.h"
#include "quant/q8.h"

namespace qt::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpThreads;

// What every element of one call shares.
struct AdamStep {
  float grad_scale;
  AdamHyper h;
};

__device__ AdamStep read_step(const float* params, int group) {
  return {gradient_factor(params), read_hyper(params, group)};
}

// Draws of four elements from `element` on.
__device__ void quad_draws(const RngStream& rng, std::uint64_t element, unsigned (&draws)[4]) {
  const auto words = rng_block(rng, element / 4);
#pragma unroll
  for (int i = 0; i < 4; ++i) draws[i] = words[i];
  const int lead = static_cast<int>(element % 4);
  if (lead == 0) return;  // so it is for slabs that begin at blocks of moments
  const auto next = rng_block(rng, element / 4 + 1);
  const unsigned all[6] = {words[1], words[2], words[3], next[0], next[1], next[2]};
#pragma unroll
  for (int i = 0; i < 4; ++i) draws[i] = lead == 1 ? all[i] : lead == 2 ? all[i + 1] : all[i + 2];
}

// What four masters from `element` on are stored as: themselves, or rounded to bf16, each by its draw.
template <class P>
__device__ void round_masters(float* x, const RngStream& rng, std::uint64_t element) {
  if constexpr (sizeof(P) == 2) {
    unsigned draws[4];
    quad_draws(rng, element, draws);
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = widen(to_bf16_stochastic(x[i], draws[i]));
  }
}

template <class P, class G>
__global__ __launch_bounds__(kThreads) void adamw_kernel(P* master, const G* grad, float* m, float* v,
                                                         std::int64_t n, const float* params, int group,
                                                         RngStream rng, std::int64_t first_element) {
  if (step_is_skipped(params)) return;
  const AdamStep step = read_step(params, group);
  for_each_vector(n, [&](std::int64_t first, int count) {
    const Floats g = load_floats(grad + first, count);
    Floats p = load_floats(master + first, count), mi = load_floats(m + first, count),
           vi = load_floats(v + first, count);
#pragma unroll
    for (int i = 0; i < kVectorElems; ++i) {
      adam_update(p.x[i], g.x[i] * step.grad_scale, mi.x[i], vi.x[i], step.h);
    }
#pragma unroll
    for (int i = 0; i < kVectorElems; i += 4) {
      round_masters<P>(p.x + i, rng, static_cast<std::uint64_t>(first_element + first + i));
    }
    store_floats(master + first, count, p);
    store_floats(m + first, count, mi);
    store_floats(v + first, count, vi);
  });
}

// ---- 8-bit moments -----------------------------------------------------------------------------------

// A warp has one block of 256 elements. Its lane l holds elements 4 l .. 4 l + 3 of both halves, so that each
// access of the warp is one dense piece of memory. Slot 4 q + i of a lane is element 128 q + 4 l + i.
constexpr int kBlocksPerMultiprocessor = 3;  // all at once: each fills tables before it starts
constexpr int kQuads = 2;
constexpr int kHalfElems = kQ8BlockElems / kQuads;
static_assert(kHalfElems == 4 * kWarpThreads && kVectorElems == 4 * kQuads);

__device__ int quad_element(int q) { return kHalfElems * q + 4 * lane_id(); }

// Calls whole(q, element) for a quad that lies below `count` and one(slot, element) for each element that
// does of one that does not; nothing for what lies beyond. aligned: whether quads may be moved at once.
template <class Whole, class One>
__device__ void for_each_quad(int count, bool aligned, Whole&& whole, One&& one) {
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    const int element = quad_element(q);
    if (aligned && element + 4 <= count) {
      whole(q, element);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (element + i < count) one(4 * q + i, element + i);
      }
    }
  }
}

template <class T>
__device__ bool quads_aligned(const T* block) {
  return is_aligned<4 * sizeof(T)>(block);
}

// Elements [0, count) of a block, widened; zeros behind them.
template <class T>
__device__ Floats load_block(const T* block, int count) {
  Floats f = {};
  for_each_quad(
      count, quads_aligned(block), [&](int q, int element) { load_quad(block + element, f.x + 4 * q); },
      [&](int slot, int element) { f.x[slot] = widen(block[element]); });
  return f;
}

// One rounding each, which masters of bf16 have had already.
template <class T>
__device__ void store_block(T* block, int count, const Floats& f) {
  for_each_quad(
      count, quads_aligned(block), [&](int q, int element) { store_quad(block + element, f.x + 4 * q); },
      [&](int slot, int element) { block[element] = narrow<T>(f.x[slot]); });
}

// Codes of a lane, one byte each: slot 4 q + i is byte i of quad[q].
struct Codes {
  unsigned quad[kQuads];

  __device__ static Codes all(unsigned code) { return {{code * 0x01010101u, code * 0x01010101u}}; }
  __device__ int at(int slot) const { return static_cast<int>(quad[slot / 4] >> (8 * (slot % 4)) & 0xFFu); }
  __device__ void set(int slot, int code) {
    const int shift = 8 * (slot % 4);
    quad[slot / 4] = (quad[slot / 4] & ~(0xFFu << shift)) | static_cast<unsigned>(code) << shift;
  }
};

// Codes [0, count) of a block; `beyond` behind them.
__device__ Codes load_codes(const std::uint8_t* block, int count, unsigned beyond) {
  Codes codes = Codes::all(beyond);
  for_each_quad(
      count, quads_aligned(block),
      [&](int q, int element) { codes.quad[q] = read_global<unsigned>(block + element); },
      [&](int slot, int element) { codes.set(slot, block[element]); });
  return codes;
}

__device__ void store_codes(std::uint8_t* block, int count, const Codes& codes) {
  for_each_quad(
      count, quads_aligned(block), [&](int q, int element) { write_global(block + element, codes.quad[q]); },
      [&](int slot, int element) { block[element] = static_cast<std::uint8_t>(codes.at(slot)); });
}

// The two maps, as kernels take them: a device does not reach the host's arrays.
struct Q8Maps {
  float first[256];
  float second[256];
};

Q8Maps q8_maps() {
  Q8Maps maps;
  std::copy(FirstMoment::kMap.begin(), FirstMoment::kMap.end(), maps.first);
  std::copy(SecondMoment::kMap.begin(), SecondMoment::kMap.end(), maps.second);
  return maps;
}

// One moment: its map and thresholds in shared memory.
struct MomentTables {
  SharedArray<float> map;
  SharedArray<float> mid;

  __device__ explicit MomentTables(SharedMemory& shared)
      : map(shared.take<float>(256)), mid(shared.take<float>(256)) {}
  static constexpr int bytes() { return 2 * shared_array_bytes(256, 4); }

  // Fills them; a barrier must follow.
  __device__ void fill(const float* entries) const {
    for (int c = static_cast<int>(threadIdx.x); c < 256; c += kThreads) {
      map.write(c, entries[c]);
      mid.write(c, c < 255 ? q8_midpoint(entries[c], entries[c + 1]) : __uint_as_float(kInfinityBits));
    }
  }

  __device__ Floats decode(const Codes& codes, float absmax) const {
    Floats f;
#pragma unroll
    for (int slot = 0; slot < kVectorElems; ++slot) f.x[slot] = map.read(codes.at(slot)) * absmax;
    return f;
  }

  // top: the bits of the largest magnitude in the block.
  template <class Moment>
  __device__ Codes encode(const Floats& f, unsigned top) const {
    Codes codes = Codes::all(Moment::kZeroCode);
    if (top == 0) return codes;
    const Floats y = normalised(f, Normaliser(__uint_as_float(top)));
#pragma unroll
    for (int slot = 0; slot < kVectorElems; ++slot) {
      const int below = Moment::code_below(y.x[slot]);
      codes.set(slot, Moment::keep_sign(f.x[slot], below + (y.x[slot] > mid.read(below) ? 1 : 0)));
    }
    return codes;
  }
};

template <class P, class G>
struct AdamW8Memory {
  P* master;
  const G* grad;
  std::uint8_t* m_codes;
  std::uint8_t* v_codes;
  float* m_absmax;
  float* v_absmax;
  std::int64_t n;
};

__device__ unsigned top_of_block(const Floats& f) { return __reduce_max_sync(kFullWarp, top_magnitude(f)); }

// A warp takes one block of 256 elements after the other and meets no other warp. Elements that the last
// block lacks have moments that are and stay 0, which leaves both maxima alone.
template <class P, class G>
__global__ __launch_bounds__(kThreads, kBlocksPerMultiprocessor) void adamw8_kernel(
    AdamW8Memory<P, G> at, const float* params, int group, RngStream rng, std::int64_t first_element,
    const __grid_constant__ Q8Maps maps) {
  if (step_is_skipped(params)) return;
  SharedMemory shared;
  const MomentTables first(shared), second(shared);
  first.fill(maps.first);
  second.fill(maps.second);
  __syncthreads();
  const AdamStep step = read_step(params, group);
  const std::int64_t blocks = (at.n + kQ8BlockElems - 1) / kQ8BlockElems;
  const std::int64_t warps = static_cast<std::int64_t>(gridDim.x) * kWarps;
  for (std::int64_t block = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp_id(); block < blocks;
       block += warps) {
    const std::int64_t begin = block * kQ8BlockElems, left = at.n - begin;
    const int count = left < kQ8BlockElems ? static_cast<int>(left) : kQ8BlockElems;
    Floats p = load_block(at.master + begin, count);
    const Floats g = load_block(at.grad + begin, count);
    const Codes m_codes = load_codes(at.m_codes + begin, count, FirstMoment::kZeroCode);
    const Codes v_codes = load_codes(at.v_codes + begin, count, SecondMoment::kZeroCode);
    Floats m = first.decode(m_codes, at.m_absmax[block]), v = second.decode(v_codes, at.v_absmax[block]);
#pragma unroll
    for (int slot = 0; slot < kVectorElems; ++slot) {
      adam_update(p.x[slot], g.x[slot] * step.grad_scale, m.x[slot], v.x[slot], step.h);
    }
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      round_masters<P>(p.x + 4 * q, rng, static_cast<std::uint64_t>(first_element + begin + quad_element(q)));
    }
    store_block(at.master + begin, count, p);
    // Every lane has read the old scales when the maxima are there.
    const unsigned m_top = top_of_block(m), v_top = top_of_block(v);
    store_codes(at.m_codes + begin, count, first.encode<FirstMoment>(m, m_top));
    store_codes(at.v_codes + begin, count, second.encode<SecondMoment>(v, v_top));
    if (lane_id() == 0) {
      at.m_absmax[block] = __uint_as_float(m_top);
      at.v_absmax[block] = __uint_as_float(v_top);
    }
  }
}

}  // namespace

void run(const AdamW& op, const Context& context) {
  const std::int64_t n = op.master.elems();
  with_master_and_gradient(op.master.dtype, op.grad.dtype, [&]<class P, class G>() {
    launch(elementwise_shape("adamw_kernel", n, context), adamw_kernel<P, G>, op.master.as<P>(),
           op.grad.as<G>(), op.m.as<float>(), op.v.as<float>(), n, op.params.as<float>(),
           static_cast<int>(op.group), op.rng, op.first_element);
  });
}

void run(const AdamW8& op, const Context& context) {
  const std::int64_t n = op.master.elems();
  LaunchShape shape = filling_shape("adamw8_kernel", blocks_for(q8_scale_count(n), kWarps), kThreads, context,
                                    kBlocksPerMultiprocessor);
  shape.shared_bytes = 2 * MomentTables::bytes();
  with_master_and_gradient(op.master.dtype, op.grad.dtype, [&]<class P, class G>() {
    launch(shape, adamw8_kernel<P, G>,
           AdamW8Memory<P, G>{.master = op.master.as<P>(),
                              .grad = op.grad.as<G>(),
                              .m_codes = op.m_codes.as<std::uint8_t>(),
                              .v_codes = op.v_codes.as<std::uint8_t>(),
                              .m_absmax = op.m_absmax.as<float>(),
                              .v_absmax = op.v_absmax.as<float>(),
                              .n = n},
           op.params.as<float>(), static_cast<int>(op.group), op.rng, op.first_element, q8_maps());
  });
}

}  // namespace qt::cuda
