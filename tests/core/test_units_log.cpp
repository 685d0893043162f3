// src/core: quantities as people write them, messages, and the append-only records of a run. A record file is
// torn and a disk filled on purpose.
#include <sys/resource.h>
#include <unistd.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/core/log.h"
#include "src/core/units.h"

namespace qt {
namespace {

// ---- units ----

TEST(Units, BytesPrintInBinaryUnits) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(512), "512 B");
  EXPECT_EQ(format_bytes(1023), "1023 B");
  EXPECT_EQ(format_bytes(1024), "1.0 KiB");
  EXPECT_EQ(format_bytes(kMiB - 1), "1.0 MiB");  // never "1024.0 KiB"
  EXPECT_EQ(format_bytes(3355443), "3.2 MiB");
  EXPECT_EQ(format_bytes(11 * kGiB), "11.0 GiB");
  EXPECT_EQ(format_bytes(-5 * kMiB), "-5.0 MiB");
  EXPECT_EQ(format_bytes(std::numeric_limits<std::int64_t>::max()), "8388608.0 TiB");
}

TEST(Units, DurationsPrintInTwoUnitsThatNeverReachTheNext) {
  EXPECT_EQ(format_duration(0.0421), "42.1 ms");
  EXPECT_EQ(format_duration(0.8), "0.8 s");
  EXPECT_EQ(format_duration(9.96), "10 s");
  EXPECT_EQ(format_duration(59.6), "1 min 0 s");
  EXPECT_EQ(format_duration(192), "3 min 12 s");
  EXPECT_EQ(format_duration(3599.9), "1 h 0 min");
  EXPECT_EQ(format_duration(5 * 3600 + 3 * 60), "5 h 3 min");
  EXPECT_EQ(format_duration(86399), "1 d 0 h");
  EXPECT_EQ(format_duration(12 * 86400 + 4 * 3600), "12 d 4 h");
  EXPECT_EQ(format_duration(-192), "-3 min 12 s");
  EXPECT_EQ(format_duration(std::nan("")), "unknown");
  EXPECT_EQ(format_duration(INFINITY), "unknown");
}

TEST(Units, DurationsOfColumnsAreShort) {
  EXPECT_EQ(format_duration_short(0.0421), "42ms");
  EXPECT_EQ(format_duration_short(0.9996), "1.0s");
  EXPECT_EQ(format_duration_short(9.96), "10s");
  EXPECT_EQ(format_duration_short(59.6), "1m 0s");
  EXPECT_EQ(format_duration_short(192), "3m 12s");
  EXPECT_EQ(format_duration_short(3599.9), "1h 0m");
  EXPECT_EQ(format_duration_short(5 * 3600 + 3 * 60), "5h 3m");
  EXPECT_EQ(format_duration_short(86399), "1d 0h");
  EXPECT_EQ(format_duration_short(12 * 86400 + 4 * 3600), "12d 4h");
  EXPECT_EQ(format_duration_short(100 * 86400), "100d");
  EXPECT_EQ(format_duration_short(-192), "-3m 12s");
  EXPECT_EQ(format_duration_short(INFINITY), "unknown");
}

TEST(Units, CountsPrintThreeDigitsAndAUnit) {
  EXPECT_EQ(format_count(0), "0");
  EXPECT_EQ(format_count(950), "950");
  EXPECT_EQ(format_count(1000), "1k");
  EXPECT_EQ(format_count(600000), "600k");
  EXPECT_EQ(format_count(999499), "999k");
  EXPECT_EQ(format_count(999500), "1M");
  EXPECT_EQ(format_count(36700160), "36.7M");
  EXPECT_EQ(format_count(1879048192), "1.88B");
  EXPECT_EQ(format_count(37580963840), "37.6B");
  EXPECT_EQ(format_count(-1500), "-1.5k");
  EXPECT_EQ(format_thousands(0), "0");
  EXPECT_EQ(format_thousands(999), "999");
  EXPECT_EQ(format_thousands(1000), "1,000");
  EXPECT_EQ(format_thousands(37580963840), "37,580,963,840");
  EXPECT_EQ(format_thousands(-999), "-999");
  EXPECT_EQ(format_thousands(-123456), "-123,456");
  EXPECT_EQ(format_thousands(std::numeric_limits<std::int64_t>::min()), "-9,223,372,036,854,775,808");
}

TEST(Units, SizesAreReadInBothKindsOfUnit) {
  EXPECT_EQ(parse_bytes("4096", "--vram"), 4096);
  EXPECT_EQ(parse_bytes("0", "--vram"), 0);
  EXPECT_EQ(parse_bytes("12GiB", "--vram"), 12 * kGiB);
  EXPECT_EQ(parse_bytes("12g", "--vram"), 12 * kGiB);
  EXPECT_EQ(parse_bytes("900MiB", "--vram"), 900 * kMiB);
  EXPECT_EQ(parse_bytes("8GB", "--vram"), 8000000000);
  EXPECT_EQ(parse_bytes(" 1.5 GiB", "--vram"), 3 * kGiB / 2);
  EXPECT_EQ(parse_bytes("1.3KiB", "--vram"), 1331);  // 1331.2
  EXPECT_EQ(parse_bytes("64b", "--vram"), 64);
  EXPECT_EQ(parse_bytes("9223372036854775807", "--vram"), std::numeric_limits<std::int64_t>::max());
}

