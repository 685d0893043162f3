// Whole tiny runs on the simulated card, watched through a driver's library that lacks functions, fails or
// talks nonsense: every run ends as without NVML, and unknown figures are left out, never 0.
#include <set>
#include <sstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/cuda_entry.h"
#include "kernels/sim/sim.h"
#include "src/cli/verb.h"
#include "src/core/log.h"
#include "src/core/units.h"
#include "src/io/json.h"
#include "tests/support/fake_driver.h"
#include "tests/support/run_folder.h"

namespace qt::test {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kSteps = 5;

struct Watched {
  std::string screen;       // what run_train() wrote
  std::string lines;        // what the trainer printed
  std::vector<Json> log;    // all records
  std::vector<Json> steps;  // of kind "step"
  Json start, done;
};

class WatchedRun : public ::testing::Test {
 protected:
  TempDir dir;

  static void SetUpTestSuite() { add_backend("cuda", make_cuda_backend, probe_cuda_device); }
  void SetUp() override {
    sim::card() = sim::Card();
    sim::card().name = "NVIDIA GeForce RTX 4070";
    sim::card().major = 8;
    sim::card().minor = 9;
    sim::begin_process();
    set_log_level(LogLevel::error);
    write_text(dir / "text.txt", tiny_text(200));
  }
  void TearDown() override {
    sim::card() = sim::Card();
    sim::begin_process();
    set_log_level(LogLevel::info);
  }

  Watched run(const std::string& name, std::vector<std::string> more = {}) {
    std::vector<std::string> args{"--model",
                                  "gpt",
                                  "--n-layer",
                                  "1",
                                  "--n-head",
                                  "1",
                                  "--n-embd",
                                  "64",
                                  "--seq-len",
                                  "32",
                                  "--batch-tokens",
                                  "64",
                                  "--device",
                                  "cuda",
                                  "--dtype",
                                  "bf16",
                                  "--data",
                                  dir / "text.txt",
                                  "--cache",
                                  dir / "tokens",
                                  "--tokenizer-kind",
                                  "bytes",
                                  "--eval-tokens",
                                  "64",
                                  "--sample-tokens",
                                  "0",
                                  "--out",
                                  dir / name};
    args.insert(args.end(), more.begin(), more.end());
    if (std::find(args.begin(), args.end(), "--steps") == args.end()) {
      args.emplace_back("--steps");
      args.push_back(std::to_string(kSteps));
    }
    sim::begin_process();
    std::ostringstream screen;
    ::testing::internal::CaptureStdout();
    verbs::train.run(
        {.loaded = load_options(args), .words = {}, .make_backend = make_backend, .out = screen});
    Watched w;
    w.lines = ::testing::internal::GetCapturedStdout();
    w.screen = screen.str();
    for (const std::string& line : whole_lines(read_text(dir / name + "/log.jsonl"))) {
      w.log.push_back(parse_json(line, "log.jsonl"));
      const std::string kind = w.log.back()["kind"];
      if (kind == "step") w.steps.push_back(w.log.back());
      if (kind == "start") w.start = w.log.back();
      if (kind == "done") w.done = w.log.back();
    }
    return w;
  }

