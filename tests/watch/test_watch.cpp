// The loop around the steps: when it saves, evaluates, samples and stops, and the lines it prints.
#include <gtest/gtest.h>

#include "src/io/json.h"
#include "src/train/save_policy.h"
#include "src/train/step_watch.h"
#include "src/train/stop.h"
#include "src/train/trainer.h"
#include "src/watch/console.h"
#include "src/watch/step_log.h"
#include "tests/support/process.h"
#include "tests/support/reseal.h"
#include "tests/support/tiny_run.h"

namespace qt::test {
namespace {

TEST(SavePolicy, HoldsSavingToOnePercentAndToOnceAMinute) {
  const SavePolicy by_time;
  EXPECT_FALSE(by_time.is_due(1, 59.0, 0.001));
  EXPECT_TRUE(by_time.is_due(1, 60.0, 0.001));
  EXPECT_FALSE(by_time.is_due(1, 2999.0, 30.0));  // 30 s each: every 3,000 s
  EXPECT_TRUE(by_time.is_due(1, 3000.0, 30.0));
  EXPECT_EQ(SavePolicy::most_seconds(200.0), 2.0);
  EXPECT_EQ(SavePolicy::most_seconds_per_day(), 864);
  EXPECT_EQ(SavePolicy::most_saves_per_day(), 1440);
}

TEST(SavePolicy, LooksAtNoClockWhereStepsAreGiven) {
  const SavePolicy by_steps{.every = 5};
  EXPECT_FALSE(by_steps.is_due(9, 1e9, 0.001));
  EXPECT_TRUE(by_steps.is_due(10, 0.0, 30.0));
}

class SlowSteps : public ::testing::Test {
 protected:
  // How often the watch spoke.
  int take(double seconds, int times) {
    int spoken = 0;
    for (int i = 0; i < times; ++i) {
      if (const std::optional<double> slower = watch.take(seconds)) {
        ++spoken;
        last = *slower;
      }
    }
    return spoken;
  }

  StepWatch watch;
  double last = 0;
};

TEST_F(SlowSteps, AreNamedOnceWhenThreeInARowTakeTwiceAsLong) {
  EXPECT_EQ(take(1.0, 20), 0);
  EXPECT_EQ(take(2.5, 2), 0);
  EXPECT_EQ(take(2.25, 1), 1);
  EXPECT_EQ(last, 2.25);
  EXPECT_EQ(take(2.5, 20), 0);  // said once
}

TEST_F(SlowSteps, AreNotNamedForOneHiccupForJitterOrForShortSteps) {
  EXPECT_EQ(take(1.0, 20), 0);
  for (int i = 0; i < 20; ++i) EXPECT_EQ(take(9.0, 2) + take(1.0, 1), 0);
  EXPECT_EQ(take(1.9, 50), 0);
  watch = {};
  EXPECT_EQ(take(0.01, 20) + take(0.4, 50), 0);
}

TEST_F(SlowSteps, BecomeTheUsualAndAreNamedAgainWhenTheyGetSlowerStill) {
  EXPECT_EQ(take(1.0, 70) + take(3.0, 200), 1);
  EXPECT_EQ(take(1.0, 10), 0);
  EXPECT_EQ(take(9.0, 3), 1);
}

TEST_F(SlowSteps, NeedAHistoryToBeSlow) { EXPECT_EQ(take(1.0, 3) + take(5.0, 40), 0); }

class Watch : public ::testing::Test {
 protected:
  TempDir dir;
  TinyData data{dir.path()};
  TokenBatches batches = data.batches(32);
  EvalBatches validation = data.validation(32);

  TrainerOptions options(const std::string& name) { return tiny_trainer_options(dir / name, 6, 1000); }

