// Softcapped cross entropy with its gradient in place, and the softcap alone. Legend: M tokens of a chunk, V
// vocabulary.
//
// A block has one row and walks it in chunks, twice: once for the sum of exp(z), once for the gradient, from
// memory again rather than from a copy (a recent row is still in the second-level cache). Which thread adds
// which elements is a function of V alone. A sum meets 3 roundings in a thread's eight elements, then one per
// chunk, 5 in the warp and 15 in the block.
#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/vector.cuh"

namespace qt::cuda {

namespace {

constexpr int kLossThreads = 512;  // of a block, that is of a row
constexpr int kChunkElems = kLossThreads * kVectorElems;

// Up to this cap exp(z) stays between 1e-28 and 1e28, and a sum of 2^31 of them below 2e37: nothing
// overflows, and no shift by the row's maximum is needed.
constexpr float kMaxUnshiftedCap = 64.0f;

__device__ inline float block_max(float x, const SharedArray<float>& partial) {
  x = warp_max(x);
  __syncthreads();
  if (lane_id() == 0) partial.write(warp_id(), x);
  __syncthreads();
  float top = partial.read(0);
  for (int w = 1; w < kLossThreads / kWarpThreads; ++w) {
    const float other = partial.read(w);
    top = top < other ? other : top;
  }
  return top;
}

// A row of f32 logits, as one thread sees it: of each chunk eight elements, in pieces of kWidth neighbours,
// the pieces of a warp side by side. kWidth 4 where V is a multiple of it, 1 otherwise.
template <int kWidth>
class LogitRow {
 public:
  static_assert(kWidth == 1 || kWidth == 4);

  __device__ LogitRow(const float* row, int V) : row_(row), V_(V) {}

  // Of element k of this thread in the chunk that begins at `chunk`; may lie behind the row.
  __device__ int index(int chunk, int k) const {
    return chunk + (k / kWidth * kLossThreads + static_cast<int>(threadIdx.x)) * kWidth + k % kWidth;
  }

  // `otherwise` stands for elements behind the row.
  __device__ Floats load(int chunk, float otherwise) const {
    Floats f;
#pragma unroll
    for (int k = 0; k < kVectorElems; k += kWidth) {
      const int i = index(chunk, k);
      if constexpr (kWidth == 4) {
        float4 four = make_float4(otherwise, otherwise, otherwise, otherwise);
        if (i < V_) {
          const float* const p = row_ + i;
          four = is_aligned16(p) ? read_global<float4>(p) : make_float4(p[0], p[1], p[2], p[3]);
        }
        f.x[k] = four.x, f.x[k + 1] = four.y, f.x[k + 2] = four.z, f.x[k + 3] = four.w;
      } else {
        f.x[k] = i < V_ ? row_[i] : otherwise;
      }
    }
    return f;
  }

  // Stores the thread's elements of the chunk, one rounding each; `to` begins where the row of logits does.
  template <class T>
  __device__ void store(T* to, int chunk, const Floats& f) const {
#pragma unroll
    for (int k = 0; k < kVectorElems; k += kWidth) {
      const int i = index(chunk, k);
      if (i >= V_) continue;
      T* const p = to + i;
      if constexpr (kWidth == 4) {
        if (is_aligned16(row_)) {
          store_quad(p, f.x + k);
          continue;
        }
      }
      for (int j = 0; j < kWidth; ++j) p[j] = narrow<T>(f.x[k + j]);
    }
  }

 private:
  const float* row_;
  int V_;
};

template <bool kCapped>
struct Squash {
  float cap;  // 0 when not capped

