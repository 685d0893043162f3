// Inputs of the tests of promised bits that lie on the edges of codes: every threshold and its neighbours,
// under every kind of scale.
#pragma once

#include <cmath>
#include <vector>

#include "quant/nf4.h"
#include "quant/q8.h"
#include "tests/support/packed_tensor.h"
#include "tests/support/setups.h"

namespace qt::test {

// Thresholds and their neighbours under every kind of scale, zero blocks, signed zeros, outliers, and the
// sizes that end within a block.
inline std::vector<std::vector<float>> weights_to_quantize() {
  std::vector<std::vector<float>> all;
  for (const std::int64_t n : kAwkwardSizes) all.push_back(hostile(static_cast<std::size_t>(n), 8));
  all.push_back(hostile(3 * 16384 + 5, 9));
  std::vector<float> edges;
  for (const float scale :
       {1.0f, 0x1p-149f, 0x1p-130f, 0x1p-127f, 0x1p-126f, 1e-38f, 0x1p126f, 0x1p127f, 3.4e38f}) {
    for (const float t : Nf4::kThresholds) {
      for (const float y : {t, std::nextafter(t, kInf), std::nextafter(t, -kInf)}) {
        if (edges.size() % 64 == 0) edges.push_back(edges.size() % 128 == 0 ? scale : -scale);
        edges.push_back(y * scale);
      }
    }
    while (edges.size() % 64 != 0) edges.push_back(-0.0f);
    edges.resize(edges.size() + 64, 0.0f);
  }
  all.push_back(edges);
  return all;
}

// Gradients for AdamW8 with blocks that hold every threshold of both code books and its neighbours, with `scale`
// the largest magnitude.
inline std::vector<float> gradients_at_thresholds(float scale) {
  std::vector<float> g;
  for (const auto& mids : {kQ8SignedMid, kQ8UnsignedMid}) {
    for (std::size_t c = 0; c < 255; ++c) {
      const float t = mids[c];
      // The square root: so that the square lands on a threshold of v, or beside it.
      for (const float y : {t, std::nextafter(t, kInf), std::nextafter(t, -kInf), std::sqrt(std::abs(t))}) {
        if (g.size() % kQ8BlockElems == 0) g.push_back(scale);
        g.push_back(y * scale);
      }
    }
  }
  return g;
}

}  // namespace qt::test
