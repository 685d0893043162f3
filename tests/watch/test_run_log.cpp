// Reading a run's log back: what a step that is done again replaces, what a log may lack, what is no log. And
// the figures of `qtrain status`, against logs with figures known by hand.
#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/io/checkpoint.h"
#include "src/watch/run_status.h"
#include "tests/support/log_writer.h"
#include "tests/support/temp_dir.h"

namespace qt::test {
namespace {

class RunLogs : public ::testing::Test {
 protected:
  TempDir dir;

  RunLog read(const std::string& text) {
    put(dir / "log.jsonl", text);
    return read_run_log(dir / "log.jsonl");
  }
  std::string refusal(const std::string& text) {
    return message_of<DataError>([&] { read(text); });
  }
  static std::vector<std::int64_t> numbers(const RunLog& log) {
    std::vector<std::int64_t> steps;
    for (const RunLog::Step& s : log.steps) steps.push_back(s.step);
    return steps;
  }
};
using Numbers = std::vector<std::int64_t>;

TEST_F(RunLogs, KeepWhatStepsEvaluationsAndSamplesSay) {
  const RunLog log =
      read(start_line(0, 10) + line(step_fields(1, 4).add("warmup", true)) +
           line(step_fields(2, 3.5)
                    .add("warmup", false)
                    .add("unix_s", 1'763'760'004.5)
                    .add("mfu", 0.41)
                    .add("watts", 180.5)
                    .add("celsius", 61)
                    .add("sm_mhz", 2400)
                    .add_raw("throttle", "[\"power cap\",\"heat\"]")
                    .add("device_used_bytes", 12345678)
                    .add("kwh", 0.25)) +
           line(record("save", 2).add("seconds", 0.5)) +
           line(record("eval", 2).add("val_loss", 3.25).add("val_bpb", 1.25).add("seconds", 1.5)) +
           line(record("sample", 2).add("text", "a <b>\n")));
  ASSERT_EQ(log.steps.size(), 2u);
  const RunLog::Step& s = log.steps[1];
  EXPECT_TRUE(log.steps[0].warmup);
  EXPECT_FALSE(s.warmup);
  EXPECT_EQ(s.unix_s, 1'763'760'004.5);
  EXPECT_EQ(s.loss, 3.5f);
  EXPECT_EQ(s.mfu, 0.41f);
  EXPECT_EQ(s.watts, 180.5f);
  EXPECT_EQ(s.celsius, 61.0f);
  EXPECT_TRUE(s.throttled);
  EXPECT_TRUE(std::isnan(log.steps[0].watts)) << "unknown is not 0";
  EXPECT_EQ(log.throttle_steps.at("heat"), 1);
  EXPECT_EQ(log.device_used_bytes, 12345678);
  EXPECT_EQ(log.kwh, 0.25);
  EXPECT_EQ(log.tokens, 2000);
  EXPECT_EQ(log.saves, 1);
  EXPECT_EQ(log.evals.at(0).bpb, 1.25);
  EXPECT_EQ(log.samples.at(0).text, "a <b>\n");
  ASSERT_NE(log.start(), nullptr);
  EXPECT_EQ(log.start()->steps, 10);
  EXPECT_EQ(log.start()->device_rows.at(0).first, "activations");
  EXPECT_EQ(log.step_seconds + log.eval_seconds + log.save_seconds, 4 + 1.5 + 0.5);
  EXPECT_FALSE(log.torn);
}

TEST_F(RunLogs, LetAStepThatComesAgainReplaceTheEarlierOne) {
  // Saved at 3, killed after 6; the evaluation at 3 stands, the one at 5 was lost.
  const std::string before = start_line(0, 10) + step_lines(1, 3, 4) + line(record("save", 3)) +
                             line(record("eval", 3).add("val_loss", 3.9)) + step_lines(4, 5, 9) +
                             line(record("eval", 5).add("val_loss", 9.5)) +
                             line(record("sample", 5).add("text", "lost")) + step_lines(6, 6, 9);
  const RunLog killed = read(before + start_line(3, 10) + step_lines(4, 4, 2));
  EXPECT_EQ(numbers(killed), (Numbers{1, 2, 3, 4}));
  EXPECT_EQ(killed.steps.back().loss, 2.0f);
  EXPECT_EQ(killed.lost_steps, 3);
  EXPECT_EQ(killed.sessions.size(), 2u);
  EXPECT_NE(killed.events.back().text.find("ended without a word"), std::string::npos);
  EXPECT_EQ(killed.events.front().text, "qtrain 0.1.0");
  ASSERT_EQ(killed.evals.size(), 1u);
  EXPECT_EQ(killed.evals[0].step, 3);
  EXPECT_TRUE(killed.samples.empty());
  // Without a record of the start: logs of earlier versions.
  const RunLog old = read(before.substr(before.find('\n') + 1) + step_lines(4, 4, 2));
  EXPECT_EQ(numbers(old), numbers(killed));
  EXPECT_EQ(old.sessions.size(), 2u);
  // A restore goes back at once, and is no new session.
  const RunLog restored = read(before + line(record("restore", 3).add("why", "not finite")));
  EXPECT_EQ(numbers(restored), (Numbers{1, 2, 3}));
  EXPECT_EQ(restored.restores, 1);
  EXPECT_EQ(restored.sessions.size(), 1u);
  EXPECT_EQ(restored.events.back().text, "not finite");
  EXPECT_EQ(read(before + line(record("restore", 3)) + step_lines(4, 6)).sessions.size(), 1u);
}

TEST_F(RunLogs, CountTheFirstTwoStepsOfASessionAsWarmUpWhereTheyDoNotSaySo) {
  const RunLog log = read(step_lines(1, 4) + line(record("stop", 4)) + step_lines(5, 7));
  std::vector<bool> warmup;
  for (const RunLog::Step& s : log.steps) warmup.push_back(s.warmup);
  EXPECT_EQ(warmup, (std::vector<bool>{true, true, false, false, true, true, false}));
}

TEST_F(RunLogs, LeaveOutALineTornByAKill) {
  const std::string whole = step_lines(1, 2);
  const std::string third = step_lines(3, 3);
  for (std::size_t bytes = 1; bytes < third.size(); ++bytes) {
    const RunLog log = read(whole + third.substr(0, bytes));
    ASSERT_EQ(log.steps.size(), 2u);
    ASSERT_TRUE(log.torn);
  }
  EXPECT_EQ(read(whole + third).steps.size(), 3u);
  EXPECT_TRUE(read("").steps.empty());
  EXPECT_EQ(read(whole + std::string(300, '\0')).steps.size(), 2u) << "what a power cut leaves";
}

TEST_F(RunLogs, NameFileAndLineOfWhatIsNoRecord) {
  const std::string whole = step_lines(1, 2);
  const auto expect = [&](const std::string& text, const std::string& line_number, const std::string& word) {
    const std::string message = refusal(text);
    EXPECT_NE(message.find("log.jsonl:" + line_number), std::string::npos) << message;
    EXPECT_NE(message.find(word), std::string::npos) << message;
  };
  expect(whole + "no record\n" + whole, "3", "not valid JSON");
  expect(whole + "\n", "3", "not valid JSON");
  expect(whole + "[]\n", "3", "must be an object");
  expect(whole + "{\"step\":3}\n", "3", "'kind'");
  expect("{\"kind\":\"step\"}\n", "1", "'step'");
  expect("{\"kind\":\"step\",\"step\":-1}\n", "1", "'step'");
  expect("{\"kind\":\"step\",\"step\":1.5}\n", "1", "'step'");
  expect(whole + line(record("step", 3).add("loss", "low")), "3", "'loss'");
  expect(whole + line(record("step", 3).add("seconds", -1)), "3", "'seconds'");
  expect(whole + line(record("step", 3).add_raw("throttle", "[1]")), "3", "'throttle'");
  expect(whole + line(record("start", 3).add_raw("device_rows", "{\"weights\":\"many\"}")), "3", "'weights'");
  expect(std::string("\x7f"
                     "ELF\x02\x01\x01",
                     7),
         "1", "not a record");
  expect(std::string("\x89PNG\r\n\x1a\n", 8) + whole, "1", "JSON");
  expect(std::string(9 << 20, '{'), "1", "this is no log");
  EXPECT_TRUE(refusal(whole + "{\"kind\":\"of another day\",\"what\":[{}]}\n").empty()) << "kinds to come";
  std::filesystem::remove(dir / "log.jsonl");
  std::filesystem::create_directory(dir / "log.jsonl");
  EXPECT_NE(message_of<DataError>([&] { read_run_log(dir / "log.jsonl"); }).find("a folder"),
            std::string::npos);
}

TEST_F(RunLogs, KeepSamplesAndEventsWithinBounds) {
  std::string text;
  for (int i = 1; i <= 1000; ++i) {
    text += line(record("sample", i).add("text", std::string(5000, 'x')));
    for (int k = 0; k < 4; ++k) text += line(record("overflow", i).add("loss_scale", 1024.0));
  }
  const RunLog log = read(text);
  EXPECT_LT(log.samples.size(), 2 * RunLog::kMostSamples);
  EXPECT_GE(log.samples.size(), RunLog::kMostSamples);
  EXPECT_EQ(log.samples.back().step, 1000) << "the newest always";
  EXPECT_LE(log.samples.back().text.size(), RunLog::kMostSampleBytes + 3);
  EXPECT_EQ(log.events.size(), RunLog::kMostEvents);
  EXPECT_EQ(log.events.back().step, 1000);
  EXPECT_EQ(log.overflows, 4000) << "counted all the same";
}

TEST_F(RunLogs, MayLackWhatIsNotFinite) {
  const RunLog log = read(line(step_fields(1, std::nan(""))) + line(record("step", 2)) +
                          line(record("step", 3).add("loss", 1e300)));
  EXPECT_EQ(log.steps.size(), 3u);
  for (const RunLog::Step& s : log.steps) EXPECT_TRUE(std::isnan(s.loss)) << s.step;
  EXPECT_EQ(log.skipped, 1);
}

// --- status ------------------------------------------------------------------------------------------------

class Status : public RunLogs {
 protected:
  RunFacts facts(const std::string& text) {
    RunFacts f;
    f.folder = "runs/d4";
    f.log = read(text);
    f.now_unix_s = 1'763'764'000;
    return f;
  }
  RunStatus of(const std::string& text) { return status_of(facts(text)); }
};

TEST_F(Status, FiguresAreThoseWorkedOutByHand) {
  // Warm-up a hundred times slower enters nothing; 20 measured steps of 2 s with 1000 tokens each. Ahead lie
  // 100 steps, an evaluation of 16 s and a save of 6 s at the end, and up to 1 % of the time for saves
  // between.
  std::string text = start_line(0, 122) + step_lines(1, 2, 9, 200);
  for (int i = 3; i <= 22; ++i) {
    text += line(step_fields(i, i <= 12 ? 4 : 2)
                     .add("mfu", 0.5)
                     .add("watts", 200.0)
                     .add("kwh", 2.0)
                     .add("unix_s", 1'763'763'970));
  }
  text += line(record("save", 22).add("seconds", 6.0)) +
          line(record("eval", 22).add("val_loss", 2.5).add("val_bpb", 1.0).add("seconds", 16.0));
  RunFacts f = facts(text);
  f.holder = 4711;
  const RunStatus s = status_of(f);
  EXPECT_EQ(s.phase, RunPhase::running);
  EXPECT_EQ(s.step, 22);
  EXPECT_EQ(s.steps, 122);
  EXPECT_NEAR(s.tokens_per_s.value(), 500, 1e-3);
  EXPECT_NEAR(s.mfu.value(), 0.5, 1e-6);
  EXPECT_NEAR(s.step_s.value().low, 2 * 0.95, 1e-9);
  EXPECT_NEAR(s.step_s.value().high, 2 * 1.05, 1e-9);
  EXPECT_NEAR(s.left_s.value().low, 100 * 1.9 + 16 + 6, 1e-6);
  EXPECT_NEAR(s.left_s.value().high, 100 * 2.1 * 1.01 + 16 + 6, 1e-6);
  EXPECT_EQ(s.loss, 2.0);
  EXPECT_NEAR(s.loss_smoothed.value(), (2 * 9 + 10 * 4 + 10 * 2) / 22.0, 1e-6);
  EXPECT_EQ(s.watts, 200.0);
  EXPECT_EQ(s.cost, 7.0);
  EXPECT_EQ(s.currency, "TWD");
  EXPECT_EQ(s.trained_s, 2 * 200 + 20 * 2 + 22);
  const std::string words = status_text(f, s);
  for (const char* word : {"running (process 4711)", "22 of 122 (18.0 %)", "22k tokens", "2.0000 now",
                           "1.0000 bits per byte, loss 2.5000 at step 22", "500 tokens/s", "MFU 50.0 %",
                           "3 min 32 s to 3 min 54 s", "until 2025-11-21 22:30 UTC", "200 W",
                           "2.00 kWh so far, 7.00 TWD", "last step   30 s ago", "no checkpoint yet"}) {
    EXPECT_NE(words.find(word), std::string::npos) << "'" << word << "' is missing in:\n" << words;
  }
}

TEST_F(Status, DoesNotDependOnTheClock) {
  std::string still, jumping;
  for (int i = 1; i <= 30; ++i) {
    const double jump = i == 10 ? 86400 : i == 20 ? -86400 : 0;
    still += line(step_fields(i, 3).add("unix_s", 1'763'760'000 + 2.0 * i));
    jumping += line(step_fields(i, 3).add("unix_s", 1'763'760'000 + 2.0 * i + jump));
  }
  const RunStatus a = of(start_line(0, 100) + still), b = of(start_line(0, 100) + jumping);
  EXPECT_EQ(a.tokens_per_s, b.tokens_per_s);
  EXPECT_EQ(a.left_s.value().low, b.left_s.value().low);
  EXPECT_EQ(a.left_s.value().high, b.left_s.value().high);
  EXPECT_EQ(a.trained_s, b.trained_s);
}

TEST_F(Status, SaysWhatItDoesNotKnow) {
  const RunFacts old = facts(step_lines(1, 8));
  const RunStatus s = status_of(old);
  EXPECT_FALSE(s.steps || s.mfu || s.watts || s.kwh || s.cost || s.left_s);
  const std::string words = status_text(old, s);
  for (const char* word : {"8 of an unknown number", "MFU unknown", "unknown; energy unknown", "none yet"})
    EXPECT_NE(words.find(word), std::string::npos) << "'" << word << "' is missing in:\n" << words;
  const RunStatus empty = of("");
  EXPECT_FALSE(empty.loss || empty.tokens_per_s || empty.step_s);
  EXPECT_EQ(empty.step, 0);
  const Json json = parse_json(status_json(facts(""), empty), "json");
  for (const char* key : {"kwh", "watts", "loss", "steps", "percent", "left_seconds_high"})
    EXPECT_TRUE(json[key].is_null()) << key;
}

TEST_F(Status, SaysAtLeastWhereAPartWasNotMeasured) {
  const std::string steps = start_line(0, 10) + step_lines(1, 6);
  const RunFacts part = facts(steps + line(step_fields(7, 3).add("kwh_at_least", 0.00042)));
  const RunStatus s = status_of(part);
  EXPECT_FALSE(s.kwh || s.cost);
  EXPECT_NE(status_text(part, s).find("at least 0.00042 kWh so far"), std::string::npos);
  // How it ended knows more than the last step; and a step that knows nothing takes it back.
  EXPECT_EQ(of(steps + line(record("done", 6).add("kwh", 0.5))).kwh, 0.5);
  EXPECT_EQ(of(steps + line(record("stop", 6).add("kwh", 0.5))).cost, 1.75);
  EXPECT_FALSE(of(steps + line(record("stop", 6).add("kwh", 0.5)) + step_lines(7, 7)).kwh);
}

TEST_F(Status, TellsGivenPowerFromMeasuredPower) {
  RunFacts given = facts(start_line(0, 10) + step_lines(1, 6));
  given.options = {{"watts", "225W"}};
  EXPECT_EQ(status_of(given).watts_assumed, 225.0);
  EXPECT_FALSE(status_of(given).watts);
  EXPECT_NE(status_text(given, status_of(given)).find("225 W as given (--watts)"), std::string::npos);
  given.options = {{"watts", "of a later version"}};
  EXPECT_FALSE(status_of(given).watts_assumed);
  RunFacts measured = facts(start_line(0, 10) + line(step_fields(1, 3).add("watts", 190.0)));
  measured.options = {{"watts", "225"}};
  EXPECT_FALSE(status_of(measured).watts_assumed);
}

TEST_F(Status, TellsHowARunEnded) {
  const std::string steps = start_line(0, 8) + step_lines(1, 8);
  EXPECT_EQ(of(steps).phase, RunPhase::interrupted);
  EXPECT_EQ(of(steps + line(record("stop", 8))).phase, RunPhase::stopped);
  EXPECT_EQ(of(steps + line(record("done", 8))).phase, RunPhase::finished);
  EXPECT_EQ(of(steps + line(record("diverged", 8).add("why", "x"))).phase, RunPhase::diverged);
  // Continued with more steps, and killed.
  const std::string more = steps + line(record("done", 8)) + start_line(8, 20) + step_lines(9, 10);
  EXPECT_EQ(of(more).phase, RunPhase::interrupted);
  EXPECT_EQ(of(more).steps, 20);
  EXPECT_EQ(of(more).restarts, 1);
  RunFacts held = facts(steps + line(record("stop", 8)));
  held.holder = 1;
  EXPECT_EQ(status_of(held).phase, RunPhase::starting);
  held = facts(steps);
  held.holder = 1;
  EXPECT_EQ(status_of(held).phase, RunPhase::running);
}

TEST_F(Status, KeysOfItsJsonStay) {
  const RunFacts f = facts(start_line(0, 10) + step_lines(1, 8));
  const nlohmann::ordered_json json = nlohmann::ordered_json::parse(status_json(f, status_of(f)));
  std::vector<std::string> keys;
  for (const auto& item : json.items()) keys.push_back(item.key());
  EXPECT_EQ(keys, (std::vector<std::string>{"run",
                                            "state",
                                            "pid",
                                            "step",
                                            "steps",
                                            "percent",
                                            "tokens",
                                            "loss",
                                            "loss_smoothed",
                                            "val_step",
                                            "val_loss",
                                            "val_bpb",
                                            "tokens_per_s",
                                            "mfu",
                                            "step_seconds_low",
                                            "step_seconds_high",
                                            "left_seconds_low",
                                            "left_seconds_high",
                                            "finish_unix_s_low",
                                            "finish_unix_s_high",
                                            "watts",
                                            "celsius",
                                            "kwh",
                                            "kwh_at_least",
                                            "cost",
                                            "currency",
                                            "saved_step",
                                            "saved_unix_s",
                                            "last_step_unix_s",
                                            "trained_seconds",
                                            "restarts",
                                            "restores",
                                            "overflows",
                                            "skipped",
                                            "slow",
                                            "lost_steps",
                                            "disk_free_bytes",
                                            "checkpoint_bytes"}));
}

TEST_F(Status, IsThereForARunThatHasNoLogYet) {
  EXPECT_NE(message_of<ConfigError>([&] { read_run(dir.path().string()); }).find("no run"),
            std::string::npos);
  const RunLock lock(dir.path());
  const RunFacts f = read_run(dir.path().string());
  EXPECT_EQ(status_of(f).phase, RunPhase::starting);
  EXPECT_EQ(f.holder, ::getpid());
}

// --- who holds the folder --------------------------------------------------------------------------------

TEST_F(RunLogs, TheHolderOfALockIsNamedWithoutTakingIt) {
  EXPECT_FALSE(lock_holder(dir.path()));
  {
    const RunLock lock(dir.path());
    EXPECT_EQ(lock_holder(dir.path()), ::getpid());
  }
  // The number stays in the file; this process lives, and does not hold it.
  EXPECT_FALSE(lock_holder(dir.path()));
  put(dir / "lock", "999999999\n");
  EXPECT_FALSE(lock_holder(dir.path()));
  for (const char* junk : {"", "-1\n", "0\n", "all\n", "99999999999999999999999999999999999999999999\n"}) {
    put(dir / "lock", junk);
    EXPECT_FALSE(lock_holder(dir.path())) << junk;
  }
}

}  // namespace
}  // namespace qt::test
