// The report's page: axes and columns, what becomes of hostile texts, what is said where there is nothing.
#include <cmath>
#include <limits>

#include <gtest/gtest.h>

#include "src/watch/chart.h"
#include "src/watch/html.h"
#include "src/watch/report.h"
#include "tests/support/log_writer.h"
#include "tests/support/temp_dir.h"

namespace qt::test {
namespace {

// --- axes --------------------------------------------------------------------------------------------------

TEST(AxisTicks, AreOneTwoOrFiveTimesAPowerOfTen) {
  EXPECT_EQ(axis_ticks(0, 10, 5), (std::vector<double>{0, 2, 4, 6, 8, 10}));
  EXPECT_EQ(axis_ticks(2.9, 11.1, 5), (std::vector<double>{4, 6, 8, 10}));
  EXPECT_EQ(axis_ticks(-1, 1, 4), (std::vector<double>{-1, -0.5, 0, 0.5, 1}));
  EXPECT_EQ(axis_ticks(0, 3, 5, 1), (std::vector<double>{0, 1, 2, 3})) << "there is no half step";
  for (double low : {-3.7e4, -0.002, 0.0, 1e-9, 17.3, 6e6}) {
    for (double range : {1e-6, 0.3, 7.0, 95.0, 1e5, 3.3e9}) {
      const std::vector<double> ticks = axis_ticks(low, low + range, 5);
      ASSERT_GE(ticks.size(), 2u) << low << " " << range;
      ASSERT_LE(ticks.size(), 11u) << low << " " << range;
      const double step = ticks[1] - ticks[0],
                   power = std::pow(10, std::floor(std::log10(step * (1 + 1e-6))));
      const double factor = step / power;
      // The difference of two ticks carries a rounding of each.
      const double close = factor * (1e-9 + 4.5e-16 * (std::abs(low) + range) / step);
      EXPECT_TRUE(std::abs(factor - 1) < close || std::abs(factor - 2) < close ||
                  std::abs(factor - 5) < close)
          << factor;
      for (const double tick : ticks) {
        EXPECT_GE(tick, low - 1e-6 * range);
        EXPECT_LE(tick, low + range + 1e-6 * range);
      }
    }
  }
  for (const double bad : {std::nan(""), HUGE_VAL, 0.0}) EXPECT_TRUE(axis_ticks(0, bad, 5).empty());
}

TEST(ChartColumns, DropNothing) {
  std::vector<ChartPoint> points;
  for (int i = 0; i < 10'000; ++i) points.push_back({static_cast<double>(i), std::sin(i)});
  points[4321].y = 99;  // one spike among many
  points[7777].y = -99;
  const std::vector<ChartColumn> columns = chart_columns(points, 0, 10'000, 100);
  ASSERT_EQ(columns.size(), 100u);
  for (const ChartPoint& p : points) {
    const ChartColumn& c = columns[static_cast<std::size_t>(p.x / 100)];
    ASSERT_GE(p.y, c.low);
    ASSERT_LE(p.y, c.high);
  }
  EXPECT_EQ(columns[43].high, 99);
  EXPECT_EQ(columns[77].low, -99);
  EXPECT_NEAR(columns[10].mean, 0, 0.1);
}

TEST(ChartColumns, KnowGapsAndSinglePoints) {
  const std::vector<ChartPoint> points{{1, 5}, {2, std::nan("")}, {3, 7}};
  const std::vector<ChartColumn> columns = chart_columns(points, 0, 3, 500);
  ASSERT_EQ(columns.size(), 2u);
  EXPECT_EQ(columns[0].x, 1) << "where it is, not the middle of a column";
  EXPECT_FALSE(columns[0].gap_before);
  EXPECT_TRUE(columns[1].gap_before);
  EXPECT_TRUE(chart_columns({{1, std::nan("")}}, 0, 3, 500).empty());
}

TEST(Smoothed, TakesTheMeanOfWhatIsFinite) {
  const std::vector<ChartPoint> points{{1, 2}, {2, 4}, {3, std::nan("")}, {4, 8}};
  const std::vector<ChartPoint> out = smoothed(points, 1);
  EXPECT_EQ(out[0].y, 2);
  EXPECT_EQ(out[1].y, 3);
  EXPECT_TRUE(std::isnan(out[2].y));
  EXPECT_EQ(out[3].y, 8);
}

TEST(ChartHtml, SaysHowManyValuesItCutsOff) {
  Chart chart{.title = "Loss", .x_label = "steps", .y_label = "nats", .empty = "nothing"};
  chart.series.push_back({"training", ChartSeries::Kind::line, 1, {}});
  for (int i = 1; i <= 200; ++i) chart.series[0].points.push_back({static_cast<double>(i), 3.0 + i % 7});
  EXPECT_EQ(chart_html(chart).find("cut off"), std::string::npos);
  chart.series[0].points[50].y = 1e6;
  EXPECT_NE(chart_html(chart).find("One value above 21.0 is cut off at the top."), std::string::npos)
      << chart_html(chart);
  chart.series[0].points.clear();
  EXPECT_NE(chart_html(chart).find("nothing"), std::string::npos);
}

// --- the page ----------------------------------------------------------------------------------------------

class Report : public ::testing::Test {
 protected:
  TempDir dir;

  RunFacts facts(const std::string& log) {
    put(dir / "log.jsonl", log);
    RunFacts f;
    f.folder = "runs/d4";
    f.log = read_run_log(dir / "log.jsonl");
    f.now_unix_s = 1'763'764'000;
    return f;
  }
  static std::string page(const RunFacts& f) { return report_html(f, status_of(f)); }
  static int count(const std::string& text, const std::string& word) {
    int n = 0;
    for (std::size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++n;
    return n;
  }
  static void expect(const std::string& html, const std::vector<std::string>& words) {
    for (const std::string& word : words)
      EXPECT_NE(html.find(word), std::string::npos) << "'" << word << "' is missing";
  }
};

std::string whole_run() {
  std::string log = start_line(0, 100);
  for (int i = 1; i <= 80; ++i) {
    log += line(step_fields(i, 8.0 / (1 + 0.02 * i))
                    .add("warmup", i <= 2)
                    .add("unix_s", 1'763'760'000 + 2 * i)
                    .add("mfu", 0.42)
                    .add("watts", 190.0 + i % 5)
                    .add("celsius", 60 + i % 3)
                    .add("kwh", 0.001 * i)
                    .add("device_used_bytes", std::int64_t{2} << 30));
    if (i % 20 == 0) {
      log +=
          line(record("eval", i).add("val_loss", 8.0 / (1 + 0.02 * i)).add("val_bpb", 2.9 / (1 + 0.01 * i)));
      log += line(record("sample", i).add("text", "The fox sees nothing."));
    }
  }
  return log;
}

TEST_F(Report, ShowsWhatARunHas) {
  RunFacts f = facts(whole_run());
  f.options = {{"model", "d4"}, {"steps", "100"}, {"prompt", "The"}};
  const std::string html = page(f);
  expect(html, {"<meta name=\"viewport\"", "prefers-color-scheme: dark", "@media print",
                "d4 · 36.7M parameters", "1.6111", "MFU 42.0 %", "0.08 kWh", "0.28 TWD", "nats per token",
                "bits per byte of validation", "tokens per second", "1.0 GiB less than planned",
                "activations", "The fox sees nothing.", "a session began: qtrain 0.1.0",
                ">--quant</span> <span class=\"word\">nf4</span>", "steps</th><td class=\"w\">100"});
  EXPECT_EQ(count(html, "<svg"), 8) << "loss, bits per byte, norm, rate, throughput, MFU, power, temperature";
  EXPECT_EQ(html, page(f)) << "the same facts, the same bytes";
}

TEST_F(Report, NeedsNothingFromElsewhere) {
  const std::string html = page(facts(whole_run()));
  expect(html, {"default-src 'none'; style-src 'unsafe-inline'"});
  for (const char* word :
       {"http:", "https:", "<script", "<link", "<img", "<iframe", "@import", "url(", "src="})
    EXPECT_EQ(count(html, word), 0) << word;
}

// Everything that a text of somebody's choosing can reach.
TEST_F(Report, TurnsNoTextIntoMarkup) {
  const std::string hostile = "</pre><script>alert(1)</script><img src=x onerror='alert(2)'> & \" </style>";
  std::string log = line(record("start", 0)
                             .add("steps", 10)
                             .add("model", hostile)
                             .add("device", hostile)
                             .add("quant", hostile)
                             .add("dtype", hostile)
                             .add("command", hostile)
                             .add("price", hostile)
                             .add("device_bytes", 100)
                             .add_raw("device_rows", "{" + json_string(hostile) + ":100}")
                             .add_raw("host_rows", "{" + json_string(hostile) + ":100}"));
  log += line(step_fields(1, 3).add_raw("throttle", "[" + json_string(hostile) + "]").add("kwh", 1.0));
  log += line(record("sample", 1).add("text", hostile + std::string("\0\x1b[31m\x80", 7)));
  log += line(record("slow", 1).add("times_slower", 2.0));
  log += line(record("restore", 1).add("why", hostile));
  log += line(record("diverged", 1).add("why", hostile));
  RunFacts f = facts(log);
  f.folder = "runs/" + hostile;
  f.options = {{hostile, hostile}, {"prompt", hostile}};
  const std::string html = page(f);
  EXPECT_EQ(count(html, "<script"), 0);
  EXPECT_EQ(count(html, "<img"), 0);
  EXPECT_EQ(count(html, "</style>"), 1) << "the page's own";
  EXPECT_GE(count(html, "&lt;script&gt;alert(1)&lt;/script&gt;"), 10);
  EXPECT_EQ(html.find('\0'), std::string::npos);
  EXPECT_EQ(html.find('\x1b'), std::string::npos);
  // Tags open and close as often as on a page with harmless words: nothing slipped out of its place.
  std::string words = hostile;
  for (char& c : words) c = c == ' ' ? ' ' : 'x';
  std::string harmless = log;
  const std::string quoted = json_string(hostile), inner = quoted.substr(1, quoted.size() - 2);
  for (std::size_t at; (at = harmless.find(inner)) != std::string::npos;)
    harmless.replace(at, inner.size(), words);
  RunFacts plain = facts(harmless);
  plain.options = {{"x", "x"}, {"prompt", "x"}};
  EXPECT_EQ(count(html, "<"), count(page(plain), "<"));
  // And what this test looks for would be found.
  EXPECT_EQ(count("<p>" + hostile, "<script"), 1);
}

TEST_F(Report, SaysInWordsWhatThereIsNot) {
  const std::string empty = page(facts(""));
  expect(empty, {"No step with a finite loss yet.", "Not evaluated yet", "No measured step yet",
                 "The log does not hold the plan", "unknown: nothing on this machine measures it",
                 "None yet: --sample-every", "Nothing else is on record.",
                 "All options are stored with the first checkpoint", "The log holds no step yet.",
                 "not evaluated yet"});
  EXPECT_EQ(count(empty, "<svg"), 0);
  EXPECT_EQ(count(empty, "nan"), 0);
  const std::string one = page(facts(step_lines(1, 1)));
  EXPECT_EQ(count(one, "nan"), 0);
  EXPECT_EQ(count(one, "inf"), 0);
  EXPECT_EQ(count(one, "<svg"), 3) << "loss, norm, rate";
  // Ids in the place of text: no bytes, no bits per byte.
  expect(page(facts(step_lines(1, 1) + line(record("eval", 1).add("val_loss", 2.0)))),
         {"Evaluated on tokens whose bytes are not known"});
}

TEST_F(Report, SurvivesNumbersOfAnySize) {
  std::string log = start_line(0, std::numeric_limits<std::int64_t>::max());
  for (const double number : {1e300, -1e300, 1e38, 1e-300, 0.0, -1.0}) {
    for (int i = 0; i < 5; ++i) {
      JsonRecord r = record("step", (std::int64_t{1} << 52) + 5 * static_cast<std::int64_t>(log.size()) + i);
      for (const char* field :
           {"loss", "norm", "lr", "tokens_per_s", "mfu", "watts", "celsius", "unix_s", "kwh"})
        r.add(field, number);
      log += line(r.add("seconds", std::abs(number))
                      .add("device_used_bytes", std::numeric_limits<std::int64_t>::max()));
    }
    log += line(record("eval", std::int64_t{1} << 53).add("val_loss", number).add("val_bpb", number));
    log += line(record("slow", 1).add("times_slower", number).add("unix_s", number));
    log += line(record("overflow", 1).add("loss_scale", number));
  }
  const RunFacts f = facts(log);
  expect(page(f), {"</html>"});
  EXPECT_FALSE(status_text(f, status_of(f)).empty());
  EXPECT_TRUE(nlohmann::json::accept(status_json(f, status_of(f))));
}

TEST_F(Report, StaysSmallForAMillionSteps) {
  RunFacts f = facts(start_line(0, 1'000'000));
  f.log.steps.resize(1'000'000);
  for (std::size_t i = 0; i < f.log.steps.size(); ++i) {
    RunLog::Step& s = f.log.steps[i];
    s.step = static_cast<std::int64_t>(i) + 1;
    s.loss = 3 + static_cast<float>(i % 101) * 0.01f;
    s.norm = s.lr = s.seconds = s.tokens_per_s = s.mfu = s.watts = s.celsius = s.loss;
  }
  f.log.steps[500'000].loss = 4.5f;
  EXPECT_LT(page(f).size(), 600'000u);
}

TEST(HtmlText, ReplacesControlCharactersAndWhatIsNoUtf8) {
  EXPECT_EQ(html_text("a<b>&\"'\n\t"), "a&lt;b&gt;&amp;&quot;&#39;\n\t");
  const std::string lost = "\xEF\xBF\xBD";
  EXPECT_EQ(html_text(std::string("\0\x1b\x7f", 3)), lost + lost + lost);
  EXPECT_EQ(html_text("\xC2\x85"), lost) << "a control character of two bytes";
  EXPECT_EQ(html_text("\xff\xc3(\xed\xa0\x80"), lost + lost + "(" + lost + lost + lost);
  EXPECT_EQ(html_text("ä 你 😀"), "ä 你 😀");
}

}  // namespace
}  // namespace qt::test