TEST(Units, CountsAreReadExactlyOrRefused) {
  EXPECT_EQ(parse_count("524288", "--tokens"), 524288);
  EXPECT_EQ(parse_count("37.6B", "--tokens"), 37600000000);
  EXPECT_EQ(parse_count("600k", "--tokens"), 600000);
  EXPECT_EQ(parse_count("1.5M", "--tokens"), 1500000);
  EXPECT_EQ(parse_count("1e9", "--tokens"), 1000000000);
  EXPECT_EQ(parse_count("9007199254740993", "--tokens"), 9007199254740993);  // 2^53 + 1: no double on the way
}

TEST(Units, DurationsAreReadInDescendingUnits) {
  EXPECT_EQ(parse_duration("8h", "--stop-after"), 28800.0);
  EXPECT_EQ(parse_duration("90m", "--stop-after"), 5400.0);
  EXPECT_EQ(parse_duration("30s", "--stop-after"), 30.0);
  EXPECT_EQ(parse_duration("2d", "--stop-after"), 172800.0);
  EXPECT_EQ(parse_duration("1h30m", "--stop-after"), 5400.0);
  EXPECT_EQ(parse_duration("1d 2h 3min 4.5s", "--stop-after"), 93784.5);
  EXPECT_EQ(parse_duration("600", "--stop-after"), 600.0);
  EXPECT_EQ(parse_duration("0.5", "--stop-after"), 0.5);
}

// parse(text) has to throw a ConfigError that names the option and the text, and says how to write it.
template <class Parse>
void expect_refused(Parse parse, const std::vector<std::string>& texts) {
  for (const std::string& text : texts) {
    try {
      const auto value = parse(text, "--limit");
      ADD_FAILURE() << "'" << text << "' was read as " << value;
    } catch (const ConfigError& error) {
      const std::string what = error.what();
      EXPECT_NE(what.find("--limit"), std::string::npos) << what;
      EXPECT_NE(what.find("'" + text + "'"), std::string::npos) << what;
      EXPECT_FALSE(error.hint().empty());
    }
  }
}

TEST(Units, WhatIsNotAQuantityIsRefusedByNameOfTheOption) {
  expect_refused(parse_bytes,
                 {"", " ", "GiB", "-1", "+1", "12 XB", "12GiBs", "1.5", "0.5b", "nan", "inf", "1e", "0x10",
                  "12,5GiB", "9223372036854775808", "9000000TiB", "1e400", "12GiB 3", "--1"});
  expect_refused(parse_count, {"", "k", "-600k", "1.2345k", "0.5", "600 x", "1_000", "1,000", "nan", "inf",
                               "1e30", "9.3e18"});
  expect_refused(parse_duration, {"", "h", "-8h", "8x", "30m1h", "1h1h", "1h30", "30 1h", "1h 30 m 5", "nan",
                                  "infs", "1e400s", "1..5h", "8 hours"});
}

// ---- log ----

TEST(Log, ALevelBelowTheLeastIsDroppedAndALineStaysOneLine) {
  testing::internal::CaptureStderr();
  log_info("step {} of {}", 3, 10);
  set_log_level(LogLevel::warning);
  log_info("dropped");
  log_warning("first\nsecond");
  log_error("last");
  set_log_level(LogLevel::info);
  EXPECT_EQ(testing::internal::GetCapturedStderr(),
            "info: step 3 of 10\nwarning: first\\nsecond\nerror: last\n");
}

