#include "src/watch/chart.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include <fmt/format.h>

#include "src/core/units.h"
#include "src/watch/html.h"

namespace qt {

namespace {

constexpr int kColumns = 500;
constexpr std::ptrdiff_t kMostDots = 60;
constexpr double kSide = 1000;  // of the SVG's own coordinates, both ways
// A few values far above the rest would press the rest onto the axis: beyond so many times the spread of the
// others they are cut, and the chart says so.
constexpr double kMostOfSpread = 2;
constexpr double kShareOfRest = 0.99;
constexpr std::size_t kLeastForCut = 50;

struct Extent {
  double x_low = 0, x_high = 1, y_low = 0, y_high = 1;
  std::size_t cut = 0;  // values above y_high
};

std::optional<Extent> extent_of(const Chart& chart) {
  std::vector<double> values;
  double x_high = -std::numeric_limits<double>::infinity();
  for (const ChartSeries& series : chart.series) {
    for (const ChartPoint& p : series.points) {
      if (!std::isfinite(p.y) || p.x < chart.x_low) continue;
      values.push_back(p.y);
      x_high = std::max(x_high, p.x);
    }
  }
  if (values.empty()) return std::nullopt;
  std::sort(values.begin(), values.end());
  Extent e;
  e.x_low = chart.x_low;
  e.x_high = std::max({x_high, chart.x_high, chart.x_low + 1});
  e.y_low = chart.from_zero ? std::min(0.0, values.front()) : values.front();
  e.y_high = values.back();
  if (values.size() >= kLeastForCut) {
    const double most =
        values[static_cast<std::size_t>(kShareOfRest * static_cast<double>(values.size() - 1))];
    const double bound = most + kMostOfSpread * (most - e.y_low);
    if (most > e.y_low && e.y_high > bound) {
      e.y_high = bound;
      e.cut = static_cast<std::size_t>(values.end() - std::upper_bound(values.begin(), values.end(), bound));
    }
  }
  // A constant has no extent of its own.
  if (!(e.y_high > e.y_low)) {
    const double room = e.y_low == 0 ? 1 : std::abs(e.y_low) * 0.1;
    e.y_high += room;
    if (!chart.from_zero) e.y_low -= room;
  }
  return e;
}

// 1, 2 or 5 times a power of ten, so that about `wanted` of them make up the range.
double tick_step(double range, int wanted, double least_step) {
  const double rough = std::max(range / wanted, least_step);
  const double power = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    // Rounding may leave a step that fits exactly a hair below.
    if (factor * power >= rough * (1 - 1e-9)) return factor * power;
  }
  return 10 * power;
}

std::string number_text(double value, double step, ChartNumbers how) {
  if (how == ChartNumbers::counts && step >= 1 && std::abs(value) < 1e15)
    return format_count(std::llround(value));
  const double magnitude = std::max(std::abs(value), step);
  if (magnitude >= 1e6 || step < 1e-5) return fmt::format("{:.2g}", value);
  const int decimals = std::max(0, static_cast<int>(-std::floor(std::log10(step) + 1e-9)));
  return fmt::format("{:.{}f}", value, decimals);
}

class Scale {
 public:
  explicit Scale(const Extent& e) : e_(e) {}
  double x_share(double x) const { return (x - e_.x_low) / (e_.x_high - e_.x_low); }
  // From the top.
  double y_share(double y) const { return std::clamp(1 - (y - e_.y_low) / (e_.y_high - e_.y_low), 0.0, 1.0); }
  std::string at(double x, double y) const {
    return fmt::format("{:.1f} {:.1f}", kSide * x_share(x), kSide * y_share(y));
  }

