// What happens when a loss is not finite: nothing is written, three in a row restore the last good checkpoint
// and leave that window out, three restores are the end. The damage is done to the embedding's compute copy,
// so that every window after it is bad until a restore brings the copy back.
#include <gtest/gtest.h>

#include "src/io/checkpoint.h"
#include "src/train/trainer.h"
#include "tests/support/tiny_run.h"

namespace qt::test {
namespace {

class Diverge : public ::testing::Test {
 protected:
  TempDir dir;
  TinyData data{dir.path()};
  TokenBatches batches = data.batches(32);

  TrainerOptions options(const std::string& name) { return tiny_trainer_options(dir / name, 12, 2); }

  std::string log_text(const std::string& name) {
    std::ifstream in(dir / name + "/log.jsonl");
    return {std::istreambuf_iterator<char>(in), {}};
  }
};

TEST_F(Diverge, ThreeBadWindowsRestoreTheLastCheckpointAndTheRunEnds) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  RunState state;
  LoggedTrainer trainer(*engine, batches, nullptr, data.tokenizer(), options("run"), state);
  trainer.after_step = poison_once(*engine, 5);  // saves happen at even steps
  const TrainResult result = trainer.run();
  EXPECT_EQ(result.step, 12);
  EXPECT_EQ(state.restores, 1);
  ASSERT_EQ(state.bad_windows.size(), 1u);
  EXPECT_EQ(state.bad_windows.front(), 5);  // the first of the three
  EXPECT_EQ(state.applied, 12);
  EXPECT_TRUE(std::isfinite(result.train_loss));
  EXPECT_NE(log_text("run").find("\"kind\":\"restore\""), std::string::npos);
  EXPECT_NE(log_text("run").find("\"skipped\":true"), std::string::npos);
}

TEST_F(Diverge, OneBadWindowChangesNothingButTheClock) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  RunState state;
  LoggedTrainer trainer(*engine, batches, nullptr, data.tokenizer(), options("run"), state);
  std::string before, after;
  std::vector<std::byte> good;
  const TensorView wte = engine->model().params().front().weight.dense;
  trainer.after_step = [&](const RunState& now, const StepStats& stats) {
    if (now.step == 5) {  // the next step is one that would save
      before = state_hash(*engine);
      good.resize(static_cast<std::size_t>(wte.bytes()));
      engine->backend().download(wte.flat(), good);
      poison(*engine);
    }
    if (now.step == 6) {
      EXPECT_FALSE(stats.finite);
      engine->backend().upload(good, wte.flat());
      after = state_hash(*engine);
      EXPECT_EQ(now.applied, 5);
    }
  };
  trainer.run();
  EXPECT_EQ(before, after);
  EXPECT_EQ(state.restores, 0);
  EXPECT_EQ(state.applied, 11);
}

TEST_F(Diverge, ThreeRestoresAreTheEnd) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  RunState state;
  LoggedTrainer trainer(*engine, batches, nullptr, data.tokenizer(), options("run"), state);
  trainer.after_step = [&](const RunState& now, const StepStats& stats) {
    if (stats.finite && now.step >= 5 && now.step % 2 == 1) poison(*engine);
  };
  try {
    trainer.run();
    FAIL() << "a run that always diverges must stop";
  } catch (const DivergedError& e) {
    EXPECT_EQ(e.code(), ExitCode::diverged);
    EXPECT_NE(std::string(e.what()).find("3 restores"), std::string::npos) << e.what();
  }
  EXPECT_EQ(state.restores, 3);
  // What was saved is untouched: finite, and loadable.
  std::string explanation;
  const CheckpointStore store(dir / "run", 2);
  EXPECT_FALSE(store.newest(explanation).empty());
}

TEST_F(Diverge, AWeightThatIsNoNumberIsNotSaved) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  RunState state;
  LoggedTrainer trainer(*engine, batches, nullptr, data.tokenizer(), options("run"), state);
  trainer.after_step = poison_once(*engine, 4);  // a save follows: no loss has shown the damage yet
  EXPECT_EQ(trainer.run().step, 12);
  EXPECT_EQ(state.restores, 1);
  EXPECT_EQ(state.bad_windows, std::vector<std::int64_t>{3});
  EXPECT_EQ(state.applied, 12);
  EXPECT_NE(log_text("run").find("not a finite number"), std::string::npos);
}

TEST_F(Diverge, TheEndIsSavedAfterABadWindowButNotTrusted) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  RunState state;
  LoggedTrainer trainer(*engine, batches, nullptr, data.tokenizer(), options("run"), state);
  std::vector<std::byte> good;
  const TensorView wte = engine->model().params().front().weight.dense;
  trainer.after_step = [&](const RunState& now, const StepStats& stats) {
    if (now.step == 11) {
      good.resize(static_cast<std::size_t>(wte.bytes()));
      engine->backend().download(wte.flat(), good);
      poison(*engine);
    }
    if (now.step == 12) {
      EXPECT_FALSE(stats.finite);
      engine->backend().upload(good, wte.flat());
    }
  };
  EXPECT_EQ(trainer.run().step, 12);
  const CheckpointStore store(dir / "run", 2);
  std::string explanation;
  const RunState last = CheckpointStore::read_state(store.newest(explanation));
  EXPECT_EQ(last.step, 12);
  EXPECT_EQ(last.bad_in_a_row, 1);
  const RunState trusted = CheckpointStore::read_state(store.newest_trusted());
  EXPECT_EQ(trusted.step, 10);
  EXPECT_EQ(trusted.bad_in_a_row, 0);
}

TEST_F(Diverge, SuspectSavesPushNoTrustedOneOut) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  CheckpointStore store(dir / "run", 2);
  RunState state;
  for (const auto& [step, bad] : {std::pair{2, 0}, {4, 0}, {5, 1}, {6, 2}}) {
    state.step = step;
    state.bad_in_a_row = bad;
    store.save(*engine, state);
  }
  EXPECT_EQ(CheckpointStore::read_state(store.newest_trusted()).step, 4);
  // With the next good one the rule of the newest two holds again.
  state.step = 8;
  state.bad_in_a_row = 0;
  store.save(*engine, state);
  EXPECT_EQ(find_checkpoints(dir / "run").size(), 2u);
  EXPECT_EQ(CheckpointStore::read_state(store.newest_trusted()).step, 8);
}

TEST_F(Diverge, RestoresOfLongAgoAreForgiven) {
  const auto restores_after = [&](const std::string& name, std::int64_t steps) {
    const auto engine = tiny_engine({});
    engine->init_weights(7);
    RunState state;
    TrainerOptions o = options(name);
    o.schedule.steps = steps;
    o.save.every = 20;
    LoggedTrainer trainer(*engine, batches, nullptr, data.tokenizer(), o, state);
    trainer.after_step = poison_once(*engine, 25);
    trainer.run();
    return state.restores;
  };
  EXPECT_EQ(restores_after("short", 60), 1);
  EXPECT_EQ(restores_after("long", 140), 0);
}

TEST_F(Diverge, WithoutACheckpointTheRunStartsOver) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  RunState state;
  state.seed = 7;
  TrainerOptions o = options("run");
  o.save.every = 1000;
  LoggedTrainer trainer(*engine, batches, nullptr, data.tokenizer(), o, state);
  trainer.after_step = poison_once(*engine, 3);
  EXPECT_EQ(trainer.run().step, 12);
  EXPECT_EQ(state.restores, 1);
  EXPECT_EQ(state.applied, 12);
}

}  // namespace
}  // namespace qt::test