TEST(Log, LinesOfSeveralThreadsDoNotMix) {
  testing::internal::CaptureStderr();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([t]() {
      for (int i = 0; i < 200; ++i) log_info("{}", std::string(50, static_cast<char>('a' + t)));
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::istringstream lines(testing::internal::GetCapturedStderr());
  int count = 0;
  for (std::string line; std::getline(lines, line); ++count) {
    ASSERT_EQ(line.size(), 56u);
    ASSERT_EQ(line, "info: " + std::string(50, line.back()));
  }
  EXPECT_EQ(count, 800);
}

TEST(Json, StringsAreEscapedSoThatEveryByteSequenceGivesValidJson) {
  EXPECT_EQ(json_string("plain"), R"("plain")");
  EXPECT_EQ(json_string("a\"b\\c\n\t\x01"), R"("a\"b\\c\n\t\u0001")");
  EXPECT_EQ(json_string(std::string_view("\0", 1)), R"("\u0000")");
  EXPECT_EQ(json_string("gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x98\x80"),
            "\"gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x98\x80\"");
  EXPECT_EQ(json_string("cut \xE2\x82"), R"("cut \ufffd\ufffd")");
  EXPECT_EQ(json_string("\xC3("), R"("\ufffd(")");
  EXPECT_EQ(json_string("\xC0\xAF"), R"("\ufffd\ufffd")");                      // overlong '/'
  EXPECT_EQ(json_string("\xED\xA0\x80"), R"("\ufffd\ufffd\ufffd")");            // a surrogate
  EXPECT_EQ(json_string("\xF4\x90\x80\x80"), R"("\ufffd\ufffd\ufffd\ufffd")");  // above U+10FFFF
}

TEST(Json, RecordsKeepTheirOrderAndNumbersReadBack) {
  JsonRecord record;
  record.add("step", 3)
      .add("loss", 0.1)
      .add("lr", 0.02f)
      .add("ok", true)
      .add("name", "d4")
      .add("big", std::uint64_t{18446744073709551615u});
  record.add("nan", std::nan("")).add("inf", -INFINITY).add_raw("list", "[1,2]");
  EXPECT_EQ(record.str(),
            R"({"step":3,"loss":0.1,"lr":0.02,"ok":true,"name":"d4","big":18446744073709551615,)"
            R"("nan":null,"inf":null,"list":[1,2]})");
  EXPECT_EQ(JsonRecord().str(), "{}");
}

class JsonLinesFile : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / fmt::format("qtrain_test_core.{}", ::getpid());
    std::filesystem::create_directories(folder_);
    path_ = (folder_ / "log.jsonl").string();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void fill(std::string_view content) const { std::ofstream(path_, std::ios::binary) << content; }
  std::string content() const {
    std::ostringstream all;
    all << std::ifstream(path_, std::ios::binary).rdbuf();
    return all.str();
  }

  std::filesystem::path folder_;
  std::string path_;
};

TEST_F(JsonLinesFile, EachRecordIsOnDiskBeforeTheNextAndOpeningAppends) {
  {
    JsonLines log(path_);
    log.write(JsonRecord().add("step", 1));
    EXPECT_EQ(content(), "{\"step\":1}\n");
    log.write(JsonRecord().add("step", 2));
    EXPECT_EQ(content(), "{\"step\":1}\n{\"step\":2}\n");
  }
  JsonLines log(path_);
  EXPECT_EQ(log.removed_bytes(), 0);
  log.write(JsonRecord().add("step", 3));
  EXPECT_EQ(content(), "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n");
}

TEST_F(JsonLinesFile, ATornLastLineIsRemovedWhereverItWasCut) {
  const std::string whole = "{\"step\":1}\n";
  const std::string long_line =
      "{\"sample\":\"" + std::string(200000, 'x') + "\"}";  // beyond one piece of the search
  for (const std::string& torn : {std::string("{"), std::string("{\"step\":2}"), long_line}) {
    fill(whole + torn);
    JsonLines log(path_);
    EXPECT_EQ(log.removed_bytes(), static_cast<std::int64_t>(torn.size()));
    EXPECT_EQ(content(), whole);
    log.write(JsonRecord().add("step", 2));
    EXPECT_EQ(content(), whole + "{\"step\":2}\n");
  }
  fill("{\"no newline at all");
  JsonLines log(path_);
  EXPECT_EQ(content(), "");
}

TEST_F(JsonLinesFile, AFileThatCannotBeOpenedIsNamedWithTheReason) {
  try {
    JsonLines log((folder_ / "missing" / "log.jsonl").string());
    FAIL() << "no error";
  } catch (const DiskError& error) {
    EXPECT_EQ(error.code(), ExitCode::disk);
    EXPECT_NE(std::string(error.what()).find("missing/log.jsonl"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("No such file or directory"), std::string::npos) << error.what();
  }
}

TEST_F(JsonLinesFile, AFullDiskIsADiskError) {
  JsonLines log("/dev/full");
  try {
    log.write(JsonRecord().add("step", 1));
    FAIL() << "no error";
  } catch (const DiskError& error) {
    EXPECT_NE(std::string(error.what()).find("/dev/full: writing"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("No space left on device"), std::string::npos) << error.what();
  }
}

TEST_F(JsonLinesFile, ALineThatOnlyHalfFitsIsTakenBack) {
  JsonLines log(path_);
  log.write(JsonRecord().add("step", 1));
  // A limit on the file size makes the kernel write the part that fits and refuse the rest, as a full disk
  // does.
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{.rlim_cur = 20, .rlim_max = before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_THROW(log.write(JsonRecord().add("text", std::string(100, 'y'))), DiskError);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(content(), "{\"step\":1}\n");
  log.write(JsonRecord().add("step", 2));
  EXPECT_EQ(content(), "{\"step\":1}\n{\"step\":2}\n");
}

}  // namespace
}  // namespace qt
