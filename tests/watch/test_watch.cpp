// The loop around the steps: when it saves, evaluates, samples and stops, and the lines it prints.
#include <gtest/gtest.h>

#include "src/io/json.h"
#include "src/plan/screen.h"
#include "src/train/step_watch.h"
#include "src/train/stop.h"
#include "src/train/trainer.h"
#include "tests/support/process.h"
#include "tests/support/tiny_run.h"

namespace qt::test {
namespace {

TEST(SaveInterval, HoldsSavingToOnePercentAndToOnceAMinute) {
  EXPECT_FALSE(save_is_due(59.0, 0.001));
  EXPECT_TRUE(save_is_due(60.0, 0.001));
  EXPECT_FALSE(save_is_due(2999.0, 30.0));  // 30 s each: every 3,000 s
  EXPECT_TRUE(save_is_due(3000.0, 30.0));
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
  Trainer trainer(*engine, batches, &validation, data.tokenizer(), o, state);
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
    Trainer trainer(*engine, batches, &validation, data.tokenizer(), o, state);
    trainer.after_step = [](const RunState& now, const StepStats&) {
      if (now.step == 3) request_stop();
    };
    EXPECT_THROW(trainer.run(), StopRequested);
    clear_stop_request();
  }
  EXPECT_EQ(events("run", {"save", "eval", "stop"}), (Events{"save 3", "stop 3"}));
  Trainer trainer(*engine, batches, &validation, data.tokenizer(), o, state);
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
  Trainer(*engine, batches, &validation, data.tokenizer(), o, state).run();
  o.schedule.steps = 8;  // goes on where it ended
  Trainer(*engine, batches, &validation, data.tokenizer(), o, state).run();
  EXPECT_EQ(events("run", {"eval"}), (Events{"eval 3", "eval 6", "eval 8"}));
}

TEST_F(Watch, ATimeLimitShorterThanAStepStillGetsOneStepFurther) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  RunState state;
  TrainerOptions o = options("run");
  o.stop_after_s = 1e-9;
  for (std::int64_t session = 1; session <= 3; ++session) {
    Trainer trainer(*engine, batches, nullptr, data.tokenizer(), o, state);
    EXPECT_THROW(trainer.run(), StopRequested);
    EXPECT_EQ(state.step, session);
  }
}

TEST_F(Watch, CountsTokensAndPrintsThemInTheLog) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  RunState state;
  Trainer trainer(*engine, batches, nullptr, data.tokenizer(), options("run"), state);
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
