// Loss scaling for fp16: the rule, an overflow that reaches no weight, and a run that goes on from where it
// was saved with the scale it had.
#include <cmath>

#include <gtest/gtest.h>

#include "optim/loss_scale.h"
#include "src/train/stop.h"
#include "src/train/trainer.h"
#include "tests/support/process.h"
#include "tests/support/tiny_run.h"

namespace qt::test {
namespace {

TEST(LossScaleRule, FollowsATableWrittenByHand) {
  // After each event: the scale, and the clean steps since it last changed.
  struct Row {
    const char* event;  // "clean" or "overflow", `times` in a row
    std::int64_t times;
    double scale;
    std::int64_t clean_steps;
  };
  const Row table[] = {
      {"clean", 1, 65536, 1},    {"clean", 1998, 65536, 1999}, {"clean", 1, 131072, 0},
      {"overflow", 1, 65536, 0}, {"overflow", 1, 32768, 0},    {"clean", 1999, 32768, 1999},
      {"overflow", 1, 16384, 0},  // one step short of doubling: counted anew
      {"clean", 2000, 32768, 0}, {"clean", 4000, 131072, 0},   {"overflow", 17, 1, 0},
      {"clean", 2000, 2, 0},
  };
  LossScale s;
  EXPECT_EQ(s.scale, 65536);
  for (const Row& row : table) {
    for (std::int64_t i = 0; i < row.times; ++i) {
      if (std::string(row.event) == "clean") {
        s.succeed();
      } else {
        EXPECT_TRUE(s.back_off());
      }
    }
    EXPECT_EQ(s.scale, row.scale) << row.times << " times " << row.event;
    EXPECT_EQ(s.clean_steps, row.clean_steps) << row.times << " times " << row.event;
  }
  s = {.scale = 1};
  EXPECT_FALSE(s.back_off()) << "below 1 there is nothing to gain: the run itself is at fault";
  EXPECT_EQ(s.scale, 1);
}

class Fp16 : public ::testing::Test {
 protected:
  TempDir dir;
  TinyData data{dir.path()};
  TokenBatches batches = data.batches(32);

  static std::unique_ptr<Engine> engine(DType compute = DType::f16) {
    auto made = tiny_engine({.packed = false, .compute = compute});
    made->init_weights(7);
    return made;
  }
  TrainerOptions options(const std::string& name, std::int64_t steps) {
    stop_at_ = steps;
    return tiny_trainer_options(dir / name, 8, 100);
  }
  // Trains until stop_at_ steps are done; the state as it was saved then.
  void train(Engine& engine, const TrainerOptions& o, RunState& state) {
    LoggedTrainer trainer(engine, batches, nullptr, data.tokenizer(), o, state);
    trainer.after_step = [&](const RunState& now, const StepStats&) {
      if (now.step == stop_at_ && stop_at_ < o.schedule.steps) request_stop();
    };
    try {
      trainer.run();
    } catch (const StopRequested&) {
      clear_stop_request();
    }
  }
  std::int64_t stop_at_ = 0;
};

TEST_F(Fp16, LearnsAsF32DoesWithinWhatItsRoundingsCost) {
  RunState half_state, full_state;
  const auto half = engine(), full = engine(DType::f32);
  train(*half, options("half", 8), half_state);
  train(*full, options("full", 8), full_state);
  const EvalBatches validation = data.validation(32);
  const double a = evaluate(*half, validation, [] {}).loss, b = evaluate(*full, validation, [] {}).loss;
  // About thirteen tensors a block are rounded to 2^-11 one after the other, and the loss follows what
  // reaches the head.
  EXPECT_NEAR(a, b, 0x1p-11 * std::sqrt(4 + 13 * 2.0) * b);
  EXPECT_LT(b, 5.2) << "ln 265 is 5.58: something was learnt";
  EXPECT_NE(state_hash(*half), state_hash(*full));
}

TEST_F(Fp16, AnOverflowReachesNoWeightAndIsNotCounted) {
  const auto e = engine();
  RunState state;
  state.loss_scale.scale = 0x1p36;
  std::int64_t overflows = 0;
  {
    // The first window alone: gradients of 2^36 times their size do not fit fp16.
    const std::string before = state_hash(*e);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(e->options().micro_batch_tokens())),
        targets(ids.size());
    batches.fill(0, e->options().layout.micro_batch_rows, ids, targets);
    const StepStats stats = e->train_step(
        [&](std::int64_t) {
          return HostBatch{ids, targets};
        },
        {}, 1.0, 1, state.loss_scale.scale);
    EXPECT_TRUE(std::isfinite(stats.loss));
    EXPECT_FALSE(stats.finite);
    EXPECT_EQ(state_hash(*e), before);
  }
  train(*e, options("run", 8), state);
  std::istringstream lines(read_text(dir / "run/log.jsonl"));
  for (std::string line; std::getline(lines, line);)
    overflows += line.find("\"kind\":\"overflow\"") != std::string::npos ? 1 : 0;
  EXPECT_GE(overflows, 3) << "more in a row than the bad windows that restore a run";
  EXPECT_EQ(state.loss_scale.scale, std::ldexp(1.0, 36 - static_cast<int>(overflows)));
  EXPECT_EQ(state.step, 8);
  EXPECT_EQ(state.applied, 8) << "neither the schedule nor Adam's t counts what was left out";
  EXPECT_EQ(state.window, 8 + overflows) << "the data does";
  EXPECT_EQ(state.restores, 0);
  EXPECT_TRUE(state.bad_windows.empty());
}

TEST_F(Fp16, AScaleDoublesAfterItsCleanSteps) {
  const auto e = engine();
  RunState state;
  state.loss_scale = {.scale = 1024, .clean_steps = LossScale::kGrowthInterval - 3};
  train(*e, options("run", 8), state);
  EXPECT_EQ(state.loss_scale.scale, 2048);
  EXPECT_EQ(state.loss_scale.clean_steps, 5);
}

TEST_F(Fp16, ContinuesBitForBitWithTheScaleItHad) {
  const auto outcome = [&](const std::string& name, auto change) {
    RunState state;
    state.loss_scale = {.scale = 0x1p34, .clean_steps = 0};  // overflows at first, before and after the stop
    {
      const auto e = engine();
      train(*e, options(name, 3), state);
    }
    EXPECT_EQ(state.step, 3);
    const auto e = engine();
    CheckpointStore store(dir / name, 2);
    std::string explanation;
    RunState loaded = store.load(store.newest(explanation), *e);
    EXPECT_EQ(loaded.loss_scale.scale, state.loss_scale.scale);
    EXPECT_EQ(loaded.loss_scale.clean_steps, 3);
    change(loaded);
    train(*e, options(name, 8), loaded);
    return state_hash(*e);
  };
  const auto e = engine();
  RunState state;
  state.loss_scale = {.scale = 0x1p34, .clean_steps = 0};
  train(*e, options("straight", 8), state);
  const std::string straight = state_hash(*e);
  EXPECT_EQ(outcome("stopped", [](RunState&) {}), straight);
  // The scale decides which small gradients survive fp16: a resume that forgot it would show.
  EXPECT_NE(outcome("forgotten", [](RunState& s) { s.loss_scale.scale = 1; }), straight);
}

TEST_F(Fp16, OtherDtypesNeverScale) {
  const auto e = engine(DType::bf16);
  RunState state;
  state.loss_scale.clean_steps = 7;
  train(*e, options("run", 8), state);
  EXPECT_EQ(state.loss_scale.scale, LossScale::kInitial);
  EXPECT_EQ(state.loss_scale.clean_steps, 7);
}

}  // namespace
}  // namespace qt::test
