// Range: a lower and an upper end of one quantity, in the unit of its name.
#pragma once

namespace qt {

struct Range {
  double low = 0;
  double high = 0;
};

inline Range times(Range r, double factor) { return {.low = r.low * factor, .high = r.high * factor}; }
inline Range plus(Range a, Range b) { return {.low = a.low + b.low, .high = a.high + b.high}; }

}  // namespace qt
