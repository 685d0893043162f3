// Packing and unpacking of weights on the cpu, in parallel. NF4 is packed in vectors, bit-equal to quant/nf4.h;
// a format without vector code here is packed by its scalar reference. Unpacking is kernels/cpu/expand.cpp.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <limits>
#include <span>
#include <type_traits>

#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/expand.h"
#include "quant/block.h"
#include "quant/format.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/quantize.cpp"
#include <hwy/foreach_target.h>  // before highway.h
#include <hwy/highway.h>

#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {
namespace {

constexpr std::int64_t kBlock = Nf4::kBlockElems;
constexpr std::int64_t kBlockBytes = kBlock / 2;

using DF = hn::CappedTag<float, 16>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using VF = hn::Vec<DF>;

// The largest magnitude of a block, as bits.
template <class T>
HWY_INLINE std::uint32_t TopBits(const T* x) {
  const DF d;
  const DU du;
  auto top = hn::Zero(du);
  for (std::int64_t i = 0; i < kBlock; i += static_cast<std::int64_t>(hn::Lanes(d))) {
    top = hn::Max(top, hn::And(hn::BitCast(du, LoadF32(d, x + i)), hn::Set(du, 0x7FFFFFFFu)));
  }
  return hn::GetLane(hn::MaxOfLanes(du, top));
}

// Nf4::encode: the number of thresholds below y.
HWY_INLINE hn::Vec<DI> Codes(VF y) {
  const DF d;
  const DI di;
  auto code = hn::Zero(di);
  for (const float t : Nf4::kThresholds) {
    code = hn::Sub(code, hn::VecFromMask(di, hn::RebindMask(di, hn::Gt(y, hn::Set(d, t)))));
  }
  return code;
}

// Two codes of one byte each, the first in the low byte, become one byte with the first in its high nibble.
HWY_INLINE void PackNibbles(const std::uint8_t* code, std::uint8_t* out) {
  const hn::CappedTag<std::uint16_t, kBlockBytes> d16;
  const hn::RebindToSigned<decltype(d16)> di16;
  const hn::Rebind<std::uint8_t, decltype(d16)> d8;
  for (std::int64_t i = 0; i < kBlockBytes; i += static_cast<std::int64_t>(hn::Lanes(d16))) {
    const auto pair = hn::LoadU(d16, reinterpret_cast<const std::uint16_t*>(code + 2 * i));
    const auto byte =
        hn::Or(hn::ShiftLeft<4>(hn::And(pair, hn::Set(d16, std::uint16_t{0xF}))), hn::ShiftRight<8>(pair));
    hn::StoreU(hn::DemoteTo(d8, hn::BitCast(di16, byte)), d8, out + i);
  }
}

// False, and nothing written, when the block holds a NaN or Inf.
template <class T>
bool EncodeBlock(const T* x, std::uint8_t* out, float* absmax) {
  const DF d;
  const hn::Rebind<std::uint8_t, DF> d8;
  const std::uint32_t top = TopBits(x);
  if (top >= kInfinityBits) return false;
  *absmax = std::bit_cast<float>(top);
  if (top == 0) {
    std::memset(out, Nf4::kZeroCode << 4 | Nf4::kZeroCode, kBlockBytes);
    return true;
  }
  const Normaliser normalise(*absmax);
  HWY_ALIGN std::uint8_t code[kBlock];
  const std::int64_t lanes = static_cast<std::int64_t>(hn::Lanes(d));
  if (normalise.divides()) {
    const VF by = hn::Set(d, normalise.absmax());
    for (std::int64_t i = 0; i < kBlock; i += lanes) {
      hn::StoreU(hn::DemoteTo(d8, Codes(hn::Div(LoadF32(d, x + i), by))), d8, code + i);
    }
  } else {
    const VF by = hn::Set(d, normalise.reciprocal());
    for (std::int64_t i = 0; i < kBlock; i += lanes) {
      hn::StoreU(hn::DemoteTo(d8, Codes(hn::Mul(LoadF32(d, x + i), by))), d8, code + i);
    }
  }
  PackNibbles(code, out);
  return true;
}

// Packs [0, n) from a block boundary on; returns the index of the first NaN or Inf, or -1. Blocks without one
// are written, whatever comes before them.
template <class T>
std::int64_t EncodeNf4(const T* x, std::int64_t n, std::uint8_t* codes, float* absmax) {
  std::int64_t bad = -1;
  for (std::int64_t i = 0; i < n; i += kBlock) {
    const std::int64_t count = std::min(kBlock, n - i);
    bool finite = true;
    if (count == kBlock) {
      finite = EncodeBlock(x + i, codes + i / 2, absmax + i / kBlock);
    } else {  // zeros behind the last element get the zero code, which also pads an odd last byte
      T padded[kBlock] = {};
      std::uint8_t packed[kBlockBytes];
      std::copy_n(x + i, count, padded);
      finite = EncodeBlock(padded, packed, absmax + i / kBlock);
      if (finite) std::copy_n(packed, (count + 1) / 2, codes + i / 2);
    }
    if (!finite && bad < 0) {
      bad = i + *first_non_finite(std::span(x + i, static_cast<std::size_t>(count)));
    }
  }
  return bad;
}

std::int64_t EncodeNf4F32(const float* x, std::int64_t n, std::uint8_t* codes, float* absmax) {
  return EncodeNf4(x, n, codes, absmax);
}
std::int64_t EncodeNf4Bf16(const bf16* x, std::int64_t n, std::uint8_t* codes, float* absmax) {
  return EncodeNf4(x, n, codes, absmax);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace qt::cpu {
namespace {

HWY_EXPORT(EncodeNf4F32);
HWY_EXPORT(EncodeNf4Bf16);

constexpr std::int64_t kBlocksPerTask = 256;

// Packs [first, first + n) of the matrix, whole blocks or its end; index of the first NaN or Inf, or -1.
template <class F, class T>
std::int64_t encode(const PackedView& w, std::int64_t first, const T* x, std::int64_t n) {
  std::uint8_t* const codes = w.codes.as<std::uint8_t>() + code_offset<F>(first);
  auto* const scales = w.absmax.as<typename F::Scale>() + first / F::kBlockElems;
  if constexpr (!std::is_same_v<F, Nf4>) {
    return F::quantize(std::span(x, static_cast<std::size_t>(n)), codes, scales).value_or(-1);
  } else if constexpr (std::is_same_v<T, bf16>) {
    return HWY_DYNAMIC_DISPATCH(EncodeNf4Bf16)(x, n, codes, scales);
  } else {
    return HWY_DYNAMIC_DISPATCH(EncodeNf4F32)(x, n, codes, scales);
  }
}

template <class T>
void dequantize(const Dequantize& op, Context& ctx) {
  // Tasks are cut where blocks of the matrix begin, wherever the range does.
  const std::int64_t grain = kBlocksPerTask * format_info(op.w.format).block_elems;
  const std::int64_t lead = op.first % grain;
  T* const to = op.dst.as<T>();
  parallel_ranges(ctx, lead + op.dst.elems(), grain, [&](std::int64_t begin, std::int64_t end, int) {
    begin = std::max(begin, lead);
    expand(op.w, op.first - lead + begin, end - begin, to + (begin - lead));
  });
}

constexpr std::int64_t kNone = std::numeric_limits<std::int64_t>::max();

void lower_to(std::atomic<std::int64_t>& smallest, std::int64_t value) {
  std::int64_t seen = smallest.load(std::memory_order_relaxed);
  while (value < seen && !smallest.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

// Index in the matrix of the first NaN or Inf, or kNone.
template <class F, class T>
std::int64_t quantize(const Quantize& op, Context& ctx) {
  std::atomic<std::int64_t> smallest{kNone};
  const T* const from = op.src.as<T>();
  parallel_ranges(ctx, op.src.elems(), kBlocksPerTask * F::kBlockElems,
                  [&](std::int64_t begin, std::int64_t end, int) {
                    const std::int64_t bad = encode<F>(op.w, op.first + begin, from + begin, end - begin);
                    if (bad >= 0) lower_to(smallest, op.first + begin + bad);
                  });
  return smallest;
}

}  // namespace

void run(const Quantize& op, Context& ctx) {
  require_flat(op.w, Quantize::kName);
  const std::int64_t smallest = dispatch_format(op.w.format, [&]<class F>() {
    return op.src.dtype == DType::bf16 ? quantize<F, bf16>(op, ctx) : quantize<F, float>(op, ctx);
  });
  if (smallest == kNone) return;
  double& bad_index = *op.bad_index.as<double>();
  const double found = static_cast<double>(smallest) + 1;
  if (bad_index == 0 || found < bad_index) bad_index = found;
}

void run(const Dequantize& op, Context& ctx) {
  require_flat(op.w, Dequantize::kName);
  if (op.dst.dtype == DType::bf16) {
    dequantize<bf16>(op, ctx);
  } else {
    dequantize<float>(op, ctx);
  }
}

}  // namespace qt::cpu
#endif  // HWY_ONCE
