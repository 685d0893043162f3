// Rotary positions and the norm over the head that may follow them, in one op each way; and the table of cosines
// and sines. Legend: N tokens, H heads, D head width, T tokens of a row, P positions of the table.
//
// A head belongs to a power of two of lanes, as many as its halves have vectors of eight elements, at most a
// warp. Both elements of a pair lie in one lane. What a lane sums, and in which order, depends on D alone.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/vector.cuh"

namespace qt::cuda {

namespace {

// ---- table -------------------------------------------------------------------------------------------

// Computed on the host, in double, so that every backend has the same; travels as a parameter.
constexpr int kFrequenciesPerLaunch = 512;
struct Frequencies {
  float of[kFrequenciesPerLaunch];
};

// Columns [first, first + count) of cos and sin [P, half].
template <class T>
__global__ void rope_table_kernel(T* cos, T* sin, std::int64_t P, std::int64_t half, std::int64_t first,
                                  int count, Frequencies inv_freq) {
  for (std::int64_t i = global_thread(); i < P * count; i += global_threads()) {
    const std::int64_t position = i / count;
    const int column = static_cast<int>(i % count);
    const float angle = static_cast<float>(position) * inv_freq.of[column];
    cos[position * half + first + column] = narrow<T>(cosf(angle));
    sin[position * half + first + column] = narrow<T>(sinf(angle));
  }
}

// ---- rotation and norm -------------------------------------------------------------------------------

constexpr int kHeadThreads = 256;  // of a block

// The two halves of a head, or of its gradient, at the same elements.
struct Halves {
  Floats lo, hi;
};

// By -theta.
__device__ inline Halves rotate_back(const Halves& x, const Floats& cos, const Floats& sin) {
  Halves r;
  for (int i = 0; i < kVectorElems; ++i) {
    r.lo.x[i] = fmaf(x.lo.x[i], cos.x[i], x.hi.x[i] * sin.x[i]);
    r.hi.x[i] = fmaf(-x.lo.x[i], sin.x[i], x.hi.x[i] * cos.x[i]);
  }
  return r;
}

// By +theta: the transpose of rotate_back.
__device__ inline Halves rotate_forward(const Halves& x, const Floats& cos, const Floats& sin) {
  Halves r;
  for (int i = 0; i < kVectorElems; ++i) {
    r.lo.x[i] = fmaf(-x.hi.x[i], sin.x[i], x.lo.x[i] * cos.x[i]);
    r.hi.x[i] = fmaf(x.lo.x[i], sin.x[i], x.hi.x[i] * cos.x[i]);
  }
  return r;
}

struct HeadShape {
  std::int64_t heads = 0;  // N H
  std::int64_t H = 0, T = 0, first_position = 0;
  int half = 0;   // D / 2
  int lanes = 1;  // of a head: a power of two
};

// This lane's part of a head. Lanes beyond the last head have no elements, but take part in sums. kHeld: a
// half is whole vectors, at most one a lane, aligned to 16 bytes; what is read once stays in registers.
template <bool kHeld>
class HeadLane {
 public:
  __device__ explicit HeadLane(const HeadShape& shape)
      : half_(shape.half), lanes_(shape.lanes), rank_(lane_id() % shape.lanes) {
    const std::int64_t warp =
        static_cast<std::int64_t>(blockIdx.x) * (kHeadThreads / kWarpThreads) + warp_id();
    head_ = warp * (kWarpThreads / shape.lanes) + lane_id() / shape.lanes;
    exists_ = head_ < shape.heads;
    if (exists_) position_ = shape.first_position + head_ / shape.H % shape.T;
  }

  __device__ bool exists() const { return exists_; }
  __device__ bool is_first() const { return exists_ && rank_ == 0; }
  __device__ std::int64_t head() const { return head_; }
  // Where the head begins in [N, H, D], and the row of its position in a table [P, D/2].
  __device__ std::int64_t offset() const { return head_ * 2 * half_; }
  __device__ std::int64_t table_offset() const { return position_ * half_; }

