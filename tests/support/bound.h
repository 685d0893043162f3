// observed / bound: the worst of a field, and the table of all of them that each test program prints at its
// end.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "src/core/tensor.h"

namespace qt::test {

struct Ratio {
  double worst = 0;  // |got - want| / bound; more than 1 is a failure
  double got = 0, want = 0, bound = 0;
  std::size_t index = 0;
  std::size_t taken = 0;
  bool exact = true;  // no element had any tolerance

  void take(double have, double expected, double tolerance, std::size_t at) {
    exact = exact && tolerance == 0;
    const bool same = have == expected && std::signbit(have) == std::signbit(expected);
    const double distance = std::abs(have - expected);
    double ratio = 0;
    if (!std::isfinite(tolerance) || !(tolerance >= 0)) {
      ratio = INFINITY;  // a bound that permits everything proves nothing
    } else if (tolerance == 0) {
      ratio = same ? 0 : INFINITY;
    } else {
      ratio = std::isnan(distance) ? INFINITY : distance / tolerance;
    }
    if (taken++ > 0 && ratio <= worst) return;
    worst = ratio;
    got = have, want = expected, bound = tolerance, index = at;
  }

  std::string text() const {
    return fmt::format("element {}: got {:.9g}, want {:.9g}, off by {:.3g}, bound {:.3g}", index, got, want,
                       std::abs(got - want), bound);
  }
};

// A field with a smaller worst ratio over all shapes is bounded so loosely that the test says little.
inline constexpr double kLooseRatio = 1e-4;

class RatioTable : public ::testing::Environment {
 public:
  static RatioTable& instance() {
    static RatioTable* const table = [] {
      auto* made = new RatioTable;
      ::testing::AddGlobalTestEnvironment(made);  // which owns it from here on
      return made;
    }();
    return *table;
  }

  void add(const std::string& op, const std::string& field, DType dtype, const Ratio& ratio) {
    Row& row = rows_[{op, field, dtype}];
    row.worst = std::max(row.worst, ratio.worst);
    row.exact = row.exact && ratio.exact;
    ++row.cases;
  }

  // Called by gtest after the last test.
  void TearDown() override {
    if (rows_.empty()) return;
    fmt::print("{:<24}{:<20}{:<7}{:>6}  observed / bound\n", "op", "field", "dtype", "cases");
    for (const auto& [key, row] : rows_) {
      const auto& [op, field, dtype] = key;
      fmt::print("{:<24}{:<20}{:<7}{:>6}  {}\n", op, field, dtype_name(dtype), row.cases,
                 row.exact ? (row.worst == 0 ? "equal" : "NOT EQUAL") : fmt::format("{:.3g}", row.worst));
      EXPECT_TRUE(row.exact || row.worst == 0 || row.worst >= kLooseRatio)
          << op << "." << field << ": the bound is too loose to say anything";
    }
  }

 private:
  struct Row {
    double worst = 0;
    bool exact = true;
    int cases = 0;
  };
  std::map<std::tuple<std::string, std::string, DType>, Row> rows_;
};

// Environments must be known before the tests begin.
inline RatioTable& ratio_table_at_start = RatioTable::instance();

}  // namespace qt::test
