// 20 plans of one to three blocks of 64 columns each, drawn at random for a card, on the simulator: they keep
// what tests/support/plan_draw.h asks, and the card gives what was planned. PLAN_SEED in the environment
// draws others.
#include <cstdlib>

#include <gtest/gtest.h>

#include "kernels/sim/sim.h"
#include "src/options/option_table.h"
#include "tests/support/option_fixture.h"
#include "tests/support/plan_draw.h"

namespace qt::test {
namespace {

constexpr std::uint32_t kSeed = 20260118;
constexpr int kPlans = 20;

DrawnPlan drawn(Draws& draws) {
  DrawnPlan d;
  Options& o = d.options;
  const std::int64_t depth = draws.between(1, 3);
  if (depth == 2) {
    o.model = "d2";
  } else {
    o.model = "gpt";
    o.n_layer = o.n_head = depth;
    o.n_embd = 64 * depth;
    o.bias = draws.one_in(2);
  }
  o.vocab_size = draws.between(100, 300);
  o.seq_len = draws.of<std::int64_t>({16, 24, 32});
  o.batch_tokens = o.seq_len * draws.of<std::int64_t>({1, 2, 3});
  o.dtype = draws.of({DType::bf16, DType::bf16, DType::f16});
  o.quant = o.dtype != DType::f16 && !draws.one_in(3) ? FormatId::nf4 : FormatId::none;
  o.master = o.dtype != DType::f16 && draws.one_in(4) ? DType::bf16 : DType::f32;
  o.gemm = draws.of({GemmRoute::automatic, GemmRoute::fused, GemmRoute::scratch});
  o.ckpt_activations = draws.one_in(2);
  o.paging = draws.of({Paging::automatic, Paging::on, Paging::off});
  o.optim = draws.of<const UpdateRule*>({&rules::adamw8, &rules::adamw});
  o.sample_tokens = draws.one_in(3) ? 2 : 0;
  o.learning_rate = 1e-4;
  d.target = cuda_target(86);
  d.target.gemm = o.gemm;
  d.limits.host_bytes = 64 * kGiB;
  draw_memory(d, draws);
  return d;
}

TEST(SimPlans, KeepWhatTheyPromise) {
  const char* wanted = std::getenv("PLAN_SEED");
  const std::uint32_t seed =
      wanted == nullptr ? kSeed : static_cast<std::uint32_t>(std::strtoul(wanted, nullptr, 10));
  const TempDir dir;
  Draws draws(seed);
  DrawnCounts counts;
  for (int i = 0; i < kPlans; ++i) {
    const DrawnPlan d = drawn(draws);
    SCOPED_TRACE(
        fmt::format("seed {}, plan {}: {} --vram {}", seed, i, planned(d).command, d.limits.device_bytes));
    sim::begin_process();
    expect_promises_kept(d, dir / "run", counts);
  }
  std::printf("seed %u: %d of %d fit; %d of the others have %d proposals, found in at most %d rehearsals\n",
              seed, counts.fit, kPlans, counts.helped, counts.proposals, counts.most_rehearsals);
  EXPECT_GE(counts.fit, kPlans / 4);
  EXPECT_LE(counts.fit, kPlans * 3 / 4);
  EXPECT_GE(counts.helped, 1);
  EXPECT_LE(counts.most_rehearsals, kMostRehearsals);
}

// What the device gives in all is what the plan asks for, alignment of its allocations apart.
TEST(SimPlans, TakeNoMoreOfACardThanIsPlanned) {
  Draws draws(kSeed + 1);
  for (int i = 0; i < 5; ++i) {
    sim::begin_process();
    DrawnPlan d = drawn(draws);
    d.limits.device_bytes = 0;
    const Plan run = planned(d);
    const std::int64_t before = sim::allocated_bytes();
    const Engine engine(make_test_backend(run.config.target), run.config.engine, run.rehearsed);
    const std::int64_t pages = run.rehearsed.host.bytes > 0 ? 3 : 2;
    EXPECT_EQ(sim::allocated_bytes() - before,
              run.device_bytes - run.config.target.context_bytes + run.host_bytes + pages * 4096)
        << run.command;
  }
}

}  // namespace
}  // namespace qt::test
