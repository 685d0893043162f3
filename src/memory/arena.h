// Arena: records what a run asks for, then replays it at planned offsets. Anything unplanned is refused.
//
// A recorder hands out views of addresses that do not exist (code outside a backend never dereferences a view)
// and notes name, bytes and lifetime. finish() packs every phase. A replaying arena owns no memory either: it
// maps the same sequence of requests onto one region at the planned offsets, and throws PlanError naming both
// requests as soon as the sequence differs. The arena for weights, gradients and moments is the same class
// with a single phase in which nothing dies.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

#include "src/core/tensor.h"
#include "src/memory/plan.h"

namespace qt {

class Arena;

// A planned piece of memory, given back when it goes out of scope. Converts to the view that ops take.
class Buffer {
 public:
  Buffer() = default;
  // A piece that another owner gives back: release() forgets the view.
  explicit Buffer(const TensorView& view) : view_(view) {}
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer() { release(); }

  const TensorView& view() const { return view_; }
  // NOLINTNEXTLINE(google-explicit-constructor): a buffer goes wherever the op asks for a view
  operator const TensorView&() const { return view_; }
  const TensorView* operator->() const { return &view_; }
  void release();

 private:
  friend class Arena;
  Arena* arena_ = nullptr;
  std::int32_t request_ = 0;
  std::uint64_t epoch_ = 0;
  TensorView view_;
};

// Where a step's buffers come from: an Arena requests each of them, FixedBuffers (src/memory/fixed_buffers.h)
// hands out rows of those that it has.
class BufferSource {
 public:
  BufferSource() = default;
  BufferSource(const BufferSource&) = delete;
  BufferSource& operator=(const BufferSource&) = delete;
  virtual ~BufferSource() = default;
  virtual Buffer alloc(std::string_view name, MemoryTag tag, DType dtype,
                       std::initializer_list<std::int64_t> shape) = 0;
};

class Arena final : public BufferSource {
 public:
  // Records. Views lie in `space` at made-up addresses.
  Arena(std::string name, Space space);
  // Replays `plan` on memory of plan.bytes bytes that outlives the arena.
  Arena(ArenaPlan plan, std::byte* base);
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  bool recording() const { return base_ == nullptr; }
  const ArenaPlan& plan() const { return plan_; }

  // Phases do not nest. A phase that was recorded before is checked against its first recording.
  void begin(std::string_view phase);
  void end();
  // Leaves the phase whatever state it is in: the stack is unwinding.
  void abandon() noexcept;

  // Throws PlanError outside a phase, or when a replay leaves its recording.
  Buffer alloc(std::string_view name, MemoryTag tag, DType dtype,
               std::initializer_list<std::int64_t> shape) override;
  // For arenas in which nothing dies: the buffer's bytes stay until the arena goes.
  TensorView keep(std::string_view name, MemoryTag tag, DType dtype,
                  std::initializer_list<std::int64_t> shape);

  // Packs every phase of a recording.
  void finish();

  // Replay: the highest byte handed out so far. Equal to plan().bytes once every phase has run.
  std::int64_t used_bytes() const { return used_bytes_; }

 private:
  friend class Buffer;
  void release(std::int32_t request, std::uint64_t epoch) noexcept;
  void leave() noexcept;
  std::string position_text() const;

  ArenaPlan plan_;
  std::byte* base_ = nullptr;
  PhasePlan* phase_ = nullptr;
  bool checking_ = false;  // the phase has a recording to follow
  std::size_t next_event_ = 0;
  std::uint64_t epoch_ = 0;
  std::uintptr_t fake_base_ = 0;
  std::int64_t fake_offset_ = 0;
  std::int64_t used_bytes_ = 0;
  std::string violation_;  // set by release(), which must not throw; reported at the next call
};

// A phase for the lifetime of a scope; abandons it when an exception passes through.
class PhaseScope {
 public:
  PhaseScope(Arena& arena, std::string_view phase);
  ~PhaseScope() noexcept(false);
  PhaseScope(const PhaseScope&) = delete;
  PhaseScope& operator=(const PhaseScope&) = delete;

 private:
  Arena& arena_;
  int exceptions_;
};

}  // namespace qt
