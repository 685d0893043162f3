// Proofs of the elementwise ops and the embedding. Legend: N tokens, C width, F MLP width, V vocabulary.
#include <cmath>
#include <span>

#include "tests/oracle/norm.h"
#include "tests/support/proofs.h"

namespace qt::test {
namespace {

using std::size_t;

// Lengths around the widths of vectors (4, 8, 16 lanes), and one that is cut among threads.
const std::vector<std::int64_t> kLengths = {1, 3, 8, 15, 16, 17, 1000, kSanitized ? 70'001 : 200'003};

void fill(Case& t) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::u8, DType::i32}) {
    for (const std::int64_t n : {1, 37, 1000}) {
      if (!t.next(fmt::format("{} n={}", dtype_name(dtype), n))) return;
      const double value = dtype == DType::u8 ? 7 : dtype == DType::i32 ? -7 : 0.7;
      const TensorView x = t.out({n}, dtype);
      t.run(Fill{.x = x, .value = value});
      double want = dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16
                        ? oracle::round_to(value, dtype)
                        : value;
      if (t.is("the value loses its fraction")) want = std::trunc(want);
      if (t.is("the sign is lost")) want = std::abs(want);
      t.expect_exact("x", x, std::vector<double>(static_cast<size_t>(n), want));
    }
  }
}

// Values that rounding treats differently: ties to both sides, denormals, carries into the exponent,
// overflow, infinity.
const std::vector<double> kHardToRound = {
    0.0, -0.0, 1.0, 1 + 0x1p-8, 1 + 0x3p-8, 1 + 0x1p-8 + 0x1p-23, -1 - 0x1p-8, 2 - 0x1p-8, 2 - 0x1p-23,
    0x1p-126, 0x1p-133, 0x1p-134, 0x1.8p-134, 0x1p-149, 0x3p-134, -0x1.01p-126, 0x1.fep127, 0x1.fffffep127,
    INFINITY, -INFINITY, 3.14159274101257, -0x1.fffffep127,
    // The same for f16: 65520 is half way to what is not there.
    1 + 0x1p-11, 1 + 0x3p-11, 1 + 0x1p-11 + 0x1p-23, 2 - 0x1p-11, 65504, 65519.99609375, 65520, -65520,
    0x1p-14, 0x1p-14 - 0x1p-25, 0x1p-24, 0x1p-25, -0x1p-25, 0x1.8p-24, 0x1.000002p-25};

void cast(Case& t) {
  const DType from = t.dtype();
  for (const DType to : {DType::f32, DType::bf16, DType::f16}) {
    for (const std::int64_t n : kLengths) {
      if (!t.next(fmt::format("to {} n={}", dtype_name(to), n))) return;
      std::vector<double> x = t.normal(static_cast<size_t>(n));
      for (size_t i = 0; i < x.size() && i < kHardToRound.size(); ++i)
        x[x.size() - 1 - i] = oracle::round_to(kHardToRound[i], from);
      const TensorView y = t.out({n}, to);
      t.run(Cast{.x = t.in(x, {n}), .y = y});
      std::vector<double> want;
      for (const double v : x) {
        double w = oracle::round_to(v, to);
        if (t.is("results are cut off instead of rounded") && std::abs(w) > std::abs(v))
          w = oracle::round_to(v * (1 - 0x1p-8), to);
        if (t.is("widening loses the last bit")) w = oracle::round_to(w * (1 - 0x1p-7), DType::bf16);
        want.push_back(w);
      }
      t.expect_exact(fmt::format("y ({})", dtype_name(to)).c_str(), y, want);
    }
  }
}

// y = combine(a, b), element by element, also in place over either.
template <class Op, class Combine>
void pointwise(Case& t, Combine&& combine) {
  for (const std::int64_t n : kLengths) {
    if (!t.next(fmt::format("n={}", n))) return;
    const auto a = t.normal(static_cast<size_t>(n)), b = t.normal(static_cast<size_t>(n), 0.1);
    const TensorView y = t.out({n}), a_view = t.in(a, {n}), b_view = t.in(b, {n});
    t.run(Op{.a = a_view, .b = b_view, .y = y});
    std::vector<Tracked> want;
    for (size_t i = 0; i < a.size(); ++i) want.push_back(oracle::stored(combine(a[i], b[i]), t.dtype()));
    t.expect("y", y, want);
    if (t.mutating()) continue;

    const auto bits = t.bits(y);
    for (const bool over_a : {true, false}) {
      t.next(fmt::format("n={} in place over {}", n, over_a ? "a" : "b"));
      const TensorView in_place = t.inout(over_a ? a : b, {n}), other = t.in(over_a ? b : a, {n});
      t.run(Op{.a = over_a ? in_place : other, .b = over_a ? other : in_place, .y = in_place});
      EXPECT_EQ(t.bits(in_place), bits);
    }
  }
}

