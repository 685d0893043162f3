#include "kernels/sim/block.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include <boost/context/fiber.hpp>
#include <boost/context/preallocated.hpp>
#include <fmt/format.h>

#include "kernels/sim/bank_counter.h"
#include "kernels/sim/cp_async.h"
#include "kernels/sim/sim.h"

#if defined(__SANITIZE_ADDRESS__)
#define QT_ASAN_FIBERS 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define QT_ASAN_FIBERS 1
#endif
#endif
#ifdef QT_ASAN_FIBERS
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace qt::sim {

namespace {

namespace ctx = boost::context;

#ifdef QT_ASAN_FIBERS
constexpr std::size_t kStackBytes = 512 << 10;
#else
constexpr std::size_t kStackBytes = 128 << 10;
#endif
constexpr std::size_t kGuardBytes = 64 << 10;  // a whole number of pages, whatever their size

enum class Wait : std::uint8_t { none, warp, block, done };

struct Fiber {
  ThreadState state;
  Wait wait = Wait::none;
  const char* what = nullptr;
  void* slot = nullptr;
  Combine combine = nullptr;
  bool orders_memory = false;
  Where where;
  CopyGroups copies;
  ctx::fiber fiber;      // suspended, while another runs
  ctx::fiber scheduler;  // to go back to, while this one runs
  std::exception_ptr error;
  void* sanitizer_stack = nullptr;
};

// Thrown on a fiber that waits when its block is given up, so that what stands on its stack is destroyed.
struct Abandoned {};

bool same_place(const Where& a, const Where& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         (a.file_name() == b.file_name() || std::strcmp(a.file_name(), b.file_name()) == 0);
}

// Stacks are kept from block to block: a kernel has thousands of blocks. Below each lies a page
// without access: a kernel with large local arrays ends there, not in its neighbour's stack.
class Stacks {
 public:
  ~Stacks() {
    for (std::byte* stack : stacks_) munmap(stack - kGuardBytes, kGuardBytes + kStackBytes);
  }
  ctx::stack_context at(std::size_t i) {
    while (stacks_.size() <= i) {
      void* memory = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
      if (memory == MAP_FAILED) throw SimError("no memory for the stacks of a block");
      mprotect(memory, kGuardBytes, PROT_NONE);
      stacks_.push_back(static_cast<std::byte*>(memory) + kGuardBytes);
    }
    ctx::stack_context context;
    context.size = kStackBytes;
    context.sp = stacks_[i] + kStackBytes;
    return context;
  }

 private:
  std::vector<std::byte*> stacks_;
};

struct KeepStack {
  void deallocate(ctx::stack_context&) noexcept {}
};

class Machine {
 public:
  void run(const Grid& grid, const std::function<void()>& body);

  bool active() const { return current_ != nullptr; }
  Fiber& running() {
    if (current_ == nullptr) throw SimError("device code was called outside a kernel");
    return *current_;
  }
  // All three belong to a kernel that runs.
  const Dim3& block() { return running(), block_; }
  const Grid& grid() { return running(), *grid_; }
  SharedShadow& shared() { return running(), shared_; }
  AccessBy access(const Fiber& fiber) const {
    return {.thread = static_cast<std::uint16_t>(fiber.state.linear),
            .warp = static_cast<std::uint16_t>(fiber.state.warp),
            .now = stamp_,
            .warp_since = warp_since_[static_cast<std::size_t>(fiber.state.warp)],
            .block_since = block_since_};
  }
  // On a fiber: back to the scheduler until it says go on.
  void pause(Fiber& fiber);

 private:
  void run_block(const std::function<void()>& body);
  void start(Fiber& fiber, std::size_t stack, const std::function<void()>& body);
  void switch_to(Fiber& fiber);
  void resume(Fiber& fiber);
  void abandon();
  void run_warp(int warp);
  void release_block();
  [[noreturn]] void fail(const std::string& what) const {
    throw SimError(
        fmt::format("kernel {}, block ({}, {}, {}): {}", grid_->kernel, block_.x, block_.y, block_.z, what));
  }
  std::span<Fiber> lanes(int warp) {
    return std::span(fibers_).subspan(static_cast<std::size_t>(warp) * kWarpThreads, kWarpThreads);
  }

  const Grid* grid_ = nullptr;
  Dim3 block_;
  std::vector<Fiber> fibers_;
  Stacks stacks_;
  Fiber* current_ = nullptr;
  SharedShadow shared_;
  bool abandoning_ = false;
  std::uint32_t stamp_ = 1;
  std::uint32_t block_since_ = 1;
  std::vector<std::uint32_t> warp_since_;
#ifdef QT_ASAN_FIBERS
  const void* main_stack_ = nullptr;
  std::size_t main_stack_bytes_ = 0;
#endif
};

void Machine::run(const Grid& grid, const std::function<void()>& body) {
  if (current_ != nullptr) throw SimError("a kernel was launched inside a kernel");
  grid_ = &grid;
  if (grid.threads < kWarpThreads || grid.threads % kWarpThreads != 0 || grid.threads > 1024) {
    block_ = {0, 0, 0};
    fail(fmt::format("blocks of {} threads; they must be whole warps, at most 1024", grid.threads));
  }
  const std::int64_t count = static_cast<std::int64_t>(grid.blocks.x) * grid.blocks.y * grid.blocks.z;
  fibers_.resize(static_cast<std::size_t>(grid.threads));
  warp_since_.assign(static_cast<std::size_t>(grid.threads / kWarpThreads), 1);
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int64_t at = reversed_order() ? count - 1 - i : i;
    block_ = {static_cast<unsigned>(at % grid.blocks.x),
              static_cast<unsigned>(at / grid.blocks.x % grid.blocks.y),
              static_cast<unsigned>(at / grid.blocks.x / grid.blocks.y)};
    run_block(body);
  }
}

void Machine::run_block(const std::function<void()>& body) {
  shared_.reset(grid_->shared_bytes);
  stamp_ = block_since_ = 1;
  std::fill(warp_since_.begin(), warp_since_.end(), 1u);
  struct AbandonTheRest {
    Machine& machine;
    ~AbandonTheRest() { machine.abandon(); }
  } abandon_the_rest{*this};
  for (std::size_t i = 0; i < fibers_.size(); ++i) {
    Fiber& f = fibers_[i];
    const int linear = static_cast<int>(i);
    f.state = {.thread = {static_cast<unsigned>(linear), 0, 0},
               .linear = linear,
               .warp = linear / kWarpThreads,
               .lane = linear % kWarpThreads};
    f.wait = Wait::none;
    f.error = nullptr;
    f.copies.clear();
    start(f, i, body);
  }
  const int warps = grid_->threads / kWarpThreads;
  while (true) {
    for (int w = 0; w < warps; ++w) run_warp(reversed_order() ? warps - 1 - w : w);
    if (std::all_of(fibers_.begin(), fibers_.end(), [](const Fiber& f) { return f.wait == Wait::done; }))
      break;
    release_block();
  }
  for (const Fiber& f : fibers_) {
    if (f.copies.unfinished()) {
      fail(fmt::format("thread {} left with a cp.async that no thread waited for", f.state.linear));
    }
  }
}

void Machine::start(Fiber& f, std::size_t stack, const std::function<void()>& body) {
  const ctx::stack_context memory = stacks_.at(stack);
  f.fiber = ctx::fiber(std::allocator_arg, ctx::preallocated(memory.sp, memory.size, memory), KeepStack(),
                       [this, &f, &body](ctx::fiber&& scheduler) {
                         f.scheduler = std::move(scheduler);
#ifdef QT_ASAN_FIBERS
                         __sanitizer_finish_switch_fiber(nullptr, &main_stack_, &main_stack_bytes_);
#endif
                         try {
                           if (!abandoning_) body();
                         } catch (const Abandoned&) {
                         } catch (...) {
                           f.error = std::current_exception();
                         }
                         f.wait = Wait::done;
#ifdef QT_ASAN_FIBERS
                         __sanitizer_start_switch_fiber(nullptr, main_stack_, main_stack_bytes_);
#endif
                         return std::move(f.scheduler);
                       });
}

void Machine::switch_to(Fiber& f) {
  current_ = &f;
  f.wait = Wait::none;
#ifdef QT_ASAN_FIBERS
  void* fake = nullptr;
  const ctx::stack_context memory = stacks_.at(static_cast<std::size_t>(f.state.linear));
  __sanitizer_start_switch_fiber(&fake, static_cast<std::byte*>(memory.sp) - memory.size, memory.size);
#endif
  f.fiber = std::move(f.fiber).resume();
#ifdef QT_ASAN_FIBERS
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  current_ = nullptr;
}

void Machine::resume(Fiber& f) {
  switch_to(f);
  if (f.error) {
    try {
      std::rethrow_exception(f.error);
    } catch (const SimError& e) {
      fail(fmt::format("thread {}: {}", f.state.linear, e.what()));
    }
  }
}

void Machine::pause(Fiber& f) {
#ifdef QT_ASAN_FIBERS
  __sanitizer_start_switch_fiber(&f.sanitizer_stack, main_stack_, main_stack_bytes_);
#endif
  f.scheduler = std::move(f.scheduler).resume();
#ifdef QT_ASAN_FIBERS
  __sanitizer_finish_switch_fiber(f.sanitizer_stack, &main_stack_, &main_stack_bytes_);
#endif
  if (abandoning_) throw Abandoned();
}

// Ends the fibers that a failure left standing: their stacks are used again. Not by the destructor of
// ctx::fiber, which switches stacks behind the sanitizer's back.
void Machine::abandon() {
  abandoning_ = true;
  for (Fiber& f : fibers_) {
    if (!f.fiber) continue;
    switch_to(f);
#ifdef QT_ASAN_FIBERS
    const ctx::stack_context memory = stacks_.at(static_cast<std::size_t>(f.state.linear));
    ASAN_UNPOISON_MEMORY_REGION(static_cast<std::byte*>(memory.sp) - memory.size, memory.size);
#endif
  }
  abandoning_ = false;
  current_ = nullptr;
}

// Runs the warp until all its lanes stand at the block's barrier or have left.
void Machine::run_warp(int warp) {
  const std::span<Fiber> all = lanes(warp);
  while (true) {
    for (int i = 0; i < kWarpThreads; ++i) {
      Fiber& f = all[static_cast<std::size_t>(reversed_order() ? kWarpThreads - 1 - i : i)];
      if (f.wait == Wait::none) resume(f);
    }
    flush_bank_accesses();
    const auto meets =
        std::find_if(all.begin(), all.end(), [](const Fiber& f) { return f.wait == Wait::warp; });
    if (meets == all.end()) return;
    void* slots[kWarpThreads];
    for (int lane = 0; lane < kWarpThreads; ++lane) {
      const Fiber& f = all[static_cast<std::size_t>(lane)];
      if (f.wait == Wait::done) {
        fail(fmt::format("{} at {}: lane {} of warp {} has left the kernel", meets->what, place(meets->where),
                         lane, warp));
      }
      if (f.wait != Wait::warp || f.combine != meets->combine || !same_place(f.where, meets->where)) {
        fail(fmt::format("lanes of warp {} part: lane {} is at {} ({}), lane {} at {} ({})", warp,
                         meets->state.lane, place(meets->where), meets->what, lane, place(f.where), f.what));
      }
      slots[lane] = f.slot;
    }
    if (meets->orders_memory) warp_since_[static_cast<std::size_t>(warp)] = ++stamp_;
    current_ = &all.front();  // reads of the combining step count as the warp's
    try {
      meets->combine(slots);
    } catch (const SimError& e) {
      fail(e.what());
    }
    current_ = nullptr;
    for (Fiber& f : all) f.wait = Wait::none;
  }
}

// Every thread stands at the block's barrier, or has left.
void Machine::release_block() {
  const auto first =
      std::find_if(fibers_.begin(), fibers_.end(), [](const Fiber& f) { return f.wait == Wait::block; });
  for (const Fiber& f : fibers_) {
    if (f.wait == Wait::done) {
      fail(fmt::format("the barrier at {} waits for thread {}, which has left the kernel",
                       place(first->where), f.state.linear));
    }
    if (!same_place(f.where, first->where)) {
      fail(fmt::format("threads part at barriers: thread {} is at {}, thread {} at {}", first->state.linear,
                       place(first->where), f.state.linear, place(f.where)));
    }
  }
  block_since_ = ++stamp_;
  std::fill(warp_since_.begin(), warp_since_.end(), stamp_);
  for (Fiber& f : fibers_) f.wait = Wait::none;
}

Machine& machine() {
  static Machine machine;
  return machine;
}

}  // namespace

