// What the cpu implementations share: the worker pool, per-worker scratch, and one declaration per op.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "kernels/ops.h"
#include "kernels/target.h"
#include "kernels/with_dtype.h"

namespace qt::cpu {

// A fixed set of threads. Tasks are claimed from a counter, so which worker runs a task varies; every task
// must therefore write outputs of its own and reduce in an order of its own: then results do not depend on
// the number of workers. The calling thread is worker 0. One parallel_for at a time.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // Calls fn(task, worker) for every task in [0, tasks); returns when all are done. Not reentrant. The first
  // exception of a task is rethrown here; tasks not yet begun are then left out.
  void parallel_for(std::int64_t tasks, const std::function<void(std::int64_t, int)>& fn);

 private:
  using Task = std::function<void(std::int64_t, int)>;

  void worker_loop(int worker);
  void run_tasks(const Task& fn, std::int64_t tasks, int worker);

  std::vector<std::thread> threads_;
  std::mutex mutex_;  // guards everything below; the atomics are also read without it, by those who spin
  std::condition_variable wake_;
  std::condition_variable done_;
  const Task* fn_ = nullptr;  // null between two calls: a worker that wakes late finds nothing to join
  std::int64_t tasks_ = 0;
  std::atomic<std::int64_t> next_{0};
  std::atomic<std::uint64_t> generation_{0};
  std::atomic<int> joined_{0};  // workers inside run_tasks, besides the caller
  bool stopping_ = false;
  std::exception_ptr error_;
};

// Called by each thread before its first task, worker 0 included: libraries are told to stay on one thread.
void worker_init();

// Passed to every implementation.
struct Context {
  ThreadPool& pool;
  std::byte* scratch_base = nullptr;  // workers * kWorkerScratchBytes, 4096-byte aligned

  std::byte* worker_scratch(int worker) const { return scratch_base + worker * kWorkerScratchBytes; }
};

// Cuts [0, n) into pieces of `grain` (the last may be shorter), in parallel. The cut depends on n and grain
// alone.
void parallel_ranges(Context& ctx, std::int64_t n, std::int64_t grain,
                     const std::function<void(std::int64_t begin, std::int64_t end, int worker)>& fn);

// Packed operands are read in the order that files have.
inline void require_flat(const PackedView& w, const char* op) {
  QT_CHECK(w.layout == PackedLayout::flat, DTypeError,
           "{}: the cpu reads packed weights in the flat layout, and w lies in tiles", op);
}

#define QT_DECLARE_CPU_OP(Op) void run(const Op& op, Context& ctx);
QT_FOR_EACH_OP(QT_DECLARE_CPU_OP)
#undef QT_DECLARE_CPU_OP

}  // namespace qt::cpu
