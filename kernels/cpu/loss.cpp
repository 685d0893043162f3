// Softcapped cross entropy and softcap on the cpu. Rows are independent: one thread computes a row, in an
// order that depends on V alone.
//
// Accuracy, measured against double with and without fused multiply-adds: tanh within 1.4 ulp (every float
// from 1e-5 to 30; below, tanh is its argument). The sum over a row runs in f32 within 256 elements, sixteen
// lanes of at most sixteen terms, and in double beyond that: its relative error stays below 2^-20, and logits
// of 0 (step 0) are summed exactly.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/cpu/cpu_common.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/loss.cpp"
#include <hwy/foreach_target.h>  // before highway.h
#include <hwy/highway.h>

#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {
namespace {

// The lanes of a sum, on every instruction set: narrower vectors take several turns over a block.
constexpr std::int64_t kSumLanes = 16;
constexpr std::int64_t kSumBlock = 256;
using D = hn::CappedTag<float, kSumLanes>;
using V = hn::Vec<D>;

// Up to this cap exp(z) stays between 1e-28 and 1e28: no shift is needed, in either direction.
constexpr float kMaxUnshiftedCap = 64.0f;
// Polynomial up to 0.625 (Cephes, tanhf), beyond it 1 - 2 / (exp(2 |x|) + 1): what is subtracted there is
// less than half of the result, so its errors count less than half. NaN takes the polynomial and stays NaN.
HWY_INLINE V TanhOf(V x) {
  const D d;
  const V a = hn::Abs(x);
  const V s = hn::Mul(x, x);
  V p = hn::Set(d, -5.70498872745e-3f);
  p = hn::MulAdd(p, s, hn::Set(d, 2.06390887954e-2f));
  p = hn::MulAdd(p, s, hn::Set(d, -5.37397155531e-2f));
  p = hn::MulAdd(p, s, hn::Set(d, 1.33314422036e-1f));
  p = hn::MulAdd(p, s, hn::Set(d, -3.33332819422e-1f));
  const V small = hn::MulAdd(hn::Mul(p, s), x, x);
  const auto is_large = hn::Ge(a, hn::Set(d, 0.625f));
  if (HWY_LIKELY(hn::AllFalse(d, is_large))) return small;
  const V e = BoundedExp(D(), hn::Min(hn::Add(a, a), hn::Set(d, 20.0f)));  // tanh(10) is 1 in f32
  const V one = hn::Set(d, 1.0f);
  const V large = hn::Sub(one, hn::Div(hn::Set(d, 2.0f), hn::Add(e, one)));
  return hn::IfThenElse(is_large, hn::CopySign(large, x), small);
}

struct Row {
  float cap;    // 0: none
  float shift;  // subtracted from z inside exp
};

// Tanh of capped logits, or the logits themselves: what the first pass leaves in memory for the second.
template <bool kCapped>
HWY_INLINE V Squash(V x, V cap) {
  if constexpr (kCapped) return TanhOf(hn::Div(x, cap));
  (void)cap;
  return x;
}

template <bool kCapped, bool kShifted>
HWY_INLINE V ExpOf(V squashed, V cap, V shift) {
  V z = squashed;
  if constexpr (kCapped) z = hn::Mul(squashed, cap);
  if constexpr (kShifted) return NegativeExp(D(), hn::Sub(z, shift));
  (void)cap;
  (void)shift;
  return BoundedExp(D(), z);
}

HWY_INLINE float TanhOne(float x) { return hn::GetLane(TanhOf(hn::Set(D(), x))); }

// The sum of exp(z - shift) over a row; `keep` may be the row itself or null.
template <bool kCapped, bool kShifted>
double SumExp(const float* x, float* keep, std::int64_t n, Row row) {
  const D d;
  const std::int64_t step = static_cast<std::int64_t>(hn::Lanes(d));
  const V cap = hn::Set(d, row.cap), shift = hn::Set(d, row.shift);
  double sums[kSumLanes] = {};
  for (std::int64_t block = 0; block < n; block += kSumBlock) {
    const std::int64_t end = std::min(n, block + kSumBlock);
    for (std::int64_t lane = 0; lane < kSumLanes; lane += step) {
      V sum = hn::Zero(d);
      std::int64_t i = block + lane;
      for (; i + step <= end; i += kSumLanes) {
        const V squashed = Squash<kCapped>(LoadF32(d, x + i), cap);
        if (keep != nullptr) StoreF32(d, squashed, keep + i);
        sum = hn::Add(sum, ExpOf<kCapped, kShifted>(squashed, cap, shift));
      }
      if (i < end) {
        const auto rest = static_cast<std::size_t>(end - i);
        const V squashed = Squash<kCapped>(LoadF32Partial(d, x + i, rest), cap);
        if (keep != nullptr) StoreF32Partial(d, squashed, keep + i, rest);
        const V e = ExpOf<kCapped, kShifted>(squashed, cap, shift);
        sum = hn::Add(sum, hn::IfThenElseZero(hn::FirstN(d, rest), e));
      }
      HWY_ALIGN float lanes[kSumLanes];
      hn::Store(sum, d, lanes);
      for (std::int64_t k = 0; k < step; ++k) sums[lane + k] += static_cast<double>(lanes[k]);
    }
  }
  for (std::int64_t width = kSumLanes / 2; width > 0; width /= 2) {
    for (std::int64_t k = 0; k < width; ++k) sums[k] += sums[k + width];
  }
  return sums[0];
}

// dlogits = scale * exp(z - shift) * (1 - (z / cap)^2), scale = grad_scale / sum. `to` is the row read from,
// as f32 or narrower: element i is read before anything is written at or beyond its bytes.
template <bool kCapped, bool kShifted, class T>
void WriteGradient(const float* kept, T* to, std::int64_t n, Row row, float scale) {
  const D d;
  const V cap = hn::Set(d, row.cap), shift = hn::Set(d, row.shift), factor = hn::Set(d, scale);
  const auto gradient = [&](V squashed) HWY_ATTR {
    V g = hn::Mul(ExpOf<kCapped, kShifted>(squashed, cap, shift), factor);
    if constexpr (kCapped) g = hn::Mul(g, hn::NegMulAdd(squashed, squashed, hn::Set(d, 1.0f)));
    return g;
  };
  ForVectors(
      d, 0, n, [&](std::int64_t i) HWY_ATTR { StoreF32(d, gradient(LoadF32(d, kept + i)), to + i); },
      [&](std::int64_t i, std::size_t rest)
          HWY_ATTR { StoreF32Partial(d, gradient(LoadF32Partial(d, kept + i, rest)), to + i, rest); });
}

// NaN is passed over here: it enters the sum, and with it the loss.
float MaxOf(const float* x, std::int64_t n) {
  const D d;
  V top = hn::Set(d, -std::numeric_limits<float>::infinity());
  float rest_top = -std::numeric_limits<float>::infinity();
  ForVectors(
      d, 0, n, [&](std::int64_t i) HWY_ATTR { top = hn::Max(LoadF32(d, x + i), top); },
      [&](std::int64_t i, std::size_t rest) HWY_ATTR {
        for (std::size_t k = 0; k < rest; ++k)
          rest_top = std::max(rest_top, x[i + static_cast<std::int64_t>(k)]);
      });
  return std::max(rest_top, hn::GetLane(hn::MaxOfLanes(d, top)));
}

template <bool kCapped, bool kShifted, class T>
void OneRow(float* logits, T* dlogits, std::int64_t n, std::int32_t target, float* nll, float softcap,
            float grad_scale) {
  Row row{.cap = softcap, .shift = 0};
  if constexpr (kShifted) {  // tanh is monotonic: the largest logit has the largest z
    row.shift = MaxOf(logits, n);
    if constexpr (kCapped) row.shift = softcap * TanhOne(row.shift / softcap);
  }
  float squashed = logits[target], slope = 1.0f;
  if constexpr (kCapped) {
    squashed = TanhOne(squashed / softcap);
    slope = 1.0f - squashed * squashed;
  }
  const double z = static_cast<double>(kCapped ? softcap * squashed : squashed);

  float* const keep = kCapped && dlogits != nullptr ? logits : nullptr;
  const double sum = SumExp<kCapped, kShifted>(logits, keep, n, row);
  *nll = static_cast<float>(std::log(sum) + static_cast<double>(row.shift) - z);
  if (dlogits == nullptr) return;

  WriteGradient<kCapped, kShifted>(logits, dlogits, n, row,
                                   static_cast<float>(static_cast<double>(grad_scale) / sum));
  const double p = std::exp(z - static_cast<double>(row.shift)) / sum;
  dlogits[target] = from_float<T>(static_cast<float>((p - 1.0) * static_cast<double>(grad_scale)) * slope);
}

template <class T>
void Rows(const SoftcapCrossEntropy& op, std::int64_t begin, std::int64_t end) {
  const std::int64_t n = op.logits.dim(1);
  const std::int32_t* const targets = op.targets.as<std::int32_t>();
  const bool shifted = op.softcap == 0 || op.softcap > kMaxUnshiftedCap;
  const auto one_row = op.softcap == 0 ? OneRow<false, true, T>
                       : shifted       ? OneRow<true, true, T>
                                       : OneRow<true, false, T>;
  for (std::int64_t r = begin; r < end; ++r) {
    float* const logits = op.logits.as<float>() + r * n;
    T* const dlogits = op.dlogits.defined() ? op.dlogits.as<T>() + r * op.dlogits.pitch : nullptr;
    float* const nll = op.nll.as<float>() + r;
    if (targets[r] >= 0) {
      one_row(logits, dlogits, n, targets[r], nll, op.softcap, op.grad_scale);
      continue;
    }
    *nll = 0;
    if (dlogits != nullptr)
      std::memset(static_cast<void*>(dlogits), 0, static_cast<std::size_t>(n) * sizeof(T));
  }
}

void CrossEntropyRows(const SoftcapCrossEntropy& op, std::int64_t begin, std::int64_t end) {
  if (!op.dlogits.defined()) return Rows<float>(op, begin, end);
  with_float(op.dlogits.dtype, [&]<class T>() { Rows<T>(op, begin, end); });
}

void SoftcapRange(float* x, std::int64_t n, float softcap) {
  const D d;
  const V cap = hn::Set(d, softcap);
  const auto capped = [&](V v) HWY_ATTR { return hn::Mul(cap, TanhOf(hn::Div(v, cap))); };
  ForVectors(
      d, 0, n, [&](std::int64_t i) HWY_ATTR { StoreF32(d, capped(LoadF32(d, x + i)), x + i); },
      [&](std::int64_t i, std::size_t rest)
          HWY_ATTR { StoreF32Partial(d, capped(LoadF32Partial(d, x + i, rest)), x + i, rest); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace qt::cpu {
namespace {

HWY_EXPORT(CrossEntropyRows);
HWY_EXPORT(SoftcapRange);

constexpr std::int64_t kGrainElems = 16384;

// The data layer promises the range; an index beyond it would read foreign memory, and looking costs nothing
// here.
void check_targets(const SoftcapCrossEntropy& op) {
  const std::int32_t* targets = op.targets.as<std::int32_t>();
  for (std::int64_t r = 0; r < op.targets.dim(0); ++r) {
    QT_CHECK(targets[r] >= -1 && targets[r] < op.logits.dim(1), DataError,
             "{}: the target of row {} is {}, the vocabulary has {} entries", SoftcapCrossEntropy::kName, r,
             targets[r], op.logits.dim(1));
  }
}

}  // namespace

void run(const SoftcapCrossEntropy& op, Context& ctx) {
  check_targets(op);
  const std::int64_t rows_per_task = std::max<std::int64_t>(1, kGrainElems / op.logits.dim(1));
  parallel_ranges(ctx, op.logits.dim(0), rows_per_task, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(CrossEntropyRows)(op, begin, end);
  });
}

void run(const Softcap& op, Context& ctx) {
  float* const x = op.x.as<float>();
  parallel_ranges(ctx, op.x.elems(), kGrainElems, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(SoftcapRange)(x + begin, end - begin, op.softcap);
  });
}

}  // namespace qt::cpu
#endif  // HWY_ONCE
