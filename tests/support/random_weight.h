// A packed weight of random codes and scales, made without a quantizer: every code occurs with every kind of
// scale.
#pragma once

#include <cmath>
#include <vector>

#include "quant/packed.h"
#include "quant/tiles.h"
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

  // The same weights in either layout.
  PackedView view(Case& t, std::int64_t N, std::int64_t K, PackedLayout layout = PackedLayout::flat) const {
    std::vector<std::uint8_t> laid_codes = codes;
    std::vector<double> laid_absmax = absmax;
    if (layout == PackedLayout::tiles) {
      const std::vector<float> flat(absmax.begin(), absmax.end());
      std::vector<float> tiles(flat.size());
      flat_to_tiles(N, K, codes, laid_codes);
      flat_to_tiles(N, K, flat, tiles);
      laid_absmax.assign(tiles.begin(), tiles.end());
    }
    PackedView view;
    view.format = FormatId::nf4;
    view.N = N;
    view.K = K;
    view.layout = layout;
    view.codes = t.in_bytes(laid_codes);
    view.absmax = t.in(laid_absmax, {static_cast<std::int64_t>(absmax.size())}, DType::f32);
    return view;
  }
};

}  // namespace qt::test
