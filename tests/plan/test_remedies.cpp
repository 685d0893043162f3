// What makes a run fit that does not: every proposal holds, the cheapest come first, nothing is changed that
// need not be, and a smaller model is called another one.
#include <set>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "src/core/units.h"
#include "src/options/option_table.h"
#include "src/plan/machine.h"
#include "src/plan/remedies.h"
#include "src/plan/screen.h"
#include "tests/support/option_fixture.h"
#include "tests/support/shell_words.h"

namespace qt::test {
namespace {

// Of a machine of which everything is given.
struct Machine {
  double device_gib = 12, host_gib = 64, disk_gib = 500;
};

Limits limits_of(const Machine& machine) {
  const auto bytes = [](double gib) { return static_cast<std::int64_t>(gib * static_cast<double>(kGiB)); };
  return {.device_bytes = bytes(machine.device_gib),
          .host_bytes = bytes(machine.host_gib),
          .disk_bytes = bytes(machine.disk_gib),
          .reserve_bytes = kGiB};
}

// The target of the options alone, as a program without a card has it.
Target target_of_options(const Options& o) {
  Target target = cuda_target(89);
  target.gemm = o.gemm;
  return target;
}

Plan plan_of(const Words& words, const Machine& machine) {
  Words all{"--quiet"};
  all.insert(all.end(), words.begin(), words.end());
  const Options o = load_options(all).options;
  return plan_run({.options = o, .target = target_of_options(o), .limits = limits_of(machine)});
}

Plan proposed(const Words& words, const Machine& machine, const RemedyScope& scope = {}) {
  Words all{"--quiet"};
  all.insert(all.end(), words.begin(), words.end());
  const Options o = load_options(all).options;
  const PlanRequest request{.options = o, .target = target_of_options(o), .limits = limits_of(machine)};
  Plan run = plan_run(request);
  propose_changes(run, request, scope);
  return run;
}

std::vector<std::string> options_of(const Plan& run) {
  std::vector<std::string> all;
  for (const FitChange& c : run.changes) all.push_back(c.options);
  return all;
}

struct Case {
  Words words;
  Machine machine;
  std::vector<std::string> options;  // proposed, in this order
};
const Case kCases[] = {
    {{"--model", "d12", "--micro-batch", "16"},
     {.device_gib = 6},
     {"--micro-batch 8", "--ckpt-activations", "--seq-len 1024"}},
    {{"--model", "d32"}, {.device_gib = 8}, {"--ckpt-activations --quant nf4"}},
    {{"--model", "d32", "--quant", "nf4"}, {.device_gib = 8.5}, {"--ckpt-activations", "--seq-len 1024"}},
    {{"--model", "d32", "--ckpt-activations"}, {.device_gib = 8}, {"--quant nf4"}},
    {{"--model", "d32", "--quant", "nf4", "--ckpt-activations", "--grad-dtype", "f32"},
     {.device_gib = 8},
     {"--grad-dtype bf16"}},
    {{"--model", "d32", "--quant", "nf4", "--ckpt-activations", "--paging", "off"}, {}, {"--paging on"}},
    {{"--model", "d32", "--quant", "nf4", "--ckpt-activations"}, {.host_gib = 9}, {"--master bf16-sr"}},
    {{"--model", "d32", "--quant", "nf4", "--ckpt-activations", "--optim", "adamw"},
     {.host_gib = 14},
     {"--optim adamw8"}},
    {{"--model", "d32", "--quant", "nf4", "--ckpt-activations", "--keep", "9"},
     {.disk_gib = 60},
     {"--keep 2"}},
};

TEST(Remedies, AreTheseInThisOrder) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(c.words, " ")));
    const Plan run = proposed(c.words, c.machine);
    EXPECT_FALSE(run.fits());
    EXPECT_EQ(options_of(run), c.options) << plan_text(run, limits_of(c.machine));
    for (const FitChange& change : run.changes) EXPECT_FALSE(change.other_model) << change.options;
  }
}

// Each as a person would try it: its command, typed, is planned again.
TEST(Remedies, MakeTheRunFitWhenTheirCommandIsTyped) {
  for (const Case& c : kCases) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(c.words, " ")));
    const Plan run = proposed(c.words, c.machine);
    ASSERT_FALSE(run.changes.empty());
    for (const FitChange& change : run.changes) {
      const Plan with = plan_of(arguments_of(change.command), c.machine);
      EXPECT_TRUE(with.fits()) << change.command;
      EXPECT_EQ(with.config.engine.step_tokens(), run.config.engine.step_tokens()) << change.command;
      EXPECT_FALSE(change.cost.empty());
    }
    EXPECT_LE(run.rehearsals, kMostRehearsals);
    EXPECT_NE(fit_hint(run).find("with " + run.changes.front().options + " it fits"), std::string::npos)
        << fit_hint(run);
  }
}

