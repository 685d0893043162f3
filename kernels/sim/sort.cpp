#include "kernels/cuda/sort.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/cuda/runtime.h"
#include "kernels/sim/sim.h"
#include "kernels/sim/stream.h"

namespace qt::cuda {

// Not 0, so that callers have to plan for it.
std::int64_t sort_temp_bytes(std::int64_t n) { return 1024 + n / 256; }

void sort_pairs(const SortPairs& sort, cudaStream_t stream) {
  if (sim::runtime_call_fails("sort_pairs")) return check(sim::injected_error(), "sort");
  if (sort.temp_bytes < sort_temp_bytes(sort.n))
    throw sim::SimError("sort_pairs: too little temporary memory");
  sim::enqueue_work(stream, [sort] {
    std::vector<std::int64_t> order(static_cast<std::size_t>(sort.n));
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](std::int64_t a, std::int64_t b) { return sort.keys_in[a] < sort.keys_in[b]; });
    for (std::size_t i = 0; i < order.size(); ++i) {
      sort.keys_out[i] = sort.keys_in[order[i]];
      sort.values_out[i] = sort.values_in[order[i]];
    }
  });
}

}  // namespace qt::cuda
