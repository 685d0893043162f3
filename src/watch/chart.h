// Curves over steps as HTML with inline SVG. Lines lie in an SVG that is stretched to its box, numbers are
// text beside it: so they stay readable on a phone. What is drawn, and under which name, is
// src/watch/report.cpp.
#pragma once

#include <string>
#include <vector>

namespace qt {

struct ChartPoint {
  double x = 0;
  double y = 0;  // not finite: a gap
};

struct ChartSeries {
  // band: what one pixel column spans, lowest to highest, with its mean; line: the mean alone; dots: each,
  // and a line alone where they would run into each other.
  enum class Kind { band, line, dots };
  std::string name;
  Kind kind = Kind::line;
  int colour = 1;                  // 1 to 3, by role
  std::vector<ChartPoint> points;  // x ascending
};

// How numbers on the y axis are written.
enum class ChartNumbers { plain, counts };

struct Chart {
  std::string title;
  std::string x_label, y_label;  // what is counted and its unit: "steps", "nats per token"
  ChartNumbers y_numbers = ChartNumbers::plain;
  bool from_zero = false;
  // The axis reaches at least so far, so that charts below each other agree; what lies before x_low is left
  // out.
  double x_low = 0, x_high = 0;
  std::vector<ChartSeries> series;
  std::string empty;  // what is said where there is nothing to draw
};

std::string chart_html(const Chart& chart);

// Multiples of 1, 2 or 5 times a power of ten that lie from low to high, about `wanted` of them: between half
// and twice as many. At least `least_step` apart. Empty for a range that is none.
std::vector<double> axis_ticks(double low, double high, int wanted, double least_step = 0);

// One pixel column: of the points that fall into it.
struct ChartColumn {
  double x = 0;  // its middle, or the point's own where it is alone
  double low = 0, high = 0, mean = 0;
  bool gap_before = false;  // a point that is not finite lies between it and the column before
};

// Nothing is dropped: every finite point is inside the low and high of its column.
std::vector<ChartColumn> chart_columns(const std::vector<ChartPoint>& points, double x_low, double x_high,
                                       int columns);

// The mean of the points within `half` places to either side; what is not finite stays so and enters no mean.
std::vector<ChartPoint> smoothed(const std::vector<ChartPoint>& points, std::size_t half);

}  // namespace qt
