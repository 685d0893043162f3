// Bits that the cpu backend promises of sums, of a step's scalars and of the loss: the same for any number of
// threads, and for the sums on every instruction set. How far the loss is from an oracle is the business of
// test_ops*.cpp.
#include <array>
#include <cmath>
#include <numeric>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "kernels/scratch.h"
#include "tests/support/setups.h"

namespace qt::test {
namespace {

// The tree of kernels/cpu/reduce.cpp, written plainly.
double tree_sum(const std::vector<double>& x) {
  double total = 0;
  for (std::size_t block = 0; block < x.size(); block += 4096) {
    std::array<double, 8> lane{};
    for (std::size_t i = block; i < std::min(x.size(), block + 4096); ++i) lane[i % 8] += x[i];
    total += ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
  }
  return total;
}

template <class T>
double op_sum_squares(Backend& backend, const std::vector<T>& x) {
  Memory memory(backend);
  SumSquares op{.x = memory.put(x), .out = memory.room<double>(1)};
  const std::int64_t bytes = scratch_bytes(op, backend.target());
  op.scratch = TensorView(memory.room<double>((bytes + 7) / 8).data, DType::u8, {bytes});
  backend.run(op);
  return memory.get<double>(op.out)[0];
}

TEST(SumSquaresBits, AreThoseOfTheFixedTreeForEverySizeAndBothDtypes) {
  for (const std::size_t n :
       {1u, 7u, 8u, 9u, 4095u, 4096u, 4097u, 16384u, 16385u, 5u * 16384u + 4096u + 3u, 300001u}) {
    const auto x = hostile(n, 21);
    const auto narrow = rounded(x);
    std::vector<double> squares, narrow_squares;
    for (std::size_t i = 0; i < n; ++i) {
      squares.push_back(static_cast<double>(x[i]) * static_cast<double>(x[i]));
      const double v = static_cast<double>(to_float(narrow[i]));
      narrow_squares.push_back(v * v);
    }
    on_every_setup([&](Backend& backend) {
      EXPECT_EQ(op_sum_squares(backend, x), tree_sum(squares)) << n;
      EXPECT_EQ(op_sum_squares(backend, narrow), tree_sum(narrow_squares)) << n << " as bf16";
    });
    // The order is visible: a plain loop gives other bits once there is enough to round.
    if (n > 16384) {
      EXPECT_NE(tree_sum(squares), std::accumulate(squares.begin(), squares.end(), 0.0));
    }
  }
}

TEST(SumSquaresBits, ShowASingleNonFiniteElement) {
  on_every_setup([](Backend& backend) {
    for (const std::size_t at : {0u, 5000u, 20000u}) {
      auto x = normal(20001, 22);
      x[at] = kNan;
      EXPECT_TRUE(std::isnan(op_sum_squares(backend, x)));
      x[at] = -kInf;
      EXPECT_EQ(op_sum_squares(backend, x), static_cast<double>(kInf));
    }
  });
}

TEST(SumLossBits, AccumulateByTheFixedTreeAndCountTargets) {
  const auto nll = normal(10001, 23);
  std::vector<std::int32_t> targets(nll.size(), 4);
  for (std::size_t i = 0; i < targets.size(); i += 10) targets[i] = -1;
  std::vector<double> wide(nll.begin(), nll.end());
  on_every_setup([&](Backend& backend) {
    Memory memory(backend);
    const TensorView totals = memory.put<double>({100.0, 7.0});
    backend.run(SumLoss{.nll = memory.put(nll), .targets = memory.put(targets), .totals = totals});
    EXPECT_EQ(memory.get<double>(totals), (std::vector<double>{100.0 + tree_sum(wide), 7.0 + 9000.0}));
  });
}

// ---- the scalars of a step ----------------------------------------------------------------------------

struct Prepared {
  std::vector<float> params;
  std::vector<double> stats;
};

Prepared prepare(double sumsq, double loss_sum, double targets, double max_norm, double gradient_tokens) {
  Backend& backend = cpu_with(1);
  Memory memory(backend);
  PrepareStep op{.grad_sumsq = memory.put<double>({sumsq}),
                 .totals = memory.put<double>({loss_sum, targets}),
                 .params = memory.put(std::vector<float>(kStepParamFloats, kNan)),
                 .stats = memory.put(std::vector<double>(kStepStatDoubles, std::nan(""))),
                 .max_norm = max_norm,
                 .gradient_tokens = gradient_tokens};
  for (int g = 0; g < kParamGroups; ++g) {
    const auto f = static_cast<float>(10 * g);
    op.hyper[static_cast<std::size_t>(g)] = AdamHyper{f + 1, f + 2, f + 3, f + 4, f + 5, f + 6, f + 7};
  }
  backend.run(op);
  return {memory.get<float>(op.params), memory.get<double>(op.stats)};
}

TEST(PrepareStepScalars, NormaliseByTheTargetsThatWereThere) {
  const Prepared p =
      prepare(16.0, 30.0, 10.0, 0.0, 5.0);  // gradients were divided by 5, there were 10 targets
  EXPECT_EQ(p.stats, (std::vector<double>{3.0, 2.0, 0.0, 10.0}));
  EXPECT_EQ(p.params[0], 0.5f);
  EXPECT_EQ(p.params[1], 0.0f);
  EXPECT_EQ(p.params[2], 2.0f);
  for (int g = 0; g < kParamGroups; ++g) {
    for (int k = 0; k < 7; ++k)
      EXPECT_EQ(p.params[static_cast<std::size_t>(4 + 8 * g + k)], static_cast<float>(10 * g + k + 1));
  }
}

TEST(PrepareStepScalars, ClipOnlyNormsAboveTheLimitAsPyTorchDoes) {
  EXPECT_EQ(prepare(16.0, 1.0, 1.0, 1.0, 1.0).params[0], static_cast<float>(1.0 / (4.0 + 1e-6)));
  EXPECT_EQ(prepare(16.0, 1.0, 1.0, 1.0, 1.0).stats[1], 4.0) << "the norm before clipping";
  EXPECT_EQ(prepare(0.25, 1.0, 1.0, 1.0, 1.0).params[0], 1.0f);
}

TEST(PrepareStepScalars, SkipTheStepWhenLossOrNormIsNotFiniteOrNothingWasCounted) {
  const double inf = std::numeric_limits<double>::infinity();
  for (const double max_norm : {0.0, 1.0}) {
    for (const auto& [sumsq, loss] :
         {std::pair{inf, 1.0}, {std::nan(""), 1.0}, {1.0, inf}, {1.0, std::nan("")}, {1e200, 1.0}}) {
      const Prepared p = prepare(sumsq, loss, 4.0, max_norm, 1.0);
      EXPECT_EQ(p.params[1], 1.0f) << sumsq << " " << loss;
      EXPECT_EQ(p.stats[2], 1.0) << sumsq << " " << loss;
    }
    const Prepared none = prepare(0.0, 0.0, 0.0, max_norm, 1.0);
    EXPECT_EQ(none.params[1], 1.0f);
    EXPECT_EQ(none.stats, (std::vector<double>{0.0, 0.0, 0.0, 0.0}));
    EXPECT_EQ(prepare(1.0, 1.0, 4.0, max_norm, 1.0).params[1], 0.0f);
  }
}

// ---- loss ---------------------------------------------------------------------------------------------

struct Loss {
  std::vector<float> nll, after;  // after: the bytes of the logits
};

Loss op_loss(Backend& backend, const std::vector<float>& logits, const std::vector<std::int32_t>& targets,
             float softcap, const DType* gradient) {
  Memory memory(backend);
  const auto M = static_cast<std::int64_t>(targets.size());
  const TensorView flat = memory.put(logits);
  const TensorView l = flat.reshape({M, flat.elems() / M});
  const TensorView nll = memory.room<float>(M);
  SoftcapCrossEntropy op{
      .logits = l, .targets = memory.put(targets), .nll = nll, .softcap = softcap, .grad_scale = 0.25f};
  if (gradient != nullptr) op.dlogits = dlogits_view(l, *gradient);
  backend.run(op);
  return {memory.get<float>(nll), memory.get<float>(flat)};
}

constexpr DType kF32 = DType::f32, kBf16 = DType::bf16;

// The bf16 gradient lies over the f32 logits it is made from: had a store run ahead of a load, it would
// differ.
TEST(LossBits, AreTheSameForAnyThreadsAndWithTheGradientAsF32AsBf16OrNotAtAll) {
  for (const std::int64_t V : {1, 5, 16, 17, 255, 256, 1000, 4099}) {
    constexpr std::int64_t kRows = 9;
    const auto logits = scaled(normal(static_cast<std::size_t>(kRows * V), 24), 6.0f);
    std::vector<std::int32_t> targets;
    for (std::int64_t r = 0; r < kRows; ++r)
      targets.push_back(r == 4 ? -1 : static_cast<std::int32_t>(r * 37 % V));
    for (const float softcap : {15.0f, 0.0f, 100.0f}) {
      for (const std::int64_t isa : hwy::SupportedAndGeneratedTargets()) {
        const PinnedTarget pinned(isa);
        const Loss first = op_loss(cpu_with(1), logits, targets, softcap, &kF32);
        for (const int threads : {1, 2, 3, 8}) {
          const Loss wide = op_loss(cpu_with(threads), logits, targets, softcap, &kF32);
          const Loss narrow = op_loss(cpu_with(threads), logits, targets, softcap, &kBf16);
          const Loss only = op_loss(cpu_with(threads), logits, targets, softcap, nullptr);
          EXPECT_EQ(bits_of(wide.nll), bits_of(first.nll));
          EXPECT_EQ(bits_of(narrow.nll), bits_of(first.nll));
          EXPECT_EQ(bits_of(only.nll), bits_of(first.nll));
          EXPECT_EQ(bits_of(wide.after), bits_of(first.after));
          EXPECT_EQ(bits_of(only.after), bits_of(logits)) << "loss only: the logits stay";
          for (std::int64_t r = 0; r < kRows; ++r) {
            const auto* row = reinterpret_cast<const std::byte*>(narrow.after.data() + r * V);
            for (std::int64_t i = 0; i < V; ++i) {
              bf16 got;
              std::memcpy(&got, row + 2 * i, sizeof got);
              ASSERT_EQ(got.bits, to_bf16(first.after[static_cast<std::size_t>(r * V + i)]).bits)
                  << V << " " << r << " " << i;
            }
          }
          EXPECT_EQ(only.nll[4], 0.0f);
          for (std::int64_t i = 0; i < V; ++i)
            ASSERT_EQ(wide.after[static_cast<std::size_t>(4 * V + i)], 0.0f);
        }
      }
    }
  }
}

// ln V is the loss of a model that knows nothing, and the first number a user sees.
TEST(LossBits, OfEqualLogitsIsTheLogarithmOfTheVocabulary) {
  for (const std::int64_t V : {2, 4096, 50257, 65536}) {
    on_every_setup([&](Backend& backend) {
      for (const float softcap : {15.0f, 0.0f, 100.0f}) {
        for (const float logit : {0.0f, 1.0f}) {
          const Loss loss =
              op_loss(backend, std::vector<float>(static_cast<std::size_t>(V), logit), {1}, softcap, nullptr);
          EXPECT_NEAR(loss.nll[0], std::log(static_cast<double>(V)), 1e-6)
              << V << " " << softcap << " " << logit;
        }
      }
    });
  }
}

TEST(LossBits, ShowASingleNaNAmongTheLogits) {
  on_every_setup([](Backend& backend) {
    for (const std::size_t at : {0u, 100u, 998u}) {
      for (const float softcap : {15.0f, 0.0f, 100.0f}) {
        auto logits = normal(999, 25);
        logits[at] = kNan;
        EXPECT_TRUE(std::isnan(op_loss(backend, logits, {5}, softcap, nullptr).nll[0]))
            << at << " " << softcap;
      }
    }
  });
}

// Logits far outside the range of exp: the cap bounds them, or the row's maximum does.
TEST(LossBits, StayFiniteForHugeLogits) {
  on_every_setup([](Backend& backend) {
    for (const float softcap : {15.0f, 0.0f, 64.0f, 1e4f}) {
      const Loss loss = op_loss(backend, {3e4f, -3e4f, -100.0f, -1e30f}, {0}, softcap, &kF32);
      EXPECT_GE(loss.nll[0], 0.0f) << softcap;
      EXPECT_LT(loss.nll[0], 1e-6f) << softcap;
      for (const float g : loss.after) EXPECT_LT(std::abs(g), 1e-6f) << softcap;
    }
  });
}

TEST(LossTargets, OutsideTheVocabularyAreRefusedByRowAndNothingIsWritten) {
  const std::vector<float> logits(3 * 10, 0.5f);
  for (const std::int32_t bad : {10, -2, 1 << 30}) {
    Backend& backend = cpu_with(2);
    Memory memory(backend);
    const TensorView l = memory.put(logits).reshape({3, 10}), nll = memory.put<float>({-5, -5, -5});
    const SoftcapCrossEntropy op{.logits = l,
                                 .targets = memory.put<std::int32_t>({3, bad, -1}),
                                 .nll = nll,
                                 .dlogits = dlogits_view(l, DType::f32)};
    try {
      backend.run(op);
      FAIL() << bad << " was taken";
    } catch (const DataError& e) {
      EXPECT_NE(std::string(e.what()).find("row 1"), std::string::npos) << e.what();
    }
    EXPECT_EQ(memory.get<float>(nll), (std::vector<float>{-5, -5, -5}));
    EXPECT_EQ(memory.get<float>(l.flat()), logits);
  }
}

}  // namespace
}  // namespace qt::test
