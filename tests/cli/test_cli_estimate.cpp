// `qtrain estimate` as a person meets it: answers, and every kind of wrong word.
#include <nlohmann/json.hpp>

#include "tests/support/cli.h"

namespace qt::test {
namespace {

class CliEstimate : public Cli {
 protected:
  Ended estimate(const Words& more) const { return run(Words{"estimate"} + more); }
};

TEST_F(CliEstimate, AnswersWithoutACard) {
  const Ended text =
      estimate({"--model", "d32", "--tokens", "37.6B", "--card", "4070", "--quant", "nf4",
                "--ckpt-activations", "--efficiency", "45TFLOP/s", "--watts", "225", "--price", "3.5TWD"});
  expect_success(text);
  expect_words(text.out,
               {"GeForce RTX 4070", "58.3 TFLOP/s", "fits: ", "assumed, 77 % of the peak", "116.8 d",
                "153.2 d", "the floor", "finish      20", " kWh at 225 W", " TWD at 3.5 TWD a kWh"});
  EXPECT_TRUE(std::filesystem::is_empty(dir / "work")) << "an estimate leaves nothing behind";

  const Ended json = estimate({"--model", "d32", "--card", "RTX 4070", "--json"});
  expect_success(json);
  const auto parsed = nlohmann::json::parse(json.out);
  EXPECT_NEAR(parsed["flops_total"].get<double>(), 4.54e20, 0.01e20);
  EXPECT_NEAR(parsed["limit_days"].get<double>(), 90.1, 0.9);
  EXPECT_LE(parsed["floor_days"].get<double>(), parsed["days_low"].get<double>());
  EXPECT_EQ(parsed["efficiency_source"], "assumed");
}

TEST_F(CliEstimate, ComparesAndJudgesClaims) {
  const Ended both = estimate({"--model", "d32", "--ckpt-activations", "--card=4070", "--compare",
                               "--claim-tflops", "20", "--claim-days", "40d", "--claim-kwh", "175kWh"});
  expect_success(both);
  expect_words(both.out, {"a factor of 6.6", "d20, 11.2B tokens", "not available in this version",
                          "d21 does not exist", "power capped at 80 %"});
}

// Time is one question and memory another: both are answered.
TEST_F(CliEstimate, SaysThatARunDoesNotFit) {
  const Ended small = estimate({"--model", "d32", "--card", "4070-laptop", "--json"});
  expect_success(small);
  EXPECT_EQ(nlohmann::json::parse(small.out)["fits"], false);
  expect_words(estimate({"--model", "d32", "--card", "4070-laptop"}).out, {"DOES NOT FIT", "`qtrain plan`"});
  const Words host{"--model", "d32", "--card", "4070", "--quant", "nf4", "--ckpt-activations",
                   "--ram",   "4GiB"};
  expect_words(estimate(host).out, {"DOES NOT FIT: 12.0 GiB of 4.0 GiB on the host"});
}

TEST_F(CliEstimate, TakesWhatARunMeasured) {
  const Words work = shape() + Words{"--vocab-size", "265", "--device", "cpu"};
  expect_refusal(run(Words{"estimate"} + work + Words{"--out", dir / "run"}), 2,
                 {"no card", "--card", "4070"});
  expect_success(run(with(train(dir / "run", "12"), {"--device", "cpu"})));
  const Words again = Words{"estimate"} + work + Words{"--out", dir / "run", "--steps", "1000"};
  const Ended text = run(again);
  expect_success(text);
  expect_words(text.out, {"measured: the last 10 steps of", "energy      unknown"});
  const auto parsed = nlohmann::json::parse(run(again + Words{"--json"}).out);
  EXPECT_EQ(parsed["efficiency_source"], "measured");
  EXPECT_TRUE(parsed["limit_days"].is_null());
  EXPECT_TRUE(parsed["kwh_low"].is_null()) << "unknown is not 0";
  EXPECT_GT(parsed["step_seconds_low"].get<double>(), 0);
  expect_words(run(again + Words{"--watts", "65"}).out, {" kWh at 65 W (--watts)"});
  // Of other work it says nothing.
  expect_refusal(run(with(again, {"--quant", "none"})), 2, {"no card"});
  expect_refusal(run(again + Words{"--compare"}), 2, {"--compare", "--card"});
  expect_refusal(run(again + Words{"--efficiency", "70%"}), 2, {"--efficiency", "--card"});
  // A damaged log is no measurement.
  edit(dir / "run/log.jsonl", [](std::string& log) { log.insert(log.rfind("{\"kind\":\"done"), "]]\n"); });
  expect_refusal(run(again), 4, {"log.jsonl"});
}

TEST_F(CliEstimate, MeasuresThisMachineWhereNothingElseTells) {
  const Words work = shape() + Words{"--vocab-size", "265", "--device", "cpu", "--steps", "1000"};
  const Ended text = run(Words{"estimate", "--calibrate", "1s"} + work);
  expect_success(text);
  expect_words(text.out, {"measured: here, with 1 and 2 of 2 layers", "energy      unknown"});
  EXPECT_TRUE(std::filesystem::is_empty(dir / "work"));
  const auto parsed = nlohmann::json::parse(run(Words{"estimate", "--json", "--calibrate=1s"} + work).out);
  EXPECT_EQ(parsed["efficiency_source"], "measured");
  EXPECT_GT(parsed["days_low"].get<double>(), 0);
  EXPECT_GE(parsed["days_high"].get<double>(), parsed["days_low"].get<double>());
}

TEST_F(CliEstimate, RefusesWrongWords) {
  struct Refusal {
    Words args;
    Words words;
    int code = 2;
  };
  const Refusal cases[] = {
      {{"--card"}, {"--card needs a value"}},
      {{"--card", "--json"}, {"--card needs a value"}},
      {{"--card="}, {"--card needs a value"}},
      {{"--card", "4080"}, {"'4080'", "cards are: 3060"}},
      {{"--card", "4090", "--card", "4070"}, {"--card", "twice"}},
      {{"--card", "4070", "--device", "cpu"}, {"--card 4070", "--device cpu"}},
      {{"--crad", "4070"}, {"'crad'", "did you mean --card?"}},
      {{"--efficency", "70%"}, {"'efficency'", "did you mean --efficiency?"}},
      {{"--card", "4070", "--price", "free"}, {"--price", "'free'", "3.5TWD"}},
      {{"--card", "4070", "--price", "3.5"}, {"--price", "'3.5'", "currency"}},
      {{"--card", "4070", "--price", "-1EUR"}, {"--price", "'-1EUR'"}},
      {{"--card", "4070", "--watts", "lots"}, {"--watts", "'lots'"}},
      {{"--card", "4070", "--watts", "0"}, {"--watts", "'0'"}},
      {{"--card", "4070", "--watts", "nan"}, {"--watts", "'nan'"}},
      {{"--card", "4070", "--efficiency", "70"}, {"--efficiency 70", "58.3 TFLOP/s"}},
      {{"--card", "4070", "--efficiency", "quick"}, {"--efficiency", "'quick'"}},
      {{"--card", "4070", "--claim-days", "40"}, {"--claim-tflops and --claim-days"}},
      {{"--card", "4070", "--claim-kwh", "175"}, {"--claim-tflops and --claim-days"}},
      {{"--card", "4070", "--claim-tflops", "-20", "--claim-days", "40"}, {"--claim-tflops", "'-20'"}},
      {{"--card", "4070", "--json=yes"}, {"--json takes no value"}},
      {{"--card", "4070", "--model", "d21"}, {"'d21'", "odd depth"}},
      {{"--card", "4070", "--model", "d32", "--batch-tokens", "1000"}, {"--batch-tokens 1000"}},
      {{"--card", "4070", "--train", "lora"}, {"--train lora"}},
      {{"--card", "4070", "--init-from", dir / "missing.safetensors"}, {"missing.safetensors"}},
      {{"--card", "4070", "--calibrate", "20s"}, {"--calibrate", "no 4070 is in it"}},
      {{"--device", "cpu", "--calibrate", "soon"}, {"--calibrate", "'soon'"}},
      {{"--device", "cpu", "--calibrate", "2d"}, {"--calibrate 2d", "hour"}},
      {{"--device", "cpu", "--calibrate", "20s", "--efficiency", "70%"}, {"--calibrate", "--efficiency"}},
      {{"--card", "4070", "stray"}, {"'stray'"}},
  };
  for (const Refusal& c : cases) {
    SCOPED_TRACE(c.args.back());
    const Ended ended = estimate(c.args);
    expect_refusal(ended, c.code, c.words);
    EXPECT_TRUE(ended.out.empty()) << ended.out;
  }
  // The words of one verb are no words of another, nor options of a run.
  expect_refusal(run({"train", "--card", "4070"}), 2, {"--card", "`qtrain train`", "`qtrain estimate`"});
  expect_refusal(run({"plan", "--compare"}), 2, {"--compare", "`qtrain estimate`"});
  expect_refusal(estimate({"--card", "4070", "--arch", "sm_90"}), 2, {"--arch sm_90", "sm_89"});
  expect_refusal(run({"plan", "--json", "--json"}), 2, {"--json", "twice"});
  write_text(dir / "run.ini", "card = 4070\n");
  expect_refusal(estimate({"--config", dir / "run.ini"}), 2, {"'card'", "run.ini"});
  // nanoGPT's words are not taken for misspelt ones.
  expect_success(estimate({"--card", "4070", "--compile=False", "--quiet"}));
}

TEST_F(CliEstimate, RefusesDamagedFiles) {
  std::filesystem::create_directory(dir / "weights");
  write_text(dir / "weights/model.safetensors", "\x08");
  write_text(dir / "weights/config.json", "{\"n_layer\": 12, \"n_he");
  expect_refusal(estimate({"--card", "4070", "--model", "gpt", "--init-from", dir / "weights"}), 4,
                 {"config.json"});
  write_text(dir / "cut.ini", "[model\nmodel = d4\n");
  expect_refusal(estimate({"--card", "4070", "--config", dir / "cut.ini"}), 2, {"cut.ini"});
}

}  // namespace
}  // namespace qt::test