void add(Case& t) {
  pointwise<Add>(t, [&](double a, double b) {
    return t.is("b is subtracted") ? Tracked(a) - b : t.is("b is dropped") ? Tracked(a) : Tracked(a) + b;
  });
}

void multiply(Case& t) {
  pointwise<Multiply>(t, [&](double a, double b) {
    return Tracked(a) * (t.is("a is squared") ? a : t.is("b counts without its sign") ? std::abs(b) : b);
  });
}

void multiply_bwd(Case& t) {
  for (const std::int64_t n : kLengths) {
    if (!t.next(fmt::format("n={}", n))) return;
    const auto a = t.normal(static_cast<size_t>(n)), b = t.normal(static_cast<size_t>(n), 0.1),
               dy = t.normal(static_cast<size_t>(n));
    const TensorView da = t.out({n}), db = t.out({n});
    t.run(MultiplyBwd{.a = t.in(a, {n}), .b = t.in(b, {n}), .dy = t.in(dy, {n}), .da = da, .db = db});
    std::vector<Tracked> want_a, want_b;
    for (size_t i = 0; i < a.size(); ++i) {
      const bool swapped = t.is("a and b are exchanged");
      const double gradient = t.is("the gradient of the product is left out") ? 1.0 : dy[i];
      want_a.push_back(oracle::stored(Tracked(gradient) * (swapped ? a[i] : b[i]), t.dtype()));
      want_b.push_back(oracle::stored(Tracked(gradient) * (swapped ? b[i] : a[i]), t.dtype()));
    }
    t.expect("da", da, want_a);
    t.expect("db", db, want_b);
    if (t.mutating()) continue;

    const auto bits_a = t.bits(da), bits_b = t.bits(db);
    t.next(fmt::format("n={} over dy and b", n));
    const TensorView over_dy = t.inout(dy, {n}), over_b = t.inout(b, {n});
    t.run(MultiplyBwd{.a = t.in(a, {n}), .b = over_b, .dy = over_dy, .da = over_dy, .db = over_b});
    EXPECT_EQ(t.bits(over_dy), bits_a);
    EXPECT_EQ(t.bits(over_b), bits_b);
  }
}

// The quantile by bisection on erfc: slow, and unrelated to the rational functions that backends use.
double normal_quantile(double p) {
  const bool low = p < 0.5;
  const double tail = low ? p : 1 - p;  // exact: p has 24 bits
  double near = 0, far = 40;
  for (int i = 0; i < 100; ++i) {
    const double middle = (near + far) / 2;
    (std::erfc(middle / std::sqrt(2.0)) / 2 > tail ? near : far) = middle;
  }
  return low ? -near : near;
}

void init_normal(Case& t) {
  // Element 4,243,943 of no stream in particular: what matters are a whole tensor, a slab of one, and odd
  // starts.
  for (const std::int64_t first : {std::int64_t{0}, std::int64_t{5}, std::int64_t{1} << 33}) {
    for (const std::int64_t n : {std::int64_t{1}, std::int64_t{6}, std::int64_t{1003}}) {
      if (!t.next(fmt::format("first={} n={}", first, n))) return;
      const float stddev = 0.02f, constant = 0.5f;
      const RngStream rng{.seed = 0x123456789ull, .purpose = RngPurpose::init, .stream = 7};
      const TensorView x = t.out({n});
      t.run(InitNormal{.x = x, .stddev = stddev, .constant = constant, .rng = rng, .first_element = first});
      std::vector<Tracked> want;
      for (std::int64_t i = 0; i < n; ++i) {
        const auto element =
            static_cast<std::uint64_t>(t.is("slabs draw from the start of the stream") ? i : first + i);
        RngStream stream = rng;
        if (t.is("every tensor draws from one stream")) stream.stream = 0;
        const double z = normal_quantile(static_cast<double>(rng_unit(rng_u32(stream, element))));
        const double scale = t.is("the variance is given as stddev") ? std::sqrt(static_cast<double>(stddev))
                                                                     : static_cast<double>(stddev);
        // One rounding of the draw, and an ulp (two roundoffs) of freedom between backends.
        const Tracked draw = Tracked(z).rounded(3);
        const Tracked w = Tracked(scale) * draw +
                          Tracked(t.is("the constant is dropped") ? 0.0 : static_cast<double>(constant));
        want.push_back(oracle::stored(w, t.dtype()));
      }
      t.expect("x", x, want);
    }
  }
}

