// The fixture of the op tests: memory for one call of one op, and everything that must hold for every op, so
// that no test has to remember it.
//
//   outputs      hold NaN before the run, and other rubbish before the second one
//   fences       64 words on both sides of every buffer, and the gaps between pitched rows, hold a NaN pattern:
//                they must be unchanged afterwards, and an op that reads one spoils its result
//   inputs       must be unchanged afterwards
//   scratch      exactly scratch_bytes(), full of rubbish
//   repeats      the same call twice, and on every other number of threads the backend has: the same bits
//   backends     the simulator gives the bits of the cpu where an op promises them (kExactOp)
//
// The bodies know the backend by its name alone, so that they run on every one.
#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <map>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "kernels/scratch.h"
#include "tests/oracle/scalar.h"
#include "tests/support/bound.h"
#include "tests/support/test_backend.h"

#ifdef QTRAIN_TEST_SIM
#include "kernels/sim/sim.h"
#endif

namespace qt::test {

using oracle::Tracked;
using Shape = std::initializer_list<std::int64_t>;

// Sanitizers make everything ten times slower: there the largest shapes are left out.
#if defined(__SANITIZE_ADDRESS__)
inline constexpr bool kSanitized = true;
#elif defined(__has_feature)
inline constexpr bool kSanitized = __has_feature(address_sanitizer);
#else
inline constexpr bool kSanitized = false;
#endif

// The backends that compute. The only list there is.
inline std::vector<std::string> computing_backends() { return {test_backend_name()}; }

// Backends live as long as the program: starting threads for each call would be most of the time. They are
// never destroyed: at exit the driver of a card may be gone before them.
inline Backend& shared_backend(const std::string& name, int threads) {
  static auto& all = *new std::map<std::pair<std::string, int>, std::unique_ptr<Backend>>;
  auto& backend = all[{name, threads}];
  if (!backend) backend = make_test_backend(target_of(name, threads));
  return *backend;
}

// Ops with bits that docs/numerics.md promises on every backend.
template <class Op>
inline constexpr bool kExactOp = false;
#define QT_EXACT_OP(Op) \
  template <>           \
  inline constexpr bool kExactOp<Op> = true;
QT_EXACT_OP(Fill)
QT_EXACT_OP(Cast)
QT_EXACT_OP(Add)
QT_EXACT_OP(Multiply)
QT_EXACT_OP(MultiplyBwd)
QT_EXACT_OP(Relu2Fwd)
QT_EXACT_OP(Relu2Bwd)
QT_EXACT_OP(Dropout)
QT_EXACT_OP(EmbeddingFwd)
QT_EXACT_OP(EmbeddingBwd)
QT_EXACT_OP(PositionBwd)
QT_EXACT_OP(ColumnSum)
QT_EXACT_OP(Quantize)
QT_EXACT_OP(Dequantize)
QT_EXACT_OP(AdamW)
QT_EXACT_OP(AdamW8)
QT_EXACT_OP(SumSquares)
QT_EXACT_OP(SumLoss)
QT_EXACT_OP(PrepareStep)
#undef QT_EXACT_OP

// The cpu reads packed weights in the flat layout alone; tests/sim/test_sim_bits.cpp compares those in tiles.
template <class Op>
bool runs_on_cpu(const Op& op) {
  if constexpr (requires { op.w.layout; }) {
    return op.w.layout == PackedLayout::flat;
  } else {
    return true;
  }
}

class Case {
 public:
  // mutant: the mistake that the oracle makes this time; empty for none.
  Case(std::string backend, DType dtype, std::string mutant = {})
      : backend_name_(std::move(backend)),
        backend_(shared_backend(backend_name_, kThreads)),
        dtype_(dtype),
        mutant_(std::move(mutant)),
        region_(backend_.allocate(Space::device, kRegionBytes)) {}

  DType dtype() const { return dtype_; }
  // Of the backend's products with operands of dtype().
  oracle::Adding adding() const {
    return backend_name_.starts_with("cuda") && dtype_ != DType::f32 ? oracle::Adding::truncated
                                                                     : oracle::Adding::rounded;
  }
  const Target& target() const { return backend_.target(); }
  // As the planner places a packed weight on this backend.
  PackedLayout layout_for(std::int64_t N, std::int64_t K) const {
    return packed_layout(FormatId::nf4, N, K, target());
  }
  bool mutating() const { return !mutant_.empty(); }
  bool is(std::string_view mutant) const { return mutant_ == mutant; }
  double worst() const { return worst_; }

  // Begins another shape with empty memory. False when a mutant is already caught: the rest would only cost
  // time.
  bool next(std::string label) {
    if (mutating() && worst_ > 1) return false;
    label_ = std::move(label);
    buffers_.clear();
    used_ = 0;
    random_.seed(kSeed);
    return true;
  }

