// Sums with the bits of every backend (kernels/sum_tree.h), and the scalars of a step that follow from
// them.
#include "kernels/cuda/context.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/step_scalars.h"
#include "kernels/sum_tree.h"

namespace qt::cuda {

namespace {

constexpr int kThreads = 256;
constexpr int kTreeGroups =
    kThreads / static_cast<int>(kTreeLanes);  // blocks of the tree to a block of threads

// Of the eight threads that sum a block of the tree; the whole warp has to come.
__device__ inline double sum_tree_lanes(double sum) {
  sum += __shfl_xor_sync(kFullWarp, sum, 1);
  sum += __shfl_xor_sync(kFullWarp, sum, 2);
  return sum + __shfl_xor_sync(kFullWarp, sum, 4);
}

// Calls add(i) for the elements of the calling thread's lane of the tree's block that begins at `begin`.
template <class Fn>
__device__ void for_each_of_lane(std::int64_t begin, std::int64_t n, Fn&& add) {
  const std::int64_t first = begin + threadIdx.x % kTreeLanes;
  if (begin + kTreeBlock <= n) {
#pragma unroll 16
    for (int i = 0; i < kTreeBlock; i += kTreeLanes) add(first + i);
  } else {
    for (std::int64_t i = first; i < n; i += kTreeLanes) add(i);
  }
}

// Eight threads a block of the tree; a warp reads four pieces of 32 (16) bytes at a time.
template <class T>
__global__ void sum_squares_kernel(const T* x, std::int64_t n, double* partial) {
  const std::int64_t block = global_thread() / kTreeLanes;
  double sum = 0;
  for_each_of_lane(block * kTreeBlock, n, [&](std::int64_t i) {
    const double v = static_cast<double>(widen(x[i]));
    sum = fma(v, v, sum);
  });
  sum = sum_tree_lanes(sum);
  if (threadIdx.x % kTreeLanes == 0 && block * kTreeBlock < n) partial[block] = sum;
}

constexpr int kPartialsAtOnce = kThreads - kWarpThreads;

// out = the partial sums added in order, by one thread; the other warps fetch what comes next.
__global__ void sum_partials_kernel(const double* partial, std::int64_t count, double* out) {
  SharedMemory shared;
  const SharedArray<double> buffers[2] = {shared.take<double>(kPartialsAtOnce),
                                          shared.take<double>(kPartialsAtOnce)};
  const int thread = static_cast<int>(threadIdx.x);
  const auto fetch = [&](std::int64_t first, const SharedArray<double>& to) {
    for (int i = thread - kWarpThreads; i >= 0 && i < kPartialsAtOnce; i += kThreads - kWarpThreads) {
      if (first + i < count) to.write(i, partial[first + i]);
    }
  };
  fetch(0, buffers[0]);
  double total = 0;
  const auto turn = [&](std::int64_t first, const SharedArray<double>& from,
                        const SharedArray<double>& next) {
    __syncthreads();
    fetch(first + kPartialsAtOnce, next);
    if (thread != 0) return;
    const std::int64_t left = count - first;
    const int here = left < kPartialsAtOnce ? static_cast<int>(left) : kPartialsAtOnce;
#pragma unroll 8
    for (int i = 0; i < here; ++i) total += from.read(i);
  };
  for (std::int64_t first = 0; first < count; first += 2 * kPartialsAtOnce) {
    turn(first, buffers[0], buffers[1]);
    turn(first + kPartialsAtOnce, buffers[1], buffers[0]);
  }
  if (thread == 0) *out = total;
}

// One block of threads: a loss chunk has a few thousand rows.
__global__ void sum_loss_kernel(const float* nll, const std::int32_t* targets, std::int64_t n,
                                double* totals) {
  SharedMemory shared;
  const SharedArray<double> blocks = shared.take<double>(kTreeGroups);
  const SharedArray<std::int64_t> counts = shared.take<std::int64_t>(kThreads / kWarpThreads);
  const int thread = static_cast<int>(threadIdx.x), group = thread / static_cast<int>(kTreeLanes);
  double total = 0;
  for (std::int64_t base = 0; base < n; base += kTreeGroups * kTreeBlock) {
    double sum = 0;
    for_each_of_lane(base + group * kTreeBlock, n,
                     [&](std::int64_t i) { sum += static_cast<double>(nll[i]); });
    sum = sum_tree_lanes(sum);
    __syncthreads();
    if (thread % kTreeLanes == 0) blocks.write(group, sum);
    __syncthreads();
    for (int g = 0; g < kTreeGroups && base + g * kTreeBlock < n; ++g) total += blocks.read(g);
  }
  std::int64_t counted = 0;
  for (std::int64_t i = thread; i < n; i += kThreads) counted += targets[i] >= 0 ? 1 : 0;
  counted = block_sum(counted, counts);
  if (thread == 0) {
    totals[0] += total;
    totals[1] += static_cast<double>(counted);
  }
}

struct StepInputs {
  const double* grad_sumsq;
  std::int64_t regions;
  const double* totals;
  AdamHyper hyper[kParamGroups];
  double max_norm, gradient_tokens;
};

// One warp; every lane computes the same scalars.
__global__ void prepare_step_kernel(StepInputs in, float* params, double* stats) {
  double sumsq = 0;
  for (std::int64_t r = 0; r < in.regions; ++r) sumsq += in.grad_sumsq[r];
  const double targets = in.totals[1];
  const StepScalars step = step_scalars({.grad_sumsq = sumsq, .loss = in.totals[0], .targets = targets},
                                        in.max_norm, in.gradient_tokens);
  const int lane = lane_id();
  if (lane == 0) write_scalars(step, targets, params, stats);
#pragma unroll
  for (int g = 0; g < kParamGroups; ++g) {
    if (lane == g) write_hyper(in.hyper[g], g, params);
  }
}
static_assert(kParamGroups <= kWarpThreads);

}  // namespace

void run(const SumSquares& op, const Context& context) {
  const std::int64_t n = op.x.elems(), blocks = tree_blocks(n);
  auto* const partial = reinterpret_cast<double*>(op.scratch.data);
  const LaunchShape shape{.name = "sum_squares_kernel",
                          .blocks = blocks_for(blocks, kTreeGroups),
                          .threads = kThreads,
                          .stream = context.stream};
  if (op.x.dtype == DType::bf16) {
    launch(shape, sum_squares_kernel<bf16>, op.x.as<bf16>(), n, partial);
  } else {
    launch(shape, sum_squares_kernel<float>, op.x.as<float>(), n, partial);
  }
  launch({.name = "sum_partials_kernel",
          .blocks = 1,
          .threads = kThreads,
          .shared_bytes = 2 * shared_array_bytes(kPartialsAtOnce, sizeof(double)),
          .stream = context.stream},
         sum_partials_kernel, partial, blocks, op.out.as<double>());
}

void run(const SumLoss& op, const Context& context) {
  launch({.name = "sum_loss_kernel",
          .blocks = 1,
          .threads = kThreads,
          .shared_bytes = shared_array_bytes(kTreeGroups, sizeof(double)) +
                          shared_array_bytes(kThreads / kWarpThreads, sizeof(std::int64_t)),
          .stream = context.stream},
         sum_loss_kernel, op.nll.as<float>(), op.targets.as<std::int32_t>(), op.nll.dim(0),
         op.totals.as<double>());
}

void run(const PrepareStep& op, const Context& context) {
  StepInputs in{.grad_sumsq = op.grad_sumsq.as<double>(),
                .regions = op.grad_sumsq.elems(),
                .totals = op.totals.as<double>(),
                .hyper = {},
                .max_norm = op.max_norm,
                .gradient_tokens = op.gradient_tokens};
  for (std::size_t g = 0; g < op.hyper.size(); ++g) in.hyper[g] = op.hyper[g];
  launch({.name = "prepare_step_kernel", .blocks = 1, .threads = kWarpThreads, .stream = context.stream},
         prepare_step_kernel, in, op.params.as<float>(), op.stats.as<double>());
}

}  // namespace qt::cuda
