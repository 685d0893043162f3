// Sums with the same bits on every instruction set (kernels/sum_tree.h), and the scalars of a step that
// follow from them.
#include <algorithm>

#include "kernels/cpu/cpu_common.h"
#include "kernels/step_scalars.h"
#include "kernels/sum_tree.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/reduce.cpp"
#include <hwy/foreach_target.h>  // before highway.h
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

#ifndef QTRAIN_KERNELS_CPU_REDUCE_CONSTANTS_
#define QTRAIN_KERNELS_CPU_REDUCE_CONSTANTS_
namespace qt::cpu {
namespace {

constexpr std::int64_t kBlocksAtOnce = 4;

inline double sum_lanes(const double* lane) {
  return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

}  // namespace
}  // namespace qt::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {
namespace {

using D64 = hn::CappedTag<double, kTreeLanes>;

template <class T>
HWY_INLINE hn::Vec<D64> Square(const T* x) {
  const D64 d;
  const hn::Rebind<float, D64> d32;
  const auto v = hn::PromoteTo(d, LoadF32(d32, x));
  return hn::Mul(v, v);
}

// One block that may be the last, partial one.
template <class T>
double BlockSum(const T* x, std::int64_t n) {
  const D64 d;
  const std::int64_t step = static_cast<std::int64_t>(hn::Lanes(d));
  const std::int64_t whole = n / kTreeLanes * kTreeLanes;
  HWY_ALIGN double lanes[kTreeLanes];
  for (std::int64_t lane = 0; lane < kTreeLanes; lane += step) {
    auto sum = hn::Zero(d);
    for (std::int64_t i = lane; i < whole; i += kTreeLanes) sum = hn::Add(sum, Square(x + i));
    hn::Store(sum, d, lanes + lane);
  }
  for (std::int64_t i = whole; i < n; ++i) {
    const double v = to_float(x[i]);
    lanes[i - whole] += v * v;
  }
  return sum_lanes(lanes);
}

// Four whole blocks side by side: the additions of one block depend on each other, those of four do not.
template <class T>
void FourBlockSums(const T* x, double* out) {
  const D64 d;
  const std::int64_t step = static_cast<std::int64_t>(hn::Lanes(d));
  HWY_ALIGN double lanes[kBlocksAtOnce][kTreeLanes];
  for (std::int64_t lane = 0; lane < kTreeLanes; lane += step) {
    auto sum0 = hn::Zero(d), sum1 = sum0, sum2 = sum0, sum3 = sum0;
    for (std::int64_t i = lane; i < kTreeBlock; i += kTreeLanes) {
      sum0 = hn::Add(sum0, Square(x + i));
      sum1 = hn::Add(sum1, Square(x + i + kTreeBlock));
      sum2 = hn::Add(sum2, Square(x + i + 2 * kTreeBlock));
      sum3 = hn::Add(sum3, Square(x + i + 3 * kTreeBlock));
    }
    hn::Store(sum0, d, lanes[0] + lane);
    hn::Store(sum1, d, lanes[1] + lane);
    hn::Store(sum2, d, lanes[2] + lane);
    hn::Store(sum3, d, lanes[3] + lane);
  }
  for (std::int64_t b = 0; b < kBlocksAtOnce; ++b) out[b] = sum_lanes(lanes[b]);
}

// The sums of the blocks that begin in [0, n).
template <class T>
void BlockSums(const T* x, std::int64_t n, double* out) {
  std::int64_t i = 0;
  for (; i + kBlocksAtOnce * kTreeBlock <= n; i += kBlocksAtOnce * kTreeBlock)
    FourBlockSums(x + i, out + i / kTreeBlock);
  for (; i < n; i += kTreeBlock) out[i / kTreeBlock] = BlockSum(x + i, std::min(n - i, kTreeBlock));
}

void BlockSumsF32(const float* x, std::int64_t n, double* out) { BlockSums(x, n, out); }
void BlockSumsBf16(const bf16* x, std::int64_t n, double* out) { BlockSums(x, n, out); }

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace qt::cpu {
namespace {

HWY_EXPORT(BlockSumsF32);
HWY_EXPORT(BlockSumsBf16);

}  // namespace

void run(const SumSquares& op, Context& ctx) {
  const std::int64_t n = op.x.elems();
  const std::int64_t blocks = tree_blocks(n);
  double* const partial = reinterpret_cast<double*>(op.scratch.data);
  parallel_ranges(ctx, n, 4 * kBlocksAtOnce * kTreeBlock, [&](std::int64_t begin, std::int64_t end, int) {
    double* const out = partial + begin / kTreeBlock;
    if (op.x.dtype == DType::bf16) {
      HWY_DYNAMIC_DISPATCH(BlockSumsBf16)(op.x.as<bf16>() + begin, end - begin, out);
    } else {
      HWY_DYNAMIC_DISPATCH(BlockSumsF32)(op.x.as<float>() + begin, end - begin, out);
    }
  });
  double total = 0;
  for (std::int64_t b = 0; b < blocks; ++b) total += partial[b];
  *op.out.as<double>() = total;
}

// The same tree over nll itself. A loss chunk has a few thousand rows: not worth waking a thread.
void run(const SumLoss& op, Context&) {
  const std::int64_t n = op.nll.dim(0);
  const float* const nll = op.nll.as<float>();
  const std::int32_t* const targets = op.targets.as<std::int32_t>();
  double total = 0;
  std::int64_t counted = 0;
  for (std::int64_t block = 0; block < n; block += kTreeBlock) {
    const std::int64_t end = std::min(n, block + kTreeBlock);
    double lanes[kTreeLanes] = {};
    for (std::int64_t i = block; i < end; ++i) {
      lanes[(i - block) % kTreeLanes] += static_cast<double>(nll[i]);
      counted += targets[i] >= 0 ? 1 : 0;
    }
    total += sum_lanes(lanes);
  }
  double* const totals = op.totals.as<double>();
  totals[0] += total;
  totals[1] += static_cast<double>(counted);
}

void run(const PrepareStep& op, Context&) {
  double sumsq = 0;
  for (std::int64_t r = 0; r < op.grad_sumsq.elems(); ++r) sumsq += op.grad_sumsq.as<double>()[r];
  const double* const totals = op.totals.as<double>();
  const StepScalars step = step_scalars({.grad_sumsq = sumsq, .loss = totals[0], .targets = totals[1]},
                                        op.max_norm, op.gradient_tokens);

  float* const params = op.params.as<float>();
  write_scalars(step, totals[1], params, op.stats.as<double>());
  for (int g = 0; g < kParamGroups; ++g) write_hyper(op.hyper[static_cast<std::size_t>(g)], g, params);
}

}  // namespace qt::cpu
#endif  // HWY_ONCE
