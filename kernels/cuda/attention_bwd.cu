// The gradient of attention: delta, then dq, then dk and dv; the choice of kernels and their launches.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_bwd_mma.cuh"
#include "kernels/cuda/attention_simt.cuh"
#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/vector.cuh"

namespace qt::cuda {

namespace {

constexpr int kDeltaThreads = 256;

// delta[b, h, t] = sum of dy y over D, f32: `lanes` lanes a row (a power of two), each adding every lanes-th
// vector in ascending order, then a tree over the lanes.
template <class T>
__global__ void attention_delta_kernel(const T* y, const T* dy, float* delta, AttentionArgs args, int lanes) {
  const std::int64_t row = global_thread() / lanes;  // in the order of y: [B, T, H]
  const int lane = lane_id() % lanes;
  const bool valid = row < args.B * args.Tq * args.H;
  float sum = 0.0f;
  for (int d = lane * kVectorElems; valid && d < args.D; d += lanes * kVectorElems) {
    const int count = args.D - d < kVectorElems ? args.D - d : kVectorElems;
    const Floats a = load_floats(y + row * args.D + d, count), b = load_floats(dy + row * args.D + d, count);
#pragma unroll
    for (int i = 0; i < kVectorElems; ++i) sum = fmaf(a.x[i], b.x[i], sum);
  }
  for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
  if (valid && lane == 0) {
    const std::int64_t token = row / args.H, h = row % args.H;
    delta[(token / args.Tq * args.H + h) * args.Tq + token % args.Tq] = sum;
  }
}

template <class T>
void launch_delta(const AttentionBwd& op, const AttentionArgs& args, float* delta, const Context& context) {
  int lanes = 1;
  while (lanes < kWarpThreads && lanes * kVectorElems < args.D) lanes *= 2;
  launch({.name = "attention_delta_kernel",
          .blocks = blocks_for(args.B * args.Tq * args.H, kDeltaThreads / lanes),
          .threads = kDeltaThreads,
          .stream = context.stream},
         attention_delta_kernel<T>, op.y.as<T>(), op.dy.as<T>(), delta, args, lanes);
}

template <class T, int kD>
void launch_mma(const AttentionBwd& op, const AttentionArgs& args, const float* delta,
                const Context& context) {
  using Queries = QueryGradTiles<kD>;
  using Keys = KeyTiles<kD>;
  launch({.name = "attention_bwd_query_kernel",
          .blocks = args.B * args.H * blocks_for(args.Tq, Queries::kQueries),
          .threads = Queries::kThreads,
          .shared_bytes = Queries::kSharedBytes,
          .stream = context.stream},
         attention_bwd_query_kernel<T, kD>, op.q.as<T>(), op.k.as<T>(), op.v.as<T>(), op.dy.as<T>(),
         op.lse.as<float>(), delta, op.dq.as<T>(), args);
  launch({.name = "attention_bwd_key_kernel",
          .blocks = args.B * args.G * blocks_for(args.Tk, Keys::kKeys),
          .threads = Keys::kThreads,
          .shared_bytes = Keys::kSharedBytes,
          .stream = context.stream},
         attention_bwd_key_kernel<T, kD>, op.q.as<T>(), op.k.as<T>(), op.v.as<T>(), op.dy.as<T>(),
         op.lse.as<float>(), delta, op.dk.as<T>(), op.dv.as<T>(), args);
}

template <class T>
void launch_simt(const AttentionBwd& op, const AttentionArgs& args, const float* delta,
                 const Context& context) {
  LaunchShape shape{.name = "attention_bwd_query_simt_kernel",
                    .blocks = args.B * args.H * blocks_for(args.Tq, SimtTiles::kRows),
                    .blocks_y = blocks_for(args.D, SimtTiles::kOutCols),
                    .threads = SimtTiles::kThreads,
                    .shared_bytes = SimtTiles::kSharedBytes,
                    .stream = context.stream};
  launch(shape, attention_bwd_query_simt_kernel<T>, op.q.as<T>(), op.k.as<T>(), op.v.as<T>(), op.dy.as<T>(),
         op.lse.as<float>(), delta, op.dq.as<T>(), args);
  shape.name = "attention_bwd_key_simt_kernel";
  shape.blocks = args.B * args.G * blocks_for(args.Tk, SimtTiles::kRows);
  launch(shape, attention_bwd_key_simt_kernel<T>, op.q.as<T>(), op.k.as<T>(), op.v.as<T>(), op.dy.as<T>(),
         op.lse.as<float>(), delta, op.dk.as<T>(), op.dv.as<T>(), args);
}

}  // namespace

void run(const AttentionBwd& op, const Context& context) {
  const AttentionArgs args = attention_args(op);
  auto* const delta = reinterpret_cast<float*>(op.scratch.data);  // [B, H, T]
  with_float(op.q.dtype, [&]<class T>() { launch_delta<T>(op, args, delta, context); });
  if (fits_tensor_cores(args, op.q.dtype, {&op.q, &op.k, &op.v, &op.dy, &op.dq, &op.dk, &op.dv})) {
    return with_head_width(op.q.dtype, args.D,
                           [&]<class T, int kD>() { launch_mma<T, kD>(op, args, delta, context); });
  }
  with_float(op.q.dtype, [&]<class T>() { launch_simt<T>(op, args, delta, context); });
}

}  // namespace qt::cuda