  // tanh(x / cap), or x.
  __device__ float operator()(float x) const { return kCapped ? tanhf(x / cap) : x; }
  __device__ float z(float squashed) const { return kCapped ? cap * squashed : squashed; }
  // Of z with respect to x.
  __device__ float slope(float squashed) const { return kCapped ? fmaf(-squashed, squashed, 1.0f) : 1.0f; }
};

// The gradient of a row, over the row itself. In 16 bits element i comes to lie over element i / 2, which
// other threads read: chunk c overwrites bytes of chunk c / 2 (of chunk 0 when c is 0) and of no later one.
// So it may be written once every thread has read chunk c / 2: a barrier behind the reads of chunk c says
// that for all chunks up to c, and is needed only where no earlier one has said it (chunks 0, 2, 6, 14, ...).
template <class T, int kWidth, bool kCapped>
__device__ void write_gradient(const LogitRow<kWidth>& row, T* dlogits, int V, int target,
                               Squash<kCapped> squash, float shift, float sum, float grad_scale) {
  const float factor = grad_scale / sum;
  int chunks_read_by_all = 0;
  for (int chunk = 0, c = 0; chunk < V; chunk += kChunkElems, ++c) {
    Floats d = row.load(chunk, 0.0f);
    if constexpr (sizeof(T) < sizeof(float)) {
      if (c / 2 >= chunks_read_by_all) {
        __syncthreads();
        chunks_read_by_all = c + 1;
      }
    }
#pragma unroll
    for (int k = 0; k < kVectorElems; ++k) {
      const float squashed = squash(d.x[k]);
      const float e = expf(squash.z(squashed) - shift), slope = squash.slope(squashed);
      d.x[k] = row.index(chunk, k) == target ? (e / sum - 1.0f) * grad_scale * slope : e * factor * slope;
    }
    row.store(dlogits, chunk, d);
  }
}

// dlogits may be null: loss only. shifted: exp would overflow without its row's maximum.
template <class T, int kWidth, bool kCapped>
__global__ void __launch_bounds__(kLossThreads)
    softcap_cross_entropy_kernel(const float* logits, const std::int32_t* targets_M, float* nll_M, T* dlogits,
                                 std::int64_t dlogits_pitch, int V, float cap, bool shifted,
                                 float grad_scale) {
  SharedMemory shared;
  const auto partial = shared.take<float>(kLossThreads / kWarpThreads);
  const std::int64_t r = blockIdx.x;
  const float* const x = logits + r * V;
  const LogitRow<kWidth> row(x, V);
  T* const dx = dlogits == nullptr ? nullptr : dlogits + r * dlogits_pitch;
  const int target = targets_M[r];
  if (target < 0) {  // ignored: the whole block goes
    if (threadIdx.x == 0) nll_M[r] = 0;
    for (int chunk = 0; dx != nullptr && chunk < V; chunk += kChunkElems) row.store(dx, chunk, Floats{});
    return;
  }
  const Squash<kCapped> squash{cap};
  const float target_z = squash.z(squash(x[target]));  // before the gradient lies over it

  float shift = 0;
  if (shifted) {  // tanh is monotonic: the largest logit has the largest z. NaN is passed over: the sum has
                  // it
    float top = -INFINITY;
    for (int chunk = 0; chunk < V; chunk += kChunkElems) {
      const Floats f = row.load(chunk, -INFINITY);
      for (int k = 0; k < kVectorElems; ++k) top = top < f.x[k] ? f.x[k] : top;
    }
    shift = squash.z(squash(block_max(top, partial)));
  }
  float sum = 0;
  for (int chunk = 0; chunk < V; chunk += kChunkElems) {
    const Floats f = row.load(chunk, 0.0f);
    float e[kVectorElems];
#pragma unroll
    for (int k = 0; k < kVectorElems; ++k)
      e[k] = row.index(chunk, k) < V ? expf(squash.z(squash(f.x[k])) - shift) : 0.0f;
    sum += ((e[0] + e[1]) + (e[2] + e[3])) + ((e[4] + e[5]) + (e[6] + e[7]));
  }
  sum = block_sum(sum, partial);
  if (threadIdx.x == 0) nll_M[r] = logf(sum) + shift - target_z;
  if (dx != nullptr) write_gradient(row, dx, V, target, squash, shift, sum, grad_scale);
}

__global__ void softcap_kernel(float* x, std::int64_t n, float cap) {
  for_each_vector(n, [&](std::int64_t first, int count) {
    Floats f = load_floats(x + first, count);
    for (int i = 0; i < kVectorElems; ++i) f.x[i] = cap * tanhf(f.x[i] / cap);
    store_floats(x + first, count, f);
  });
}

template <class T, int kWidth, bool kCapped>
void launch_cross_entropy(const SoftcapCrossEntropy& op, const Context& context) {
  const LaunchShape shape{.name = "softcap_cross_entropy_kernel",
                          .blocks = op.logits.dim(0),
                          .threads = kLossThreads,
                          .shared_bytes = shared_array_bytes(kLossThreads / kWarpThreads, sizeof(float)),
                          .stream = context.stream};
  const bool shifted = !kCapped || op.softcap > kMaxUnshiftedCap;
  launch(shape, softcap_cross_entropy_kernel<T, kWidth, kCapped>, op.logits.as<float>(),
         op.targets.as<std::int32_t>(), op.nll.as<float>(),
         op.dlogits.defined() ? op.dlogits.as<T>() : nullptr, op.dlogits.pitch, op.logits.dim(1), op.softcap,
         shifted, op.grad_scale);
}

template <class T, int kWidth>
void launch_cross_entropy(const SoftcapCrossEntropy& op, const Context& context) {
  op.softcap > 0 ? launch_cross_entropy<T, kWidth, true>(op, context)
                 : launch_cross_entropy<T, kWidth, false>(op, context);
}

}  // namespace

void run(const SoftcapCrossEntropy& op, const Context& context) {
  with_float(op.dlogits.defined() ? op.dlogits.dtype : DType::f32, [&]<class T>() {
    op.logits.dim(1) % 4 == 0 ? launch_cross_entropy<T, 4>(op, context)
                              : launch_cross_entropy<T, 1>(op, context);
  });
}

void run(const Softcap& op, const Context& context) {
  launch(elementwise_shape("softcap_kernel", op.x.elems(), context), softcap_kernel, op.x.as<float>(),
         op.x.elems(), op.softcap);
}

}  // namespace qt::cuda