  // ---- numbers, the same on every run ----

  // Rounded to the dtype already, so that no test counts the rounding of its own inputs.
  std::vector<double> normal(std::size_t n, double stddev = 1, double mean = 0) {
    return normal_as(dtype_, n, stddev, mean);
  }
  std::vector<double> normal_as(DType dtype, std::size_t n, double stddev = 1, double mean = 0) {
    std::normal_distribution<double> draw(mean, stddev);
    std::vector<double> x(n);
    for (double& v : x) v = oracle::round_to(draw(random_), dtype);
    return x;
  }
  std::vector<std::int32_t> integers(std::size_t n, std::int32_t below) {
    std::vector<std::int32_t> x(n);
    for (auto& v : x) v = static_cast<std::int32_t>(random_() % static_cast<std::uint64_t>(below));
    return x;
  }

  // Sizes over 40 binary orders of magnitude, so that sums in double round too.
  std::vector<double> spread(std::size_t n) {
    std::vector<double> x = normal(n);
    for (double& v : x) v = std::ldexp(v, -static_cast<int>(random_() % 40));
    return x;
  }

  // ---- buffers ----

  TensorView in(std::span<const double> x, Shape shape) { return in(x, shape, dtype_); }
  TensorView in(std::span<const double> x, Shape shape, DType dtype) {
    return filled(x, shape, dtype, Kind::in, 0);
  }
  TensorView in(std::span<const std::int32_t> x, Shape shape) {
    return raw(std::as_bytes(x), shape, DType::i32, Kind::in);
  }
  TensorView in_bytes(std::span<const std::uint8_t> x) {
    return raw(std::as_bytes(x), {static_cast<std::int64_t>(x.size())}, DType::u8, Kind::in);
  }
  TensorView in_pitched(std::span<const double> x, Shape shape, DType dtype, std::int64_t pitch) {
    return filled(x, shape, dtype, Kind::in, pitch);
  }
  TensorView inout(std::span<const double> x, Shape shape) { return inout(x, shape, dtype_); }
  TensorView inout(std::span<const double> x, Shape shape, DType dtype, std::int64_t pitch = 0) {
    return filled(x, shape, dtype, Kind::inout, pitch);
  }
  TensorView inout_bytes(std::span<const std::uint8_t> x) {
    return raw(std::as_bytes(x), {static_cast<std::int64_t>(x.size())}, DType::u8, Kind::inout);
  }
  TensorView out(Shape shape) { return out(shape, dtype_); }
  TensorView out(Shape shape, DType dtype, std::int64_t pitch = 0) {
    return place(shape, dtype, Kind::out, pitch);
  }
  // Exactly what the op asks for; undefined for 0 bytes. To be called when the other fields of op are set.
  template <class Op>
  TensorView scratch_for(const Op& op) {
    const std::int64_t bytes = scratch_bytes(op, backend_.target());
    return bytes == 0 ? TensorView() : place({bytes}, DType::u8, Kind::scratch, 0);
  }

  // ---- running ----

  // Runs the op as often as the list at the top says; leaves the memory of the first run to values() and
  // expect().
  template <class Op>
  void run(const Op& op) {
    op_name_ = Op::kName;
    after_ = run_once(op, backend_, 0xFF);
    expect_fences();
    if (mutating()) return;
    expect_same_bits(run_once(op, backend_, 0x7B), "a second run on other rubbish");
#ifdef QTRAIN_TEST_SIM
    if (is_sim(backend_name_)) {
      const sim::ReversedOrder reversed;
      expect_same_bits(run_once(op, backend_, 0xFF), "the descending order of blocks and threads");
      // The simulator's memory is the host's; the cpu asks for no more scratch than a card.
      if (kExactOp<Op> && runs_on_cpu(op))
        expect_same_bits(run_once(op, shared_backend("cpu", 1), 0xFF), "the cpu backend");
    }
#endif
    // Memory of the cpu is everyone's memory.
    if (backend_name_ != "cpu") return;
    for (const int threads : {1, 3}) {
      expect_same_bits(run_once(op, shared_backend(backend_name_, threads), 0xFF),
                       fmt::format("{} threads", threads));
    }
  }

  std::vector<double> values(const TensorView& view) const {
    std::vector<double> x;
    for (std::int64_t r = 0; r < view.dim(0); ++r) {
      for (std::int64_t i = 0; i < view.row_elems(); ++i) x.push_back(value_at(view, r * view.pitch + i));
    }
    return x;
  }
  std::vector<std::byte> bits(const TensorView& view) const {
    const std::byte* begin = after_.data() + offset_of(view);
    return {begin, begin + view.bytes()};
  }
  std::vector<std::uint8_t> codes(const TensorView& view) const {
    const auto* begin = reinterpret_cast<const std::uint8_t*>(after_.data()) + offset_of(view);
    return {begin, begin + view.bytes()};
  }

