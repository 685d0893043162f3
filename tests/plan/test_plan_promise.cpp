// 200 plans drawn at random, of models up to 2 million parameters on the cpu: about half of them fit, and
// all keep what tests/support/plan_draw.h asks. PLAN_SEED in the environment draws others.
#include <cstdlib>

#include <gtest/gtest.h>

#include "src/options/option_table.h"
#include "tests/support/option_fixture.h"
#include "tests/support/plan_draw.h"

namespace qt::test {
namespace {

constexpr std::uint32_t kSeed = 20260117;
constexpr int kPlans = 200;
constexpr std::int64_t kMostParams = 2'000'000;

DrawnPlan drawn(Draws& draws) {
  DrawnPlan d;
  Options& o = d.options;
  do {
    o = Options();
    if (draws.one_in(2)) {
      o.model = "d2";
    } else {
      o.model = "gpt";
      o.n_head = draws.between(1, 4);
      o.n_embd = o.n_head * draws.of({16, 32, 48});
      o.n_layer = draws.between(1, 5);
      o.bias = draws.one_in(2);
      o.dropout = draws.one_in(3) ? 0.1 : 0.0;
    }
    o.vocab_size = draws.between(100, 2500);
  } while (model_from_options(o, 0).param_count() > kMostParams);
  o.seq_len = draws.of<std::int64_t>({16, 32, 64, 128, 256});
  o.batch_tokens = o.seq_len * draws.of<std::int64_t>({1, 2, 3, 4, 6, 8, 12});
  o.dtype = draws.of({DType::f32, DType::bf16, DType::bf16, DType::f16});
  o.quant = o.dtype != DType::f16 && draws.one_in(2) ? FormatId::nf4 : FormatId::none;
  o.master = o.dtype != DType::f16 && draws.one_in(4) ? DType::bf16 : DType::f32;
  o.grad_dtype = o.dtype != DType::bf16
                     ? std::nullopt
                     : draws.of<std::optional<DType>>({std::nullopt, DType::f32, DType::bf16});
  o.ckpt_activations = draws.one_in(2);
  o.paging = draws.of({Paging::automatic, Paging::on, Paging::off});
  o.optim = draws.of<const UpdateRule*>({&rules::adamw8, &rules::adamw});
  o.loss_chunk = draws.one_in(3) ? draws.between(8, 64) : 0;
  o.sample_tokens = draws.one_in(4) ? 0 : 8;
  if (draws.one_in(4)) o.micro_batch = o.batch_tokens / o.seq_len;
  o.learning_rate = 1e-4;
  d.target = cpu_target(static_cast<int>(draws.between(1, 2)));
  d.limits.host_bytes = 64 * kGiB;
  draw_memory(d, draws);
  return d;
}

std::uint32_t seed() {
  const char* wanted = std::getenv("PLAN_SEED");
  return wanted == nullptr ? kSeed : static_cast<std::uint32_t>(std::strtoul(wanted, nullptr, 10));
}

TEST(PlanPromise, IsKeptByTwoHundredPlansDrawnAtRandom) {
  const TempDir dir;
  Draws draws(seed());
  DrawnCounts counts;
  for (int i = 0; i < kPlans; ++i) {
    const DrawnPlan d = drawn(draws);
    SCOPED_TRACE(
        fmt::format("seed {}, plan {}: {} --vram {}", seed(), i, planned(d).command, d.limits.device_bytes));
    expect_promises_kept(d, dir / "run", counts);
    if (HasFatalFailure()) return;
  }
  std::printf("seed %u: %d of %d fit; %d of the others have %d proposals, found in at most %d rehearsals\n",
              seed(), counts.fit, kPlans, counts.helped, counts.proposals, counts.most_rehearsals);
  EXPECT_NEAR(counts.fit, kPlans / 2, kPlans / 8);
  EXPECT_GE(counts.helped, (kPlans - counts.fit) / 2);
  EXPECT_LE(counts.most_rehearsals, kMostRehearsals);
}

// More rows take more bytes: what the search for the largest micro-batch, and "does not fit", rest on.
TEST(PlanPromise, RestsOnBytesThatGrowWithTheMicroBatch) {
  Draws draws(seed() + 1);
  for (int i = 0; i < 30; ++i) {
    DrawnPlan d = drawn(draws);
    const std::int64_t rows = d.options.batch_tokens / d.options.seq_len;
    std::int64_t before = 0;
    for (std::int64_t r = 1; r <= rows; ++r) {
      if (rows % r != 0) continue;
      d.options.micro_batch = r;
      d.options.grad_dtype = DType::f32;
      const std::int64_t bytes = planned_with(d, d.options, 0).device_bytes;
      EXPECT_GE(bytes, before) << planned(d).command;
      before = bytes;
    }
  }
}

}  // namespace
}  // namespace qt::test
