// Ops that draw random numbers, on the cpu: initial weights and dropout, which draws in vectors. Which draw
// belongs to which element is a matter of the element's number alone.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/random.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <algorithm>

#include <hwy/highway.h>

#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/philox-inl.h"
#include "kernels/cpu/simd-inl.h"
#include "kernels/dropout.h"

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {

template <class T>
void DropoutTyped(const Dropout& op, std::int64_t begin, std::int64_t end) {
  constexpr std::int64_t kAtOnce = 256;  // elements with draws that are made together
  const F32Tag d;
  const hn::RebindToUnsigned<F32Tag> du;
  const T* x = op.x.as<T>();
  T* y = op.y.as<T>();
  const F32Vec scale = hn::Set(d, dropout_scale(op.rate));
  const auto threshold = hn::Set(du, dropout_threshold(op.rate));
  // A block more for a start inside one, and room for the lanes behind the last element.
  std::uint32_t words[kAtOnce + 4 + hn::MaxLanes(d)] = {};
  for (std::int64_t from = begin; from < end; from += kAtOnce) {
    const std::int64_t to = std::min(end, from + kAtOnce);
    const auto element = static_cast<std::uint64_t>(op.first_element + from);
    const auto lead = static_cast<std::int64_t>(element % 4);
    RandomWords(op.rng, element / 4, (lead + to - from + 3) / 4, words);
    const std::uint32_t* draw = words + lead - from;
    const auto kept = [&](F32Vec v, std::int64_t i) HWY_ATTR {
      const auto drops = hn::Lt(hn::LoadU(du, draw + i), threshold);
      return hn::IfThenZeroElse(hn::RebindMask(d, drops), hn::Mul(v, scale));
    };
    ForVectors(
        d, from, to, [&](std::int64_t i) HWY_ATTR { StoreF32(d, kept(LoadF32(d, x + i), i), y + i); },
        [&](std::int64_t i, std::size_t n)
            HWY_ATTR { StoreF32Partial(d, kept(LoadF32Partial(d, x + i, n), i), y + i, n); });
  }
}

void DropoutRange(const Dropout& op, std::int64_t begin, std::int64_t end) {
  with_float(op.x.dtype, [&]<class T>() { DropoutTyped<T>(op, begin, end); });
}

}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <array>
#include <cstring>

#include "kernels/normal_quantile.h"

namespace qt::cpu {

HWY_EXPORT(DropoutRange);

namespace {

constexpr std::int64_t kInitGrain = 64 * 1024, kDropoutGrain = 16 * 1024;  // elements of a task

template <class T>
void init_normal(const InitNormal& op, Context& ctx) {
  T* x = op.x.as<T>();
  parallel_ranges(ctx, op.x.elems(), kInitGrain, [&](std::int64_t begin, std::int64_t end, int) {
    if (op.stddev == 0) return std::fill(x + begin, x + end, from_float<T>(op.constant));
    std::array<std::uint32_t, 4> draws{};
    for (std::int64_t i = begin; i < end; ++i) {
      const auto element = static_cast<std::uint64_t>(op.first_element + i);
      if (i == begin || element % 4 == 0) draws = rng_block(op.rng, element / 4);
      const double z = normal_quantile(static_cast<double>(rng_unit(draws[element % 4])));
      x[i] = from_float<T>(op.constant + op.stddev * static_cast<float>(z));
    }
  });
}

}  // namespace

void run(const InitNormal& op, Context& ctx) {
  if (op.x.dtype == DType::bf16) return init_normal<bf16>(op, ctx);
  init_normal<float>(op, ctx);
}

void run(const Dropout& op, Context& ctx) {
  const std::int64_t elem_bytes = dtype_bytes(op.x.dtype);
  if (op.rate == 0 && op.x.data == op.y.data) return;
  parallel_ranges(ctx, op.y.elems(), kDropoutGrain, [&](std::int64_t begin, std::int64_t end, int) {
    if (op.rate == 0) {
      std::memcpy(op.y.data + begin * elem_bytes, op.x.data + begin * elem_bytes,
                  static_cast<std::size_t>((end - begin) * elem_bytes));
    } else {
      HWY_DYNAMIC_DISPATCH(DropoutRange)(op, begin, end);
    }
  });
}

}  // namespace qt::cpu

#endif  // HWY_ONCE