  // "save 3", "eval 3", ... in the order of the log.
  std::vector<std::string> events(const std::string& name, const std::vector<std::string>& kinds) {
    std::vector<std::string> found;
    std::istringstream lines(read_text(dir / name + "/log.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const Json json = parse_json(line, "log.jsonl");
      const std::string kind = json["kind"].get<std::string>();
      if (std::find(kinds.begin(), kinds.end(), kind) != kinds.end())
        found.push_back(kind + " " + std::to_string(json["step"].get<std::int64_t>()));
    }
    return found;
  }
};

using Events = std::vector<std::string>;

TEST_F(Watch, SavesBeforeItEvaluates) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  RunState state;
  TrainerOptions o = options("run");
  o.eval_every = 2;
  o.sample_every = 3;
  LoggedTrainer trainer(*engine, batches, &validation, data.tokenizer(), o, state);
  trainer.run();
  EXPECT_EQ(events("run", {"save", "eval", "sample"}),
            (Events{"save 2", "eval 2", "sample 3", "save 4", "eval 4", "save 6", "eval 6", "sample 6"}));
}

TEST_F(Watch, MakesUpForAnEvaluationThatAStopPrevented) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  RunState state;
  TrainerOptions o = options("run");
  o.eval_every = 3;
  {
    LoggedTrainer trainer(*engine, batches, &validation, data.tokenizer(), o, state);
    trainer.after_step = [](const RunState& now, const StepStats&) {
      if (now.step == 3) request_stop();
    };
    EXPECT_THROW(trainer.run(), StopRequested);
    clear_stop_request();
  }
  EXPECT_EQ(events("run", {"save", "eval", "stop"}), (Events{"save 3", "stop 3"}));
  LoggedTrainer trainer(*engine, batches, &validation, data.tokenizer(), o, state);
  trainer.run();
  EXPECT_EQ(events("run", {"save", "eval", "stop"}),
            (Events{"save 3", "stop 3", "eval 3", "save 6", "eval 6"}));
}

TEST_F(Watch, DoesNotRepeatAnEvaluationThatWasMade) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  RunState state;
  TrainerOptions o = options("run");
  o.eval_every = 3;
  LoggedTrainer(*engine, batches, &validation, data.tokenizer(), o, state).run();
  o.schedule.steps = 8;  // goes on where it ended
  LoggedTrainer(*engine, batches, &validation, data.tokenizer(), o, state).run();
  EXPECT_EQ(events("run", {"eval"}), (Events{"eval 3", "eval 6", "eval 8"}));
}

class EvaluatedSteps : public Watch {
 protected:
  // A session of a process of its own: it goes on from what the folder holds. The step it begins with.
  std::int64_t session(std::int64_t steps) {
    const auto engine = tiny_engine({});
    CheckpointStore store(dir / "run", 2);
    std::string explanation;
    const std::string newest = store.newest(explanation);
    RunState state;
    if (newest.empty()) {
      engine->init_weights(7);
    } else {
      state = store.load(newest, *engine);
      // As the train verb does.
      if (!state.evaluated_step)
        state.evaluated_step = evaluated_step_in_log(dir / "run/log.jsonl", state.step);
    }
    const std::int64_t first = state.step;
    TrainerOptions o = options("run");
    o.schedule.steps = steps;
    o.eval_every = 3;
    LoggedTrainer(*engine, batches, &validation, data.tokenizer(), o, state).run();
    return first;
  }
  Events evaluations() { return events("run", {"eval"}); }
  std::string newest(const std::string& file) const { return dir / ("run/step-000000006/" + file); }

  // The newest checkpoint as programs wrote it that kept no account of evaluations; its manifest, which knows
  // the hash of run.json, likewise.
  void forget_evaluations() {
    RunState state = CheckpointStore::read_state(newest(""));
    state.evaluated_step.reset();
    ASSERT_TRUE(std::filesystem::remove(newest("evaluated")));
    reseal(dir / "run", 6, "run.json", [&](std::string& text) { text = run_state_json(state); });
    ASSERT_EQ(read_text(newest("run.json")).find("evaluated"), std::string::npos);
    ASSERT_FALSE(CheckpointStore::read_state(newest("")).evaluated_step);
  }
};

TEST_F(EvaluatedSteps, AreStateAndNeedNoLog) {
  session(6);
  EXPECT_EQ(CheckpointStore::read_state(newest("")).evaluated_step, 6);
  EXPECT_EQ(parse_run_state(read_text(newest("run.json")), "run.json").evaluated_step, 3)
      << "the save came before the evaluation";
  ASSERT_TRUE(std::filesystem::remove(dir / "run/log.jsonl"));
  EXPECT_EQ(session(8), 6);
  EXPECT_EQ(evaluations(), (Events{"eval 8"}));
}

TEST_F(EvaluatedSteps, ComeFromTheLogWhereTheCheckpointKeepsNoAccount) {
  session(6);
  forget_evaluations();
  EXPECT_EQ(session(8), 6);
  EXPECT_EQ(evaluations(), (Events{"eval 3", "eval 6", "eval 8"}));
}