// Nothing is proposed together that would do alone.
TEST(Remedies, ChangeNoMoreThanIsNeeded) {
  const Plan run = proposed({"--model", "d32"}, {.device_gib = 8});
  EXPECT_EQ(options_of(run), std::vector<std::string>{"--ckpt-activations --quant nf4"});
  EXPECT_FALSE(plan_of({"--model", "d32", "--ckpt-activations"}, {.device_gib = 8}).fits());
  EXPECT_FALSE(plan_of({"--model", "d32", "--quant", "nf4"}, {.device_gib = 8}).fits());
  // Three at once, and what each costs is said.
  const Words tight{"--model", "d32", "--grad-dtype", "f32"};
  const Plan three = proposed(tight, {.device_gib = 8, .host_gib = 10});
  ASSERT_EQ(three.changes.size(), 1u);
  EXPECT_EQ(three.changes.front().options,
            "--ckpt-activations --grad-dtype bf16 --master bf16-sr --quant nf4");
  for (const char* part : {"computed twice", "rounded to bf16", "rounded at random", "4.5 bits", "% more"})
    EXPECT_NE(three.changes.front().cost.find(part), std::string::npos) << part;
}

TEST(Remedies, AreAnotherModelWhereNothingMakesThisOneFit) {
  const Machine small{.device_gib = 6};
  const Plan run = proposed({"--model", "d32", "--quant", "nf4"}, small);
  ASSERT_EQ(run.changes.size(), 1u);
  const FitChange& change = run.changes.front();
  EXPECT_TRUE(change.other_model);
  EXPECT_EQ(change.options, "--model d30 --ckpt-activations");
  EXPECT_NE(change.cost.find("another model: 1.58B parameters instead of 1.88B"), std::string::npos)
      << change.cost;
  EXPECT_TRUE(plan_of(arguments_of(change.command), small).fits());
  EXPECT_NE(fit_hint(run).find("no option makes this model fit"), std::string::npos);
  EXPECT_NE(plan_text(run, limits_of(small)).find("another model would"), std::string::npos);
  // The next larger one does not, whatever is changed.
  EXPECT_FALSE(plan_of({"--model", "d32", "--quant", "nf4", "--ckpt-activations", "--micro-batch", "1",
                        "--grad-dtype", "bf16", "--gemm", "fused", "--loss-chunk", "32"},
                       small)
                   .fits());
  // A shape of one's own loses blocks.
  const Machine tiny{.device_gib = 2.5};
  const Plan own =
      proposed({"--model", "gpt", "--n-layer", "40", "--n-head", "16", "--n-embd", "1600"}, tiny);
  ASSERT_EQ(own.changes.size(), 1u);
  EXPECT_EQ(own.changes.front().options.rfind("--n-layer ", 0), 0u) << own.changes.front().options;
  EXPECT_TRUE(plan_of(arguments_of(own.changes.front().command), tiny).fits());
}

TEST(Remedies, AreNoneWhereNothingHelps) {
  const Plan run = proposed({"--model", "d2", "--vocab-size", "300"}, {.device_gib = 1.2});
  EXPECT_TRUE(run.changes.empty());
  EXPECT_NE(fit_hint(run).find("--micro-batch 1"), std::string::npos) << fit_hint(run);
  EXPECT_NE(plan_text(run, {}).find("nothing that can be changed here"), std::string::npos);
  const Plan disk = proposed({"--model", "d32", "--quant", "nf4", "--ckpt-activations"}, {.disk_gib = 0});
  EXPECT_TRUE(disk.changes.empty());
  EXPECT_EQ(fit_hint(disk).rfind("free disk space", 0), 0u) << fit_hint(disk);
  // Nor is a smaller model proposed for want of room that can be made.
  const Plan small_disk = proposed(
      {"--model", "d32", "--quant", "nf4", "--ckpt-activations", "--optim", "adamw8"}, {.disk_gib = 8});
  for (const FitChange& change : small_disk.changes) EXPECT_FALSE(change.other_model) << change.options;
  EXPECT_EQ(fit_hint(small_disk).rfind("free disk space", 0), 0u) << fit_hint(small_disk);
  const Plan fits = proposed({"--model", "d4"}, {});
  EXPECT_TRUE(fits.fits() && fits.changes.empty());
}

