// Backend: memory of two kinds, streams, events, and running ops in order.
//
// run() is not virtual: it checks once, counts once, then calls the implementation, which may rely on the
// contract. Code outside a backend never dereferences a view; bytes cross by copy(), upload(), download() and
// read_scalars().
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kernels/ops.h"
#include "kernels/scratch.h"
#include "kernels/target.h"

namespace qt {

// Work on one stream runs in order. The cpu backend runs everything at once in program order.
enum class Stream : std::uint8_t { compute, copy_in, copy_out };

struct Event {
  std::uint64_t id = 0;
};

// One large allocation; freed with the handle. base is at least 4096-byte aligned.
class MemoryRegion {
 public:
  virtual ~MemoryRegion() = default;
  std::byte* base() const { return base_; }
  std::int64_t bytes() const { return bytes_; }
  Space space() const { return space_; }
  // Host memory that a card cannot reach by itself, because the system gave none that is pinned: copies work,
  // and take longer.
  bool pageable() const { return pageable_; }

 protected:
  MemoryRegion(std::byte* base, std::int64_t bytes, Space space, bool pageable = false)
      : base_(base), bytes_(bytes), space_(space), pageable_(pageable) {}

 private:
  std::byte* base_;
  std::int64_t bytes_;
  Space space_;
  bool pageable_;
};

// What a backend knows of the device behind it; 0 and empty where it does not know.
struct DeviceFacts {
  std::string name;                // "NVIDIA GeForce RTX 4070"
  std::string pci_bus_id;          // of a card: "0000:01:00.0", by which the driver's own tools know it
  int sm = 0;                      // cuda: compute capability times ten
  int multiprocessors = 0;         // of a card
  bool drives_display = false;     // somebody looks at it: some of its memory and time is not ours
  std::int64_t total_bytes = 0;    // memory of the card
  std::int64_t free_bytes = 0;     // when it was opened, before qtrain allocated anything
  std::int64_t context_bytes = 0;  // measured: what the driver and the libraries took of it
};

// What a backend did since the last reset. model_flops leaves out what ran inside a RecomputeScope.
struct BackendTotals {
  double model_flops = 0;
  double executed_flops = 0;
  double read_bytes = 0;
  double written_bytes = 0;
  double host_to_device_bytes = 0;
  double device_to_host_bytes = 0;
  std::int64_t ops = 0;
};

class Backend {
 public:
  explicit Backend(Target target) : target_(std::move(target)) {}
  virtual ~Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  const Target& target() const { return target_; }
  virtual std::string_view name() const = 0;
  virtual DeviceFacts device() const { return {}; }

  // How a library behind the backend does its matrix products, as text for checkpoints: its choice decides
  // the order of sums, and with it bits. Empty where nothing is chosen at run time.
  virtual std::string algorithms() const { return {}; }
  // Takes over what algorithms() gave. Returns why a part was left out, a line each: those products are
  // chosen anew. Never throws for what the text says: it may come from another device.
  virtual std::vector<std::string> use_algorithms(std::string_view text);

  // A stretch of host time that a profiler shows under a name: the phases of a step, and in them the ops.
  // Ranges nest. `name` must outlive the range.
  class Range {
   public:
    Range(Backend& backend, const char* name) : backend_(backend) { backend_.begin_range(name); }
    ~Range() { backend_.end_range(); }
    Range(const Range&) = delete;
    Range& operator=(const Range&) = delete;

   private:
    Backend& backend_;
  };

  // Runs op after everything earlier on the same stream; may return before the work is done. ShapeError where the op, or the
  // scratch it was given, is not what its contract says: on every backend, so that a plan is held to it, too.
  template <class Op>
  void run(const Op& op, Stream stream = Stream::compute) {
    op.check();
    check_scratch(op);
    const Cost cost = op.cost();
    count(cost);
    const Range range(*this, Op::kName);
    observed(Op::kName, cost, [&] { do_run(op, stream); });
  }

  // The memory is zero-filled. Throws FitError when the system refuses it.
  virtual std::unique_ptr<MemoryRegion> allocate(Space space, std::int64_t bytes) = 0;

