// The cpu backend: ordinary memory for both spaces, ops run at once in program order on a worker pool. What
// each op does is in the other files of this folder.
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kernels/backend.h"
#include "kernels/cpu/cpu_common.h"
#include "src/core/units.h"

namespace qt {

namespace {

constexpr std::int64_t kPageBytes = 4096;
constexpr std::int64_t kHugePageBytes = 2 * kMiB;
constexpr std::int64_t kCopyGrainBytes = 1 * kMiB;

class MappedRegion final : public MemoryRegion {
 public:
  MappedRegion(std::byte* base, std::int64_t bytes, Space space, std::byte* mapping,
               std::size_t mapping_bytes)
      : MemoryRegion(base, bytes, space), mapping_(mapping), mapping_bytes_(mapping_bytes) {}
  ~MappedRegion() override { munmap(mapping_, mapping_bytes_); }

 private:
  std::byte* mapping_;
  std::size_t mapping_bytes_;
};

// Fresh pages of the system are zero, and none is touched before its first use. Large regions start at a huge
// page, which spares a walk through gigabytes of weights most of its address translations.
std::unique_ptr<MemoryRegion> map_memory(Space space, std::int64_t bytes) {
  QT_CHECK(bytes >= 0, ShapeError, "allocate: {} bytes", bytes);
  const bool large = bytes >= 2 * kHugePageBytes;
  // A page without access on either side: an op that leaves the region faults instead of damaging a
  // neighbour.
  const std::int64_t usable_bytes =
      (std::max<std::int64_t>(bytes, 1) + kPageBytes - 1) / kPageBytes * kPageBytes;
  const auto mapping_bytes =
      static_cast<std::size_t>(usable_bytes + 2 * kPageBytes + (large ? kHugePageBytes : 0));
  void* mapping = mmap(nullptr, mapping_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  std::byte* base = nullptr;
  if (mapping != MAP_FAILED) {
    base = static_cast<std::byte*>(mapping) + kPageBytes;
    if (large) {
      const auto misalignment =
          static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(base) % kHugePageBytes);
      if (misalignment != 0) base += kHugePageBytes - misalignment;
    }
  }
  if (mapping == MAP_FAILED ||
      mprotect(base, static_cast<std::size_t>(usable_bytes), PROT_READ | PROT_WRITE) != 0) {
    throw FitError(fmt::format("the system refused {} ({} bytes) of {} memory: {}", format_bytes(bytes),
                               bytes, space == Space::host ? "host" : "device", std::strerror(errno)),
                   "close other programs, lower the micro-batch or choose a smaller model");
  }
  // A wish: without it everything still works.
  if (large) madvise(base, static_cast<std::size_t>(bytes), MADV_HUGEPAGE);
  return std::make_unique<MappedRegion>(base, bytes, space, static_cast<std::byte*>(mapping), mapping_bytes);
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const Target& target)
      : Backend(target),
        pool_(target.threads),
        worker_scratch_(map_memory(Space::device, target.threads * kWorkerScratchBytes)),
        ctx_{.pool = pool_, .scratch_base = worker_scratch_->base()} {}

  std::string_view name() const override { return "cpu"; }

  std::unique_ptr<MemoryRegion> allocate(Space space, std::int64_t bytes) override {
    return map_memory(space, bytes);
  }

  // Everything is done when its call returns, so that an event has always happened.
  Event record(Stream) override { return Event{++last_event_}; }
  void wait(Stream, Event) override {}
  void synchronize() override {}

 private:
  void copy_bytes(const std::byte* from, std::byte* to, std::int64_t bytes) {
    cpu::parallel_ranges(ctx_, bytes, kCopyGrainBytes, [&](std::int64_t begin, std::int64_t end, int) {
      std::memcpy(to + begin, from + begin, static_cast<std::size_t>(end - begin));
    });
  }

  void do_copy(const TensorView& from, const TensorView& to, Stream) override {
    copy_bytes(from.data, to.data, from.bytes());
  }
  void do_upload(std::span<const std::byte> from, const TensorView& to) override {
    copy_bytes(from.data(), to.data, to.bytes());
  }
  void do_download(const TensorView& from, std::span<std::byte> to) override {
    copy_bytes(from.data, to.data(), from.bytes());
  }
  std::vector<double> do_read_scalars(const TensorView& view) override {
    const double* values = view.as<double>();
    return std::vector<double>(values, values + view.elems());
  }

#define QT_RUN_ON_CPU(Op) \
  void do_run(const Op& op, Stream) override { cpu::run(op, ctx_); }
  QT_FOR_EACH_OP(QT_RUN_ON_CPU)
#undef QT_RUN_ON_CPU

  cpu::ThreadPool pool_;
  std::unique_ptr<MemoryRegion> worker_scratch_;
  cpu::Context ctx_;
  std::uint64_t last_event_ = 0;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const Target& target) {
  QT_CHECK(target.kind == DeviceKind::cpu, ConfigError, "the cpu backend cannot run what is planned for {}",
           target.name);
  return std::make_unique<CpuBackend>(target);
}

}  // namespace qt
