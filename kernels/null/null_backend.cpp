// The backend that only counts. `qtrain plan` runs the ordinary Engine on it (Engine::rehearse); the Trainer's loop, saves and
// logs are not part of that. It hands out addresses that belong to it and can be neither read nor written, so that code which
// looks behind a view faults.
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "kernels/backend.h"
#include "src/core/units.h"

namespace qt {

namespace {

class ReservedRegion final : public MemoryRegion {
 public:
  ReservedRegion(std::byte* base, std::int64_t bytes, std::int64_t mapped_bytes, Space space)
      : MemoryRegion(base, bytes, space), mapped_bytes_(mapped_bytes) {}
  ~ReservedRegion() override { munmap(base(), static_cast<std::size_t>(mapped_bytes_)); }

 private:
  std::int64_t mapped_bytes_;
};

class NullBackend final : public Backend {
 public:
  using Backend::Backend;

  std::string_view name() const override { return "null"; }

  std::unique_ptr<MemoryRegion> allocate(Space space, std::int64_t bytes) override {
    QT_CHECK(bytes >= 0, ShapeError, "allocate: {} bytes", bytes);
    const std::int64_t mapped_bytes = std::max<std::int64_t>(bytes, 1);  // an empty mapping is an error
    // Address space alone: neither memory nor swap is committed, whatever the size planned for.
    void* base = mmap(nullptr, static_cast<std::size_t>(mapped_bytes), PROT_NONE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) {
      throw FitError(fmt::format("cannot reserve {} of address space to plan with: {}", format_bytes(bytes),
                                 std::strerror(errno)),
                     "raise the limit on address space (ulimit -v)");
    }
    return std::make_unique<ReservedRegion>(static_cast<std::byte*>(base), bytes, mapped_bytes, space);
  }

  Event record(Stream) override { return Event{++last_event_}; }
  void wait(Stream, Event) override {}
  void synchronize() override {}

 private:
  void do_copy(const TensorView&, const TensorView&, Stream) override {}
  void do_upload(std::span<const std::byte>, const TensorView&) override {}
  void do_download(const TensorView&, std::span<std::byte> to) override {
    std::ranges::fill(to, std::byte{0});
  }
  // A loss and a norm of 0 are finite: the planned step is one that is not skipped.
  std::vector<double> do_read_scalars(const TensorView& view) override {
    return std::vector<double>(static_cast<std::size_t>(view.elems()), 0.0);
  }

#define QT_COUNT_ONLY(Op) \
  void do_run(const Op&, Stream) override {}
  QT_FOR_EACH_OP(QT_COUNT_ONLY)
#undef QT_COUNT_ONLY

  std::uint64_t last_event_ = 0;
};

}  // namespace

std::unique_ptr<Backend> make_null_backend(const Target& target) {
  return std::make_unique<NullBackend>(target);
}

}  // namespace qt
