// The worker pool. A training step on a small model is thousands of calls of tens of microseconds: workers
// therefore spin for a moment before they sleep, and the caller never waits for a worker that has not joined.
#include "kernels/cpu/cpu_common.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "src/core/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace qt::cpu {

namespace {

// About two context switches: longer burns a core that somebody else may want.
constexpr std::chrono::microseconds kSpinTime{20};

void pause_briefly() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// True as soon as ready() is, false after kSpinTime.
template <class Ready>
bool spin_until(Ready&& ready) {
  const auto give_up = std::chrono::steady_clock::now() + kSpinTime;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      pause_briefly();
    }
  } while (std::chrono::steady_clock::now() < give_up);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  QT_CHECK(threads >= 1, ConfigError, "a thread pool needs at least one thread, not {}", threads);
  worker_init();
  threads_.reserve(static_cast<std::size_t>(threads - 1));
  for (int worker = 1; worker < threads; ++worker) {
    threads_.emplace_back([this, worker] { worker_loop(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::parallel_for(std::int64_t tasks, const Task& fn) {
  if (threads_.empty() || tasks <= 1) {
    for (std::int64_t task = 0; task < tasks; ++task) fn(task, 0);
    return;
  }
  {
    const std::lock_guard lock(mutex_);
    fn_ = &fn;
    tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
  }
  wake_.notify_all();
  run_tasks(fn, tasks, 0);

  // Every task has been claimed; what is left runs in workers that have joined.
  spin_until([this] { return joined_.load(std::memory_order_acquire) == 0; });
  std::unique_lock lock(mutex_);
  fn_ = nullptr;
  done_.wait(lock, [this] { return joined_.load(std::memory_order_relaxed) == 0; });
  if (error_) {
    const std::exception_ptr error = std::exchange(error_, nullptr);
    lock.unlock();
    std::rethrow_exception(error);
  }
}

void ThreadPool::worker_loop(int worker) {
  worker_init();
  std::uint64_t seen = 0;
  while (true) {
    spin_until([&] { return generation_.load(std::memory_order_acquire) != seen; });
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
    seen = generation_.load(std::memory_order_relaxed);
    if (stopping_) return;
    if (fn_ == nullptr) continue;
    const Task& fn = *fn_;  // outlives this worker's share: the caller waits until joined_ is 0
    const std::int64_t tasks = tasks_;
    joined_.fetch_add(1, std::memory_order_relaxed);
    lock.unlock();
    run_tasks(fn, tasks, worker);
    lock.lock();
    if (joined_.fetch_sub(1, std::memory_order_release) == 1) done_.notify_one();
  }
}

void ThreadPool::run_tasks(const Task& fn, std::int64_t tasks, int worker) {
  try {
    while (true) {
      const std::int64_t task = next_.fetch_add(1, std::memory_order_relaxed);
      if (task >= tasks) return;
      fn(task, worker);
    }
  } catch (...) {
    next_.store(tasks, std::memory_order_relaxed);
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void parallel_ranges(Context& ctx, std::int64_t n, std::int64_t grain,
                     const std::function<void(std::int64_t begin, std::int64_t end, int worker)>& fn) {
  QT_CHECK(grain >= 1, ShapeError, "parallel_ranges: a grain of {}", grain);
  ctx.pool.parallel_for((n + grain - 1) / grain, [&](std::int64_t task, int worker) {
    fn(task * grain, std::min(n, (task + 1) * grain), worker);
  });
}

}  // namespace qt::cpu