void relu2_fwd(Case& t) {
  for (const std::int64_t F : {1, 3, 24, 37, 1000, 8192}) {
    const std::int64_t N = F == 1000 ? 65 : 3;
    if (!t.next(fmt::format("N={} F={}", N, F))) return;
    auto x = t.normal(static_cast<size_t>(N * F));
    x[0] = 0;
    const TensorView y = t.out({N, F});
    t.run(Relu2Fwd{.x = t.in(x, {N, F}), .y = y});
    std::vector<Tracked> want;
    for (const double v : x) {
      Tracked w = oracle::relu2(Tracked(v));
      if (t.is("the square is left out")) w = oracle::positive_part(Tracked(v));
      if (t.is("negative inputs pass")) w = Tracked(v) * v;
      want.push_back(oracle::stored(w, t.dtype()));
    }
    t.expect("y", y, want);
  }
}

void relu2_bwd(Case& t) {
  for (const std::int64_t F : {1, 3, 24, 37, 1000, 8192}) {
    const std::int64_t N = F == 1000 ? 65 : 3;
    if (!t.next(fmt::format("N={} F={}", N, F))) return;
    auto x = t.normal(static_cast<size_t>(N * F));
    x[0] = 0;
    const auto dy = t.normal(x.size());
    const TensorView dx = t.out({N, F});
    t.run(Relu2Bwd{.x = t.in(x, {N, F}), .dy = t.in(dy, {N, F}), .dx = dx});
    std::vector<Tracked> want;
    for (size_t i = 0; i < x.size(); ++i) {
      Tracked w = oracle::relu2_backward(Tracked(x[i]), Tracked(dy[i]));
      if (t.is("the factor 2 is left out")) w = oracle::positive_part(Tracked(x[i])) * dy[i];
      if (t.is("gradients pass below zero")) w = Tracked(2.0) * x[i] * dy[i];
      want.push_back(oracle::stored(w, t.dtype()));
    }
    t.expect("dx", dx, want);
    if (t.mutating()) continue;

    const auto bits = t.bits(dx);
    t.next(fmt::format("N={} F={} over dy", N, F));
    const TensorView in_place = t.inout(dy, {N, F});
    t.run(Relu2Bwd{.x = t.in(x, {N, F}), .dy = in_place, .dx = in_place});
    EXPECT_EQ(t.bits(in_place), bits);
  }
}

struct Lookup {
  std::int64_t N, V, C;
};
const std::vector<Lookup> kLookups = {{1, 1, 1}, {7, 5, 3}, {65, 9, 24}, {130, 97, 37}, {3, 4099, 1000}};

void embedding_fwd(Case& t) {
  for (const auto [N, V, C] : kLookups) {
    if (!t.next(fmt::format("N={} V={} C={}", N, V, C))) return;
    const auto table = t.normal(static_cast<size_t>(V * C));
    auto ids = t.integers(static_cast<size_t>(N), static_cast<std::int32_t>(V));
    ids.back() = static_cast<std::int32_t>(V - 1);
    const TensorView y = t.out({N, C});
    t.run(EmbeddingFwd{.ids = t.in(ids, {N}), .table = t.in(table, {V, C}), .y = y});
    if (t.is("ids count from one")) {
      for (auto& id : ids) id = std::max(0, id - 1);
    }
    if (t.is("every token reads the first id")) std::fill(ids.begin(), ids.end(), ids[0]);
    t.expect_exact("y", y, oracle::embedding<double>(ids, table, static_cast<size_t>(C)));
  }
}

// Frequent ids are summed by another kernel than rare ones, with other edges: the first shape has ids at all
// lengths around its limits, the others a few long ones.
const std::vector<Lookup> kFrequent = {{646, 9, 24}, {700, 3, 136}, {201, 2, 37}};

