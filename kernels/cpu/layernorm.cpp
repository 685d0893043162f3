// LayerNorm with weight and bias on the cpu, and without a mean RMSNorm with a weight. A row is read a few times, from cache but for the first. Sums
// over a row run in f32 in four vectors side by side, added in a fixed order; sums over rows by the blocks of
// kernels/row_blocks.h.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/layernorm.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <cmath>

#include <hwy/highway.h>

#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {

// term(value, i) or its partial form for each vector of a row, summed: load(i) and load_partial(i, n) give
// vectors that are 0 in the lanes beyond the row.
template <class Load, class LoadPartial>
HWY_INLINE float SumRow(std::int64_t C, Load&& load, LoadPartial&& load_partial) {
  const F32Tag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  F32Vec sum0 = hn::Zero(d), sum1 = sum0, sum2 = sum0, sum3 = sum0;
  std::int64_t i = 0;
  for (; i + 4 * lanes <= C; i += 4 * lanes) {
    sum0 = hn::Add(sum0, load(i));
    sum1 = hn::Add(sum1, load(i + lanes));
    sum2 = hn::Add(sum2, load(i + 2 * lanes));
    sum3 = hn::Add(sum3, load(i + 3 * lanes));
  }
  ForVectors(
      d, i, C, [&](std::int64_t j) HWY_ATTR { sum0 = hn::Add(sum0, load(j)); },
      [&](std::int64_t j, std::size_t n) HWY_ATTR { sum1 = hn::Add(sum1, load_partial(j, n)); });
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(sum0, sum1), hn::Add(sum2, sum3))));
}

template <class T>
void LayerNormFwdTyped(const LayerNormFwd& op, std::int64_t begin, std::int64_t end) {
  const F32Tag d;
  const std::int64_t C = op.x.dim(1);
  const float* weight = op.weight.as<float>();
  const float* bias = op.bias.defined() ? op.bias.as<float>() : nullptr;
  float* mean_N = op.mean.defined() ? op.mean.as<float>() : nullptr;
  for (std::int64_t row = begin; row < end; ++row) {
    const T* x = op.x.as<T>() + row * C;
    T* y = op.y.as<T>() + row * C;
    float mean = 0;
    if (mean_N != nullptr) {
      mean = SumRow(
                 C, [&](std::int64_t i) HWY_ATTR { return LoadF32(d, x + i); },
                 [&](std::int64_t i, std::size_t n) HWY_ATTR { return LoadF32Partial(d, x + i, n); }) /
             static_cast<float>(C);
      mean_N[row] = mean;
    }
    const F32Vec centre = hn::Set(d, mean);
    const auto square = [&](F32Vec v) HWY_ATTR {
      const F32Vec off = hn::Sub(v, centre);
      return hn::Mul(off, off);
    };
    const float variance =
        SumRow(
            C, [&](std::int64_t i) HWY_ATTR { return square(LoadF32(d, x + i)); },
            [&](std::int64_t i, std::size_t n) HWY_ATTR {
              return hn::IfThenElseZero(hn::FirstN(d, n), square(LoadF32Partial(d, x + i, n)));
            }) /
        static_cast<float>(C);
    const float rstd = 1.0f / std::sqrt(variance + op.eps);
    const F32Vec scale = hn::Set(d, rstd);
    const auto normal = [&](F32Vec v, F32Vec w, F32Vec b)
                            HWY_ATTR { return hn::MulAdd(hn::Mul(hn::Sub(v, centre), scale), w, b); };
    ForVectors(
        d, 0, C,
        [&](std::int64_t i) HWY_ATTR {
          const F32Vec b = bias == nullptr ? hn::Zero(d) : LoadF32(d, bias + i);
          StoreF32(d, normal(LoadF32(d, x + i), LoadF32(d, weight + i), b), y + i);
        },
        [&](std::int64_t i, std::size_t n) HWY_ATTR {
          const F32Vec b = bias == nullptr ? hn::Zero(d) : LoadF32Partial(d, bias + i, n);
          StoreF32Partial(d, normal(LoadF32Partial(d, x + i, n), LoadF32Partial(d, weight + i, n), b), y + i,
                          n);
        });
    op.rstd.as<float>()[row] = rstd;
  }
}

void LayerNormFwdRange(const LayerNormFwd& op, std::int64_t begin, std::int64_t end) {
  with_float(op.x.dtype, [&]<class T>() { LayerNormFwdTyped<T>(op, begin, end); });
}

