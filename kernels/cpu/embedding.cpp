// The token embedding on the cpu. Forward copies rows, or adds a row of positions. Backward groups tokens of
// the same id, so that each row of the gradient has one writer and one order of summation, whatever the
// number of threads.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/embedding.cpp"
#include <hwy/foreach_target.h>
// After foreach_target.h.
#include <algorithm>

#include <hwy/highway.h>

#include "kernels/cpu/cpu_common.h"
#include "kernels/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace qt::cpu {
namespace HWY_NAMESPACE {

// The tokens of one id, ascending. The upper half of an entry is the id, the lower half the token.
struct TokenGroup {
  const std::uint64_t* entries;
  std::int64_t count;
};

// dtable[id, begin .. end) += the sum of the group's rows of dy.
template <class G, class T>
void AddGroup(const TokenGroup& group, const G* dy_NC, T* dtable_VC, std::int64_t C, std::int64_t begin,
              std::int64_t end) {
  const F32Tag d;
  const auto id = static_cast<std::int64_t>(group.entries[0] >> 32);
  T* row = dtable_VC + id * C;
  const auto token = [&](std::int64_t i) {
    return static_cast<std::int64_t>(group.entries[i] & 0xFFFFFFFFu);
  };
  ForVectors(
      d, begin, end,
      [&](std::int64_t c) HWY_ATTR {
        F32Vec sum = LoadF32(d, dy_NC + token(0) * C + c);
        for (std::int64_t i = 1; i < group.count; ++i)
          sum = hn::Add(sum, LoadF32(d, dy_NC + token(i) * C + c));
        StoreF32(d, hn::Add(LoadF32(d, row + c), sum), row + c);
      },
      [&](std::int64_t c, std::size_t n) HWY_ATTR {
        F32Vec sum = LoadF32Partial(d, dy_NC + token(0) * C + c, n);
        for (std::int64_t i = 1; i < group.count; ++i) {
          sum = hn::Add(sum, LoadF32Partial(d, dy_NC + token(i) * C + c, n));
        }
        StoreF32Partial(d, hn::Add(LoadF32Partial(d, row + c, n), sum), row + c, n);
      });
}

template <class G>
void AddGroupOf(const EmbeddingBwd& op, const TokenGroup& group, std::int64_t begin, std::int64_t end) {
  const std::int64_t C = op.dy.dim(1);
  if (op.dtable.dtype == DType::f32) {
    AddGroup(group, op.dy.as<G>(), op.dtable.as<float>(), C, begin, end);
  } else {
    AddGroup(group, op.dy.as<G>(), op.dtable.as<bf16>(), C, begin, end);
  }
}

template <class T>
void AddPositionsTyped(const EmbeddingFwd& op, std::int64_t begin, std::int64_t end) {
  const F32Tag d;
  const std::int64_t C = op.table.dim(1);
  for (std::int64_t n = begin; n < end; ++n) {
    const T* token = op.table.as<T>() + op.ids.as<std::int32_t>()[n] * C;
    const T* position = op.positions.as<T>() + (op.first_position + n % op.T) * C;
    T* y = op.y.as<T>() + n * C;
    ForVectors(
        d, 0, C,
        [&](std::int64_t c)
            HWY_ATTR { StoreF32(d, hn::Add(LoadF32(d, token + c), LoadF32(d, position + c)), y + c); },
        [&](std::int64_t c, std::size_t n_left) HWY_ATTR {
          StoreF32Partial(
              d, hn::Add(LoadF32Partial(d, token + c, n_left), LoadF32Partial(d, position + c, n_left)),
              y + c, n_left);
        });
  }
}

void AddPositions(const EmbeddingFwd& op, std::int64_t begin, std::int64_t end) {
  with_float(op.table.dtype, [&]<class T>() { AddPositionsTyped<T>(op, begin, end); });
}

// Rows [begin, end) of dpositions.
template <class G, class T>
void SumPositionsTyped(const PositionBwd& op, std::int64_t begin, std::int64_t end) {
  const F32Tag d;
  const std::int64_t C = op.dy.dim(1), N = op.dy.dim(0);
  for (std::int64_t t = begin; t < end; ++t) {
    const G* dy = op.dy.as<G>();
    T* row = op.dpositions.as<T>() + t * C;
    ForVectors(
        d, 0, C,
        [&](std::int64_t c) HWY_ATTR {
          F32Vec sum = LoadF32(d, dy + t * C + c);
          for (std::int64_t n = t + op.T; n < N; n += op.T) sum = hn::Add(sum, LoadF32(d, dy + n * C + c));
          StoreF32(d, hn::Add(LoadF32(d, row + c), sum), row + c);
        },
        [&](std::int64_t c, std::size_t n_left) HWY_ATTR {
          F32Vec sum = LoadF32Partial(d, dy + t * C + c, n_left);
          for (std::int64_t n = t + op.T; n < N; n += op.T)
            sum = hn::Add(sum, LoadF32Partial(d, dy + n * C + c, n_left));
          StoreF32Partial(d, hn::Add(LoadF32Partial(d, row + c, n_left), sum), row + c, n_left);
        });
  }
}

void SumPositions(const PositionBwd& op, std::int64_t begin, std::int64_t end) {
  with_float(op.dy.dtype, [&]<class G>() {
    op.dpositions.dtype == DType::f32 ? SumPositionsTyped<G, float>(op, begin, end)
                                      : SumPositionsTyped<G, bf16>(op, begin, end);
  });
}

void AddTokens(const EmbeddingBwd& op, const std::uint64_t* entries, std::int64_t count, std::int64_t begin,
               std::int64_t end) {
  const TokenGroup group{entries, count};
  with_float(op.dy.dtype, [&]<class G>() { AddGroupOf<G>(op, group, begin, end); });
}

}  // namespace HWY_NAMESPACE
}  // namespace qt::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