  // Every element within its bound.
  void expect(const char* field, const TensorView& got, std::span<const Tracked> want) {
    std::vector<double> bounds, expected;
    for (const Tracked& w : want) {
      expected.push_back(w.value);
      bounds.push_back(w.error);
    }
    expect(field, got, expected, bounds);
  }
  // Every element equal.
  void expect_exact(const char* field, const TensorView& got, std::span<const double> want) {
    expect(field, got, want, std::vector<double>(want.size()));
  }
  void expect(const char* field, const TensorView& got, std::span<const double> want,
              std::span<const double> bounds) {
    const std::vector<double> have = values(got);
    ASSERT_EQ(have.size(), want.size()) << op_name_ << "." << field << " " << label_;
    Ratio worst;
    for (std::size_t i = 0; i < have.size(); ++i) {
      // A mutant is caught by a number that is wrong, not by an oracle that broke down.
      if (mutating() && (std::isnan(want[i]) || !std::isfinite(bounds[i]))) continue;
      worst.take(have[i], want[i], bounds[i], i);
    }
    note(field, worst);
  }
  // For what is no number within a bound: codes, flags.
  void expect_true(const char* field, bool ok, const std::string& what) {
    Ratio ratio;
    ratio.take(ok ? 0 : 1, 0, 0, 0);
    worst_ = std::max(worst_, ratio.worst);
    if (mutating()) return;
    RatioTable::instance().add(op_name_, field, dtype_, ratio);
    EXPECT_TRUE(ok) << op_name_ << "." << field << " " << label_ << ": " << what;
  }

 private:
  enum class Kind : std::uint8_t { in, inout, out, scratch };
  struct Buffer {
    TensorView view;
    std::int64_t offset;
    Kind kind;
  };

  static constexpr int kThreads = 2;
  static constexpr std::int64_t kRegionBytes = 64 << 20;
  static constexpr std::int64_t kFenceBytes = 64 * 4;
  static constexpr std::int64_t kAlignBytes = 256;
  static constexpr std::uint32_t kFence =
      0xFFF7FFF5u;  // NaN as f32, as two bf16 and as two f16, negative as i32
  static constexpr unsigned kSeed = 20;

  TensorView place(Shape shape, DType dtype, Kind kind, std::int64_t pitch) {
    const std::int64_t begin = used_ + kFenceBytes;
    TensorView view(region_->base() + begin, dtype, shape);
    if (pitch != 0) view.pitch = pitch;
    const std::int64_t bytes =
        (view.dim(0) - 1) * view.pitch * dtype_bytes(dtype) + view.row_elems() * dtype_bytes(dtype);
    const std::int64_t end = begin + bytes + kFenceBytes;
    const std::int64_t total = (end + kAlignBytes - 1) / kAlignBytes * kAlignBytes;
    QT_CHECK(total <= kRegionBytes, ShapeError, "the test region is full");
    image_.resize(static_cast<std::size_t>(total));
    writable_.resize(static_cast<std::size_t>(total));
    for (std::int64_t i = used_; i < total; ++i) {
      image_[static_cast<std::size_t>(i)] = static_cast<std::byte>(kFence >> (8 * (i % 4)));
    }
    std::fill(writable_.begin() + used_, writable_.end(), std::uint8_t{0});
    if (kind != Kind::in) {
      for (std::int64_t r = 0; r < view.dim(0); ++r) {
        const auto row = writable_.begin() + begin + r * view.pitch * dtype_bytes(dtype);
        std::fill(row, row + view.row_elems() * dtype_bytes(dtype),
                  kind == Kind::scratch ? kScratch : kResult);
      }
    }
    buffers_.push_back({view, begin, kind});
    used_ = total;
    return view;
  }

  TensorView filled(std::span<const double> x, Shape shape, DType dtype, Kind kind, std::int64_t pitch) {
    const TensorView view = place(shape, dtype, kind, pitch);
    QT_CHECK(static_cast<std::int64_t>(x.size()) == view.elems(), ShapeError, "{} values for {}", x.size(),
             view.shape());
    for (std::int64_t i = 0; i < view.elems(); ++i) {
      const std::int64_t at = (i / view.row_elems()) * view.pitch + i % view.row_elems();
      std::byte* to = image_.data() + buffers_.back().offset + at * dtype_bytes(dtype);
      const double v = x[static_cast<std::size_t>(i)];
      if (dtype == DType::f32) put(to, static_cast<float>(v));
      if (dtype == DType::bf16) put(to, to_bf16(static_cast<float>(v)));
      if (dtype == DType::f16) put(to, to_f16(static_cast<float>(v)));
      if (dtype == DType::f64) put(to, v);
    }
    return view;
  }