 private:
  const Extent& e_;
};

// A part without gaps.
using Stretch = std::vector<ChartColumn>;

std::vector<Stretch> stretches_of(const std::vector<ChartColumn>& columns) {
  std::vector<Stretch> stretches;
  for (const ChartColumn& column : columns) {
    if (stretches.empty() || column.gap_before) stretches.emplace_back();
    stretches.back().push_back(column);
  }
  return stretches;
}

std::string series_svg(const ChartSeries& series, const Extent& e) {
  const Scale scale(e);
  if (series.kind == ChartSeries::Kind::dots) {
    std::string line, dots;
    const auto is_shown = [&](const ChartPoint& p) { return std::isfinite(p.y) && p.x >= e.x_low; };
    const bool few = std::count_if(series.points.begin(), series.points.end(), is_shown) <= kMostDots;
    for (const ChartPoint& p : series.points) {
      if (!is_shown(p)) continue;
      line += (line.empty() ? "M" : "L") + scale.at(p.x, p.y);
      // A line of no length with round ends stays round however the picture is stretched.
      if (few) dots += "M" + scale.at(p.x, p.y) + "h0";
    }
    return fmt::format("<path class=\"line c{0}\" d=\"{1}\"/><path class=\"dots c{0}\" d=\"{2}\"/>",
                       series.colour, line, dots);
  }
  std::string mean, band;
  for (const Stretch& stretch : stretches_of(chart_columns(series.points, e.x_low, e.x_high, kColumns))) {
    for (std::size_t i = 0; i < stretch.size(); ++i)
      mean += (i == 0 ? "M" : "L") + scale.at(stretch[i].x, stretch[i].mean);
    if (stretch.size() == 1) mean += "h0";
    if (series.kind != ChartSeries::Kind::band) continue;
    for (std::size_t i = 0; i < stretch.size(); ++i)
      band += (i == 0 ? "M" : "L") + scale.at(stretch[i].x, stretch[i].high);
    for (std::size_t i = stretch.size(); i-- > 0;) band += "L" + scale.at(stretch[i].x, stretch[i].low);
    band += "Z";
  }
  if (series.kind != ChartSeries::Kind::band)
    return fmt::format("<path class=\"line c{}\" d=\"{}\"/>", series.colour, mean);
  return fmt::format("<path class=\"band c{0}\" d=\"{1}\"/><path class=\"thin c{0}\" d=\"{2}\"/>",
                     series.colour, band, mean);
}

}  // namespace

std::vector<double> axis_ticks(double low, double high, int wanted, double least_step) {
  std::vector<double> ticks;
  if (!std::isfinite(low) || !std::isfinite(high) || !(high > low) || wanted < 1) return ticks;
  const double step = tick_step(high - low, wanted, least_step);
  // Counted in whole steps: adding them up would add up their rounding. And there is no tick at -0.
  for (double n = std::ceil(low / step - 1e-9) + 0.0; n * step <= high + 1e-9 * step; ++n)
    ticks.push_back(n * step);
  return ticks;
}

std::vector<ChartColumn> chart_columns(const std::vector<ChartPoint>& points, double x_low, double x_high,
                                       int columns) {
  std::vector<ChartColumn> out;
  const double width = (x_high - x_low) / columns;
  int current = -1, count = 0;
  bool gap = false;
  for (const ChartPoint& p : points) {
    if (p.x < x_low) continue;
    if (!std::isfinite(p.y)) {
      gap = true;
      continue;
    }
    const int column = std::clamp(static_cast<int>((p.x - x_low) / width), 0, columns - 1);
    if (column != current || out.empty()) {
      out.push_back({.x = p.x, .low = p.y, .high = p.y, .mean = p.y, .gap_before = gap && !out.empty()});
      current = column;
      count = 1;
    } else {
      ChartColumn& c = out.back();
      c.x = x_low + (column + 0.5) * width;
      c.low = std::min(c.low, p.y);
      c.high = std::max(c.high, p.y);
      c.mean += (p.y - c.mean) / ++count;
    }
    gap = false;
  }
  return out;
}