// id i occurs counts[i] times, in turns.
std::vector<std::int32_t> interleaved(std::vector<int> counts) {
  std::vector<std::int32_t> ids;
  for (bool any = true; any;) {
    any = false;
    for (size_t id = 0; id < counts.size(); ++id) {
      if (counts[id]-- <= 0) continue;
      ids.push_back(static_cast<std::int32_t>(id));
      any = true;
    }
  }
  return ids;
}

void embedding_bwd(Case& t) {
  std::vector<Lookup> lookups = kLookups;
  lookups.insert(lookups.end(), kFrequent.begin(), kFrequent.end());
  for (const DType grad_dtype : kGradients) {
    if (t.dtype() == DType::f16 && grad_dtype != DType::f32) continue;
    for (const auto [N, V, C] : lookups) {
      if (!t.next(fmt::format("N={} V={} C={} into {}", N, V, C, dtype_name(grad_dtype)))) return;
      auto ids = t.integers(static_cast<size_t>(N), static_cast<std::int32_t>(V));
      if (N == 646) ids = interleaved({1, 2, 63, 64, 65, 66, 127, 128, 130});
      ids.back() = ids.front();  // one id twice, far apart
      auto dy = t.normal(static_cast<size_t>(N * C));
      auto before = t.normal_as(grad_dtype, static_cast<size_t>(V * C));
      const TensorView dtable = t.inout(before, {V, C}, grad_dtype);
      EmbeddingBwd op{.ids = t.in(ids, {N}), .dy = t.in(dy, {N, C}), .dtable = dtable};
      op.scratch = t.scratch_for(op);
      t.run(op);

      if (t.is("the table is overwritten")) std::fill(before.begin(), before.end(), 0.0);
      if (t.is("the last of equal ids wins")) {
        for (size_t n = 0; n < ids.size(); ++n) {
          const bool later =
              std::find(ids.begin() + static_cast<std::ptrdiff_t>(n) + 1, ids.end(), ids[n]) != ids.end();
          if (later) std::fill_n(dy.begin() + static_cast<std::ptrdiff_t>(n) * C, C, 0.0);
        }
      }
      const std::vector<Tracked> dy_T(dy.begin(), dy.end()), before_T(before.begin(), before.end());
      auto want = oracle::embedding_backward<Tracked>(ids, dy_T, before_T, static_cast<size_t>(C));
      for (size_t i = 0; i < want.size(); ++i) {
        const bool touched =
            std::find(ids.begin(), ids.end(), static_cast<int>(i / static_cast<size_t>(C))) != ids.end();
        if (touched) want[i] = oracle::stored(want[i], grad_dtype);  // rows of other ids keep their bits
      }
      t.expect(grad_dtype == DType::f32 ? "dtable f32" : "dtable bf16", dtable, want);
    }
  }
}

const Proves kFill({"fill", {DType::f32}, {"the value loses its fraction", "the sign is lost"}, fill});
const Proves kCastDown({"cast", {DType::f32}, {"results are cut off instead of rounded"}, cast});
const Proves kCastUp({"cast", {DType::bf16, DType::f16}, {"widening loses the last bit"}, cast});
const Proves kAdd({"add", kFloats, {"b is subtracted", "b is dropped"}, add});
const Proves kMultiply({"multiply", kFloats, {"a is squared", "b counts without its sign"}, multiply});
const Proves kMultiplyBwd({"multiply_bwd",
                           kFloats,
                           {"a and b are exchanged", "the gradient of the product is left out"},
                           multiply_bwd});
const Proves kInit({"init_normal",
                    {DType::f32, DType::bf16},
                    {"slabs draw from the start of the stream", "every tensor draws from one stream",
                     "the variance is given as stddev", "the constant is dropped"},
                    init_normal});
const Proves kRelu2({"relu2_fwd", kFloats, {"the square is left out", "negative inputs pass"}, relu2_fwd});
const Proves kRelu2Bwd(
    {"relu2_bwd", kFloats, {"the factor 2 is left out", "gradients pass below zero"}, relu2_bwd});
const Proves kEmbedding(
    {"embedding_fwd", kFloats, {"ids count from one", "every token reads the first id"}, embedding_fwd});
const Proves kEmbeddingBwd(
    {"embedding_bwd", kFloats, {"the table is overwritten", "the last of equal ids wins"}, embedding_bwd});

}  // namespace
}  // namespace qt::test
