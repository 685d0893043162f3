// Dropout on the cpu: draws in vectors, a comparison and a product per element.
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
  constexpr std::int64_t kAtOnce = 256;  // elements whose draws are made together
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

#include <cstring>

namespace qt::cpu {

HWY_EXPORT(DropoutRange);

namespace {

constexpr std::int64_t kGrainElems = 16 * 1024;

}  // namespace

void run(const Dropout& op, Context& ctx) {
  const std::int64_t elem_bytes = dtype_bytes(op.x.dtype);
  if (op.rate == 0 && op.x.data == op.y.data) return;
  parallel_ranges(ctx, op.y.elems(), kGrainElems, [&](std::int64_t begin, std::int64_t end, int) {
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