TEST_F(EvaluatedSteps, AreEvaluatedWhereNeitherCheckpointNorLogKnows) {
  session(6);
  forget_evaluations();
  ASSERT_TRUE(std::filesystem::remove(dir / "run/log.jsonl"));
  EXPECT_EQ(session(8), 6);
  EXPECT_EQ(evaluations(), (Events{"eval 6", "eval 8"}));
}

TEST_F(EvaluatedSteps, InALogAreThoseUpToTheStepAskedFor) {
  const std::string log = dir / "log.jsonl";
  EXPECT_EQ(evaluated_step_in_log(log, 9), 0) << "no log";
  // The fields in another order than the log has them, a step that was lost, and a line torn by a kill.
  write_text(log, R"({"step":3,"val_loss":1.5,"kind":"eval"})"
                  "\n"
                  R"({"kind":"step","step":5})"
                  "\n"
                  R"({"kind":"eval","step":6,"val_loss":1.5})"
                  "\n"
                  R"({"kind":"eval","st)");
  EXPECT_EQ(evaluated_step_in_log(log, 9), 6);
  EXPECT_EQ(evaluated_step_in_log(log, 5), 3);
  EXPECT_EQ(evaluated_step_in_log(log, 2), 0);
}

TEST_F(EvaluatedSteps, GoBackWithARestore) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  RunState state;
  TrainerOptions o = options("run");
  o.eval_every = 2;
  LoggedTrainer trainer(*engine, batches, &validation, data.tokenizer(), o, state);
  trainer.after_step = poison_once(*engine, 4);  // its save finds the damage and turns back to step 2
  trainer.run();
  EXPECT_EQ(events("run", {"save", "eval", "restore"}),
            (Events{"save 2", "eval 2", "restore 2", "save 4", "eval 4", "save 6", "eval 6"}));
  EXPECT_EQ(state.evaluated_step, 6);
}

TEST_F(Watch, ATimeLimitShorterThanAStepStillGetsOneStepFurther) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  RunState state;
  TrainerOptions o = options("run");
  o.stop_after_s = 1e-9;
  for (std::int64_t session = 1; session <= 3; ++session) {
    LoggedTrainer trainer(*engine, batches, nullptr, data.tokenizer(), o, state);
    EXPECT_THROW(trainer.run(), StopRequested);
    EXPECT_EQ(state.step, session);
  }
}

TEST_F(Watch, CountsTokensAndPrintsThemInTheLog) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  RunState state;
  LoggedTrainer trainer(*engine, batches, nullptr, data.tokenizer(), options("run"), state);
  const TrainResult result = trainer.run();
  EXPECT_EQ(result.tokens, 6 * 2 * 2 * 32);
  EXPECT_EQ(state.tokens, result.tokens);
  EXPECT_NE(read_text(dir / "run/log.jsonl").find("\"tokens\":768"), std::string::npos);
}

TEST(Screen, StepLinesStandUnderTheirHeader) {
  StepLine line{.step = 12,
                .steps = 300,
                .loss = 4.5678,
                .norm = 0.25,
                .lr = 1.5e-3,
                .seconds = 0.4,
                .tokens_per_s = 10240,
                .mfu = 0.4321,
                .device_bytes = 300 << 20,
                .watts = 199.6,
                .eta_s = Range{.low = 3.2 * 86400, .high = 3.4 * 86400}};
  const std::string header = step_header(), text = step_line(line);
  EXPECT_EQ(header.size(), text.size());
  for (const char* word : {"12/300", "4.00", "4.5678", "0.25", "0.0015", "400", "10240", "43.2", "300.0 MiB",
                           "  200 ", "3d 5h-3d 10h"})
    EXPECT_NE(text.find(word), std::string::npos) << word << " in " << text;
  EXPECT_EQ(text.find("SKIPPED"), std::string::npos);
  line.skipped = true;
  line.mfu.reset();
  line.watts.reset();
  line.eta_s.reset();
  EXPECT_NE(step_line(line).find("SKIPPED"), std::string::npos);
  EXPECT_NE(step_line(line).find("      - 300.0 MiB     -                -"), std::string::npos)
      << step_line(line);
}

TEST(Screen, ProgressIsShownOnlyWhereAStepHasParts) {
  EXPECT_TRUE(progress_line(3, 1, 1, 2.0).empty());
  const std::string half = progress_line(3, 8, 16, 2.0);
  EXPECT_NE(half.find("[===============               ]"), std::string::npos) << half;
  EXPECT_NE(half.find("8/16"), std::string::npos);
  EXPECT_EQ(half.front(), '\r') << "redrawn in place";
}

}  // namespace
}  // namespace qt::test