  static std::set<std::string> keys_of(const Json& json) {
    std::set<std::string> keys;
    for (const auto& [key, value] : json.items()) keys.insert(key);
    return keys;
  }
  // Neither kWh nor anything else that a meter tells is ever 0, or beyond reason.
  static void expect_no_zero(const Watched& w) {
    for (const Json& record : w.log) {
      for (const char* key : {"kwh", "kwh_at_least", "watts", "celsius", "sm_mhz", "device_used_bytes"}) {
        if (!record.contains(key)) continue;
        EXPECT_GT(record[key].get<double>(), 0) << record;
        EXPECT_LT(record[key].get<double>(), 2e10) << record;
      }
    }
  }
};

// --- the fields of the log ---------------------------------------------------------------------------------

// Readers rely on these names: `qtrain status`, reports, scripts of users.
TEST_F(WatchedRun, WritesTheFieldsThatReadersKnow) {
  const FakeDriver driver;
  const Watched w = run("run", {"--price", "3.5TWD", "--quant", "nf4", "--ckpt-activations"});
  EXPECT_EQ(keys_of(w.start),
            (std::set<std::string>{"kind", "version", "step", "steps", "model", "params", "quant", "dtype",
                                   "device", "step_tokens", "device_bytes", "device_rows", "host_rows",
                                   "peak_flops", "unix_s", "price", "command"}));
  EXPECT_EQ(w.log.front(), w.start);
  EXPECT_EQ(w.start["device"], "NVIDIA GeForce RTX 4070");
  EXPECT_EQ(w.start["model"], "gpt");
  EXPECT_EQ(w.start["quant"], "nf4");
  EXPECT_EQ(w.start["dtype"], "bf16");
  EXPECT_EQ(w.start["step"], 0);
  EXPECT_EQ(w.start["steps"], kSteps);
  EXPECT_EQ(w.start["step_tokens"], 64);
  EXPECT_EQ(w.start["price"], "3.5TWD");
  EXPECT_NEAR(w.start["peak_flops"].get<double>(), 58.29e12, 0.01e12);
  EXPECT_THAT(w.start["command"].get<std::string>(), HasSubstr("--quant nf4"));
  std::int64_t bytes = 0;
  for (const auto& [name, value] : w.start["device_rows"].items()) bytes += value.get<std::int64_t>();
  EXPECT_EQ(bytes, w.start["device_bytes"].get<std::int64_t>());

  ASSERT_EQ(w.steps.size(), static_cast<std::size_t>(kSteps));
  const std::set<std::string> step{"kind",   "step",     "window",           "loss",   "norm",
                                   "lr",     "seconds",  "tokens_per_s",     "tokens", "skipped",
                                   "unix_s", "mfu",      "executed_flops_s", "watts",  "celsius",
                                   "sm_mhz", "throttle", "device_used_bytes"};
  for (std::size_t i = 0; i < w.steps.size(); ++i) {
    std::set<std::string> keys = keys_of(w.steps[i]);
    keys.erase("kwh");  // there once the first second is over
    EXPECT_EQ(keys.erase("warmup"), i < 2 ? 1u : 0u) << w.steps[i];
    EXPECT_EQ(keys, step);
  }
  const Json& last = w.steps.back();
  EXPECT_EQ(last["watts"], 200);
  EXPECT_EQ(last["celsius"], 66);
  EXPECT_EQ(last["sm_mhz"], 2475);
  EXPECT_EQ(last["throttle"], (Json{"power limit", "heat"}));
  EXPECT_EQ(last["device_used_bytes"], 3'000'000'000);
  EXPECT_GT(w.done["kwh"].get<double>(), 0);
  expect_no_zero(w);
}

// --- the screen --------------------------------------------------------------------------------------------

TEST_F(WatchedRun, ShowsPowerMemoryShareOfThePeakAndWhatIsToCome) {
  const FakeDriver driver;
  const Watched w = run("run", {"--price", "3.5TWD"});
  EXPECT_THAT(w.screen, AllOf(HasSubstr("time       "), HasSubstr("assumed: 50 to 80 %"),
                              HasSubstr("finish     20"), HasSubstr("kWh at 200 W (the card's board power"),
                              HasSubstr("cost       "), HasSubstr("TWD at 3.5 TWD a kWh"),
                              HasSubstr("meter      the card alone, its energy counter")));
  EXPECT_THAT(w.screen,
              AllOf(HasSubstr("energy      "), HasSubstr("Wh (the card alone, its energy counter), ")));
  EXPECT_THAT(w.lines, AllOf(HasSubstr("MFU%"), HasSubstr("  2.8 GiB   200 ")));
}

TEST_F(WatchedRun, ShowsNothingOfACardThatNobodyKnows) {
  sim::card().name = "a card from the future";
  const FakeDriver driver;
  const Watched w = run("run");
  EXPECT_FALSE(w.start.contains("peak_flops"));
  EXPECT_FALSE(w.steps.back().contains("mfu"));
  EXPECT_THAT(w.screen, HasSubstr("time       not known before steps were measured"));
}

// --- meters that lie ---------------------------------------------------------------------------------------

TEST_F(WatchedRun, EndsWhateverTheDriverSaysAndKnowsNoEnergyWithoutAMeter) {
  struct Case {
    const char* behaviour;
    std::vector<std::string> lacking;
    bool has_energy, has_watts;
  };
  std::string everything;
  for (const std::string& function : nvml_functions()) everything += function + "=fail ";
  std::string nonsense;
  for (const std::string& function : nvml_functions()) nonsense += function + "=ones ";
  const char* power = "nvmlDeviceGetPowerUsage";
  const char* counter = "nvmlDeviceGetTotalEnergyConsumption";
  const Case cases[] = {
      {"", {}, true, true},
      {"", {power}, true, false},
      {"", {counter}, true, true},
      {"", {power, counter}, false, false},
      {"", nvml_functions(), false, false},
      {everything.c_str(), {}, false, false},
      {nonsense.c_str(), {}, false, false},
      {"nvmlDeviceGetTotalEnergyConsumption=still nvmlDeviceGetPowerUsage=zero", {}, false, false},
      {"nvmlDeviceGetTotalEnergyConsumption=zero nvmlDeviceGetPowerUsage=huge", {}, false, false},
      {"nvmlDeviceGetTotalEnergyConsumption=restart", {}, true, true},
      {"nvmlInit_v2=fail", {}, false, false},
      {"nvmlDeviceGetHandleByPciBusId_v2=fail", {}, false, false},
      {"", {"nvmlInit_v2"}, false, false},
  };
  std::string state;
  int number = 0;
  for (const Case& c : cases) {
    SCOPED_TRACE(fmt::format("{} without {}", c.behaviour, fmt::join(c.lacking, ", ")));
    const FakeDriver driver(c.behaviour, c.lacking);
    const Watched w = run(fmt::format("run {}", number++));
    EXPECT_EQ(w.done.contains("kwh"), c.has_energy);
    EXPECT_FALSE(w.done.contains("kwh_at_least")) << w.done;
    EXPECT_EQ(w.steps.back().contains("watts"), c.has_watts);
    EXPECT_THAT(w.screen, c.has_energy ? HasSubstr("Wh (the card alone") : HasSubstr("energy      unknown"));
    EXPECT_THAT(w.screen, Not(HasSubstr(" 0 Wh")));
    expect_no_zero(w);
    if (state.empty()) state = w.done["state_hash"];
    EXPECT_EQ(w.done["state_hash"], state) << "no result depends on it";
  }
}

// --- sessions ----------------------------------------------------------------------------------------------

TEST_F(WatchedRun, AddsUpItsSessionsAndSaysAtLeastWhereOneWasNotMetered) {
  Watched w;
  {
    const FakeDriver driver;
    w = run("run", {"--steps", "3"});
  }
  const double first = w.done["kwh"];
  {
    const FakeDriver driver;
    w = run("run", {"--steps", "6", "--allow-changes"});
  }
  EXPECT_EQ(w.start["step"], 3);
  EXPECT_GT(w.done["kwh"].get<double>(), 1.1 * first);
  EXPECT_THAT(w.screen, HasSubstr("continues"));
  {
    const FakeDriver driver("nvmlInit_v2=fail");
    w = run("run", {"--steps", "9"});
  }
  EXPECT_FALSE(w.done.contains("kwh"));
  EXPECT_GT(w.done["kwh_at_least"].get<double>(), first);
  EXPECT_THAT(w.screen, HasSubstr("energy      at least "));
}

TEST_F(WatchedRun, TakesAGivenPowerForTheWholeMachine) {
  const FakeDriver driver;
  const Watched w = run("run", {"--watts", "225W", "--price", "$0.5"});
  EXPECT_THAT(w.screen,
              AllOf(HasSubstr("kWh at 225 W (--watts)"), HasSubstr("meter      225 W assumed, --watts"),
                    HasSubstr("Wh (225 W assumed, --watts), "), HasSubstr(" $ at 0.5 $ a kWh")));
  EXPECT_EQ(w.steps.back()["watts"], 200) << "what the card says stays what the card says";
  const double seconds = w.done["seconds"], kwh = w.done["kwh"];
  EXPECT_GE(kwh, 0.9 * seconds * 225 / 3.6e6);
}

}  // namespace
}  // namespace qt::test
