// Attention forward: the choice of kernel and its launch.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/attention_mma.cuh"
#include "kernels/cuda/attention_simt.cuh"
#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.cuh"

namespace qt::cuda {

void run(const AttentionFwd& op, const Context& context) {
  const AttentionArgs args = attention_args(op);
  const std::int64_t heads = args.B * args.H;
  if (fits_tensor_cores(args, op.q.dtype, {&op.q, &op.k, &op.v, &op.y})) {
    return with_head_width(op.q.dtype, args.D, [&]<class T, int kD>() {
      using Tiles = ForwardTiles<kD>;
      launch({.name = "attention_fwd_kernel",
              .blocks = heads * blocks_for(args.Tq, Tiles::kQueries),
              .threads = Tiles::kThreads,
              .shared_bytes = Tiles::kSharedBytes,
              .stream = context.stream},
             attention_fwd_kernel<T, kD>, op.q.as<T>(), op.k.as<T>(), op.v.as<T>(), op.y.as<T>(),
             op.lse.as<float>(), args);
    });
  }
  with_float(op.q.dtype, [&]<class T>() {
    launch({.name = "attention_fwd_simt_kernel",
            .blocks = heads * blocks_for(args.Tq, SimtTiles::kRows),
            .blocks_y = blocks_for(args.D, SimtTiles::kOutCols),
            .threads = SimtTiles::kThreads,
            .shared_bytes = SimtTiles::kSharedBytes,
            .stream = context.stream},
           attention_fwd_simt_kernel<T>, op.q.as<T>(), op.k.as<T>(), op.v.as<T>(), op.y.as<T>(),
           op.lse.as<float>(), args);
  });
}

}  // namespace qt::cuda
