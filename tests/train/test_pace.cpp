// tok/s, MFU and the time that is left, against logs and arithmetic done by hand: warm-up a hundred times
// slower than a step, sessions that end by a stop and by a kill, a time of day that leaps by a day.
#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/core/log.h"
#include "src/io/json.h"
#include "src/plan/calibrate.h"
#include "src/train/pace.h"
#include "src/watch/console.h"
#include "src/watch/step_log.h"
#include "tests/support/run_folder.h"
#include "tests/support/tiny_run.h"

namespace qt::test {
namespace {

constexpr double kDaySeconds = 86400;

// --- what is left ------------------------------------------------------------------------------------------

WorkAhead hundred_steps() {
  return {.step = 40,
          .steps = 100,
          .eval_every = 10,
          .save_every = 25,
          .step_s = {.low = 1, .high = 2},
          .evaluation_s = {.low = 3, .high = 4},
          .save_s = {.low = 5, .high = 6}};
}

TEST(TimeAhead, CountsEvaluationsAndSavesThatAreStillToCome) {
  const TimeAhead t = time_ahead(hundred_steps());
  EXPECT_EQ(t.steps, 60);
  EXPECT_EQ(t.evaluations, 7) << "at 40 (it comes after the step), 50, 60, 70, 80, 90 and the end";
  EXPECT_EQ(t.saves, 8) << "before those on the way, at 75, and at the end; 50 is one of them";
  EXPECT_EQ(t.total_s.low, 60 * 1 + 7 * 3 + 8 * 5);
  EXPECT_EQ(t.total_s.high, 60 * 2 + 7 * 4 + 8 * 6);
}

TEST(TimeAhead, OfAWholeRunIsThatOfItsBeginning) {
  WorkAhead w = hundred_steps();
  w.step = 0;
  EXPECT_EQ(time_ahead(w).evaluations, 10);
  EXPECT_EQ(time_ahead(w).saves, 9 + 3 - 1 + 1);
  w.evaluates = false;
  EXPECT_EQ(time_ahead(w).evaluations, 0);
  EXPECT_EQ(time_ahead(w).saves, 3 + 1);
}

TEST(TimeAhead, OfTheLastStepIsItsEvaluationAndItsSave) {
  WorkAhead w = hundred_steps();
  w.step = 100;
  EXPECT_EQ(time_ahead(w).total_s.low, 3 + 5);
  w.step = 120;  // a run that was made shorter
  EXPECT_EQ(time_ahead(w).total_s.high, 4 + 6);
}

TEST(TimeAhead, LeavesAPercentToSavesThatComeByTheClock) {
  WorkAhead w = hundred_steps();
  w.save_every = 0;
  EXPECT_EQ(time_ahead(w).saves_s.low, 7 * 5);
  EXPECT_DOUBLE_EQ(time_ahead(w).saves_s.high, 7 * 6 + 0.01 * 120);
}

TEST(TimeAhead, IsNeverBelowThePeak) {
  WorkAhead w = hundred_steps();
  w.step_flops = 1000;
  w.evaluation_flops = 500;
  w.peak_flops = 10;  // 60 x 100 s and 7 x 50 s
  const TimeAhead t = time_ahead(w);
  EXPECT_TRUE(t.held_at_floor);
  EXPECT_EQ(t.total_s.low, 6350);
  EXPECT_EQ(t.total_s.high, 6350);
  w.peak_flops = 1000;
  EXPECT_FALSE(time_ahead(w).held_at_floor);
}

// --- a pace ------------------------------------------------------------------------------------------------

TEST(Pace, LeavesWarmupOut) {
  Pace pace;
  EXPECT_FALSE(pace.take(100));
  EXPECT_FALSE(pace.take(100));
  EXPECT_FALSE(pace.mean_seconds());
  EXPECT_FALSE(pace.usual());
  for (int i = 0; i < 8; ++i) EXPECT_TRUE(pace.take(1));
  EXPECT_EQ(pace.mean_seconds(), 1.0);
  EXPECT_DOUBLE_EQ(pace.usual()->low, 0.95);
  EXPECT_DOUBLE_EQ(pace.usual()->high, 1.05);
}

TEST(Pace, RangesBetweenTheQuartiles) {
  // In order: 1 2 3 4 5 6 7 8; a quarter in from either end are 3 and 6.
  const Range r = usual_seconds({8, 1, 7, 2, 6, 3, 5, 4});
  EXPECT_EQ(r.low, 3);
  EXPECT_EQ(r.high, 6);
}

TEST(Pace, ForgetsWhatIsLongPast) {
  Pace pace;
  for (std::size_t i = 0; i < 500; ++i) pace.take(9);
  for (std::size_t i = 0; i < Pace::kHistory; ++i) pace.take(2);
  EXPECT_EQ(pace.mean_seconds(), 2.0);
}

// --- logs --------------------------------------------------------------------------------------------------

// A log as the trainer writes it, at a time of day that leaps.
class HandLog {
 public:
  void start() { line(JsonRecord().add("kind", "start").add("step", step_)); }
  void stop() { line(JsonRecord().add("kind", "stop").add("step", step_).add("seconds", 1.0)); }
  void steps(int count, double seconds) {
    for (int i = 0; i < count; ++i) {
      unix_s_ += (++step_ % 3 == 0 ? 1 : step_ % 3 == 1 ? -1 : 0) * kDaySeconds + seconds;
      line(JsonRecord()
               .add("kind", "step")
               .add("step", step_)
               .add("seconds", seconds)
               .add("tokens_per_s", kTokens / seconds)
               .add("unix_s", unix_s_));
    }
  }
  const std::string& text() const { return text_; }

