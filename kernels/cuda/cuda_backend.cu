// The cuda backend: device and pinned host memory, three streams, events, and the ops of this folder in
// order. Host code only; the kernels are in the other files.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/blas.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/range.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/staging.h"
#include "kernels/gemm_routes.h"
#include "kernels/scratch.h"
#include "src/core/log.h"
#include "src/core/units.h"

namespace qt {

namespace {

using cuda::check;

// What MemoryRegion promises. cudaMalloc promises 256 bytes, cudaHostAlloc nothing: of either kAlignment
// bytes more are asked for than a region has.
constexpr std::size_t kAlignment = 4096;

std::byte* aligned(void* p) {
  const std::size_t beyond = reinterpret_cast<std::uintptr_t>(p) % kAlignment;
  return static_cast<std::byte*>(p) + (beyond == 0 ? 0 : kAlignment - beyond);
}

template <Space kSpace, cudaError_t (*kFree)(void*)>
class RuntimeRegion final : public MemoryRegion {
 public:
  RuntimeRegion(void* allocated, std::int64_t bytes)
      : MemoryRegion(aligned(allocated), bytes, kSpace), allocated_(allocated) {}
  ~RuntimeRegion() override { kFree(allocated_); }

 private:
  void* allocated_;
};
using DeviceRegion = RuntimeRegion<Space::device, cudaFree>;
using PinnedRegion = RuntimeRegion<Space::host, cudaFreeHost>;

// Where ordinary memory lies that stands in for pinned memory.
struct PageableRange {
  const std::byte *begin, *end;
};
using PageableRanges = std::vector<PageableRange>;

// Known to `ranges` as long as it lives: its addresses may be given out again as pinned memory.
class PageableRegion final : public MemoryRegion {
 public:
  PageableRegion(std::byte* base, std::int64_t bytes, std::shared_ptr<PageableRanges> ranges)
      : MemoryRegion(base, bytes, Space::host, true), ranges_(std::move(ranges)) {
    ranges_->push_back({base, base + bytes});
  }
  ~PageableRegion() override {
    std::erase_if(*ranges_, [this](const PageableRange& range) { return range.begin == base(); });
    std::free(base());
  }

 private:
  std::shared_ptr<PageableRanges> ranges_;
};

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const Target& target) : Backend(target), card_(cuda::open_card(target)) {
    for (cuda::OwnedStream& stream : streams_) stream = cuda::make_stream();
    const std::int64_t workspace_bytes =
        target.workspace_bytes > 0 ? target.workspace_bytes : default_workspace_bytes(target);
    workspace_ = allocate(Space::device, workspace_bytes);
    blas_ = cuda::make_blas(workspace_->base(), workspace_->bytes());
    load_code();
    cuda::measure_context(card_, target, workspace_bytes + static_cast<std::int64_t>(kAlignment));
  }
  // Work may still be under way in what the members own. A card that has failed answers at once.
  ~CudaBackend() override { cudaDeviceSynchronize(); }

  std::string_view name() const override { return "cuda"; }
  DeviceFacts device() const override { return card_.facts; }
  std::string algorithms() const override { return routes_line() + blas_->algorithms(); }
  std::vector<std::string> use_algorithms(std::string_view text) override {
    const std::string_view routes = text.starts_with(kRoutes) ? text.substr(0, text.find('\n') + 1) : "";
    const std::string here = routes_line();
    std::vector<std::string> reasons = blas_->use_algorithms(text.substr(routes.size()));
    if (!routes.empty() && !here.empty() && routes != here)
      reasons.insert(reasons.begin(), "this program has measured other routes for packed products");
    return reasons;
  }

  std::unique_ptr<MemoryRegion> allocate(Space space, std::int64_t bytes) override {
    // A zero-byte arena still wants an address of its own.
    const std::int64_t size = std::max<std::int64_t>(bytes, 1);
    return space == Space::device ? allocate_on_card(bytes, size) : allocate_on_host(bytes, size);
  }

