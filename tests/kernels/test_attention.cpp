// Proofs of attention, forward and backward, and the figures of its cost. Legend: B rows, Tq queries and Tk
// keys of a row, H query heads, G key heads, D head width.
#include <cmath>
#include <span>

#include "tests/oracle/attention.h"
#include "tests/support/proofs.h"
#include "tests/support/shifted.h"

#ifdef QTRAIN_TEST_SIM
#include "kernels/sim/sim.h"
#endif

namespace qt::test {
namespace {

using oracle::AttentionShape;
using std::size_t;

struct Sizes {
  std::int64_t B, Tq, Tk, H, G, D;
  std::string text() const { return fmt::format("B={} Tq={} Tk={} H={} G={} D={}", B, Tq, Tk, H, G, D); }
};

// Single tokens, lengths just beyond tiles of 64 and 128, all group sizes, head widths off every vector
// width, and decoding, with fewer queries than keys. Then the edges of tiles of 32, 64 and 128 at the head
// widths that models have, and widths that leave a tile of columns with one column or need two of them.
const std::vector<Sizes> kForwardSizes = {
    {1, 1, 1, 1, 1, 2},      {2, 7, 7, 4, 2, 16},     {1, 65, 65, 4, 1, 48},    {2, 1, 5, 4, 2, 16},
    {1, 1, 131, 2, 1, 64},   {2, 3, 70, 4, 1, 24},    {1, 66, 130, 2, 2, 8},    {2, 17, 17, 2, 2, 64},
    {1, 130, 130, 2, 1, 32}, {1, 33, 33, 2, 1, 128},  {1, 9, 9, 4, 4, 6},       {1, 19, 19, 3, 3, 20},
    {2, 18, 18, 2, 2, 80},   {2, 12, 12, 12, 12, 48}, {1, 130, 130, 2, 1, 128}, {1, 65, 65, 4, 2, 96},
    {1, 129, 129, 2, 1, 64}, {1, 34, 101, 2, 1, 128}, {1, 40, 40, 1, 1, 136},   {1, 34, 34, 2, 1, 1}};

constexpr std::int64_t kFirstRow = 3;
const RngStream kStream{.seed = 0x1234567890ull, .purpose = RngPurpose::dropout, .stream = 11};

// Draw (((row H + head) T + query) ceil4(T) + key of the stream, ceil4 the next multiple of four: dropped
// where draw / 2^32 is below the rate.
std::vector<double> dropout_factors(const Case& t, const Sizes& s, float rate) {
  std::vector<double> factors;
  if (rate == 0 || t.is("dropout is forgotten")) return factors;
  const double scale = oracle::round_to(1 / (1 - static_cast<double>(rate)), DType::f32);
  for (std::int64_t b = 0; b < s.B; ++b) {
    for (std::int64_t h = 0; h < s.H; ++h) {
      for (std::int64_t i = 0; i < s.Tq; ++i) {
        for (std::int64_t j = 0; j < s.Tk; ++j) {
          const std::int64_t row = b + (t.is("first_row is ignored") ? 0 : kFirstRow);
          const std::int64_t head = t.is("every head has the same mask") ? 0 : h;
          const std::int64_t at = ((row * s.H + head) * s.Tq + i) * ((s.Tk + 3) / 4 * 4) + j;
          const double draw = static_cast<double>(rng_u32(kStream, static_cast<std::uint64_t>(at)));
          const bool drops = draw * 0x1p-32 < static_cast<double>(rate);
          factors.push_back(drops ? 0 : t.is("kept probabilities are not scaled") ? 1 : scale);
        }
      }
    }
  }
  return factors;
}

AttentionShape oracle_shape(const Case& t, const Sizes& s, double scale) {
  const auto size = [](std::int64_t n) { return static_cast<size_t>(n); };
  return {.B = size(s.B),
          .Tq = size(s.Tq),
          .Tk = size(s.Tk),
          .H = size(s.H),
          .G = size(s.G),
          .D = size(s.D),
          .scale = t.is("scale is dropped") ? 1.0 : scale,
          .dtype = t.dtype(),
          .adding = t.adding(),
          .dropout = {},
          .mask_off_by_one = t.is("the mask is off by one"),
          .heads_interleaved = t.is("query head h reads key head h modulo G"),
          .queries_at_start = t.is("queries stand at the start of the keys")};
}

std::vector<Tracked> tracked(std::span<const double> x) { return {x.begin(), x.end()}; }

std::vector<double> rounded(std::span<const Tracked> x, DType dtype) {
  std::vector<double> y;
  for (const Tracked& v : x) y.push_back(oracle::round_to(v.value, dtype));
  return y;
}

// A scale that is no power of two, exact as the f32 that the op takes.
float scale_of(const Sizes& s) { return static_cast<float>(1 / std::sqrt(static_cast<double>(s.D) + 1)); }

void attention_fwd(Case& t) {
  for (const Sizes& s : kForwardSizes) {
    // Peaked rows as trained heads have them: scores up to about 20, which a softmax without its maximum
    // would not bear in the other direction either.
    struct Kind {
      double sharpness;
      float dropout;
    };
    for (const auto [sharpness, dropout] : {Kind{1, 0}, Kind{5, 0}, Kind{1, 0.25f}}) {
      if (dropout != 0 && s.Tq != s.Tk) continue;
      if (!t.next(fmt::format("{} sharpness={} dropout={}", s.text(), sharpness, dropout))) return;
      const auto q = t.normal(static_cast<size_t>(s.B * s.Tq * s.H * s.D), sharpness);
      const auto k = t.normal(static_cast<size_t>(s.B * s.Tk * s.G * s.D)), v = t.normal(k.size());
      AttentionFwd op{.q = t.in(q, {s.B, s.Tq, s.H, s.D}),
                      .k = t.in(k, {s.B, s.Tk, s.G, s.D}),
                      .v = t.in(v, {s.B, s.Tk, s.G, s.D}),
                      .y = t.out({s.B, s.Tq, s.H, s.D}),
                      .lse = t.out({s.B, s.H, s.Tq}, DType::f32),
                      .scale = scale_of(s),
                      .dropout = dropout,
                      .rng = kStream,
                      .first_row = kFirstRow};
      op.scratch = t.scratch_for(op);
      t.run(op);
      AttentionShape shape = oracle_shape(t, s, static_cast<double>(op.scale));
      shape.dropout = dropout_factors(t, s, dropout);
      const auto want = oracle::attention<Tracked>(shape, tracked(q), tracked(k), tracked(v));
      t.expect("y", op.y, want.y);
      t.expect("lse", op.lse, want.lse);
    }
  }
}

void attention_bwd(Case& t) {
  for (const Sizes& s : kForwardSizes) {
    for (const float dropout : {0.0f, 0.25f}) {
      if (s.Tq != s.Tk) continue;
      if (!t.next(fmt::format("{} dropout={}", s.text(), dropout))) return;
      const auto q = t.normal(static_cast<size_t>(s.B * s.Tq * s.H * s.D), 2), dy = t.normal(q.size());
      const auto k = t.normal(static_cast<size_t>(s.B * s.Tk * s.G * s.D)), v = t.normal(k.size());
      const float scale = scale_of(s);
      AttentionShape right = oracle_shape(t, s, static_cast<double>(scale));
      right.mask_off_by_one = right.heads_interleaved = false;
      right.scale = static_cast<double>(scale);
      right.dropout = dropout_factors(t, s, dropout);
      const auto forward = oracle::attention<Tracked>(right, tracked(q), tracked(k), tracked(v));
      const auto y = rounded(forward.y, t.dtype()), lse = rounded(forward.lse, DType::f32);

      AttentionBwd op{.q = t.in(q, {s.B, s.Tq, s.H, s.D}),
                      .k = t.in(k, {s.B, s.Tk, s.G, s.D}),
                      .v = t.in(v, {s.B, s.Tk, s.G, s.D}),
                      .y = t.in(y, {s.B, s.Tq, s.H, s.D}),
                      .lse = t.in(lse, {s.B, s.H, s.Tq}, DType::f32),
                      .dy = t.in(dy, {s.B, s.Tq, s.H, s.D}),
                      .dq = t.out({s.B, s.Tq, s.H, s.D}),
                      .dk = t.out({s.B, s.Tk, s.G, s.D}),
                      .dv = t.out({s.B, s.Tk, s.G, s.D}),
                      .scale = scale,
                      .dropout = dropout,
                      .rng = kStream,
                      .first_row = kFirstRow};
      op.scratch = t.scratch_for(op);
      t.run(op);

      AttentionShape shape = oracle_shape(t, s, static_cast<double>(scale));
      shape.dropout = right.dropout;
      const auto want = oracle::attention_backward<Tracked>(
          shape, tracked(q), tracked(k), tracked(v), tracked(y), tracked(lse), tracked(dy),
          !t.is("delta is dropped"), !t.is("ds is not scaled"));
      t.expect("dq", op.dq, want.dq);
      t.expect("dk", op.dk, want.dk);
      t.expect("dv", op.dv, want.dv);
    }
  }
}

const Proves kForward({"attention_fwd",
                       kFloats,
                       {"scale is dropped", "the mask is off by one",
                        "query head h reads key head h modulo G", "queries stand at the start of the keys",
                        "dropout is forgotten", "every head has the same mask", "first_row is ignored",
                        "kept probabilities are not scaled"},
                       attention_fwd});
const Proves kBackward({"attention_bwd",
                        kFloats,
                        {"scale is dropped", "the mask is off by one",
                         "query head h reads key head h modulo G", "delta is dropped", "ds is not scaled",
                         "dropout is forgotten", "every head has the same mask", "first_row is ignored",
                         "kept probabilities are not scaled"},
                        attention_bwd});

// ---- addresses ----

// Heads that tensor cores would take, were they not at odd addresses: other kernels read those, in another
// order of sums.
const std::vector<Sizes> kOddlyPlaced = {{2, 7, 7, 4, 2, 16}, {1, 34, 34, 2, 1, 128}, {1, 65, 65, 2, 2, 64}};

void attention_at_odd_addresses(Case& t, bool backward) {
  for (const Sizes& s : kOddlyPlaced) {
    if (!t.next(s.text() + " at odd addresses")) return;
    Shifted odd(t, 1);
    const std::int64_t queries = s.B * s.Tq * s.H * s.D, keys = s.B * s.Tk * s.G * s.D;
    const auto q = t.normal(static_cast<size_t>(queries)), dy = t.normal(q.size());
    const auto k = t.normal(static_cast<size_t>(keys)), v = t.normal(k.size());
    const float scale = scale_of(s);
    AttentionShape shape = oracle_shape(t, s, static_cast<double>(scale));
    shape.adding = oracle::Adding::rounded;  // not by tensor cores
    AttentionShape right = shape;            // what the op is given is no mistake of the oracle's
    if (backward) right.mask_off_by_one = right.heads_interleaved = false;
    const auto forward = oracle::attention<Tracked>(right, tracked(q), tracked(k), tracked(v));
    const auto q_in = odd.in(q, {s.B, s.Tq, s.H, s.D}, t.dtype());
    const auto k_in = odd.in(k, {s.B, s.Tk, s.G, s.D}, t.dtype());
    const auto v_in = odd.in(v, {s.B, s.Tk, s.G, s.D}, t.dtype());
    if (!backward) {
      const AttentionFwd op{.q = q_in,
                            .k = k_in,
                            .v = v_in,
                            .y = odd.out(queries, {s.B, s.Tq, s.H, s.D}, t.dtype()),
                            .lse = t.out({s.B, s.H, s.Tq}, DType::f32),
                            .scale = scale};
      t.run(op);
      t.expect("y", op.y, forward.y);
      t.expect("lse", op.lse, forward.lse);
      continue;
    }
    const auto y = rounded(forward.y, t.dtype()), lse = rounded(forward.lse, DType::f32);
    AttentionBwd op{.q = q_in,
                    .k = k_in,
                    .v = v_in,
                    .y = odd.in(y, {s.B, s.Tq, s.H, s.D}, t.dtype()),
                    .lse = t.in(lse, {s.B, s.H, s.Tq}, DType::f32),
                    .dy = odd.in(dy, {s.B, s.Tq, s.H, s.D}, t.dtype()),
                    .dq = odd.out(queries, {s.B, s.Tq, s.H, s.D}, t.dtype()),
                    .dk = odd.out(keys, {s.B, s.Tk, s.G, s.D}, t.dtype()),
                    .dv = odd.out(keys, {s.B, s.Tk, s.G, s.D}, t.dtype()),
                    .scale = scale};
    op.scratch = t.scratch_for(op);
    t.run(op);
    const auto want =
        oracle::attention_backward<Tracked>(shape, tracked(q), tracked(k), tracked(v), tracked(y),
                                            tracked(lse), tracked(dy), !t.is("delta is dropped"), true);
    t.expect("dq", op.dq, want.dq);
    t.expect("dk", op.dk, want.dk);
    t.expect("dv", op.dv, want.dv);
  }
}

const Proves kForwardOdd({"attention_fwd",
                          {DType::bf16, DType::f16},
                          {"the mask is off by one", "query head h reads key head h modulo G"},
                          [](Case& t) { attention_at_odd_addresses(t, false); },
                          "_at_odd_addresses"});
const Proves kBackwardOdd({"attention_bwd",
                           {DType::bf16, DType::f16},
                           {"the mask is off by one", "delta is dropped"},
                           [](Case& t) { attention_at_odd_addresses(t, true); },
                           "_at_odd_addresses"});

// ---- what the kernels of a card do to its memory ----

#ifdef QTRAIN_TEST_SIM

// A forward and a backward pass of two tiles of everything.
void run_both(Case& t, const Sizes& s) {
  t.next(s.text());
  const auto elems = [&](std::int64_t heads) { return static_cast<size_t>(s.B * s.Tq * heads * s.D); };
  const auto q = t.normal(elems(s.H)), k = t.normal(elems(s.G));
  const std::vector<double> lse(static_cast<size_t>(s.B * s.H * s.Tq), 8);
  const auto queries = [&] { return t.in(q, {s.B, s.Tq, s.H, s.D}); };
  const auto keys = [&] { return t.in(k, {s.B, s.Tk, s.G, s.D}); };
  t.run(AttentionFwd{.q = queries(),
                     .k = keys(),
                     .v = keys(),
                     .y = t.out({s.B, s.Tq, s.H, s.D}),
                     .lse = t.out({s.B, s.H, s.Tq}, DType::f32),
                     .dropout = 0.25f,
                     .rng = kStream});
  t.next(s.text());
  AttentionBwd op{.q = queries(),
                  .k = keys(),
                  .v = keys(),
                  .y = queries(),
                  .lse = t.in(lse, {s.B, s.H, s.Tq}, DType::f32),
                  .dy = queries(),
                  .dq = t.out({s.B, s.Tq, s.H, s.D}),
                  .dk = t.out({s.B, s.Tk, s.G, s.D}),
                  .dv = t.out({s.B, s.Tk, s.G, s.D}),
                  .dropout = 0.25f,
                  .rng = kStream};
  op.scratch = t.scratch_for(op);
  t.run(op);
}

TEST(AttentionKernels, MeetNoBankConflicts) {
  for (const DType dtype : {DType::bf16, DType::f32}) {
    for (const std::int64_t D : {64, 96, 128}) {
      Case t("sim", dtype);
      const sim::BankCounter banks;
      run_both(t, {.B = 1, .Tq = 66, .Tk = 66, .H = 1, .G = 1, .D = D});
      EXPECT_GT(banks.sites().size(), 5u);
      for (const sim::BankSite& site : banks.sites()) {
        EXPECT_GT(site.accesses, 0);
        EXPECT_EQ(site.conflicts(), 0) << site.place << " with " << dtype_name(dtype) << ", D = " << D;
      }
    }
  }
}

// Every kernel of these ops, for the dtypes and shapes that choose it.
TEST(AttentionKernels, AreChosenByDtypeAndHeadWidth) {
  struct Choice {
    DType dtype;
    std::int64_t D;
    bool tensor_cores;
  };
  for (const auto [dtype, D, tensor_cores] :
       {Choice{DType::bf16, 64, true}, Choice{DType::f16, 128, true}, Choice{DType::f16, 8, true},
        Choice{DType::f32, 64, false}, Choice{DType::bf16, 20, false}, Choice{DType::bf16, 136, false}}) {
    auto before = sim::launch_counts();
    Case t("sim", dtype);
    run_both(t, {.B = 1, .Tq = 3, .Tk = 3, .H = 1, .G = 1, .D = D});
    const auto launched = [&](const std::string& kernel) {
      const auto& now = sim::launch_counts();
      return now.contains(kernel) && now.at(kernel) > before[kernel];
    };
    EXPECT_TRUE(launched("attention_delta_kernel"));
    for (const std::string kernel : {"attention_fwd", "attention_bwd_query", "attention_bwd_key"}) {
      EXPECT_EQ(launched(kernel + "_kernel"), tensor_cores) << kernel << ", D = " << D;
      EXPECT_EQ(launched(kernel + "_simt_kernel"), !tensor_cores) << kernel << ", D = " << D;
    }
  }
}

#endif

// ---- figures ----

TensorView shape_only(Shape shape) { return TensorView(reinterpret_cast<void*>(4096), DType::bf16, shape); }

// nanochat: 12 H D T per token and layer over forward and backward, the full square.
TEST(AttentionCost, ModelFlopsAreTwelveTimesHeadsWidthAndLengthPerToken) {
  const std::int64_t B = 2, T = 128, H = 6, D = 64, G = 3;
  const TensorView q = shape_only({B, T, H, D}), k = shape_only({B, T, G, D});
  const Cost forward = AttentionFwd{.q = q, .k = k, .v = k, .y = q}.cost();
  const Cost backward =
      AttentionBwd{.q = q, .k = k, .v = k, .y = q, .dy = q, .dq = q, .dk = k, .dv = k}.cost();
  const double tokens = static_cast<double>(B * T);
  EXPECT_EQ(forward.model_flops + backward.model_flops, 12.0 * static_cast<double>(H * D * T) * tokens);
}

// Two products forward, seven backward, over the pairs that the mask leaves.
TEST(AttentionCost, ExecutedFlopsCountNineProductsOverVisiblePairs) {
  const std::int64_t B = 2, T = 10, H = 6, D = 64;
  const TensorView q = shape_only({B, T, H, D});
  const double pairs = 55;  // 10 + 9 + ... + 1
  const double product = 2.0 * pairs * static_cast<double>(B * H * D);
  EXPECT_EQ((AttentionFwd{.q = q, .k = q, .v = q, .y = q}.cost().executed_flops), 2 * product);
  EXPECT_EQ((AttentionBwd{.q = q, .k = q, .v = q, .y = q, .dy = q, .dq = q, .dk = q, .dv = q}
                 .cost()
                 .executed_flops),
            7 * product);
  // One query behind nine keys of a cache sees all ten.
  EXPECT_EQ((AttentionFwd{.q = shape_only({B, 1, H, D}), .k = q, .v = q, .y = q}.cost().executed_flops),
            2.0 * 2 * 10 * static_cast<double>(B * H * D));
}

}  // namespace
}  // namespace qt::test
