// Written by bench_gemm --table on each card that has been measured; not by hand. kernels/gemm_routes.h says
// how it is read.
#include <vector>

#include "kernels/gemm_routes.h"

namespace qt {

std::span<const MeasuredProduct> measured_products() {
  // clang-format off
  static const std::vector<MeasuredProduct> table = {
      // sm, layout, M, N, K, fused us, scratch us
  };
  // clang-format on
  return table;
}

}  // namespace qt
