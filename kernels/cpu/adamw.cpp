// AdamW on the cpu, with f32 and with 8-bit moments: the arithmetic of quant/adam_math.h and the codes of
// quant/q8.h, bit for bit, in vectors. Products and sums are rounded one by one; nothing here may be fused.
// A bf16 master is rounded stochastically.
//
// A finite gradient with a square that overflows f32 makes v infinite, here as in the scalar reference: the weights
// it touches become NaN, and the loss of the next step stops the run. Clipping keeps gradients far below.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/cpu/cpu_common.h"
#include "kernels/step_scalars.h"
#include "quant/adam_math.h"
#include "quant/q8.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/adamw.cpp"
#include <hwy/foreach_target.h>  // before highway.h
#include <hwy/highway.h>

#include "kernels/cpu/philox-inl.h"
#include "kernels/cpu/simd-inl.h"

#ifndef QTRAIN_KERNELS_CPU_ADAMW_TABLES_
#define QTRAIN_KERNELS_CPU_ADAMW_TABLES_
namespace qt::cpu {
namespace {

// What every element of one call shares.
struct AdamStep {
  float grad_scale;
  AdamHyper h;
  RngStream rng;
};

// Elements of AdamW8 from a block boundary on.
template <class P, class G>
struct AdamW8Range {
  P* p;
  const G* g;
  std::uint8_t* m_codes;
  std::uint8_t* v_codes;
  float* m_absmax;
  float* v_absmax;
  std::uint64_t draw;  // of the first element, where P is bf16
};

// The cells of quant/q8.h, with room behind them: vectors gather four bytes at each cell and keep the first.
struct PaddedCells {
  std::array<std::uint8_t, 2 * Q8Cells::kPerSign + 3> code{};