bool inside_kernel() { return machine().active(); }

void run_grid(const Grid& grid, const std::function<void()>& body) {
  count_launch(grid.kernel);
  machine().run(grid, body);
}

const ThreadState& this_thread() { return machine().running().state; }
const Dim3& this_block_index() { return machine().block(); }
const Grid& this_grid() { return machine().grid(); }
SharedShadow& shared_memory() { return machine().shared(); }

AccessBy this_access() { return machine().access(machine().running()); }
AccessBy this_warp_access() {
  AccessBy by = this_access();
  by.thread = static_cast<std::uint16_t>(AccessBy::kWholeWarp + by.warp);
  return by;
}

CopyGroups& this_copies() { return machine().running().copies; }

void block_barrier(const Where& where) {
  Fiber& f = machine().running();
  f.wait = Wait::block;
  f.what = "barrier";
  f.combine = nullptr;
  f.where = where;
  machine().pause(f);
}

void warp_collective(const char* what, void* slot, Combine combine, const Where& where, bool orders_memory) {
  Fiber& f = machine().running();
  f.wait = Wait::warp;
  f.what = what;
  f.slot = slot;
  f.combine = combine;
  f.orders_memory = orders_memory;
  f.where = where;
  machine().pause(f);
}

void note_bank_access(std::int64_t offset_bytes, int bytes, const Where& where) {
  if (!counting_banks()) return;
  const ThreadState& t = this_thread();
  record_bank_access({.lane = t.lane, .offset_bytes = offset_bytes, .bytes = bytes, .where = where});
}

}  // namespace qt::sim
