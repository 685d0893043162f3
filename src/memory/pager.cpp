#include "src/memory/pager.h"

#include <algorithm>

namespace qt {

namespace {

std::int64_t padded(std::int64_t bytes) {
  return (bytes + kRequestAlignment - 1) / kRequestAlignment * kRequestAlignment;
}

// Views of the slab's parts: host parts laid out one after the other in the slot, device parts as they are.
std::array<TensorView, kMaxSlabParts> slot_views(const Slab& slab, const TensorView& slot) {
  std::array<TensorView, kMaxSlabParts> views{};
  std::int64_t offset = 0;
  for (int i = 0; i < slab.count; ++i) {
    const TensorView& part = slab.parts[static_cast<std::size_t>(i)];
    if (part.space == Space::device) {
      views[static_cast<std::size_t>(i)] = part;
      continue;
    }
    views[static_cast<std::size_t>(i)] =
        TensorView(slot.data + offset, part.dtype, {part.elems()}, Space::device);
    offset += padded(part.bytes());
  }
  return views;
}

}  // namespace

std::int64_t Slab::host_bytes() const {
  std::int64_t bytes = 0;
  for (int i = 0; i < count; ++i) {
    const TensorView& part = parts[static_cast<std::size_t>(i)];
    if (part.space == Space::host) bytes += padded(part.bytes());
  }
  return bytes;
}

void Pager::stream(Arena& step, std::span<const Slab> slabs,
                   const std::function<void(std::size_t, std::span<const TensorView>)>& use) {
  std::int64_t slot_bytes = 0;
  for (const Slab& slab : slabs) slot_bytes = std::max(slot_bytes, slab.host_bytes());
  QT_CHECK(slot_bytes <= max_slab_bytes_, PlanError, "a slab of {} bytes is above the limit of {}",
           slot_bytes, max_slab_bytes_);

  std::array<Buffer, 2> slots;
  if (slot_bytes > 0) {
    slots[0] = step.alloc("pager.slot0", MemoryTag::slots, DType::u8, {slot_bytes});
    slots[1] = step.alloc("pager.slot1", MemoryTag::slots, DType::u8, {slot_bytes});
  }
  std::array<std::array<TensorView, kMaxSlabParts>, 2> views;
  std::array<Event, 2> arrived;
  std::array<Event, 2> drained;  // the copy-out that last read a slot
  std::array<bool, 2> has_drained{};

  const auto copy_in = [&](std::size_t i) {
    const std::size_t s = i % 2;
    const Slab& slab = slabs[i];
    views[s] = slot_views(slab, slots[s]);
    if (slab.host_bytes() == 0) return;
    // The slot may still be on its way out: two slabs ago it held other data.
    if (has_drained[s]) backend_.wait(Stream::copy_in, drained[s]);
    for (int p = 0; p < slab.count; ++p) {
      const TensorView& part = slab.parts[static_cast<std::size_t>(p)];
      if (part.space == Space::host)
        backend_.copy(part, views[s][static_cast<std::size_t>(p)], Stream::copy_in);
    }
    arrived[s] = backend_.record(Stream::copy_in);
  };

  // The slots lie over bytes that compute may still be using for what came before.
  if (slot_bytes > 0) backend_.wait(Stream::copy_in, backend_.record(Stream::compute));
  if (!slabs.empty()) copy_in(0);
  for (std::size_t i = 0; i < slabs.size(); ++i) {
    const std::size_t s = i % 2;
    const Slab& slab = slabs[i];
    if (i + 1 < slabs.size()) copy_in(i + 1);
    if (slab.host_bytes() > 0) backend_.wait(Stream::compute, arrived[s]);
    use(i, std::span<const TensorView>(views[s].data(), static_cast<std::size_t>(slab.count)));
    if (slab.host_bytes() == 0) continue;
    const Event used = backend_.record(Stream::compute);
    backend_.wait(Stream::copy_out, used);
    for (int p = 0; p < slab.count; ++p) {
      const TensorView& part = slab.parts[static_cast<std::size_t>(p)];
      if (part.space == Space::host)
        backend_.copy(views[s][static_cast<std::size_t>(p)], part, Stream::copy_out);
    }
    drained[s] = backend_.record(Stream::copy_out);
    has_drained[s] = true;
  }
  // The slots go back to the arena here: nothing may still be reading them.
  for (std::size_t s = 0; s < 2; ++s) {
    if (has_drained[s]) backend_.wait(Stream::compute, drained[s]);
  }
}

}  // namespace qt
