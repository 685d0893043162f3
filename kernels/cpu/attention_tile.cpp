// One tile of attention scores at a time: f32 arithmetic, probabilities rounded to the compute dtype.
// Exponentials: hwy/contrib/math, within 1 ulp.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_tile.cpp"
#include "kernels/cpu/attention_tile.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/philox-inl.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {

// At most 16 lanes: the padding of a tile's rows holds one vector.
using TileTag = hn::CappedTag<float, 16>;
using TileVec = hn::Vec<TileTag>;

// The library's Exp turns NaN into 0 where the mask registers are used: a run that has diverged would look
// healthy.
HWY_INLINE TileVec ExpOf(TileVec x) { return hn::IfThenElse(hn::IsNaN(x), x, hn::Exp(TileTag(), x)); }

// Keys of the tile that row `row` sees.
HWY_INLINE std::int64_t VisibleKeys(const ScoreTile& t, std::int64_t row) {
  return std::clamp<std::int64_t>(t.first_visible + row, 0, t.keys);
}

// Products read a row up to its last key; what lies in hidden lanes there must be 0.
template <class T>
HWY_INLINE void ClearHidden(T* row, std::int64_t from, std::int64_t keys) {
  if (from < keys)
    std::memset(static_cast<void*>(row + from), 0, static_cast<std::size_t>(keys - from) * sizeof(T));
}

// The draws of one row of a tile, with room for the lanes behind its last key.
class RowDraws {
 public:
  RowDraws(const TileDropout& dropout, std::int64_t row, std::int64_t keys)
      : threshold_(hn::Set(Tag(), dropout.threshold)) {
    RandomWords(dropout.rng, dropout.first_block + static_cast<std::uint64_t>(row) * dropout.row_blocks,
                (keys + 3) / 4, words_);
  }
  HWY_INLINE TileVec Kept(TileVec v, std::int64_t i) const {
    const auto drops = hn::Lt(hn::LoadU(Tag(), words_ + i), threshold_);
    return hn::IfThenZeroElse(hn::RebindMask(TileTag(), drops), v);
  }

 private:
  using Tag = hn::RebindToUnsigned<TileTag>;
  hn::Vec<Tag> threshold_;
  std::uint32_t words_[kMaxTileKeys + 16] = {};
};
// In its place where nothing is dropped.
struct NoDraws {
  NoDraws(const TileDropout&, std::int64_t, std::int64_t) {}
  HWY_INLINE TileVec Kept(TileVec v, std::int64_t) const { return v; }
};

template <class T, class Draws>
void SoftmaxTileTyped(const ScoreTile& t, const SoftmaxState& state) {
  const TileTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const TileVec scale = hn::Set(d, t.scale);
  const TileVec lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (std::int64_t row = 0; row < t.queries; ++row) {
    float* scores = t.scores + row * t.pitch;
    T* probs = static_cast<T*>(t.probs) + row * t.pitch;
    const std::int64_t visible = VisibleKeys(t, row);
    if (visible == 0) {
      ClearHidden(probs, 0, t.keys);
      continue;
    }
    TileVec top = lowest;
    for (std::int64_t i = 0; i < visible; i += lanes) {
      const auto in = hn::FirstN(d, static_cast<std::size_t>(std::min(lanes, visible - i)));
      const TileVec z = hn::IfThenElse(in, hn::Mul(hn::LoadU(d, scores + i), scale), lowest);
      hn::StoreU(z, d, scores + i);
      top = hn::Max(top, z);
    }
    const float old_max = state.max[row];
    const float new_max = std::max(old_max, hn::GetLane(hn::MaxOfLanes(d, top)));
    const Draws draws(t.dropout, row, visible);
    const TileVec shift = hn::Set(d, new_max);
    TileVec sum = hn::Zero(d);
    for (std::int64_t i = 0; i < visible; i += lanes) {
      const TileVec p = ExpOf(hn::Sub(hn::LoadU(d, scores + i), shift));  // exp(-inf) is 0: hidden keys
      sum = hn::Add(sum, p);
      StoreF32(d, draws.Kept(p, i), probs + i);
    }
    ClearHidden(probs, visible, t.keys);
    const float rescale = std::exp(old_max - new_max);  // 0 in the first tile
    state.sum[row] = state.sum[row] * rescale + hn::GetLane(hn::SumOfLanes(d, sum));
    state.max[row] = new_max;
    if (rescale != 1.0f) {
      float* out = state.out + row * state.out_pitch;
      const TileVec factor = hn::Set(d, rescale);
      for (std::int64_t i = 0; i < state.out_cols; i += lanes) {
        hn::StoreU(hn::Mul(hn::LoadU(d, out + i), factor), d, out + i);
      }
    }
  }
}

void SoftmaxTile(const ScoreTile& t, const SoftmaxState& state) {
  with_float(t.dtype, [&]<class T>() {
    t.dropout.threshold == 0 ? SoftmaxTileTyped<T, NoDraws>(t, state)
                             : SoftmaxTileTyped<T, RowDraws>(t, state);
  });
}