// Rows [begin, end): their dx, and their sums of dy h and dy, which replace what is in sums [2, C].
template <class T, bool kAccumulate>
void LayerNormBwdTyped(const LayerNormBwd& op, std::int64_t begin, std::int64_t end, float* sums) {
  const F32Tag d;
  const std::int64_t C = op.x.dim(1);
  const float* weight = op.weight.as<float>();
  const float* mean_N = op.mean.defined() ? op.mean.as<float>() : nullptr;
  float *const dweight = sums, *const dbias = sums + C;
  for (std::int64_t row = begin; row < end; ++row) {
    const T* x = op.x.as<T>() + row * C;
    const T* dy = op.dy.as<T>() + row * C;
    T* dx = op.dx.as<T>() + row * C;
    const F32Vec centre = hn::Set(d, mean_N == nullptr ? 0.0f : mean_N[row]),
                 rstd = hn::Set(d, op.rstd.as<float>()[row]);
    const auto normal = [&](F32Vec v) HWY_ATTR { return hn::Mul(hn::Sub(v, centre), rstd); };
    const auto g = [&](std::int64_t i)
                       HWY_ATTR { return hn::Mul(LoadF32(d, dy + i), LoadF32(d, weight + i)); };
    const auto g_partial = [&](std::int64_t i, std::size_t n) HWY_ATTR {
      return hn::Mul(LoadF32Partial(d, dy + i, n), LoadF32Partial(d, weight + i, n));
    };
    const float mean_g = mean_N == nullptr ? 0.0f : SumRow(C, g, g_partial) / static_cast<float>(C);
    const float mean_gh =
        SumRow(
            C, [&](std::int64_t i) HWY_ATTR { return hn::Mul(g(i), normal(LoadF32(d, x + i))); },
            [&](std::int64_t i, std::size_t n)
                HWY_ATTR { return hn::Mul(g_partial(i, n), normal(LoadF32Partial(d, x + i, n))); }) /
        static_cast<float>(C);
    const F32Vec mg = hn::Set(d, mean_g), mgh = hn::Set(d, mean_gh);
    const auto gradient = [&](F32Vec g_v, F32Vec h, F32Vec old) HWY_ATTR {
      const F32Vec inner = hn::NegMulAdd(h, mgh, hn::Sub(g_v, mg));
      return kAccumulate ? hn::MulAdd(rstd, inner, old) : hn::Mul(rstd, inner);
    };
    const bool first = row == begin;
    ForVectors(
        d, 0, C,
        [&](std::int64_t i) HWY_ATTR {
          const F32Vec dy_v = LoadF32(d, dy + i), h = normal(LoadF32(d, x + i));
          const F32Vec old = kAccumulate ? LoadF32(d, dx + i) : hn::Zero(d);
          const F32Vec result = gradient(hn::Mul(dy_v, LoadF32(d, weight + i)), h, old);
          const F32Vec dw = hn::Mul(dy_v, h);
          StoreF32(d, first ? dw : hn::Add(LoadF32(d, dweight + i), dw), dweight + i);
          StoreF32(d, first ? dy_v : hn::Add(LoadF32(d, dbias + i), dy_v), dbias + i);
          StoreF32(d, result, dx + i);
        },
        [&](std::int64_t i, std::size_t n) HWY_ATTR {
          const F32Vec dy_v = LoadF32Partial(d, dy + i, n), h = normal(LoadF32Partial(d, x + i, n));
          const F32Vec old = kAccumulate ? LoadF32Partial(d, dx + i, n) : hn::Zero(d);
          const F32Vec result = gradient(hn::Mul(dy_v, LoadF32Partial(d, weight + i, n)), h, old);
          const F32Vec dw = hn::Mul(dy_v, h);
          StoreF32Partial(d, first ? dw : hn::Add(LoadF32Partial(d, dweight + i, n), dw), dweight + i, n);
          StoreF32Partial(d, first ? dy_v : hn::Add(LoadF32Partial(d, dbias + i, n), dy_v), dbias + i, n);
          StoreF32Partial(d, result, dx + i, n);
        });
  }
}

void LayerNormBwdRange(const LayerNormBwd& op, std::int64_t begin, std::int64_t end, float* sums) {
  with_float(op.x.dtype, [&]<class T>() {
    op.accumulate ? LayerNormBwdTyped<T, true>(op, begin, end, sums)
                  : LayerNormBwdTyped<T, false>(op, begin, end, sums);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <algorithm>

#include "kernels/cpu/row_ops.h"
#include "kernels/row_blocks.h"

namespace qt::cpu {

HWY_EXPORT(LayerNormFwdRange);
HWY_EXPORT(LayerNormBwdRange);

void run(const LayerNormFwd& op, Context& ctx) {
  const std::int64_t grain = std::max<std::int64_t>(1, 16 * 1024 / op.x.dim(1));
  parallel_ranges(ctx, op.x.dim(0), grain, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(LayerNormFwdRange)(op, begin, end);
  });
}

void run(const LayerNormBwd& op, Context& ctx) {
  const std::int64_t C = op.x.dim(1);
  const RowBlocks blocks = row_blocks(op.x.dim(0));
  if (blocks.count == 0) return;
  auto* const sums = reinterpret_cast<float*>(op.scratch.data);  // [blocks, 2, C]
  parallel_ranges(ctx, op.x.dim(0), blocks.rows, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(LayerNormBwdRange)(op, begin, end, sums + begin / blocks.rows * 2 * C);
  });
  add_blocks(ctx, sums, blocks.count, 2 * C, C, op.dweight.as<float>());
  if (op.dbias.defined()) add_blocks(ctx, sums + C, blocks.count, 2 * C, C, op.dbias.as<float>());
}

}  // namespace qt::cpu

#endif  // HWY_ONCE
