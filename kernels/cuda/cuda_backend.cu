// The cuda backend: device and pinned host memory, three streams, events, and the ops of this folder in
// order. Host code only; the kernels are in the other files.
#include <array>
#include <concepts>
#include <vector>

#include "kernels/backend.h"
#include "kernels/cuda/blas.h"
#include "kernels/cuda/context.h"
#include "kernels/cuda/device.h"
#include "kernels/cuda/runtime.h"
#include "kernels/scratch.h"

namespace qt {

namespace {

using cuda::check;

class DeviceRegion final : public MemoryRegion {
 public:
  DeviceRegion(std::byte* base, std::int64_t bytes) : MemoryRegion(base, bytes, Space::device) {}
  ~DeviceRegion() override { cudaFree(base()); }
};

class PinnedRegion final : public MemoryRegion {
 public:
  PinnedRegion(std::byte* base, std::int64_t bytes) : MemoryRegion(base, bytes, Space::host) {}
  ~PinnedRegion() override { cudaFreeHost(base()); }
};

template <class Op>
concept TakesScratch = requires(const Op& op, const Target& target) {
  { scratch_bytes(op, target) } -> std::same_as<std::int64_t>;
};

class CudaBackend final : public Backend {
 public:
  explicit CudaBackend(const Target& target) : Backend(target), device_(cuda::open_device(target)) {
    for (cudaStream_t& stream : streams_)
      check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreateWithFlags");
    workspace_ = allocate(Space::device, default_workspace_bytes(target));
    blas_ = cuda::make_blas(workspace_->base(), workspace_->bytes());
  }
  ~CudaBackend() override {
    cudaDeviceSynchronize();
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
    for (cudaStream_t stream : streams_) cudaStreamDestroy(stream);
  }

  std::string_view name() const override { return "cuda"; }

  std::unique_ptr<MemoryRegion> allocate(Space space, std::int64_t bytes) override {
    void* memory = nullptr;
    // A zero-byte arena still wants an address of its own.
    const auto size = static_cast<std::size_t>(bytes > 0 ? bytes : 1);
    if (space == Space::device) {
      check(cudaMalloc(&memory, size), "cudaMalloc");
      auto region = std::make_unique<DeviceRegion>(static_cast<std::byte*>(memory), bytes);
      check(cudaMemset(memory, 0, size), "cudaMemset");
      return region;
    }
    check(cudaHostAlloc(&memory, size, cudaHostAllocDefault), "cudaHostAlloc");
    auto region = std::make_unique<PinnedRegion>(static_cast<std::byte*>(memory), bytes);
    std::memset(memory, 0, size);
    return region;
  }

  Event record(Stream stream) override {
    // Events are few: the pager's slots and the phases. They are made once and used again in turn.
    constexpr std::size_t kMaxEvents = 1024;
    const std::size_t slot = next_event_++ % kMaxEvents;
    if (slot >= events_.size()) {
      cudaEvent_t event = nullptr;
      check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
      events_.push_back(event);
    }
    check(cudaEventRecord(events_[slot], of(stream)), "cudaEventRecord");
    return Event{next_event_};
  }
  void wait(Stream stream, Event event) override {
    if (event.id == 0) return;
    check(cudaStreamWaitEvent(of(stream), events_[(event.id - 1) % events_.size()], 0),
          "cudaStreamWaitEvent");
  }
  void synchronize() override {
    for (cudaStream_t stream : streams_) check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  }

 private:
  cudaStream_t of(Stream stream) const { return streams_[static_cast<std::size_t>(stream)]; }

  void do_copy(const TensorView& from, const TensorView& to, Stream stream) override {
    check(cudaMemcpyAsync(to.data, from.data, static_cast<std::size_t>(from.bytes()), cudaMemcpyDefault,
                          of(stream)),
          "cudaMemcpyAsync");
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

  template <class Op>
  void run_op(const Op& op, Stream stream) {
    if constexpr (TakesScratch<Op>) {
      const std::int64_t need_bytes = scratch_bytes(op, target());
      const std::int64_t have_bytes = op.scratch.defined() ? op.scratch.bytes() : 0;
      QT_CHECK(have_bytes >= need_bytes, ShapeError, "{}: scratch has {} bytes, scratch_bytes() asks for {}",
               Op::kName, have_bytes, need_bytes);
    }
    cuda::run(op, cuda::Context{.stream = of(stream),
                                .target = target(),
                                .multiprocessors = device_.multiprocessors,
                                .blas = *blas_});
  }

#define QT_RUN_ON_CUDA(Op) \
  void do_run(const Op& op, Stream stream) override { run_op(op, stream); }
  QT_FOR_EACH_OP(QT_RUN_ON_CUDA)
#undef QT_RUN_ON_CUDA

  cuda::Device device_;
  std::array<cudaStream_t, 3> streams_{};
  std::vector<cudaEvent_t> events_;
  std::uint64_t next_event_ = 0;
  std::unique_ptr<MemoryRegion> workspace_;
  std::unique_ptr<cuda::Blas> blas_;
};

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(const Target& target) {
  QT_CHECK(target.kind == DeviceKind::cuda, ConfigError, "the cuda backend cannot run what is planned for {}",
           target.name);
  return std::make_unique<CudaBackend>(target);
}

}  // namespace qt