template <class T, class Draws>
void GradTileTyped(const ScoreTile& t, const GradRows& rows) {
  const TileTag d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  const TileVec scale = hn::Set(d, t.scale);
  for (std::int64_t row = 0; row < t.queries; ++row) {
    const float* scores = t.scores + row * t.pitch;
    const float* dprobs = rows.dprobs + row * t.pitch;
    T* probs = static_cast<T*>(t.probs) + row * t.pitch;
    T* dscores = static_cast<T*>(rows.dscores) + row * t.pitch;
    const TileVec lse = hn::Set(d, rows.lse[row]), delta = hn::Set(d, rows.delta[row]);
    const std::int64_t visible = VisibleKeys(t, row);
    const Draws draws(t.dropout, row, visible);
    const TileVec kept_scale = hn::Set(d, t.dropout.scale);
    for (std::int64_t i = 0; i < visible; i += lanes) {
      const TileVec p = ExpOf(hn::MulSub(hn::LoadU(d, scores + i), scale, lse));
      StoreF32(d, draws.Kept(p, i), probs + i);
      const TileVec dp = draws.Kept(hn::Mul(hn::LoadU(d, dprobs + i), kept_scale), i);
      StoreF32(d, hn::Mul(p, hn::Sub(dp, delta)), dscores + i);
    }
    ClearHidden(probs, visible, t.keys);
    ClearHidden(dscores, visible, t.keys);
  }
}

void GradTile(const ScoreTile& t, const GradRows& rows) {
  with_float(t.dtype, [&]<class T>() {
    t.dropout.threshold == 0 ? GradTileTyped<T, NoDraws>(t, rows) : GradTileTyped<T, RowDraws>(t, rows);
  });
}

template <class T>
void StoreScaledTyped(const ScaledRows& s) {
  const F32Tag d;
  for (std::int64_t row = 0; row < s.rows; ++row) {
    const float* from = s.from + row * s.from_pitch;
    T* to = static_cast<T*>(s.to) + row * s.to_pitch;
    const F32Vec factor = hn::Set(d, s.row_divisor == nullptr ? s.factor : s.factor / s.row_divisor[row]);
    ForVectors(
        d, 0, s.cols,
        [&](std::int64_t i) HWY_ATTR { StoreF32(d, hn::Mul(LoadF32(d, from + i), factor), to + i); },
        [&](std::int64_t i, std::size_t n)
            HWY_ATTR { StoreF32Partial(d, hn::Mul(LoadF32Partial(d, from + i, n), factor), to + i, n); });
  }
}

void StoreScaled(const ScaledRows& s) {
  with_float(s.dtype, [&]<class T>() { StoreScaledTyped<T>(s); });
}

// sum(a[i] * b[i]) in f32: one order for every call, vectors first.
template <class T>
float DotTyped(const T* a, const T* b, std::int64_t n) {
  const F32Tag d;
  F32Vec sum = hn::Zero(d);
  ForVectors(
      d, 0, n, [&](std::int64_t i) HWY_ATTR { sum = hn::MulAdd(LoadF32(d, a + i), LoadF32(d, b + i), sum); },
      [&](std::int64_t i, std::size_t m)
          HWY_ATTR { sum = hn::MulAdd(LoadF32Partial(d, a + i, m), LoadF32Partial(d, b + i, m), sum); });
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

void HeadDots(const std::byte* y, const std::byte* dy, DType dtype, std::int64_t H, std::int64_t D,
              float* delta, std::int64_t T) {
  with_float(dtype, [&]<class F>() {
    for (std::int64_t h = 0; h < H; ++h)
      delta[h * T] =
          DotTyped(reinterpret_cast<const F*>(y) + h * D, reinterpret_cast<const F*>(dy) + h * D, D);
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace qt::cpu {

HWY_EXPORT(SoftmaxTile);
HWY_EXPORT(GradTile);
HWY_EXPORT(StoreScaled);
HWY_EXPORT(HeadDots);

void softmax_tile(const ScoreTile& tile, const SoftmaxState& state) {
  HWY_DYNAMIC_DISPATCH(SoftmaxTile)(tile, state);
}
void grad_tile(const ScoreTile& tile, const GradRows& rows) { HWY_DYNAMIC_DISPATCH(GradTile)(tile, rows); }
void store_scaled(const ScaledRows& rows) { HWY_DYNAMIC_DISPATCH(StoreScaled)(rows); }
void head_dots(const std::byte* y, const std::byte* dy, DType dtype, std::int64_t H, std::int64_t D,
               float* delta, std::int64_t T) {
  HWY_DYNAMIC_DISPATCH(HeadDots)(y, dy, dtype, H, D, delta, T);
}

}  // namespace qt::cpu

#endif  // HWY_ONCE
