// What estimates are made from: the table of cards, the words of prices and efficiencies, and what a log
// says.
#include <string>

#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/core/log.h"
#include "src/core/units.h"
#include "src/meter/cards.h"
#include "src/plan/estimate.h"
#include "src/plan/machine.h"
#include "src/watch/step_log.h"
#include "tests/support/tiny_run.h"

namespace qt::test {
namespace {

// Expects a ConfigError with `word` in its message or hint.
template <class Call>
void expect_config_error(Call call, const std::string& word) {
  try {
    call();
    FAIL() << "nothing was refused; expected '" << word << "'";
  } catch (const ConfigError& e) {
    EXPECT_NE((e.what() + std::string("\n") + e.hint()).find(word), std::string::npos) << e.what() << "\n"
                                                                                       << e.hint();
    EXPECT_FALSE(e.hint().empty()) << e.what();
  }
}

// --- cards -------------------------------------------------------------------------------------------------

// Peaks and bandwidths as vendors print them, to the digits they print.
TEST(Cards, HaveThePeaksAndBandwidthsThatArePublished) {
  const struct {
    const char* name;
    double peak_tflops, gbytes_s, pcie_gbytes_s, watts;
    std::int64_t memory_bytes;
  } table[] = {{"3060", 25.5, 360, 25.2, 170, 12 * kGiB},       {"3090", 71.2, 936, 25.2, 350, 24 * kGiB},
               {"4060-ti", 44.1, 288, 12.6, 165, 16 * kGiB},    {"4070", 58.3, 504, 25.2, 200, 12 * kGiB},
               {"4070-laptop", 40.1, 256, 12.6, 115, 8 * kGiB}, {"4090", 165.2, 1008, 25.2, 450, 24 * kGiB},
               {"5060-ti", 47.4, 448, 25.2, 180, 16 * kGiB},    {"5070", 61.7, 672, 50.4, 250, 12 * kGiB},
               {"5090", 209.5, 1792, 50.4, 575, 32 * kGiB},     {"h200", 989.4, 4800, 50.4, 700, 141 * kGiB}};
  ASSERT_EQ(card_table().size(), std::size(table));
  for (const auto& row : table) {
    const Card& card = card_by_name(row.name);
    EXPECT_NEAR(card.peak_flops() * 1e-12, row.peak_tflops, 0.051) << row.name;
    EXPECT_NEAR(card.bandwidth_bytes_s() * 1e-9, row.gbytes_s, 0.5) << row.name;
    EXPECT_NEAR(card.pcie_bytes_s() * 1e-9, row.pcie_gbytes_s, 0.051) << row.name;
    EXPECT_EQ(card.board_watts, row.watts) << row.name;
    EXPECT_EQ(card.memory_bytes, row.memory_bytes) << row.name;
    EXPECT_NO_THROW(target_with_card(Options(), card)) << row.name;
  }
  EXPECT_EQ(card_by_name("4070").peak_derivation(),
            "46 multiprocessors x 4 tensor cores x 64 FMA x 2 x 2.475 GHz");
}

TEST(Cards, AreKnownByEverySpellingOfTheirNames) {
  const struct {
    const char* typed;
    const char* name;
  } spellings[] = {{"RTX 3060 12G", "3060"},
                   {"rtx4070", "4070"},
                   {"NVIDIA GeForce RTX 4070", "4070"},
                   {"4060ti", "4060-ti"},
                   {"4060 Ti 16GB", "4060-ti"},
                   {"laptop 4070 8G", "4070-laptop"},
                   {"RTX 4070 Laptop GPU", "4070-laptop"},
                   {"H200", "h200"},
                   {"5060_ti_16g", "5060-ti"}};
  for (const auto& s : spellings) EXPECT_STREQ(card_by_name(s.typed).name, s.name) << s.typed;
  for (const char* unknown : {"", "4071", "3060 8G", "4060", "4070 super", "a100", "laptop"})
    expect_config_error([&] { card_by_name(unknown); }, "cards are: 3060, 3090");
  expect_config_error([] { card_by_name("409O"); }, "did you mean 4090?");
}

TEST(Cards, AreRecognisedByWhatTheDriverReports) {
  const auto found = [](const char* name, double gib) {
    DeviceFacts facts;
    facts.name = name;
    facts.total_bytes = static_cast<std::int64_t>(gib * static_cast<double>(kGiB));
    const Card* card = card_of_device(facts);
    return std::string(card == nullptr ? "none" : card->name);
  };
  EXPECT_EQ(found("NVIDIA GeForce RTX 4070", 11.6), "4070");
  EXPECT_EQ(found("NVIDIA GeForce RTX 4070 Laptop GPU", 7.7), "4070-laptop");
  EXPECT_EQ(found("NVIDIA H200", 139.8), "h200");
  EXPECT_EQ(found("NVIDIA GeForce RTX 3060", 8), "none") << "another card of the same name";
  EXPECT_EQ(found("NVIDIA GeForce RTX 4070 SUPER", 12), "none");
}

// --- words -------------------------------------------------------------------------------------------------

TEST(Prices, AreANumberAndAnyCurrency) {
  const struct {
    const char* text;
    double per_kwh;
    const char* currency;
  } good[] = {{"3.5TWD", 3.5, "TWD"}, {"0.30 EUR", 0.3, "EUR"},    {"$0.15", 0.15, "$"},
              {"€0.30", 0.3, "€"},    {"3.5 TWD/kWh", 3.5, "TWD"}, {"NT$ 3.5", 3.5, "NT$"},
              {"0ct", 0, "ct"}};
  for (const auto& g : good) {
    const Price price = parse_price(g.text, "--price");
    EXPECT_EQ(price.per_kwh, g.per_kwh) << g.text;
    EXPECT_EQ(price.currency, g.currency) << g.text;
  }
  for (const char* bad : {"", "TWD", "3.5", "-3.5TWD", "3.5.1TWD", "$3.5TWD", "3,5EUR", "nanTWD", "1e999TWD",
                          "TWD3.5x", "3.5TW\"D", "3.5T\nD", "3.5averylongcurrencyname", "/kWh", "3.5/kWh"})
    expect_config_error([&] { parse_price(bad, "--price"); }, "3.5TWD");
}

TEST(Efficiencies, AreSharesOrRatesAndNeverAboveThePeak) {
  const struct {
    const char* text;
    double low, high;
  } good[] = {{"0.7", 0.7, 0.7},       {"70%", 0.7, 0.7},     {"60-80%", 0.6, 0.8}, {"0.6-0.8", 0.6, 0.8},
              {"50TFLOP/s", 0.5, 0.5}, {"40-50 T", 0.4, 0.5}, {"100%", 1, 1},       {" 70 % ", 0.7, 0.7}};
  for (const auto& g : good) {
    const Range r = parse_efficiency(g.text, 100e12, "--efficiency");
    EXPECT_NEAR(r.low, g.low, 1e-12) << g.text;
    EXPECT_NEAR(r.high, g.high, 1e-12) << g.text;
  }
  for (const char* bad : {"", "fast", "0", "0%", "-0.7", "80-60%", "70 percent", "0.7-", "nan", "45GFLOP/s"})
    expect_config_error([&] { parse_efficiency(bad, 100e12, "--efficiency"); }, "60-80%");
  for (const char* above : {"70", "101%", "101TFLOP/s", "60-120%"})
    expect_config_error([&] { parse_efficiency(above, 100e12, "--efficiency"); }, "100.0 TFLOP/s");
}

// --- logs --------------------------------------------------------------------------------------------------

std::string step_record(std::int64_t step, double seconds, double tokens = 1000) {
  return JsonRecord()
             .add("kind", "step")
             .add("step", step)
             .add("seconds", seconds)
             .add("tokens_per_s", tokens / seconds)
             .str() +
         "\n";
}

TEST(StepLog, TellsTheTimeOfAStepWithoutWarmup) {
  const TempDir dir;
  const std::string path = dir / "log.jsonl";
  std::string log = step_record(1, 100) + step_record(2, 50);
  for (int i = 3; i <= 22; ++i) log += step_record(i, i % 2 == 0 ? 1.98 : 2.02);
  write_text(path, log);
  const auto times = read_step_times(path, 1000, "cpu");
  ASSERT_TRUE(times);
  EXPECT_EQ(times->steps, 20);
  EXPECT_NEAR(times->seconds.low, 0.95 * 2, 0.03);
  EXPECT_NEAR(times->seconds.high, 1.05 * 2, 0.03);
  // A session that a stop ended warms up again when it continues; a line torn by a kill is none.
  log += JsonRecord().add("kind", "stop").add("step", 22).str() + "\n" + step_record(23, 100) +
         step_record(24, 50);
  write_text(path, log + "{\"kind\":\"st");
  EXPECT_EQ(read_step_times(path, 1000, "cpu")->steps, 20);
  EXPECT_NEAR(read_step_times(path, 1000, "cpu")->seconds.high, 2.1, 0.03);
  // Another speed for a third of the time widens the range.
  for (int i = 25; i <= 40; ++i) log += step_record(i, 3);
  write_text(path, log);
  EXPECT_EQ(read_step_times(path, 1000, "cpu")->seconds.high, 3);
}

TEST(StepLog, LeavesOutWhatAnotherDeviceDid) {
  const TempDir dir;
  const std::string path = dir / "log.jsonl";
  const auto session = [](const char* device, int first, double seconds) {
    std::string log =
        JsonRecord().add("kind", "start").add("step", first - 1).add("device", device).str() + "\n";
    for (int i = first; i < first + 8; ++i) log += step_record(i, seconds);
    return log;
  };
  write_text(path, session("GeForce RTX 4090", 1, 1) + session("GeForce RTX 4070", 9, 2));
  EXPECT_NEAR(read_step_times(path, 1000, "GeForce RTX 4090")->seconds.high, 1.05, 1e-9);
  EXPECT_NEAR(read_step_times(path, 1000, "GeForce RTX 4070")->seconds.high, 2.1, 1e-9);
  EXPECT_FALSE(read_step_times(path, 1000, "cpu"));
}

TEST(StepLog, SaysNothingWhereItCannotKnow) {
  const TempDir dir;
  const std::string path = dir / "log.jsonl";
  EXPECT_FALSE(read_step_times(path, 1000, "cpu")) << "no log";
  std::string log;
  for (int i = 1; i <= 6; ++i) log += step_record(i, 2);
  write_text(path, log);
  EXPECT_FALSE(read_step_times(path, 1000, "cpu")) << "four steps";
  write_text(path, log + step_record(7, 2));
  EXPECT_TRUE(read_step_times(path, 1000, "cpu"));
  EXPECT_FALSE(read_step_times(path, 2000, "cpu")) << "steps of another size";
  write_text(path, log + "no record\n" + step_record(7, 2));
  EXPECT_THROW(read_step_times(path, 1000, "cpu"), DataError);
  write_text(path, log + step_record(7, 0));
  EXPECT_THROW(read_step_times(path, 1000, "cpu"), DataError);
}

}  // namespace
}  // namespace qt::test
