#include "quant/block.h"

#include <cmath>

#include "src/core/error.h"

namespace qt {
namespace {

template <class T>
void require(std::span<const T> x, std::string_view tensor, std::int64_t first) {
  if (const auto bad = first_non_finite(x)) {
    throw_non_finite(tensor, first + *bad, to_float(x[static_cast<std::size_t>(*bad)]));
  }
}

}  // namespace

void throw_non_finite(std::string_view tensor, std::int64_t index, float value) {
  const char* what = std::isnan(value) ? "NaN" : value > 0 ? "+Inf" : "-Inf";
  throw DataError(
      fmt::format("tensor '{}': element {} (flat, row-major) is {}; only finite values can be quantized",
                  tensor, index, what),
      "the weights are damaged or their training diverged: use an earlier checkpoint, or download the "
      "file again");
}

void require_finite(std::span<const float> x, std::string_view tensor, std::int64_t first) {
  require(x, tensor, first);
}
void require_finite(std::span<const bf16> x, std::string_view tensor, std::int64_t first) {
  require(x, tensor, first);
}
void require_finite(std::span<const f16> x, std::string_view tensor, std::int64_t first) {
  require(x, tensor, first);
}

}  // namespace qt