  // As the trainer goes through it: a pace for each session.
  Speed replayed(const StepWork& work, WorkAhead ahead) const {
    Pace pace;
    double last = 0;
    for (const std::string& record : whole_lines(text_)) {
      const Json json = parse_json(record, "log");
      if (json["kind"] == "start") pace = {};
      if (json["kind"] == "step") pace.take(last = json["seconds"].get<double>());
    }
    ahead.step = step_;
    return speed_of(pace, last, static_cast<std::int64_t>(kTokens), work, ahead);
  }

  static constexpr double kTokens = 1000;

 private:
  void line(const JsonRecord& record) { text_ += record.str() + "\n"; }

  std::string text_;
  std::int64_t step_ = 0;
  double unix_s_ = 1.7e9;
};

const StepWork kWork{.model_flops = 6e9, .executed_flops = 8e9, .evaluation_flops = 4e9, .peak_flops = 10e9};

TEST(SpeedOfAHandMadeLog, IsThatOfItsStepsAndNothingElse) {
  HandLog log;
  log.start();
  log.steps(2, 200);  // warm-up, a hundred times slower
  EXPECT_EQ(log.replayed(kWork, {.steps = 100}).tokens_per_s, 1000.0 / 200);
  EXPECT_FALSE(log.replayed(kWork, {.steps = 100}).eta_s) << "nothing is known yet";
  EXPECT_FALSE(log.replayed(kWork, {.steps = 100}).mfu);
  log.steps(8, 2);
  const Speed s = log.replayed(kWork, {.steps = 100, .save_s = {.low = 1, .high = 3}});
  EXPECT_EQ(s.tokens_per_s, 500);
  EXPECT_DOUBLE_EQ(s.mfu.value(), 6e9 / 2 / 10e9);
  // 90 steps of 1.9 to 2.1 s; an evaluation of half a step; a save, and 1 % for those by the clock.
  EXPECT_DOUBLE_EQ(s.eta_s->low, 90 * 1.9 + 0.95 + 1);
  EXPECT_DOUBLE_EQ(s.eta_s->high, 90 * 2.1 + 1.05 + 3 + 0.01 * 90 * 2.1);
  EXPECT_EQ(eta_text(*s.eta_s), "2m 53s-3m 15s");
}

TEST(SpeedOfAHandMadeLog, WarmsUpAgainInEachSession) {
  HandLog log;
  log.start();
  log.steps(2, 200);
  log.steps(20, 4);  // ends by a kill
  log.start();
  log.steps(2, 300);
  log.steps(8, 2);
  WorkAhead ahead{.steps = 132, .save_every = 1000, .evaluates = false};
  const Speed s = log.replayed(kWork, ahead);
  EXPECT_EQ(s.tokens_per_s, 500);
  EXPECT_DOUBLE_EQ(s.eta_s->low, 100 * 1.9);
  EXPECT_DOUBLE_EQ(s.eta_s->high, 100 * 2.1);
  ahead.evaluates = true;
  ahead.evaluation_s = {.low = 7, .high = 7};  // measured
  EXPECT_DOUBLE_EQ(log.replayed(kWork, ahead).eta_s->low, 100 * 1.9 + 7);

  // What a later session takes it for: both, without either's warm-up.
  const TempDir dir;
  write_text(dir / "log.jsonl", log.text());
  const auto times = read_step_times(dir / "log.jsonl", 1000, "cpu");
  ASSERT_TRUE(times);
  EXPECT_EQ(times->steps, 28);
  EXPECT_EQ(times->seconds.low, 2);
  EXPECT_DOUBLE_EQ(times->seconds.high, 4 * 1.05);
}

TEST(SpeedOfAHandMadeLog, HoldsTheTimeLeftAtThePeak) {
  HandLog log;
  log.start();
  log.steps(10, 0.5);  // 8e9 operations in half a second, where the peak allows 10e9 in one
  const Speed s = log.replayed(kWork, {.steps = 110, .save_every = 1000, .evaluates = false});
  EXPECT_EQ(s.eta_s->low, 100 * 0.8);
  EXPECT_EQ(s.eta_s->high, 100 * 0.8);
}

TEST(SpeedOfAHandMadeLog, HasNoShareOfAPeakThatIsNotKnown) {
  HandLog log;
  log.start();
  log.steps(10, 2);
  const Speed s = log.replayed({}, {.steps = 20, .evaluates = false});
  EXPECT_FALSE(s.mfu);
  EXPECT_TRUE(s.eta_s);
}

TEST(Calibration, GoesStraightOnFromTwoDepths) {
  // 0.3 s once and 0.1 s a layer.
  EXPECT_DOUBLE_EQ(at_layers(0.4, 0.6, 1, 3, 32), 0.3 + 32 * 0.1);
  EXPECT_DOUBLE_EQ(at_layers(0.4, 0.6, 1, 3, 3), 0.6);
  EXPECT_DOUBLE_EQ(at_layers(0.4, 0.5, 1, 1, 1), 0.4);
}

}  // namespace
}  // namespace qt::test
