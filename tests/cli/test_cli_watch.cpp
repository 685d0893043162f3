// What a run on the processor tells of time, power and cost, as a person sees it: on screen and in log.jsonl.
// The machine's own counters are out of sight here; where one is needed it is made.
#include <regex>

#include "src/io/json.h"
#include "tests/support/cli.h"
#include "tests/support/run_folder.h"

namespace qt::test {
namespace {

class CliWatch : public Cli {
 protected:
  void SetUp() override {
    Cli::SetUp();
    std::filesystem::create_directories(dir / "powercap");
    setenv("QTRAIN_POWERCAP", (dir / "powercap").c_str(), 1);
  }
  void TearDown() override { unsetenv("QTRAIN_POWERCAP"); }

  Words on_cpu(const std::string& steps = "4") const {
    return train(dir / "run", steps) + Words{"--device", "cpu"};
  }
  std::vector<Json> log() const {
    std::vector<Json> records;
    for (const std::string& line : whole_lines(read_text(dir / "run/log.jsonl")))
      records.push_back(parse_json(line, "log.jsonl"));
    return records;
  }
};

TEST_F(CliWatch, KnowsNoEnergyWhereNothingMeasuresIt) {
  const Ended ended = run(on_cpu() + Words{"--price", "3.5TWD"});
  expect_success(ended);
  expect_words(ended.out, {"time       not known before steps were measured",
                           "meter      none that can be read", "energy      unknown", "--watts W"});
  for (const Json& record : log()) {
    for (const char* key : {"kwh", "kwh_at_least", "watts", "mfu", "peak_flops", "celsius"})
      EXPECT_FALSE(record.contains(key)) << record;
  }
  const Json start = log().front();
  EXPECT_EQ(start["kind"], "start");
  EXPECT_EQ(start["device"], "cpu");
  EXPECT_EQ(start["model"], "d2");
  EXPECT_EQ(start["price"], "3.5TWD");
}

TEST_F(CliWatch, ReckonsWithAPowerThatItIsGiven) {
  const Ended ended = run(on_cpu() + Words{"--watts", "225", "--price", "3.5 TWD/kWh"});
  expect_success(ended);
  expect_words(ended.out, {"meter      225 W assumed, --watts", "Wh (225 W assumed, --watts), ",
                           " TWD at 3.5 TWD a kWh"});
  const Json done = log().back();
  ASSERT_TRUE(done.contains("kwh")) << done;
  EXPECT_GT(done["kwh"].get<double>(), 0.9 * 225 * done["seconds"].get<double>() / 3.6e6);
  // Files and variables set them like any option of a run.
  write_text(dir / "run.ini", "[watch]\nwatts = 65W\n");
  setenv("QTRAIN_PRICE", "0.3EUR", 1);
  const Ended again = run(with(on_cpu("6"), {}) + Words{"--config", dir / "run.ini"});
  unsetenv("QTRAIN_PRICE");
  expect_success(again);
  expect_words(again.out, {"meter      65 W assumed", "65 W assumed, --watts), ", " EUR at 0.3 EUR a kWh"});
  EXPECT_EQ(again.out.find("watts: "), std::string::npos) << "no change of the run";
}

TEST_F(CliWatch, MetersAProcessorThatLetsItselfBeRead) {
  const auto zone = std::filesystem::path(dir / "powercap") / "intel-rapl:0";
  std::filesystem::create_directories(zone);
  write_text(zone / "name", "package-0\n");
  write_text(zone / "max_energy_range_uj", "262143328850\n");
  write_text(zone / "energy_uj", "5000000\n");
  const Ended ended = run(on_cpu());
  expect_success(ended);
  expect_words(ended.out, {"meter      processor package only, RAPL", "energy      unknown"});
  EXPECT_FALSE(log().back().contains("kwh")) << "a counter that stands still has counted nothing";
}

TEST_F(CliWatch, KnowsTheTimeThatIsLeftFromTheStepsOfAnEarlierSession) {
  expect_success(run(on_cpu("12")));
  const Ended again = run(on_cpu("2000") + Words{"--stop-after", "0.05s"});
  EXPECT_EQ(again.code, 75) << again.err;
  EXPECT_TRUE(std::regex_search(again.out, std::regex("time       .* measured: the last 10 steps\n")))
      << again.out;
  expect_words(again.out, {"finish     20"});
  // A log that is damaged costs this line, and nothing else.
  edit(dir / "run/log.jsonl",
       [](std::string& text) { text.insert(text.rfind("{\"kind\":\"start"), "]]\n"); });
  const Ended damaged = run(on_cpu("2000") + Words{"--stop-after", "0.05s"});
  EXPECT_EQ(damaged.code, 75) << damaged.err;
  expect_words(damaged.err, {"how long steps took is not known", "log.jsonl"});
  expect_words(damaged.out, {"time       not known"});
}

TEST_F(CliWatch, RefusesWordsThatAreNoPowerAndNoPrice) {
  const struct {
    Words args;
    Words words;
  } cases[] = {{{"--watts", "lots"}, {"--watts", "'lots'", "225W"}},
               {{"--watts", "0"}, {"--watts", "'0'"}},
               {{"--watts", "-5"}, {"--watts", "'-5'"}},
               {{"--watts", "1e9"}, {"--watts", "'1e9'"}},
               {{"--watts", "225kW"}, {"--watts", "'225kW'"}},
               {{"--watts"}, {"watts"}},
               {{"--price", "3.5"}, {"--price", "'3.5'", "currency"}},
               {{"--price", "free"}, {"--price", "'free'"}},
               {{"--price", "1EUR", "--price", "2EUR"}, {"--price", "twice"}}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.args.back());
    for (const char* verb : {"train", "plan"})
      expect_refusal(run(Words{verb} + on_cpu() + c.args), 2, c.words);
    EXPECT_FALSE(std::filesystem::exists(dir / "run")) << "refused before any work";
  }
}

}  // namespace
}  // namespace qt::test
