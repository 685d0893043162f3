// The twin of kernels/cuda/sort.cu: a sort of the host, with the demands and habits of CUB.
#include "kernels/cuda/sort.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "kernels/cuda/runtime.h"
#include "kernels/sim/sim.h"
#include "kernels/sim/stream.h"

namespace qt::cuda {

int sort_pairs(const SortPairs& sort, cudaStream_t stream) {
  // CUB's need for tiles of 8064 pairs: callers have to plan for it.
  const std::int64_t need_bytes = 6 * 1024 + (sort.n + 8063) / 8064 * 1024;
  if (sim::runtime_call_fails("sort_pairs")) check(sim::injected_error(), "a sort");
  if (sort.temp_bytes < need_bytes) throw sim::SimError("sort_pairs: too little temporary memory");
  // The result ends where CUB leaves it after passes of 8 bits.
  const int result = (sort.key_bits + 7) / 8 % 2;
  sim::enqueue_work(stream, [sort, result] {
    std::vector<std::pair<std::int32_t, std::int32_t>> pairs;
    for (std::int64_t i = 0; i < sort.n; ++i) pairs.emplace_back(sort.keys[0][i], sort.values[0][i]);
    std::stable_sort(pairs.begin(), pairs.end(),
                     [](const auto& a, const auto& b) { return a.first < b.first; });
    // A kernel that reads the other buffer finds nothing of use in it.
    std::fill_n(sort.keys[1 - result], sort.n, -1);
    std::fill_n(sort.values[1 - result], sort.n, -1);
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      sort.keys[result][i] = pairs[i].first;
      sort.values[result][i] = pairs[i].second;
    }
  });
  return result;
}

}  // namespace qt::cuda