  Event record(Stream stream) override {
    const std::size_t slot = next_event_ % kMaxEvents;
    if (slot >= events_.size()) events_.push_back(cuda::make_event());
    check(cudaEventRecord(events_[slot].get(), of(stream)), "cudaEventRecord");
    return Event{++next_event_};
  }
  void wait(Stream stream, Event event) override {
    if (event.id == 0) return;
    // Its slot has been used again: what it stood for lies far behind, and nothing may be left of it.
    if (event.id + kMaxEvents <= next_event_) return synchronize();
    check(cudaStreamWaitEvent(of(stream), events_[(event.id - 1) % kMaxEvents].get(), 0),
          "cudaStreamWaitEvent");
  }
  void synchronize() override {
    for (const cuda::OwnedStream& stream : streams_)
      check(cudaStreamSynchronize(stream.get()), "cudaStreamSynchronize");
  }

 private:
  // The table behind --gemm auto; nothing where the route is named.
  static constexpr std::string_view kRoutes = "routes ";
  std::string routes_line() const {
    if (target().gemm != GemmRoute::automatic) return {};
    return fmt::format("{}{:016x}\n", kRoutes, routes_fingerprint(measured_products(), target().sm));
  }

  // Events are few: the pager's slots and the phases. They are made once and used again in turn.
  static constexpr std::size_t kMaxEvents = 1024;

  cudaStream_t of(Stream stream) const { return streams_[static_cast<std::size_t>(stream)].get(); }

  // Runs a kernel of ours and a small product, so that what the driver takes for the first of each has been
  // taken when the context is measured.
  void load_code() {
    constexpr std::int64_t kSide = 64;
    const auto region = allocate(Space::device, 3 * kSide * kSide * dtype_bytes(DType::bf16));
    const TensorView all(region->base(), DType::bf16, {3, kSide * kSide});
    const cuda::Context context = context_on(Stream::compute);
    cuda::run(Fill{.x = all, .value = 1}, context);
    // By another Blas: the one of the run names the algorithms of its own products alone.
    const auto blas = cuda::make_blas(workspace_->base(), workspace_->bytes());
    blas->multiply({.M = kSide,
                    .N = kSide,
                    .R = kSide,
                    .a = all.as<bf16>(),
                    .b = all.as<bf16>() + kSide * kSide,
                    .c = all.as<bf16>() + 2 * kSide * kSide,
                    .operands = DType::bf16,
                    .result = DType::bf16,
                    .a_pitch = kSide,
                    .b_pitch = kSide,
                    .c_pitch = kSide,
                    .b_transposed = true},
                   context.stream);
    check(cudaStreamSynchronize(context.stream), "cudaStreamSynchronize");
  }

  cuda::Context context_on(Stream stream) {
    return {.stream = of(stream),
            .target = target(),
            .multiprocessors = card_.facts.multiprocessors,
            .blas = *blas_};
  }

  std::unique_ptr<MemoryRegion> allocate_on_card(std::int64_t bytes, std::int64_t size) {
    std::size_t free_bytes = 0, total_bytes = 0;
    check(cudaMemGetInfo(&free_bytes, &total_bytes), "cudaMemGetInfo");
    const auto available = static_cast<std::int64_t>(free_bytes);
    void* memory = nullptr;
    const auto rounded = static_cast<std::size_t>(size) + kAlignment;
    if (size > available || !cuda::granted(cudaMalloc(&memory, rounded), "cudaMalloc")) {
      throw FitError(
          fmt::format("the run needs {} on the {}, and {} of its {} are free", format_bytes(size),
                      card_.facts.name, format_bytes(available),
                      format_bytes(static_cast<std::int64_t>(total_bytes))),
          fmt::format("close other programs that use the card (`nvidia-smi` lists them), or have the run "
                      "planned for what is free: --vram {}MiB",
                      available / kMiB));
    }
    auto region = std::make_unique<DeviceRegion>(memory, bytes);
    // On a stream of ours: the default stream does not order itself with them.
    check(cudaMemsetAsync(memory, 0, rounded, of(Stream::compute)), "cudaMemsetAsync");
    check(cudaStreamSynchronize(of(Stream::compute)), "cudaStreamSynchronize");
    return region;
  }

