#include "src/data/unigram.h"

#include <cmath>

namespace qt {

double unigram_bpb(std::span<const std::int64_t> train, std::span<const std::int64_t> val,
                   std::span<const std::int32_t> bytes) {
  double total = static_cast<double>(train.size());
  for (const std::int64_t count : train) total += static_cast<double>(count);
  double bits = 0, val_bytes = 0;
  for (std::size_t t = 0; t < val.size(); ++t) {
    if (bytes[t] == 0 || val[t] == 0) continue;
    bits += static_cast<double>(val[t]) * (std::log2(total) - std::log2(static_cast<double>(train[t] + 1)));
    val_bytes += static_cast<double>(val[t]) * bytes[t];
  }
  return val_bytes > 0 ? bits / val_bytes : 0;
}

}  // namespace qt
