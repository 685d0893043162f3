// Energy from readings that were written by hand: counters that wrap, stand still, leap or start anew, powers
// that come and go, and processors' counters in a folder made here. And what checkpoints say of it.
#include <cmath>

#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/meter/energy_meter.h"
#include "src/meter/power_watch.h"
#include "src/train/run_state.h"
#include "tests/support/fake_driver.h"

namespace qt::test {
namespace {

constexpr std::nullopt_t kNone = std::nullopt;

// --- readings ----------------------------------------------------------------------------------------------

TEST(EnergyMeter, TakesTheDifferenceOfACounterWhateverThePowerSays) {
  EnergyMeter meter;
  meter.take(0, 5000.0, 10.0);
  EXPECT_EQ(meter.joules(), 0) << "what was drawn before is another's";
  meter.take(1, 5200.0, 10.0);
  meter.take(61, 17'200.0, kNone);
  EXPECT_EQ(meter.joules(), 12'200);
  EXPECT_EQ(meter.missing_s(), 0);
  EXPECT_EQ(meter.joules_by_watts(), 0);
}

TEST(EnergyMeter, TakesPowerBetweenReadingsForAStraightLine) {
  EnergyMeter meter;
  meter.take(10, kNone, 100.0);
  meter.take(12, kNone, 200.0);  // 300 J
  meter.take(12.5, kNone, 0.5);  // 50.125 J
  EXPECT_DOUBLE_EQ(meter.joules(), 350.125);
  EXPECT_EQ(meter.joules_by_counter(), 0);
  EXPECT_EQ(meter.missing_s(), 0);
}

TEST(EnergyMeter, MissesWhatNobodyMeasured) {
  EnergyMeter nothing;
  for (double t = 0; t < 100; t += 10) nothing.take(t, kNone, kNone);
  EXPECT_EQ(nothing.joules(), 0);
  EXPECT_EQ(nothing.missing_s(), 90);
  EnergyMeter gap;
  gap.take(0, kNone, 100.0);
  gap.take(1, kNone, 100.0);
  gap.take(2, kNone, kNone);
  gap.take(5, kNone, 100.0);
  gap.take(6, kNone, 100.0);
  EXPECT_EQ(gap.joules(), 200);
  EXPECT_EQ(gap.missing_s(), 4);
}

TEST(EnergyMeter, BridgesAReadingOfTheCounterThatFailed) {
  EnergyMeter meter;
  meter.take(0, 0.0, kNone);
  meter.take(1, kNone, kNone);
  meter.take(2, 400.0, kNone);
  EXPECT_EQ(meter.joules(), 400);
  EXPECT_EQ(meter.missing_s(), 0);
}

TEST(EnergyMeter, LetsACounterThatDecreasesStartAnewFromThere) {
  EnergyMeter meter;
  meter.take(0, 1000.0, kNone);
  meter.take(1, 1200.0, kNone);
  meter.take(2, 30.0, kNone);  // the driver was loaded again: this second is not known
  meter.take(3, 230.0, kNone);
  EXPECT_EQ(meter.joules(), 400);
  EXPECT_EQ(meter.missing_s(), 1);
  // With a power the second is known after all.
  EnergyMeter both;
  both.take(0, 1000.0, 150.0);
  both.take(1, 30.0, 150.0);
  both.take(2, 230.0, 150.0);
  EXPECT_EQ(both.joules(), 350);
  EXPECT_EQ(both.missing_s(), 0);
}

TEST(EnergyMeter, DoesNotBelieveALeapThatNoMachineDraws) {
  EnergyMeter meter;
  meter.take(0, 0.0, 100.0);
  meter.take(1, 4.3e6, 100.0);  // 2^32 - 1 mJ at once
  meter.take(2, 4.3e6 + 200, 100.0);
  EXPECT_EQ(meter.joules(), 300);
}

TEST(EnergyMeter, NeverTakesACounterThatStandsStillForNoEnergy) {
  EnergyMeter meter;
  for (int t = 0; t <= 60; ++t) meter.take(t, 777.0, kNone);
  EXPECT_EQ(meter.joules(), 0);
  EXPECT_EQ(meter.missing_s(), 60) << "unknown, not 0";
  EnergyMeter sampled;
  for (int t = 0; t <= 60; ++t) sampled.take(t, 777.0, 50.0);
  EXPECT_EQ(sampled.joules(), 3000);
  EXPECT_EQ(sampled.missing_s(), 0);
  // What it says when it moves again may be of any time: it counts from there.
  sampled.take(61, 5000.0, 50.0);
  EXPECT_EQ(sampled.joules(), 3050);
  sampled.take(62, 5200.0, 50.0);
  EXPECT_EQ(sampled.joules(), 3250);
}

TEST(EnergyMeter, WaitsForACounterThatMovesSeldom) {
  EnergyMeter meter;
  for (int t = 0; t <= 9; ++t) meter.take(t, 100.0 * (t / 3), 1e4);
  EXPECT_EQ(meter.joules(), 300);
  EXPECT_EQ(meter.joules_by_watts(), 0);
}

// --- energy of a run ---------------------------------------------------------------------------------------

TEST(EnergyOfARun, IsNeverZeroWhereItIsNotKnown) {
  EXPECT_FALSE(Energy{}.kwh());
  EXPECT_EQ(energy_text({}, 100).substr(0, 7), "unknown");
  const Energy known{.joules = 3.6e6, .missing_s = 0, .source = "a meter"};
  EXPECT_EQ(known.kwh(), 1.0);
  EXPECT_EQ(energy_text(known, 100), "1.00 kWh (a meter)");
}

TEST(EnergyOfARun, IsAtLeastWhatItsMeasuredSessionsDrew) {
  const Energy first{.joules = 0, .missing_s = 50, .source = {}},
      second{.joules = 7200, .missing_s = 0, .source = "a meter"};
  const Energy both = joined(first, second);
  EXPECT_FALSE(both.is_whole(100));
  EXPECT_EQ(energy_text(both, 100), "at least 2 Wh (a meter; nothing was measured for 50 s)");
  const Energy again = joined(joined(second, {.joules = 1, .missing_s = 0.1, .source = "another"}), second);
  EXPECT_TRUE(again.is_whole(100)) << "a second in a hundred is within what meters err by";
  EXPECT_EQ(again.source, "a meter, another");
  EXPECT_EQ(again.joules, 14'401);
}

TEST(EnergyOfARun, IsKeptInCheckpointsAndUnknownInThoseFromBefore) {
  RunState state;
  state.seconds = 120;
  state.energy = {.joules = 1.25e7, .missing_s = 2.5, .source = "a \"meter\""};
  const std::string text = run_state_json(state);
  const Energy back = parse_run_state(text, "run.json").energy;
  EXPECT_EQ(back.joules, 1.25e7);
  EXPECT_EQ(back.missing_s, 2.5);
  EXPECT_EQ(back.source, "a \"meter\"");
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    return changed.replace(changed.find(from), from.size(), to);
  };
  const Energy old = parse_run_state(with("\"energy\"", "\"something\""), "run.json").energy;
  EXPECT_FALSE(old.kwh());
  EXPECT_EQ(old.missing_s, 120) << "nothing is known of all its time";
  EXPECT_THROW(parse_run_state(with("12500000.0", "-1.0"), "run.json"), DataError);
  EXPECT_THROW(parse_run_state(with("2.5", "-2.5"), "run.json"), DataError);
  EXPECT_THROW(parse_run_state(with("2.5", "\"2.5\""), "run.json"), DataError);
}

// --- processors --------------------------------------------------------------------------------------------

class Processor : public ::testing::Test {
 protected:
  TempDir dir;

  void SetUp() override { setenv("QTRAIN_POWERCAP", dir.path().c_str(), 1); }
  void TearDown() override { unsetenv("QTRAIN_POWERCAP"); }
  void zone(const std::string& zone, const std::string& name, const std::string& uj) {
    std::filesystem::create_directories(dir.path() / zone);
    write_text(dir.path() / zone / "name", name + "\n");
    write_text(dir.path() / zone / "max_energy_range_uj", "262143328850\n");
    count(zone, uj);
  }
  void count(const std::string& zone, const std::string& uj) {
    write_text(dir.path() / zone / "energy_uj", uj + "\n");
  }
};

TEST_F(Processor, CountsAllItsPackagesAndNothingElse) {
  zone("intel-rapl:0", "package-0", "1000000");
  zone("intel-rapl:1", "package-1", "2000000");
  zone("intel-rapl:0:0", "core", "500000");
  zone("intel-rapl:2", "psys", "9000000");
  zone("intel-rapl-mmio:0", "package-0", "1000000");
  Rapl rapl;
  EXPECT_EQ(rapl.joules(), 0.0);
  count("intel-rapl:0", "4000000");
  count("intel-rapl:1", "2500000");
  count("intel-rapl:2", "99000000");
  EXPECT_DOUBLE_EQ(rapl.joules().value(), 3.5);
}

TEST_F(Processor, CountsOverItsWrapAround) {
  zone("intel-rapl:0", "package-0", "262143000000");
  Rapl rapl;
  rapl.joules();
  count("intel-rapl:0", "671150");
  EXPECT_DOUBLE_EQ(rapl.joules().value(), 1.0);
}

TEST_F(Processor, IsUnknownWhereNobodyMayReadIt) {
  EXPECT_FALSE(Rapl().joules()) << "no counter at all";
  zone("intel-rapl:0", "package-0", "1000000");
  Rapl rapl;
  EXPECT_TRUE(rapl.joules());
  for (const char* bad : {"", "-5", "much"}) {
    count("intel-rapl:0", bad);
    EXPECT_FALSE(rapl.joules()) << bad;
  }
  count("intel-rapl:0", "7000000");
  EXPECT_EQ(rapl.joules(), 0.0) << "counts anew";
  write_text(dir.path() / "intel-rapl:0/max_energy_range_uj", "none\n");
  Rapl endless;
  endless.joules();
  count("intel-rapl:0", "6000000");
  EXPECT_FALSE(endless.joules()) << "the value where it wraps is unknown";
}

// --- watching ----------------------------------------------------------------------------------------------

TEST_F(Processor, IsWatchedAndSaysWhatItCovers) {
  zone("intel-rapl:0", "package-0", "1000000");
  PowerWatch watch(DeviceKind::cpu, {}, 0);
  EXPECT_EQ(watch.source(), "processor package only, RAPL");
  count("intel-rapl:0", "1200000");
  const Energy energy = watch.energy(true);
  EXPECT_NEAR(energy.joules, 0.2, 1e-9);
  EXPECT_EQ(energy.source, "processor package only, RAPL");
  EXPECT_GT(watch.newest().watts.value(), 0);
}

TEST_F(Processor, WithoutACounterIsUnknownAndWithAGivenPowerAssumed) {
  {
    PowerWatch watch(DeviceKind::cpu, {}, 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const Energy energy = watch.energy(true);
    EXPECT_FALSE(energy.kwh());
    EXPECT_GT(energy.missing_s, 0.015);
    EXPECT_EQ(watch.source(), "");
  }
  PowerWatch watch(DeviceKind::cpu, {}, 225);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  const Energy energy = watch.energy();
  EXPECT_GT(energy.joules, 225 * 0.015);
  EXPECT_LT(energy.joules, 225 * 10.0);
  EXPECT_EQ(energy.missing_s, 0);
  EXPECT_EQ(energy.source, "225 W assumed, --watts");
  EXPECT_FALSE(watch.newest().watts) << "assumed is not seen";
}

class WatchedCard : public ::testing::Test {
 protected:
  const DeviceFacts facts{.name = "NVIDIA GeForce RTX 4070", .pci_bus_id = "0000:01:00.0"};

  // After 300 ms.
  Energy energy() {
    PowerWatch watch(DeviceKind::cuda, facts, 0);
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    return watch.energy(true);
  }
};

TEST_F(WatchedCard, IsMeteredByItsCounterElseByItsPowerElseNotAtAll) {
  {
    const FakeDriver driver;
    const Energy e = energy();
    EXPECT_GT(e.joules, 200 * 0.29);
    EXPECT_LT(e.joules, 200 * 60.0);
    EXPECT_EQ(e.source, "the card alone, its energy counter");
  }
  for (const char* counter : {"fail", "ones", "restart"}) {
    SCOPED_TRACE(counter);
    const FakeDriver driver(std::string("nvmlDeviceGetTotalEnergyConsumption=") + counter);
    const Energy e = energy();
    EXPECT_GT(e.joules, 200 * 0.29);
    EXPECT_LT(e.joules, 200 * 60.0);
    EXPECT_EQ(e.source, "the card alone, its power once a second");
  }
  const FakeDriver driver("nvmlDeviceGetTotalEnergyConsumption=still nvmlDeviceGetPowerUsage=zero");
  const Energy e = energy();
  EXPECT_FALSE(e.kwh()) << "neither a counter that stands still nor 0 W is an energy of 0";
  EXPECT_GT(e.missing_s, 0.29);
}

TEST_F(WatchedCard, WhoseDriverNoLongerAnswersHoldsUpNobody) {
  const FakeDriver driver("nvmlDeviceGetPowerUsage=hang");
  const auto start = std::chrono::steady_clock::now();
  {
    PowerWatch watch(DeviceKind::cuda, facts, 0);
    watch.energy(true);
    EXPECT_EQ(watch.newest().watts, 200.0) << "what was seen last";
    std::this_thread::sleep_for(std::chrono::duration<double>(PowerWatch::kStaleSeconds));
    EXPECT_FALSE(watch.newest().watts) << "is no longer what is";
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  const double least_s = PowerWatch::kStaleSeconds + 2 * PowerWatch::kPatienceSeconds;
  EXPECT_GT(took.count(), least_s - 0.1) << "or the driver did answer";
  EXPECT_LT(took.count(), least_s + 20);
}

}  // namespace
}  // namespace qt::test