// What a run's tensors are cannot change any more, nor can what it trains on.
TEST(Remedies, LeaveARunThatHasBegunWhatItIs) {
  const Words words{"--model", "d32"};
  EXPECT_TRUE(proposed(words, {.device_gib = 8}, {.begun = true}).changes.empty());
  const Words packed{"--model", "d32", "--quant", "nf4"};
  EXPECT_EQ(options_of(proposed(packed, {.device_gib = 8.5}, {.begun = true})),
            std::vector<std::string>{"--ckpt-activations"});
  // And weights that are read have the shape that they have.
  EXPECT_TRUE(proposed(packed, {.device_gib = 6}, {.has_weights = true}).changes.empty());
}

TEST(Remedies, CostDaysWhereACardIsThere) {
  const Words words{"--model", "d12", "--micro-batch", "16"};
  const Plan run = proposed(words, {.device_gib = 6}, {.card = &card_by_name("4070")});
  ASSERT_GE(run.changes.size(), 2u);
  EXPECT_NE(run.changes[1].cost.find("15 % more operations"), std::string::npos) << run.changes[1].cost;
  EXPECT_NE(run.changes[1].cost.find("days on the GeForce RTX 4070 instead of"), std::string::npos)
      << run.changes[1].cost;
}

TEST(PlanScreen, SaysWhereEveryByteGoesAndThatMemoryIsNotWork) {
  const Plan run = plan_of({"--model", "d12"}, {});
  const std::string text = plan_text(run, limits_of({}));
  for (const auto* rows : {&run.device_rows, &run.host_rows, &run.disk_rows}) {
    std::int64_t sum = 0;
    for (const PlanRow& row : *rows) {
      sum += row.bytes;
      EXPECT_NE(text.find(format_thousands(row.bytes)), std::string::npos) << row.name;
    }
    EXPECT_EQ(sum, rows == &run.device_rows ? run.device_bytes
                   : rows == &run.host_rows ? run.host_bytes
                                            : run.disk_bytes);
  }
  for (const char* words : {" %", "100.0 %", "says nothing about how busy a device is", "MFU",
                            "verdict: fits, ", "to spare on the device"})
    EXPECT_NE(text.find(words), std::string::npos) << words << " in:\n" << text;
  const Plan large = proposed({"--model", "d32"}, {.device_gib = 8, .host_gib = 10});
  const std::string no = plan_text(large, limits_of({.device_gib = 8, .host_gib = 10}));
  EXPECT_NE(no.find("verdict: does not fit by 3.1 GiB on the device, by 2.0 GiB on the host"),
            std::string::npos)
      << no;
}

TEST(PlanScreen, HasFrozenKeysInJson) {
  const auto keys = [](const nlohmann::json& json) {
    std::set<std::string> all;
    for (const auto& [key, value] : json.items()) all.insert(key);
    return all;
  };
  const Machine machine{.device_gib = 6};
  const Plan run = proposed({"--model", "d12", "--micro-batch", "16"}, machine);
  const nlohmann::json json = nlohmann::json::parse(plan_json(run, limits_of(machine)));
  const std::set<std::string> frozen{"fits",
                                     "device_bytes",
                                     "host_bytes",
                                     "disk_bytes",
                                     "micro_batch",
                                     "accumulation",
                                     "margin_bytes",
                                     "steps",
                                     "checkpoint_bytes",
                                     "written_bytes_per_day",
                                     "token_cache_bytes",
                                     "device_limit_bytes",
                                     "reserve_bytes",
                                     "device",
                                     "host",
                                     "changes"};
  EXPECT_EQ(keys(json), frozen);
  EXPECT_EQ(json["fits"], false);
  EXPECT_EQ(json["margin_bytes"].get<std::int64_t>(), 5 * kGiB - run.device_bytes);
  ASSERT_EQ(json["changes"].size(), 3u);
  const std::set<std::string> of_a_change{"options", "command", "cost"};
  EXPECT_EQ(keys(json["changes"][0]), of_a_change);
  EXPECT_EQ(json["changes"][0]["options"], "--micro-batch 8");
  const Plan fits = plan_of({"--model", "d4"}, {});
  EXPECT_EQ(keys(nlohmann::json::parse(plan_json(fits, limits_of({})))), frozen);
}

}  // namespace
}  // namespace qt::test