  // Same number of bytes, both dense; between or within spaces.
  void copy(const TensorView& from, const TensorView& to, Stream stream = Stream::compute);
  // Plain memory to and from a view; both wait for earlier work on the compute stream and for the transfer.
  void upload(std::span<const std::byte> from, const TensorView& to);
  void download(const TensorView& from, std::span<std::byte> to);
  // The one call by which numbers reach the host's decisions (loss, norm, flags). view: f64 [n].
  std::vector<double> read_scalars(const TensorView& view);

  virtual Event record(Stream stream) = 0;
  virtual void wait(Stream stream, Event event) = 0;
  virtual void synchronize() = 0;

  const BackendTotals& totals() const { return totals_; }
  void reset_totals() { totals_ = {}; }

  // Called after each op, and after each copy() as "copy", with the wall time of the call: profiles of
  // backends that have done the work when run() returns (cpu); elsewhere that is the time of the launch.
  // Empty, the default: not measured.
  using Observer = std::function<void(const char* op_name, const Cost& cost, double seconds)>;
  void set_observer(Observer observer) { observer_ = std::move(observer); }

 protected:
  virtual void begin_range(const char* name) { (void)name; }
  virtual void end_range() {}

 private:
  friend class RecomputeScope;

  void count(const Cost& cost);

  template <class Op>
  void check_scratch(const Op& op) const {
    if constexpr (TakesScratch<Op>) {
      const std::int64_t need_bytes = scratch_bytes(op, target_);
      const std::int64_t have_bytes = op.scratch.defined() ? op.scratch.bytes() : 0;
      QT_CHECK(have_bytes >= need_bytes, ShapeError, "{}: scratch has {} bytes, scratch_bytes() asks for {}",
               Op::kName, have_bytes, need_bytes);
      QT_CHECK(reinterpret_cast<std::uintptr_t>(op.scratch.data) % kScratchAlignment == 0, ShapeError,
               "{}: scratch begins at an address that is no multiple of {}", Op::kName, kScratchAlignment);
    }
  }

  template <class Work>
  void observed(const char* name, const Cost& cost, Work&& work) {
    if (!observer_) return work();
    const auto start = std::chrono::steady_clock::now();
    work();
    observer_(name, cost, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }

  virtual void do_copy(const TensorView& from, const TensorView& to, Stream stream) = 0;
  virtual void do_upload(std::span<const std::byte> from, const TensorView& to) = 0;
  virtual void do_download(const TensorView& from, std::span<std::byte> to) = 0;
  virtual std::vector<double> do_read_scalars(const TensorView& view) = 0;

#define QT_DECLARE_DO_RUN(Op) virtual void do_run(const Op& op, Stream stream) = 0;
  QT_FOR_EACH_OP(QT_DECLARE_DO_RUN)
#undef QT_DECLARE_DO_RUN

  Target target_;
  BackendTotals totals_;
  Observer observer_;
  int recompute_depth_ = 0;
};

// While alive, executed work does not count as model_flops: it was done before and is done again to save
// memory.
class RecomputeScope {
 public:
  explicit RecomputeScope(Backend& backend) : backend_(backend) { ++backend_.recompute_depth_; }
  ~RecomputeScope() { --backend_.recompute_depth_; }
  RecomputeScope(const RecomputeScope&) = delete;
  RecomputeScope& operator=(const RecomputeScope&) = delete;

 private:
  Backend& backend_;
};

using BackendMaker = std::function<std::unique_ptr<Backend>(const Target& target)>;
// Looks at the device without opening it: free_bytes and context_bytes stay 0. Throws DeviceError without
// one.
using DeviceProbe = std::function<DeviceFacts()>;

// Adds a backend under a name, or replaces the one that has it. "cpu" and "null" (which counts for whatever
// target it is given) exist from the start; a program that is built with "cuda" adds it. Not for
// several threads.
void add_backend(std::string name, BackendMaker maker, DeviceProbe probe = {});

// Throws ConfigError for a name that was not added, and what the maker throws.
std::unique_ptr<Backend> make_backend(std::string_view name, const Target& target);
// Empty facts for a backend added without a probe. Throws as make_backend.
DeviceFacts probe_device(std::string_view name);

// Makes the backend of a name ("cpu", "cuda"): the command line decides which there are in this build.
using BackendFactory = std::unique_ptr<Backend> (*)(std::string_view name, const Target& target);

}  // namespace qt
