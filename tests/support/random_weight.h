// A packed weight of random codes and scales, made without a quantiser: every code occurs with every kind of
// scale.
#pragma once

#include <cmath>
#include <vector>

#include "quant/packed.h"
#include "tests/support/case.h"

namespace qt::test {

struct RandomWeight {
  std::vector<std::uint8_t> codes;
  std::vector<double> absmax;  // f32 values

  RandomWeight(Case& t, std::int64_t elems) {
    const auto bytes = static_cast<std::size_t>(code_bytes(FormatId::nf4, elems));
    for (const std::int32_t code : t.integers(bytes, 256)) codes.push_back(static_cast<std::uint8_t>(code));
    const auto blocks = static_cast<std::size_t>(scale_count(FormatId::nf4, elems));
    for (const double scale : t.normal_as(DType::f32, blocks, 0.02, 0.06)) absmax.push_back(std::abs(scale));
  }

  PackedView view(Case& t, std::int64_t N, std::int64_t K) const {
    PackedView view;
    view.format = FormatId::nf4;
    view.N = N;
    view.K = K;
    view.codes = t.in_bytes(codes);
    view.absmax = t.in(absmax, {static_cast<std::int64_t>(absmax.size())}, DType::f32);
    return view;
  }
};

}  // namespace qt::test
