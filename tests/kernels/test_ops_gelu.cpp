// Proofs of the exact GELU and of dropout. Legend: N tokens, F MLP width.
#include <cmath>
#include <span>

#include "tests/oracle/gelu.h"
#include "tests/support/proofs.h"

namespace qt::test {
namespace {

using std::size_t;

// Ordinary values, and a sweep from where the tail vanishes to where it is all.
std::vector<double> gelu_inputs(Case& t, std::int64_t n) {
  auto x = t.normal(static_cast<size_t>(n), 1.5);
  for (size_t i = 0; i < x.size(); i += 3)
    x[i] = oracle::round_to(-16 + 24 * static_cast<double>(i) / static_cast<double>(n), t.dtype());
  x[0] = 0;
  return x;
}

double tanh_cdf(double x) {
  return (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x))) / 2;
}

void gelu_fwd(Case& t) {
  for (const std::int64_t F : {1, 3, 24, 37, 1000, 6400}) {
    const std::int64_t N = F == 1000 ? 65 : 3;
    if (!t.next(fmt::format("N={} F={}", N, F))) return;
    const auto x = gelu_inputs(t, N * F);
    const TensorView y = t.out({N, F});
    t.run(GeluFwd{.x = t.in(x, {N, F}), .y = y});
    std::vector<Tracked> want;
    for (const double v : x) {
      Tracked w = oracle::gelu(Tracked(v));
      if (t.is("negative inputs are cut off") && v < 0) w = Tracked(0.0);
      if (t.is("the argument is not divided by the root of two"))
        w = Tracked(v) * oracle::normal_cdf(Tracked(v * std::numbers::sqrt2));
      if (t.is("the tanh approximation is used")) w = Tracked(v) * Tracked(tanh_cdf(v));
      want.push_back(oracle::stored(w, t.dtype()));
    }
    t.expect("y", y, want);
  }
}

void gelu_bwd(Case& t) {
  for (const std::int64_t F : {1, 3, 24, 37, 1000, 6400}) {
    const std::int64_t N = F == 1000 ? 65 : 3;
    if (!t.next(fmt::format("N={} F={}", N, F))) return;
    const auto x = gelu_inputs(t, N * F), dy = t.normal(x.size());
    const TensorView dx = t.out({N, F});
    t.run(GeluBwd{.x = t.in(x, {N, F}), .dy = t.in(dy, {N, F}), .dx = dx});
    std::vector<Tracked> want;
    for (size_t i = 0; i < x.size(); ++i) {
      Tracked w = oracle::gelu_backward(Tracked(x[i]), Tracked(dy[i]));
      if (t.is("the slope of the distribution is left out"))
        w = Tracked(dy[i]) * oracle::normal_cdf(Tracked(x[i]));
      if (t.is("the distribution is left out"))
        w = Tracked(dy[i]) * x[i] * oracle::normal_density(Tracked(x[i]));
      want.push_back(oracle::stored(w, t.dtype()));
    }
    t.expect("dx", dx, want);
    if (t.mutating()) continue;

    const auto bits = t.bits(dx);
    t.next(fmt::format("N={} F={} over dy", N, F));
    const TensorView in_place = t.inout(dy, {N, F});
    t.run(GeluBwd{.x = t.in(x, {N, F}), .dy = in_place, .dx = in_place});
    EXPECT_EQ(t.bits(in_place), bits);
  }
}

// ---- dropout ----

const RngStream kStream{.seed = 0x9876543210ull, .purpose = RngPurpose::dropout, .stream = 0x300000007ull};

void dropout(Case& t) {
  // Starts inside a block of draws, and where the lower half of the block counter wraps within a vector.
  for (const std::int64_t first :
       {std::int64_t{0}, std::int64_t{5}, (std::int64_t{1} << 34) - 10, (std::int64_t{1} << 36) + 2}) {
    for (const std::int64_t n : {1, 3, 17, 255, 261, 1000, kSanitized ? 20'003 : 70'001}) {
      for (const float rate : {0.1f, 0.0f, 0.5f}) {
        if (rate != 0.1f && n != 261) continue;
        if (!t.next(fmt::format("first={} n={} rate={}", first, n, rate))) return;
        const auto x = t.normal(static_cast<size_t>(n));
        const TensorView y = t.out({n});
        Dropout op{.x = t.in(x, {n}), .y = y, .rate = rate, .rng = kStream, .first_element = first};
        t.run(op);

        RngStream stream = kStream;
        if (t.is("every step has the same mask")) stream.stream = 0;
        const double share = static_cast<double>(t.is("the rate is what is kept") ? 1 - rate : rate);
        const double scale = t.is("kept values are not scaled")
                                 ? 1
                                 : oracle::round_to(1 / (1 - static_cast<double>(rate)), DType::f32);
        std::vector<double> want;
        for (std::int64_t i = 0; i < n; ++i) {
          const auto element =
              static_cast<std::uint64_t>(t.is("slabs draw from the start of the stream") ? i : first + i);
          const bool keeps = static_cast<double>(rng_u32(stream, element)) >= share * 0x1p32;
          // 48 bits at most: exact in double, so that one f32 rounding is all there is before storage.
          const double product = oracle::round_to(x[static_cast<size_t>(i)] * scale, DType::f32);
          want.push_back(keeps ? oracle::round_to(product, t.dtype()) : 0);
        }
        t.expect_exact("y", y, want);
        if (t.mutating()) continue;

        const auto bits = t.bits(y);
        t.next(fmt::format("first={} n={} rate={} in place", first, n, rate));
        op.x = op.y = t.inout(x, {n});
        t.run(op);
        EXPECT_EQ(t.bits(op.y), bits);
      }
    }
  }
}

TEST(DropoutOp, DropsTheShareThatIsAskedForAndKeepsTheMean) {
  for (const std::string& backend : computing_backends()) {
    for (const double rate : {0.1, 0.2, 0.75}) {
      Case t(backend, DType::f32);
      t.next(fmt::format("rate={}", rate));
      const std::int64_t n = 400'000;
      const TensorView y = t.out({n});
      t.run(Dropout{.x = t.in(std::vector<double>(static_cast<size_t>(n), 1), {n}),
                    .y = y,
                    .rate = static_cast<float>(rate),
                    .rng = kStream});
      double dropped = 0, sum = 0;
      for (const double v : t.values(y)) dropped += v == 0 ? 1 : 0, sum += v;
      const auto count = static_cast<double>(n);
      const double sigma = std::sqrt(rate * (1 - rate) / count);
      EXPECT_NEAR(dropped / count, rate, 5 * sigma);
      EXPECT_NEAR(sum / count, 1, 5 * sigma / (1 - rate) + 1e-6);
      EXPECT_NE(dropped, 0);
    }
  }
}

const Proves kGelu({"gelu_fwd",
                    {DType::f32},
                    {"negative inputs are cut off", "the argument is not divided by the root of two",
                     "the tanh approximation is used"},
                    gelu_fwd});
// Everywhere the approximation is closer than 16 bits are sure to tell.
const Proves kGelu16({"gelu_fwd",
                      {DType::bf16, DType::f16},
                      {"negative inputs are cut off", "the argument is not divided by the root of two"},
                      gelu_fwd});
const Proves kGeluBwd({"gelu_bwd",
                       kFloats,
                       {"the slope of the distribution is left out", "the distribution is left out"},
                       gelu_bwd});
const Proves kDropout({"dropout",
                       kFloats,
                       {"kept values are not scaled", "the rate is what is kept",
                        "every step has the same mask", "slabs draw from the start of the stream"},
                       dropout});

}  // namespace
}  // namespace qt::test