  std::unique_ptr<MemoryRegion> allocate_on_host(std::int64_t bytes, std::int64_t size) {
    void* memory = nullptr;
    const std::size_t with_room = static_cast<std::size_t>(size) + kAlignment;
    if (cuda::granted(cudaHostAlloc(&memory, with_room, cudaHostAllocDefault), "cudaHostAlloc")) {
      auto region = std::make_unique<PinnedRegion>(memory, bytes);
      std::memset(memory, 0, with_room);
      return region;
    }
    const auto rounded = (static_cast<std::size_t>(size) + kAlignment - 1) / kAlignment * kAlignment;
    memory = std::aligned_alloc(kAlignment, rounded);
    if (memory == nullptr) {
      throw FitError(fmt::format("the system refused {} of host memory", format_bytes(size)),
                     "close other programs, or see `qtrain plan` for what the run keeps on the host");
    }
    // Owned from here on: what follows may throw.
    auto region = std::make_unique<PageableRegion>(static_cast<std::byte*>(memory), bytes, pageable_);
    std::memset(memory, 0, rounded);
    say_pageable(bytes);
    return region;
  }

  void say_pageable(std::int64_t bytes) {
    if (!staging_) staging_ = cuda::Staging::make();
    log_warning(
        "the system gives no {} of pinned host memory: ordinary memory is used, and copies between it and "
        "the card "
        "go through {}, which is slower (a memory limit of the container or `ulimit -l` may be the cause)",
        format_bytes(bytes),
        staging_
            ? fmt::format("{} of pinned memory", format_bytes(2 * std::int64_t{cuda::Staging::kPieceBytes}))
            : "buffers of the driver");
  }
  bool is_pageable(const TensorView& view) const {
    return view.space == Space::host &&
           std::any_of(pageable_->begin(), pageable_->end(), [&](const PageableRange& range) {
             return view.data >= range.begin && view.data < range.end;
           });
  }

  void do_copy(const TensorView& from, const TensorView& to, Stream stream) override {
    const auto bytes = static_cast<std::size_t>(from.bytes());
    // Without pieces to stage through, the driver does the same with its own.
    if (staging_ && to.space == Space::device && is_pageable(from))
      return staging_->to_device(to.data, from.data, bytes, of(stream));
    if (staging_ && from.space == Space::device && is_pageable(to))
      return staging_->to_host(to.data, from.data, bytes, of(stream));
    check(cudaMemcpyAsync(to.data, from.data, bytes, cudaMemcpyDefault, of(stream)), "cudaMemcpyAsync");
  }
  void do_upload(std::span<const std::byte> from, const TensorView& to) override {
    check(cudaMemcpyAsync(to.data, from.data(), from.size(), cudaMemcpyDefault, of(Stream::compute)),
          "cudaMemcpyAsync");
    check(cudaStreamSynchronize(of(Stream::compute)), "cudaStreamSynchronize");
  }
  void do_download(const TensorView& from, std::span<std::byte> to) override {
    check(cudaMemcpyAsync(to.data(), from.data, to.size(), cudaMemcpyDefault, of(Stream::compute)),
          "cudaMemcpyAsync");
    check(cudaStreamSynchronize(of(Stream::compute)), "cudaStreamSynchronize");
  }
  std::vector<double> do_read_scalars(const TensorView& view) override {
    std::vector<double> values(static_cast<std::size_t>(view.elems()));
    do_download(view, std::as_writable_bytes(std::span(values)));
    return values;
  }

  void begin_range(const char* name) override { cuda::begin_range(name); }
  void end_range() override { cuda::end_range(); }

#define QT_RUN_ON_CUDA(Op) \
  void do_run(const Op& op, Stream stream) override { cuda::run(op, context_on(stream)); }
  QT_FOR_EACH_OP(QT_RUN_ON_CUDA)
#undef QT_RUN_ON_CUDA

  // In the order they are made; given back the other way round.
  cuda::OpenCard card_;
  std::array<cuda::OwnedStream, 3> streams_;
  std::vector<cuda::OwnedEvent> events_;
  std::uint64_t next_event_ = 0;
  const std::shared_ptr<PageableRanges> pageable_ = std::make_shared<PageableRanges>();
  std::unique_ptr<cuda::Staging> staging_;
  std::unique_ptr<MemoryRegion> workspace_;
  std::unique_ptr<cuda::Blas> blas_;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const Target& target) {
  QT_CHECK(target.kind == DeviceKind::cuda, ConfigError, "the cuda backend cannot run what is planned for {}",
           target.name);
  return std::make_unique<CudaBackend>(target);
}

DeviceFacts probe_cuda_device() { return cuda::probe_card(); }

}  // namespace qt