  explicit constexpr PaddedCells(const Q8Cells& cells) {
    std::copy(cells.code.begin(), cells.code.end(), code.begin());
  }
};
alignas(64) inline constexpr PaddedCells kSignedCells{kQ8SignedCells};
alignas(64) inline constexpr PaddedCells kUnsignedCells{kQ8UnsignedCells};

// The tables and the rule of one moment: FirstMoment's or SecondMoment's.
struct FirstCode : FirstMoment {
  static constexpr const Q8Map& kMid = kQ8SignedMid;
  static constexpr const PaddedCells& kCells = kSignedCells;
};
struct SecondCode : SecondMoment {
  static constexpr const Q8Map& kMid = kQ8UnsignedMid;
  static constexpr const PaddedCells& kCells = kUnsignedCells;
};

}  // namespace
}  // namespace qt::cpu
#endif

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {
namespace {

using DF = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using DCode = hn::Rebind<std::uint8_t, DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;
using VU = hn::Vec<DU>;

struct Hyper {
  VF grad_scale, s, ceps, decay, beta1, one_minus_beta1, beta2, one_minus_beta2;
};

HWY_INLINE Hyper Broadcast(const AdamStep& step) {
  const DF d;
  const AdamHyper& h = step.h;
  return Hyper{hn::Set(d, step.grad_scale), hn::Set(d, h.s),
               hn::Set(d, h.ceps),          hn::Set(d, h.decay),
               hn::Set(d, h.beta1),         hn::Set(d, h.one_minus_beta1),
               hn::Set(d, h.beta2),         hn::Set(d, h.one_minus_beta2)};
}

// qt::adam_update on every lane, the gradient scaled first.
HWY_INLINE void Update(VF& p, VF g, VF& m, VF& v, const Hyper& h) {
  g = hn::Mul(g, h.grad_scale);
  v = hn::Add(hn::Mul(v, h.beta2), hn::Mul(hn::Mul(h.one_minus_beta2, g), g));
  m = hn::Add(hn::Mul(m, h.beta1), hn::Mul(h.one_minus_beta1, g));
  const VF ratio = hn::Div(m, hn::Add(hn::Sqrt(v), h.ceps));
  p = hn::Add(hn::Mul(p, h.decay), hn::Mul(h.s, ratio));
}

// How masters of up to 256 neighbouring elements are stored: as they are, or rounded, each by its own draw.
template <class P>
class MasterStore;

template <>
class MasterStore<float> {
 public:
  MasterStore(const RngStream&, std::uint64_t, std::int64_t) {}
  HWY_INLINE void Vector(VF v, float* p, std::int64_t i) const { StoreF32(DF(), v, p + i); }
  void One(float v, float* p, std::int64_t i) const { p[i] = v; }
};

template <>
class MasterStore<bf16> {
 public:
  // For n elements, the first of which has draw `first`.
  MasterStore(const RngStream& rng, std::uint64_t first, std::int64_t n) {
    const auto lead = static_cast<std::int64_t>(first % 4);
    RandomWords(rng, first / 4, (lead + n + 3) / 4, words_);
    draws_ = words_ + lead;
  }
  MasterStore(const MasterStore&) = delete;
  MasterStore& operator=(const MasterStore&) = delete;

  // to_bf16_stochastic on every lane.
  HWY_INLINE void Vector(VF v, bf16* p, std::int64_t i) const {
    const DU du;
    const VU bits = hn::BitCast(du, v), high = hn::ShiftRight<16>(bits);
    const VU rounded = hn::ShiftRight<16>(hn::Add(bits, hn::ShiftRight<16>(hn::LoadU(du, draws_ + i))));
    const VU quiet = hn::IfThenElseZero(hn::RebindMask(du, hn::IsNaN(v)), hn::Set(du, 0x40u));
    const VU stored = hn::IfThenElse(hn::RebindMask(du, hn::IsFinite(v)), rounded, hn::Or(high, quiet));
    const hn::Rebind<std::uint16_t, DF> d16;
    hn::StoreU(hn::DemoteTo(d16, hn::BitCast(DI(), stored)), d16, &p[i].bits);
  }
  void One(float v, bf16* p, std::int64_t i) const { p[i] = to_bf16_stochastic(v, draws_[i]); }

 private:
  std::uint32_t words_[kQ8BlockElems + 4];
  const std::uint32_t* draws_;
};

template <class P, class G>
void PlainRange(P* p, const G* g, float* m, float* v, std::int64_t n, const AdamStep& step,
                std::uint64_t draw) {
  const DF d;
  const Hyper h = Broadcast(step);
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  for (std::int64_t from = 0; from < n; from += kQ8BlockElems) {
    const std::int64_t count = std::min<std::int64_t>(kQ8BlockElems, n - from);
    const MasterStore<P> store(step.rng, draw + static_cast<std::uint64_t>(from), count);
    std::int64_t i = 0;
    for (; i + lanes <= count; i += lanes) {
      VF pi = LoadF32(d, p + i), mi = LoadF32(d, m + i), vi = LoadF32(d, v + i);
      Update(pi, LoadF32(d, g + i), mi, vi, h);
      store.Vector(pi, p, i);
      StoreF32(d, mi, m + i);
      StoreF32(d, vi, v + i);
    }
    for (; i < count; ++i) {
      float pi = to_float(p[i]);
      adam_update(pi, to_float(g[i]) * step.grad_scale, m[i], v[i], step.h);
      store.One(pi, p, i);
    }
    p += count, g += count, m += count, v += count;
  }
}

template <class Code>
HWY_INLINE VF Decode(const std::uint8_t* codes, VF absmax) {
  const DF d;
  const DI di;
  const VI index = hn::PromoteTo(di, hn::LoadU(DCode(), codes));
  return hn::Mul(hn::GatherIndex(d, Code::kMap.data(), index), absmax);
}

HWY_INLINE VU Magnitude(VF x) { return hn::And(hn::BitCast(DU(), x), hn::Set(DU(), 0x7FFFFFFFu)); }

// Q8Cells::index and the search of quant/q8.h: one look-up, one compare.
template <class Code>
HWY_INLINE VI Search(VF y) {
  const DF d;
  const DI di;
  const DU du;
  const VU bits = hn::BitCast(du, y);
  const VU cell = hn::ShiftRight<Q8Cells::kShift>(hn::And(bits, hn::Set(du, 0x7FFFFFFFu)));
  const VU clamped = hn::Min(hn::Max(cell, hn::Set(du, Q8Cells::kFirst)), hn::Set(du, Q8Cells::kLast));
  const VI sign = hn::BroadcastSignBit(hn::BitCast(di, bits));
  const VI negative = hn::And(sign, hn::Set(di, static_cast<std::int32_t>(Q8Cells::kPerSign)));
  const VI at = hn::Add(hn::BitCast(di, hn::Sub(clamped, hn::Set(du, Q8Cells::kFirst))), negative);
  const auto* cells = reinterpret_cast<const std::int32_t*>(Code::kCells.code.data());
  const VI code = hn::And(hn::GatherOffset(di, cells, at), hn::Set(di, 0xFF));
  const VF mid = hn::GatherIndex(d, Code::kMid.data(), code);
  return hn::Sub(code, hn::VecFromMask(di, hn::RebindMask(di, hn::Gt(y, mid))));
}

// The rule of FirstMoment: below zero never 0. Of SecondMoment: above zero never 0.
HWY_INLINE VI ApplyRule(FirstCode, VI code, VF x) {
  const DI di;
  const auto wrong =
      hn::And(hn::Eq(code, hn::Set(di, FirstCode::kZeroCode)), hn::RebindMask(di, hn::Lt(x, hn::Zero(DF()))));
  return hn::IfThenElse(wrong, hn::Set(di, FirstCode::kZeroCode - 1), code);
}
HWY_INLINE VI ApplyRule(SecondCode, VI code, VF x) {
  const DI di;
  const auto wrong = hn::And(hn::Eq(code, hn::Zero(di)), hn::RebindMask(di, hn::Gt(x, hn::Zero(DF()))));
  return hn::IfThenElse(wrong, hn::Set(di, 1), code);
}

// One block of aligned f32 values with the bits of its largest magnitude.
template <class Code>
HWY_INLINE void Encode(const float* x, std::uint32_t top, std::uint8_t* codes, float* absmax) {
  const DF d;
  *absmax = std::bit_cast<float>(top);
  if (top == 0) {
    std::memset(codes, Code::kZeroCode, kQ8BlockElems);
    return;
  }
  const Normaliser normalise(*absmax);
  const VF scale = hn::Set(d, normalise.divides() ? normalise.absmax() : normalise.reciprocal());
  const auto encode = [&](VF xi, VF y, int i) HWY_ATTR {
    hn::StoreU(hn::DemoteTo(DCode(), ApplyRule(Code(), Search<Code>(y), xi)), DCode(), codes + i);
  };
  const int lanes = static_cast<int>(hn::Lanes(d));
  if (normalise.divides()) {
    for (int i = 0; i < kQ8BlockElems; i += lanes) {
      const VF xi = hn::Load(d, x + i);
      encode(xi, hn::Div(xi, scale), i);
    }
  } else {
    for (int i = 0; i < kQ8BlockElems; i += lanes) {
      const VF xi = hn::Load(d, x + i);
      encode(xi, hn::Mul(xi, scale), i);
    }
  }
}

template <class P, class G>
void WholeBlock(const AdamW8Range<P, G>& at, const Hyper& h, const RngStream& rng) {
  const DF d;
  const DU du;
  HWY_ALIGN float m[kQ8BlockElems];
  HWY_ALIGN float v[kQ8BlockElems];
  const VF m_absmax = hn::Set(d, *at.m_absmax), v_absmax = hn::Set(d, *at.v_absmax);
  VU m_top = hn::Zero(du), v_top = hn::Zero(du);
  const MasterStore<P> store(rng, at.draw, kQ8BlockElems);
  for (int i = 0; i < kQ8BlockElems; i += static_cast<int>(hn::Lanes(d))) {
    VF pi = LoadF32(d, at.p + i);
    VF mi = Decode<FirstCode>(at.m_codes + i, m_absmax), vi = Decode<SecondCode>(at.v_codes + i, v_absmax);
    Update(pi, LoadF32(d, at.g + i), mi, vi, h);
    store.Vector(pi, at.p, i);
    hn::Store(mi, d, m + i);
    hn::Store(vi, d, v + i);
    m_top = hn::Max(m_top, Magnitude(mi));
    v_top = hn::Max(v_top, Magnitude(vi));
  }
  Encode<FirstCode>(m, hn::GetLane(hn::MaxOfLanes(du, m_top)), at.m_codes, at.m_absmax);
  Encode<SecondCode>(v, hn::GetLane(hn::MaxOfLanes(du, v_top)), at.v_codes, at.v_absmax);
}

// The last block of a tensor, padded with elements that are and stay 0: they leave both maxima alone.
template <class P, class G>
void PartialBlock(const AdamW8Range<P, G>& at, std::int64_t n, const Hyper& h, const RngStream& rng) {
  P p[kQ8BlockElems] = {};
  G g[kQ8BlockElems] = {};
  std::uint8_t m_codes[kQ8BlockElems], v_codes[kQ8BlockElems];
  std::fill_n(m_codes, kQ8BlockElems, FirstCode::kZeroCode);
  std::fill_n(v_codes, kQ8BlockElems, SecondCode::kZeroCode);
  std::copy_n(at.p, n, p);
  std::copy_n(at.g, n, g);
  std::copy_n(at.m_codes, n, m_codes);
  std::copy_n(at.v_codes, n, v_codes);
  WholeBlock(AdamW8Range<P, G>{p, g, m_codes, v_codes, at.m_absmax, at.v_absmax, at.draw}, h, rng);
  std::copy_n(p, n, at.p);
  std::copy_n(m_codes, n, at.m_codes);
  std::copy_n(v_codes, n, at.v_codes);
}

template <class P, class G>
void BlockRange(const AdamW8Range<P, G>& x, std::int64_t n, const AdamStep& step) {
  const Hyper h = Broadcast(step);
  for (std::int64_t i = 0; i < n; i += kQ8BlockElems) {
    const std::int64_t block = i / kQ8BlockElems;
    const AdamW8Range<P, G> at{x.p + i,
                               x.g + i,
                               x.m_codes + i,
                               x.v_codes + i,
                               x.m_absmax + block,
                               x.v_absmax + block,
                               x.draw + static_cast<std::uint64_t>(i)};
    if (n - i >= kQ8BlockElems) {
      WholeBlock(at, h, step.rng);
    } else {
      PartialBlock(at, n - i, h, step.rng);
    }
  }
}

void Plain(const AdamW& op, std::int64_t begin, std::int64_t end, const AdamStep& step) {
  with_master_and_gradient(op.master.dtype, op.grad.dtype, [&]<class P, class G>() {
    PlainRange(op.master.as<P>() + begin, op.grad.as<G>() + begin, op.m.as<float>() + begin,
               op.v.as<float>() + begin, end - begin, step,
               static_cast<std::uint64_t>(op.first_element + begin));
  });
}

void Blocks(const AdamW8& op, std::int64_t begin, std::int64_t end, const AdamStep& step) {
  with_master_and_gradient(op.master.dtype, op.grad.dtype, [&]<class P, class G>() {
    const std::int64_t block = begin / kQ8BlockElems;
    BlockRange(AdamW8Range<P, G>{op.master.as<P>() + begin, op.grad.as<G>() + begin,
                                 op.m_codes.as<std::uint8_t>() + begin, op.v_codes.as<std::uint8_t>() + begin,
                                 op.m_absmax.as<float>() + block, op.v_absmax.as<float>() + block,
                                 static_cast<std::uint64_t>(op.first_element + begin)},
               end - begin, step);
  });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace qt::cpu {
namespace {

HWY_EXPORT(Plain);
HWY_EXPORT(Blocks);

constexpr std::int64_t kGrainElems = 64 * kQ8BlockElems;

AdamStep read_step(const TensorView& view, ParamGroup group, const RngStream& rng) {
  const float* const params = view.as<float>();
  return AdamStep{
      .grad_scale = gradient_factor(params), .h = read_hyper(params, static_cast<int>(group)), .rng = rng};
}

}  // namespace

void run(const AdamW& op, Context& ctx) {
  if (step_is_skipped(op.params.as<float>())) return;
  const AdamStep step = read_step(op.params, op.group, op.rng);
  parallel_ranges(ctx, op.master.elems(), kGrainElems, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(Plain)(op, begin, end, step);
  });
}

void run(const AdamW8& op, Context& ctx) {
  if (step_is_skipped(op.params.as<float>())) return;
  const AdamStep step = read_step(op.params, op.group, op.rng);
  parallel_ranges(ctx, op.master.elems(), kGrainElems, [&](std::int64_t begin, std::int64_t end, int) {
    HWY_DYNAMIC_DISPATCH(Blocks)(op, begin, end, step);
  });
}

}  // namespace qt::cpu
#endif  // HWY_ONCE