  // Calls fn(first, count) for this lane's vectors of a half, in ascending order.
  template <class Fn>
  __device__ void for_each(Fn&& fn) const {
    int first = rank_ * kVectorElems;
    if constexpr (kHeld) {
      if (exists_ && first < half_) fn(first, kVectorElems);
    } else {
      for (; exists_ && first < half_; first += lanes_ * kVectorElems) {
        fn(first, half_ - first < kVectorElems ? half_ - first : kVectorElems);
      }
    }
  }

  // Over the lanes of the head, the same bits in each.
  __device__ float sum(float x) const {
    for (int offset = lanes_ / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(kFullWarp, x, offset);
    return x;
  }

  template <class T>
  __device__ Floats load(const T* p, int count) const {
    if constexpr (kHeld) {
      return widen(load_packed(p));
    } else {
      return load_floats(p, count);
    }
  }
  template <class T>
  __device__ Halves load_halves(const T* head, int first, int count) const {
    return {load(head + first, count), load(head + half_ + first, count)};
  }
  template <class T>
  __device__ void store_halves(T* head, int first, int count, const Halves& x) const {
    if constexpr (kHeld) {
      store_packed(head + first, x.lo);
      store_packed(head + half_ + first, x.hi);
    } else {
      store_floats(head + first, count, x.lo);
      store_floats(head + half_ + first, count, x.hi);
    }
  }

 private:
  int half_, lanes_, rank_;
  std::int64_t head_ = 0, position_ = 0;
  bool exists_ = false;
};

// y_NHD may be x_NHD. rstd_NH may be null: no norm.
template <class T, bool kHeld>
__global__ void rope_norm_fwd_kernel(const T* x_NHD, T* y_NHD, float* rstd_NH, const T* cos_P, const T* sin_P,
                                     HeadShape shape, float eps) {
  const HeadLane<kHeld> lane(shape);
  const T *const x = x_NHD + lane.offset(), *const cos = cos_P + lane.table_offset(),
                 *const sin = sin_P + lane.table_offset();
  const auto rotated = [&](int first, int count) {
    return rotate_back(lane.load_halves(x, first, count), lane.load(cos + first, count),
                       lane.load(sin + first, count));
  };
  Halves held{};
  float squares = 0;
  lane.for_each([&](int first, int count) {
    const Halves r = rotated(first, count);
    for (int i = 0; i < kVectorElems; ++i) {
      squares = fmaf(r.lo.x[i], r.lo.x[i], squares);
      squares = fmaf(r.hi.x[i], r.hi.x[i], squares);
    }
    if constexpr (kHeld) held = r;
  });
  const float D = static_cast<float>(2 * shape.half);
  const float rstd = rstd_NH == nullptr ? 1.0f : 1.0f / sqrtf(lane.sum(squares) / D + eps);
  lane.for_each([&](int first, int count) {
    Halves y = kHeld ? held : rotated(first, count);
    for (int i = 0; i < kVectorElems; ++i) {
      y.lo.x[i] *= rstd;
      y.hi.x[i] *= rstd;
    }
    lane.store_halves(y_NHD + lane.offset(), first, count, y);
  });
  if (rstd_NH != nullptr && lane.is_first()) rstd_NH[lane.head()] = rstd;
}

// dx_NHD may be dy_NHD. rstd_NH may be null: no norm. Then dy stands for y and counts 0 times.
template <class T, bool kHeld>
__global__ void rope_norm_bwd_kernel(const T* y_NHD, const float* rstd_NH, const T* dy_NHD, T* dx_NHD,
                                     const T* cos_P, const T* sin_P, HeadShape shape) {
  const HeadLane<kHeld> lane(shape);
  const T *const dy = dy_NHD + lane.offset(), *const y = rstd_NH == nullptr ? dy : y_NHD + lane.offset();
  Halves held_y{}, held_dy{};
  float products = 0;
  lane.for_each([&](int first, int count) {
    const Halves y_v = lane.load_halves(y, first, count), dy_v = lane.load_halves(dy, first, count);
    for (int i = 0; i < kVectorElems; ++i) {
      products = fmaf(dy_v.lo.x[i], y_v.lo.x[i], products);
      products = fmaf(dy_v.hi.x[i], y_v.hi.x[i], products);
    }
    if constexpr (kHeld) {
      held_y = y_v;
      held_dy = dy_v;
    }
  });
  const bool normed = rstd_NH != nullptr;
  const float mean = normed ? lane.sum(products) / static_cast<float>(2 * shape.half) : 0.0f;
  const float rstd = !normed ? 1.0f : lane.exists() ? rstd_NH[lane.head()] : 0.0f;
  lane.for_each([&](int first, int count) {
    const Halves y_v = kHeld ? held_y : lane.load_halves(y, first, count);
    const Halves dy_v = kHeld ? held_dy : lane.load_halves(dy, first, count);
    const T *const cos = cos_P + lane.table_offset(), *const sin = sin_P + lane.table_offset();
    Halves dr;
    for (int i = 0; i < kVectorElems; ++i) {
      dr.lo.x[i] = rstd * fmaf(-y_v.lo.x[i], mean, dy_v.lo.x[i]);
      dr.hi.x[i] = rstd * fmaf(-y_v.hi.x[i], mean, dy_v.hi.x[i]);
    }
    lane.store_halves(dx_NHD + lane.offset(), first, count,
                      rotate_forward(dr, lane.load(cos + first, count), lane.load(sin + first, count)));
  });
}

HeadShape head_shape(const TensorView& heads, std::int64_t T, std::int64_t first_position) {
  HeadShape shape{.heads = heads.dim(0) * heads.dim(1),
                  .H = heads.dim(1),
                  .T = T,
                  .first_position = first_position,
                  .half = static_cast<int>(heads.dim(2) / 2)};
  while (shape.lanes < kWarpThreads && shape.lanes * kVectorElems < shape.half) shape.lanes *= 2;
  return shape;
}

bool fits_registers(const HeadShape& shape) {
  return shape.half % kVectorElems == 0 && shape.half <= shape.lanes * kVectorElems;
}

LaunchShape heads_launch(const char* kernel, const HeadShape& shape, const Context& context) {
  return {.name = kernel,
          .blocks = blocks_for(shape.heads, kHeadThreads / shape.lanes),
          .threads = kHeadThreads,
          .stream = context.stream};
}

}  // namespace

void run(const RopeTable& op, const Context& context) {
  const std::int64_t P = op.cos.dim(0), half = op.cos.dim(1);
  for (std::int64_t first = 0; first < half; first += kFrequenciesPerLaunch) {
    Frequencies inv_freq{};
    const auto count = static_cast<int>(std::min<std::int64_t>(half - first, kFrequenciesPerLaunch));
    for (int i = 0; i < count; ++i) {
      const double exponent = -static_cast<double>(first + i) / static_cast<double>(half);
      inv_freq.of[i] = static_cast<float>(std::pow(static_cast<double>(op.base), exponent));
    }
    with_float(op.cos.dtype, [&]<class T>() {
      launch(elementwise_shape("rope_table_kernel", P * count, context), rope_table_kernel<T>, op.cos.as<T>(),
             op.sin.as<T>(), P, half, first, count, inv_freq);
    });
  }
}

void run(const RopeNormFwd& op, const Context& context) {
  const HeadShape shape = head_shape(op.x, op.T, op.first_position);
  with_float(op.x.dtype, [&]<class T>() {
    const bool held = fits_registers(shape) && all_aligned16(op.x, op.y, op.cos, op.sin);
    launch(heads_launch("rope_norm_fwd_kernel", shape, context),
           held ? rope_norm_fwd_kernel<T, true> : rope_norm_fwd_kernel<T, false>, op.x.as<T>(), op.y.as<T>(),
           floats_or_null(op.rstd), op.cos.as<T>(), op.sin.as<T>(), shape, op.eps);
  });
}

void run(const RopeNormBwd& op, const Context& context) {
  const HeadShape shape = head_shape(op.dy, op.T, 0);
  with_float(op.dy.dtype, [&]<class T>() {
    const bool held = fits_registers(shape) && all_aligned16(op.y, op.dy, op.dx, op.cos, op.sin);
    launch(heads_launch("rope_norm_bwd_kernel", shape, context),
           held ? rope_norm_bwd_kernel<T, true> : rope_norm_bwd_kernel<T, false>,
           op.rstd.defined() ? op.y.as<T>() : nullptr, floats_or_null(op.rstd), op.dy.as<T>(), op.dx.as<T>(),
           op.cos.as<T>(), op.sin.as<T>(), shape);
  });
}

}  // namespace qt::cuda
