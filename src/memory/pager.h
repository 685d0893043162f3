// Pager: streams host-resident slabs through device slots while the device works on the one before.
//
// It knows nothing of layers or optimizers: a slab is a few views that are needed together. Views that
// already lie in device memory are handed through, so that the caller is written once for paged and resident
// state.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "src/memory/arena.h"

namespace qt {

inline constexpr int kMaxSlabParts = 6;
// Large enough that a copy runs at full rate, small enough that two slots hide in the bytes of dead
// activations.
inline constexpr std::int64_t kMaxSlabBytes = 32 * 1024 * 1024;

struct Slab {
  std::array<TensorView, kMaxSlabParts> parts{};  // dense, rank 1, host or device
  int count = 0;

  std::int64_t host_bytes() const;  // room for the host parts in a slot, each padded to kRequestAlignment
};

class Pager {
 public:
  explicit Pager(Backend& backend, std::int64_t max_slab_bytes = kMaxSlabBytes)
      : backend_(backend), max_slab_bytes_(max_slab_bytes) {}

  // Calls use(i, parts) for every slab in order, with device views of its parts; ops must run on
  // Stream::compute. Slots (two of the largest slab's host bytes) come from `step`, inside the current phase.
  // Slab i + 1 is copied in while slab i is used, and slab i - 1 copied out. Throws PlanError for a slab
  // above the limit.
  void stream(Arena& step, std::span<const Slab> slabs,
              const std::function<void(std::size_t index, std::span<const TensorView> parts)>& use);

 private:
  Backend& backend_;
  std::int64_t max_slab_bytes_;
};

}  // namespace qt