std::vector<ChartPoint> smoothed(const std::vector<ChartPoint>& points, std::size_t half) {
  std::vector<double> sums{0};
  std::vector<std::size_t> counts{0};
  for (const ChartPoint& p : points) {
    const bool finite = std::isfinite(p.y);
    sums.push_back(sums.back() + (finite ? p.y : 0));
    counts.push_back(counts.back() + (finite ? 1 : 0));
  }
  std::vector<ChartPoint> out = points;
  for (std::size_t i = 0; i < points.size(); ++i) {
    if (!std::isfinite(points[i].y)) continue;
    // At the beginning, where curves are steep, as many to either side: more of the later ones would flatten
    // it. At the end the past alone, so that the newest mean is one too.
    const std::size_t reach = std::min(half, i);
    const std::size_t first = i - reach, end = std::min(i + reach + 1, points.size());
    out[i].y = (sums[end] - sums[first]) / static_cast<double>(counts[end] - counts[first]);
  }
  return out;
}

std::string chart_html(const Chart& chart) {
  std::string html = fmt::format("<figure class=\"chart\"><figcaption>{}", html_text(chart.title));
  const std::optional<Extent> extent = extent_of(chart);
  if (!extent)
    return html + fmt::format("</figcaption><p class=\"empty\">{}</p></figure>\n", html_text(chart.empty));
  const Extent& e = *extent;
  const Scale scale(e);

  std::string legend;
  for (const ChartSeries& series : chart.series) {
    if (series.points.empty()) continue;
    legend += fmt::format("<span class=\"key {} c{}\">{}</span>",
                          series.kind == ChartSeries::Kind::band   ? "k-band"
                          : series.kind == ChartSeries::Kind::dots ? "k-dots"
                                                                   : "k-line",
                          series.colour, html_text(series.name));
  }
  html += fmt::format("<span class=\"legend\">{}</span></figcaption>", legend);

  const std::vector<double> ys = axis_ticks(e.y_low, e.y_high, 5);
  const std::vector<double> xs = axis_ticks(e.x_low, e.x_high, 5, 1);
  std::string grid, labels;
  for (const double y : ys) {
    grid += fmt::format("M0 {0:.1f}H{1:.0f}", kSide * scale.y_share(y), kSide);
    labels += fmt::format("<span class=\"y\" style=\"top:{:.2f}%\">{}</span>", 100 * scale.y_share(y),
                          number_text(y, ys.size() > 1 ? ys[1] - ys[0] : y, chart.y_numbers));
  }
  for (const double x : xs) {
    grid += fmt::format("M{:.1f} 0V{:.0f}", kSide * scale.x_share(x), kSide);
    labels += fmt::format("<span class=\"x\" style=\"left:{:.2f}%\">{}</span>", 100 * scale.x_share(x),
                          number_text(x, xs.size() > 1 ? xs[1] - xs[0] : x, ChartNumbers::counts));
  }
  html += fmt::format(
      "<div class=\"unit\">{}</div><div class=\"plot\"><svg viewBox=\"0 0 {:.0f} {:.0f}\" "
      "preserveAspectRatio=\"none\" role=\"img\" aria-label=\"{}\"><path class=\"grid\" "
      "d=\"{}\"/>",
      html_text(chart.y_label), kSide, kSide, html_text(chart.title), grid);
  for (const ChartSeries& series : chart.series) {
    if (!series.points.empty()) html += series_svg(series, e);
  }
  html += fmt::format("</svg>{}</div><div class=\"x-label\">{}</div>", labels, html_text(chart.x_label));
  if (e.cut > 0) {
    html += fmt::format("<p class=\"note\">{} above {} {} cut off at the top.</p>",
                        e.cut == 1 ? "One value" : fmt::format("{} values", e.cut),
                        number_text(e.y_high, e.y_high / 100, chart.y_numbers), e.cut == 1 ? "is" : "are");
  }
  return html + "</figure>\n";
}

}  // namespace qt