#include <cstring>

#include "src/core/error.h"

namespace qt::cpu {

HWY_EXPORT(AddPositions);
HWY_EXPORT(SumPositions);
HWY_EXPORT(AddTokens);

namespace {

constexpr std::int64_t kIdsPerTask = 32;
// In a text few ids are frequent: columns are cut as well, or one row would keep one worker busy to the end.
constexpr std::int64_t kColumnsPerTask = 256;

void check_ids(const TensorView& ids, std::int64_t V, const char* op) {
  const std::int32_t* id = ids.as<std::int32_t>();
  for (std::int64_t n = 0; n < ids.dim(0); ++n) {
    QT_CHECK(id[n] >= 0 && id[n] < V, DataError, "{}: token {} has id {}, the vocabulary has {}", op, n,
             id[n], V);
  }
}

}  // namespace

void run(const EmbeddingFwd& op, Context& ctx) {
  const std::int64_t N = op.ids.dim(0), C = op.table.dim(1);
  check_ids(op.ids, op.table.dim(0), EmbeddingFwd::kName);
  const std::int32_t* ids = op.ids.as<std::int32_t>();
  const std::int64_t row_bytes = C * dtype_bytes(op.table.dtype);
  const std::int64_t grain = std::max<std::int64_t>(1, 64 * 1024 / std::max<std::int64_t>(1, row_bytes));
  parallel_ranges(ctx, N, grain, [&](std::int64_t begin, std::int64_t end, int) {
    if (op.positions.defined()) return HWY_DYNAMIC_DISPATCH(AddPositions)(op, begin, end);
    for (std::int64_t n = begin; n < end; ++n) {
      std::memcpy(op.y.data + n * row_bytes, op.table.data + ids[n] * row_bytes,
                  static_cast<std::size_t>(row_bytes));
    }
  });
}

void run(const PositionBwd& op, Context& ctx) {
  if (op.dy.elems() == 0) return;
  const std::int64_t row_elems = op.dy.dim(0) / op.T * op.dy.dim(1);  // what a row of the gradient sums
  parallel_ranges(ctx, op.T, std::max<std::int64_t>(1, 16 * 1024 / row_elems),
                  [&](std::int64_t begin, std::int64_t end, int) {
                    HWY_DYNAMIC_DISPATCH(SumPositions)(op, begin, end);
                  });
}

void run(const EmbeddingBwd& op, Context& ctx) {
  const std::int64_t N = op.ids.dim(0), C = op.dy.dim(1);
  if (N == 0 || C == 0) return;
  check_ids(op.ids, op.dtable.dim(0), EmbeddingBwd::kName);
  const std::int32_t* ids = op.ids.as<std::int32_t>();
  auto* entries = reinterpret_cast<std::uint64_t*>(op.scratch.data);  // [N]
  auto* starts = reinterpret_cast<std::int32_t*>(entries + N);        // [groups + 1]

  // Entries are distinct, so that any sort gives the one order: by id, then by token.
  for (std::int64_t n = 0; n < N; ++n) {
    entries[n] = static_cast<std::uint64_t>(ids[n]) << 32 | static_cast<std::uint64_t>(n);
  }
  std::sort(entries, entries + N);
  std::int64_t groups = 0;
  for (std::int64_t n = 0; n < N; ++n) {
    if (n == 0 || entries[n] >> 32 != entries[n - 1] >> 32) starts[groups++] = static_cast<std::int32_t>(n);
  }
  starts[groups] = static_cast<std::int32_t>(N);

  const std::int64_t column_tasks = (C + kColumnsPerTask - 1) / kColumnsPerTask;
  const std::int64_t group_tasks = (groups + kIdsPerTask - 1) / kIdsPerTask;
  ctx.pool.parallel_for(group_tasks * column_tasks, [&](std::int64_t task, int) {
    const std::int64_t first_group = task / column_tasks * kIdsPerTask;
    const std::int64_t last_group = std::min(groups, first_group + kIdsPerTask);
    const std::int64_t begin = task % column_tasks * kColumnsPerTask,
                       end = std::min(C, begin + kColumnsPerTask);
    for (std::int64_t g = first_group; g < last_group; ++g) {
      HWY_DYNAMIC_DISPATCH(AddTokens)(op, entries + starts[g], starts[g + 1] - starts[g], begin, end);
    }
  });
}

}  // namespace qt::cpu

#endif  // HWY_ONCE
