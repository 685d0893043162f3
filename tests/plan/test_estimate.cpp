// Estimates against figures worked out by hand and against what has been published about the same runs, and
// two goldens: of a table and of a memory breakdown.
#include <iterator>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/core/units.h"
#include "src/io/json.h"
#include "src/meter/cards.h"
#include "src/options/option_table.h"
#include "src/plan/estimate_compare.h"
#include "src/plan/machine.h"
#include "tests/support/process.h"

namespace qt::test {
namespace {

const Card& rtx4070() { return card_by_name("4070"); }

Options d32(bool checkpointing = true) {
  Options o;
  o.model = "d32";
  o.ckpt_activations = checkpointing;
  return o;
}

PlanRequest request_with_card(const Options& o, const Card& card) {
  return {.options = o, .target = target_with_card(o, card), .limits = limits_with_card(o, card)};
}

Plan planned(const Options& o, const Card& card = rtx4070()) { return plan_run(request_with_card(o, card)); }

EstimateInput on(const Card& card, double tflops = 0) {
  EstimateInput in{.card = &card, .eval_every = 250};
  if (tflops > 0)
    in.efficiency = {.low = tflops * 1e12 / card.peak_flops(), .high = tflops * 1e12 / card.peak_flops()};
  return in;
}

#define EXPECT_WITHIN(value, want, share) EXPECT_NEAR((value) / (want), 1.0, share)

// --- d32 on an RTX 4070 ------------------------------------------------------------------------------------

TEST(EstimateOfD32, HasThePublishedOperationsAndTheDaysOfThePeak) {
  Options o = d32();
  o.tokens = 37'600'000'000;
  const Estimate e = estimate_run(planned(o), on(rtx4070()));
  EXPECT_WITHIN(e.flops_total, 4.540e20, 0.005);
  EXPECT_WITHIN(*e.limit_days, 90.1, 0.01);
  EXPECT_WITHIN(*e.limit_days_recompute, 118.0, 0.01);
}

// Per token: 6 operations a multiplied weight; causal attention with two products forward and seven backward,
// half of C (T + 1) pairs each; a forward pass of the blocks once more but for its last product; and the
// evaluations.
TEST(EstimateOfD32, HasTheFloorOfWhatIsExecuted) {
  const double L = 32, C = 2048, T = 2048, V = 65536, multiplied = 12 * L * C * C + V * C;
  const double forward = 2 * multiplied + 2 * L * C * (T + 1), step = 6 * multiplied + 9 * L * C * (T + 1);
  const double again = L * (16 * C * C + 2 * C * (T + 1));
  const double tokens = 71680.0 * 524288, evaluated = 287.0 * 20 * 524288;
  for (const bool checkpointing : {false, true}) {
    const Estimate e = estimate_run(planned(d32(checkpointing)), on(rtx4070()));
    const double want = (step + (checkpointing ? again : 0)) * tokens + forward * evaluated;
    EXPECT_WITHIN(e.executed_flops_total, want, 0.005) << checkpointing;
    EXPECT_WITHIN(*e.floor_days, want / 58.2912e12 / 86400, 0.005) << checkpointing;
    EXPECT_GT(e.days.low, *e.floor_days);
    EXPECT_GT(e.days.high, e.days.low);
  }
}

TEST(EstimateOfD32, TakesTheDaysOfFortyFiveTeraflops) {
  const Estimate e = estimate_run(planned(d32()), on(rtx4070(), 45));
  EXPECT_WITHIN(e.flops_total / e.rate_flops->high / kSecondsPerDay, 117.0, 0.005);
  EXPECT_WITHIN(e.flops_total_recompute / e.rate_flops->high / kSecondsPerDay, 153.0, 0.005);
  const std::string text = estimate_text(planned(d32()), on(rtx4070(), 45), e, {});
  for (const char* words :
       {"4.540e+20        90.1 d       116.8 d", "118.2 d       153.1 d", "nanochat's count",
        "what this program executes: the floor", "(--ckpt-activations)"})
    EXPECT_NE(text.find(words), std::string::npos) << words << " is missing in:\n" << text;
}

TEST(EstimateOfD32, IsNeverBelowTheFloorWhateverWasMeasured) {
  const Plan run = planned(d32());
  EstimateInput in = on(rtx4070());
  in.step_seconds = {.low = 1, .high = 2};
  const Estimate e = estimate_run(run, in);
  EXPECT_TRUE(e.held_at_floor);
  EXPECT_EQ(e.days.low, *e.floor_days);
  EXPECT_EQ(e.days.high, *e.floor_days);
  EXPECT_NE(estimate_text(run, in, e, {}).find("held at the floor"), std::string::npos);
  in.efficiency = {.low = 1, .high = 1};
  in.step_seconds.reset();
  EXPECT_GE(estimate_run(run, in).days.low, *e.floor_days);
  EXPECT_FALSE(estimate_run(run, in).held_at_floor);
}

TEST(EstimateOfD32, TakesMeasuredStepsAsTheyAre) {
  EstimateInput in = on(rtx4070());
  in.step_seconds = {.low = 200, .high = 210};
  in.eval_every = 0;
  const Plan run = planned(d32());
  const Estimate e = estimate_run(run, in);
  EXPECT_TRUE(e.measured);
  EXPECT_EQ(e.training_s.low, 200.0 * 71680);
  EXPECT_WITHIN(e.days.low, 200.0 * 71680 / 86400, 0.001);
  EXPECT_WITHIN(e.days.high, 210.0 * 71680 * 1.01 / 86400, 0.001) << "saves take 1 % at most";
  // Without a card there is no peak, and nothing that follows from one.
  in.card = nullptr;
  const Estimate bare = estimate_run(run, in);
  EXPECT_EQ(bare.days.low, e.days.low);
  EXPECT_FALSE(bare.limit_days || bare.floor_days || bare.kwh);
  in.eval_tokens = 0;
  EXPECT_EQ(estimate_run(run, in).evaluation_s.high, 0) << "nothing to evaluate on";
  in.step_seconds.reset();
  EXPECT_THROW(estimate_run(run, in), ConfigError);
}

// Master and moments cross the bus once each way, at 80 % of what 16 lanes of PCIe 4.0 move.
TEST(EstimateOfD32, CountsPagingExpansionAndSaves) {
  Options o = d32();
  o.quant = FormatId::nf4;
  const Plan run = planned(o);
  EstimateInput in = on(rtx4070(), 45);
  const Estimate e = estimate_run(run, in);
  const auto host = static_cast<double>(run.host_bytes);
  EXPECT_WITHIN(e.paging_s.low / 71680, host / 25.2e9, 0.02) << "both ways at once";
  EXPECT_GT(e.paging_s.high, 1.9 * e.paging_s.low);
  // Three passes over the packed matrices per micro-batch: 0.5625 bytes read, 2 written.
  const double micro_batches = 71680.0 * static_cast<double>(run.config.engine.accumulation);
  EXPECT_EQ(e.expansion_s.low, 0);
  EXPECT_WITHIN(e.expansion_s.high, micro_batches * 3 * 1'610'612'736.0 * 2.5625 / 504e9, 1e-9);
  o.quant = FormatId::none;
  EXPECT_EQ(estimate_run(planned(o), in).expansion_s.high, 0);
  in.save_every = 100;
  const auto of_saves = [&](double count) { return count * static_cast<double>(run.checkpoint_bytes) / 5e8; };
  // Before 286 evaluations on the way, at 716 steps of its own, of which 143 are the same, and at the end.
  EXPECT_WITHIN(estimate_run(run, in).saves_s.high, of_saves(286 + 716 - 143 + 1), 1e-9);
  in.eval_tokens = 0;
  EXPECT_WITHIN(estimate_run(run, in).saves_s.high, of_saves(716 + 1), 1e-9) << "nothing is evaluated";
}

TEST(EstimateOfD32, TellsByWhichFactorAClaimContradictsItself) {
  const Plan run = planned(d32());
  const EstimateInput in = on(rtx4070());
  const Estimate e = estimate_run(run, in);
  EXPECT_WITHIN(claim_factor(e.flops_total, {.tflops = 20, .days = 40}), 6.6, 0.02);
  EXPECT_WITHIN(claim_factor(e.flops_total, {.tflops = 22, .days = 45}), 5.3, 0.02);
  EXPECT_WITHIN(claim_factor(e.flops_total, {.tflops = 18, .days = 35}), 8.3, 0.02);
  const auto said = [&](const Claim& claim) { return estimate_text(run, in, e, {.claim = claim}); };
  const std::string text = said({.tflops = 20, .days = 40, .kwh = 175});
  for (const char* words : {"a factor of 6.6", "262.7 days", "344.4 with", "5.72B tokens, 15 %",
                            "131.4 TFLOP/s, 2.25", "182 W", "1149 kWh", "at 200 W 1261 kWh: 7.2 times"})
    EXPECT_NE(text.find(words), std::string::npos) << words << " is missing in:\n" << text;
  EXPECT_NE(said({.tflops = 45, .days = 120}).find("agrees with itself"), std::string::npos);
  EXPECT_EQ(said({.tflops = 45, .days = 120}).find("contradicts"), std::string::npos);
  EXPECT_EQ(said({.tflops = 45, .days = 120}).find("the rate itself"), std::string::npos);
  EXPECT_NE(said({.tflops = 233, .days = 40}).find("the rate itself is 4.0 times the card's peak"),
            std::string::npos);
}

// --- other runs --------------------------------------------------------------------------------------------

TEST(EstimateOfTwelveTimes576, TakesSecondsAnIterationAndHoursForSixThousand) {
  Options o;
  o.model = "gpt";
  o.n_layer = o.n_head = 12;
  o.n_embd = 576;
  o.vocab_size = 50304;
  o.seq_len = 1024;
  o.dtype = DType::f16;
  o.steps = 6000;
  const Plan run = planned(o);
  ASSERT_EQ(run.config.engine.step_tokens(), 524288);
  const Estimate e = estimate_run(run, on(rtx4070()));
  EXPECT_WITHIN(e.flops_step / *e.peak_flops, 4.905, 0.005) << "not 0.1 s";
  EXPECT_WITHIN(*e.limit_days * 24, 8.2, 0.01) << "not 10 minutes";
  EXPECT_GT(e.step_s.low, 4.8);
}

TEST(EstimateOfEnergy, IsWattsTimesHours) {
  EXPECT_DOUBLE_EQ(energy_kwh(125, 225), 675);
  const Plan run = planned(d32());
  EstimateInput in = on(rtx4070(), 45);
  in.watts = 225;
  in.card = &rtx4070();
  Estimate e = estimate_run(run, in);
  EXPECT_DOUBLE_EQ(e.kwh->low, energy_kwh(e.days.low, 225));
  // The cost of exactly 125 days.
  e.days = {.low = 125, .high = 125};
  e.kwh = Range{.low = 675, .high = 675};
  const std::string text = estimate_text(run, in, e, {.price = parse_price("3.5TWD", "--price")});
  EXPECT_NE(text.find("675 kWh at 225 W"), std::string::npos) << text;
  EXPECT_NE(text.find("2362.50 TWD at 3.5 TWD a kWh"), std::string::npos) << text;
  in.watts = 0;
  EXPECT_EQ(estimate_run(run, in).watts, 200) << "the board's";
}

TEST(EstimateOfDates, CountsFromNow) {
  const Plan run = planned(d32());
  Estimate e = estimate_run(run, on(rtx4070()));
  const auto finish = [&](Range days) {
    e.days = days;
    const std::string text =
        estimate_text(run, on(rtx4070()), e, {.now_unix_s = 1'767'225'600});  // 2026-01-01
    const std::size_t at = text.find("finish") + 12;
    return text.substr(at, text.find(',', at) - at);
  };
  EXPECT_EQ(finish({.low = 31, .high = 59.5}), "2026-02-01 to 2026-03-01");
  EXPECT_EQ(finish({.low = 0.1, .high = 0.2}), "2026-01-01");
  EXPECT_EQ(finish({.low = 365, .high = 1e12}), "2027-01-01 to in more than a century");
}

// --- JSON --------------------------------------------------------------------------------------------------

TEST(EstimateJson, KeepsItsKeys) {
  const Plan run = planned(d32());
  const EstimateInput in = on(rtx4070());
  const auto parsed = [&](const EstimateInput& with, const EstimateView& view) {
    return parse_json(estimate_json(run, with, estimate_run(run, with), view), "estimate");
  };
  const Json json = parsed(in, {});
  std::set<std::string> keys;
  for (const auto& [key, value] : json.items()) keys.insert(key);
  const std::set<std::string> frozen{"flops_total",
                                     "executed_flops_total",
                                     "limit_days",
                                     "limit_days_recompute",
                                     "floor_days",
                                     "days_low",
                                     "days_high",
                                     "kwh_low",
                                     "kwh_high",
                                     "efficiency_source",
                                     "card",
                                     "peak_flops",
                                     "rate_flops_low",
                                     "rate_flops_high",
                                     "flops_total_recompute",
                                     "tokens",
                                     "steps",
                                     "limit_step_seconds",
                                     "step_seconds_low",
                                     "step_seconds_high",
                                     "watts",
                                     "cost_low",
                                     "cost_high",
                                     "currency",
                                     "claim_factor",
                                     "fits",
                                     "device_bytes"};
  EXPECT_EQ(keys, frozen);
  EXPECT_EQ(json["efficiency_source"], "assumed");
  EXPECT_EQ(json["card"], "4070");
  EXPECT_EQ(json["fits"], true);
  EXPECT_TRUE(json["cost_low"].is_null());
  EstimateInput bare;
  bare.step_seconds = Range{.low = 200, .high = 210};
  const Json measured = parsed(bare, {.price = parse_price("1\xE2\x82\xAC", "--price")});
  EXPECT_EQ(measured["efficiency_source"], "measured");
  for (const char* unknown : {"card", "limit_days", "floor_days", "kwh_low", "kwh_high", "watts", "cost_low"})
    EXPECT_TRUE(measured[unknown].is_null()) << unknown << ": never 0 where it is not known";
  const Json costs =
      parsed(in, {.price = parse_price("2EUR", "--price"), .claim = Claim{.tflops = 20, .days = 40}});
  EXPECT_DOUBLE_EQ(costs["cost_high"].get<double>(), 2 * costs["kwh_high"].get<double>());
  EXPECT_NEAR(costs["claim_factor"].get<double>(), 6.57, 0.01);
}

// --- goldens -----------------------------------------------------------------------------------------------

// Where a change is meant, the file is what the failing test prints.
void expect_golden(const std::string& text, const std::string& name) {
  EXPECT_EQ(text, read_text(std::string(QTRAIN_SOURCE_DIR) + "/tests/golden/" + name)) << text;
}

TEST(EstimateCompare, IsTheTableOfD32OnAnRtx4070) {
  const Options o = d32();
  const EstimateInput in = on(rtx4070(), 45);
  const CompareTable table = compare_choices(request_with_card(o, rtx4070()), in);
  const auto row = [&](const std::string& name) {
    for (const CompareRow& r : table.rows) {
      if (r.name.starts_with(name)) return r;
    }
    ADD_FAILURE() << name;
    return CompareRow();
  };
  // The published days at 45 TFLOP/s: two models fit a month, two do not.
  EXPECT_NEAR(row("d20").counted_days, 10.1, 0.1);
  EXPECT_NEAR(row("d24").counted_days, 25.3, 0.1);
  EXPECT_NEAR(row("d26").counted_days, 38.4, 0.1);
  EXPECT_NEAR(row("d28").counted_days, 56.9, 0.1);
  EXPECT_TRUE(row("d32, weights in 16").fits);
  // Fewer bits are no faster, and what they add is the expansion alone.
  const CompareRow dense = row("d32, weights in 16"), nf4 = row("d32, 4.5");
  EXPECT_EQ(nf4.counted_days, dense.counted_days);
  for (const char* packed : {"d32, 4.5", "d32, 3 bits", "d32, 2.6 bits"}) {
    EXPECT_GE(row(packed).days.low, 0.999 * dense.days.low) << packed;
    EXPECT_GT(row(packed).days.high, dense.days.high) << packed;
  }
  EXPECT_EQ(nf4.device_bytes - row("d32, 3 bits").device_bytes, 1'610'612'736 * (4.5 - 3.125) / 8);
  EXPECT_NEAR(nf4.loss, 0.024, 0.001);
  EXPECT_NEAR(row("d32, 3 bits").loss, 0.058, 0.001);
  EXPECT_NEAR(row("d32, 2.6 bits").loss, 0.090, 0.002);
  EXPECT_LT(row("d32, power").kwh->high, dense.kwh->low);
  EXPECT_GT(row("d32, power").days.low, dense.days.low);
  expect_golden(compare_text(table), "compare_d32_4070.txt");
}

// A measured step is one of this run, not of a smaller model's.
TEST(EstimateCompare, ComparesOthersAtTheRateThatWasMeasured) {
  const Options o = d32();
  const Plan run = planned(o);
  EstimateInput in = on(rtx4070());
  in.step_seconds = {.low = 250, .high = 250};
  const auto row_of = [&](const EstimateInput& with, const std::string& name) {
    const CompareTable table = compare_choices(request_with_card(o, rtx4070()), with);
    for (const CompareRow& row : table.rows) {
      if (row.name.rfind(name, 0) == 0) return row;
    }
    throw std::logic_error(name);
  };
  // The run itself takes what was measured: its copies and its expansion are in there, and not added again.
  const CompareRow own = row_of(in, "d32, 4.5 bits");
  EXPECT_WITHIN(own.days.low, estimate_run(run, in).days.low, 0.002);
  EXPECT_WITHIN(own.days.high, estimate_run(run, in).days.high, 0.002);
  // Others as if the card reached what is left of it without the least the copies take.
  const Estimate assumed = estimate_run(run, on(rtx4070()));
  const double rate =
      assumed.executed_flops_step / (250 - assumed.paging_s.low / static_cast<double>(assumed.steps));
  const CompareRow other = row_of(in, "d20"), rated = row_of(on(rtx4070(), rate * 1e-12), "d20");
  EXPECT_WITHIN(other.days.low, rated.days.low, 0.002);
  EXPECT_LT(other.days.high, rated.days.high) << "the slow end assumes that nothing hides the copies";
}

TEST(EstimateCompare, SaysWhatDoesNotFit) {
  const Options o = d32();
  const Card& laptop = card_by_name("4070-laptop");
  const CompareTable table = compare_choices(request_with_card(o, laptop), on(laptop));
  EXPECT_FALSE(table.rows.front().fits) << "16-bit d32 needs more than 7 GiB";
  EXPECT_TRUE(table.rows[1].fits);
  EXPECT_NE(compare_text(table).find("  NO "), std::string::npos);
  EstimateInput none;
  EXPECT_THROW(compare_choices({.options = o, .target = cuda_target(89)}, none), ConfigError);
}

TEST(MemoryBreakdown, OfGpt2IsTheGolden) {
  const std::vector<std::string> args{
      "--config", std::string(QTRAIN_SOURCE_DIR) + "/configs/gpt2-124m-fp16-12g.cfg", "--quiet"};
  const Plan run = planned(load_options(args).options);
  std::string text;
  const auto rows = [&](const char* name, const std::vector<PlanRow>& list, std::int64_t total) {
    text += fmt::format("{}\n", name);
    std::int64_t sum = 0;
    for (const PlanRow& row : list) {
      text += fmt::format("  {:<12} {:>14}\n", row.name, format_thousands(row.bytes));
      sum += row.bytes;
    }
    EXPECT_EQ(sum, total) << name;
    text += fmt::format("  {:<12} {:>14}\n", "total", format_thousands(total));
  };
  rows("device", run.device_rows, run.device_bytes);
  rows("host", run.host_rows, run.host_bytes);
  rows("disk", run.disk_rows, run.disk_bytes);
  expect_golden(text, "memory_gpt2_124m.txt");
}

}  // namespace
}  // namespace qt::test
