// Learning-rate schedules against hand-computed tables, and the names of schedules.
#include <gtest/gtest.h>

#include "optim/schedule.h"
#include "src/core/error.h"

namespace qt {
namespace {

TEST(Schedules, WarmDownLinearlyOverTheLastPart) {
  const Schedule s{.kind = ScheduleKind::warmdown,
                   .steps = 10,
                   .warmup_steps = 2,
                   .warmdown_fraction = 0.4,
                   .final_fraction = 0.1};
  // Warm-up 1/2, 2/2; flat; from step 6 on p = (10 - step) / 4 and the rate p + 0.1 (1 - p).
  const double want[] = {0.5, 1, 1, 1, 1, 1, 1, 0.775, 0.55, 0.325, 0.1, 0.1};
  for (std::int64_t step = 0; step < 12; ++step) EXPECT_NEAR(s.multiplier(step), want[step], 1e-15) << step;
}

TEST(Schedules, WarmDownToNothingLikeNanochat) {
  // d32: 71,680 steps, the last 20 % decay. The last step still moves: it runs at 1 / 14,336 of the peak.
  const Schedule s{.steps = 71680};
  EXPECT_EQ(s.multiplier(0), 1.0);
  EXPECT_EQ(s.multiplier(71680 - 14336), 1.0);
  EXPECT_EQ(s.multiplier(71680 - 14336 + 1), 14335.0 / 14336.0);
  EXPECT_EQ(s.multiplier(71679), 1.0 / 14336.0);
  EXPECT_EQ(s.multiplier(71680), 0.0);
}

TEST(Schedules, FollowHalfACosine) {
  const Schedule s{.kind = ScheduleKind::cosine, .steps = 10, .warmup_steps = 2, .final_fraction = 0.1};
  // cos(pi k / 8) for k = 0 .. 8
  const double c[] = {1, 0.9238795325112867,  0.7071067811865476,  0.3826834323650898,
                      0, -0.3826834323650898, -0.7071067811865476, -0.9238795325112867,
                      -1};
  EXPECT_EQ(s.multiplier(0), 1.0 / 3.0);  // nanoGPT reaches the peak one step after the warm-up
  EXPECT_EQ(s.multiplier(1), 2.0 / 3.0);
  for (std::int64_t step = 2; step <= 10; ++step)
    EXPECT_NEAR(s.multiplier(step), 0.1 + 0.45 * (1 + c[step - 2]), 1e-15) << step;
  EXPECT_NEAR(s.multiplier(1000), 0.1, 1e-15) << "it stays down";
}

TEST(Schedules, HoldTheirEndsInDegenerateRuns) {
  EXPECT_EQ((Schedule{.steps = 1, .warmdown_fraction = 0.2}).multiplier(0), 1.0)
      << "round(0.2) steps of decay are none";
  EXPECT_EQ((Schedule{.steps = 1, .warmdown_fraction = 1.0}).multiplier(0), 1.0);
  EXPECT_EQ((Schedule{.steps = 5, .warmdown_fraction = 0.0}).multiplier(4), 1.0);
  EXPECT_EQ((Schedule{.kind = ScheduleKind::cosine, .steps = 1}).multiplier(0), 1.0);
  EXPECT_EQ((Schedule{.kind = ScheduleKind::cosine, .steps = 3, .warmup_steps = 3}).multiplier(2), 0.75);
}

TEST(Schedules, MayEndBeforeOrAfterTheRun) {
  const Schedule early{.kind = ScheduleKind::cosine,
                       .steps = 100,
                       .decay_steps = 10,
                       .warmup_steps = 2,
                       .final_fraction = 0.1};
  EXPECT_NEAR(early.multiplier(6), 0.55, 1e-15) << "half way to step 10";
  EXPECT_NEAR(early.multiplier(10), 0.1, 1e-15);
  EXPECT_NEAR(early.multiplier(99), 0.1, 1e-15);
  const Schedule late{.steps = 10, .decay_steps = 20, .warmdown_fraction = 0.5};
  EXPECT_EQ(late.multiplier(9), 1.0) << "the decay would begin at step 10";
  EXPECT_NEAR(late.multiplier(15), 0.5, 1e-15);
}

}  // namespace
}  // namespace qt