  TensorView raw(std::span<const std::byte> x, Shape shape, DType dtype, Kind kind) {
    const TensorView view = place(shape, dtype, kind, 0);
    QT_CHECK(static_cast<std::int64_t>(x.size()) == view.bytes(), ShapeError, "{} bytes for {}", x.size(),
             view.shape());
    std::copy(x.begin(), x.end(), image_.begin() + buffers_.back().offset);
    return view;
  }

  template <class T>
  static void put(std::byte* to, T value) {
    std::memcpy(to, &value, sizeof value);
  }

  template <class Op>
  std::vector<std::byte> run_once(const Op& op, Backend& backend, unsigned char rubbish) {
    for (const Buffer& b : buffers_) {
      if (b.kind != Kind::out && b.kind != Kind::scratch) continue;
      for (std::int64_t r = 0; r < b.view.dim(0); ++r) {
        const auto row = image_.begin() + b.offset + r * b.view.pitch * dtype_bytes(b.view.dtype);
        std::fill(row, row + b.view.row_elems() * dtype_bytes(b.view.dtype), std::byte{rubbish});
      }
    }
    const TensorView all(region_->base(), DType::u8, {used_});
    backend.upload(std::span(image_).first(static_cast<std::size_t>(used_)), all);
    backend.run(op);
    std::vector<std::byte> after(static_cast<std::size_t>(used_));
    backend.download(all, after);
    return after;
  }

  // Whatever is not an output's own must be as it was.
  void expect_fences() {
    for (std::size_t i = 0; i < after_.size(); ++i) {
      if (writable_[i] != 0 || after_[i] == image_[i]) continue;
      ADD_FAILURE() << op_name_ << " " << label_ << " wrote " << where(static_cast<std::int64_t>(i));
      return;
    }
  }

  void expect_same_bits(const std::vector<std::byte>& again, const std::string& when) {
    for (std::size_t i = 0; i < after_.size(); ++i) {
      if (writable_[i] != kResult || after_[i] == again[i]) continue;
      ADD_FAILURE() << op_name_ << " " << label_ << ": " << when << " gave other bits, "
                    << where(static_cast<std::int64_t>(i));
      return;
    }
  }

  std::string where(std::int64_t offset) const {
    std::size_t last = 0;
    for (std::size_t b = 0; b < buffers_.size(); ++b) {
      if (buffers_[b].offset - kFenceBytes <= offset) last = b;
    }
    return fmt::format("at byte {} of buffer {} ({}, allocated in this order)",
                       offset - buffers_[last].offset, last, buffers_[last].view.shape());
  }

  std::int64_t offset_of(const TensorView& view) const { return view.data - region_->base(); }

  double value_at(const TensorView& view, std::int64_t at) const {
    const std::byte* from = after_.data() + offset_of(view) + at * dtype_bytes(view.dtype);
    const auto get = [&]<class T>(T value) {
      std::memcpy(&value, from, sizeof value);
      return value;
    };
    switch (view.dtype) {
      case DType::f32: return static_cast<double>(get(float{}));
      case DType::bf16: return static_cast<double>(to_float(get(bf16{})));
      case DType::f16: return static_cast<double>(to_float(get(f16{})));
      case DType::f64: return get(double{});
      case DType::u8: return get(std::uint8_t{});
      case DType::i32: return get(std::int32_t{});
      case DType::i64: return static_cast<double>(get(std::int64_t{}));
    }
    return 0;
  }

  void note(const char* field, const Ratio& ratio) {
    worst_ = std::max(worst_, ratio.worst);
    if (mutating()) return;
    RatioTable::instance().add(op_name_, field, dtype_, ratio);
    EXPECT_LE(ratio.worst, 1) << op_name_ << "." << field << " " << dtype_name(dtype_) << " " << label_
                              << ": " << ratio.text();
  }

  static constexpr std::uint8_t kResult = 1, kScratch = 2;

  std::string backend_name_;
  Backend& backend_;
  DType dtype_;
  std::string mutant_;
  std::unique_ptr<MemoryRegion> region_;
  std::vector<Buffer> buffers_;
  std::int64_t used_ = 0;
  std::vector<std::byte> image_;        // what the memory holds before a run
  std::vector<std::uint8_t> writable_;  // 0: no op writes it, kResult, kScratch
  std::vector<std::byte> after_;
  std::mt19937_64 random_{kSeed};
  std::string label_, op_name_;
  double worst_ = 0;
};

}  // namespace qt::test
