#include "src/memory/fixed_buffers.h"

#include <algorithm>

namespace qt {

void FixedBuffers::add(Buffer buffer, std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names) names_.emplace_back(name, buffers_.size());
  buffers_.push_back(std::move(buffer));
}

Buffer FixedBuffers::alloc(std::string_view name, MemoryTag tag, DType dtype,
                           std::initializer_list<std::int64_t> shape) {
  // Far above anything mapped; aligned as ops want it.
  void* const nowhere = reinterpret_cast<void*>(std::uintptr_t{1} << 55);
  TensorView view(nowhere, dtype, shape);
  const TensorView* planned = nullptr;
  if (tag == MemoryTag::scratch) {
    scratch_bytes_ = std::max(scratch_bytes_, view.bytes());
    if (!scratch_->defined()) return Buffer(view);
    planned = &scratch_.view();
  } else {
    const auto it = std::ranges::find(names_, name, &std::pair<std::string_view, std::size_t>::first);
    QT_CHECK(it != names_.end(), PlanError, "no buffer was planned for '{}', {}", name, view.shape());
    planned = &buffers_[it->second].view();
  }
  QT_CHECK(planned->dtype == dtype && planned->elems() >= view.elems(), PlanError,
           "'{}' was planned as {}, and {} was requested", name, planned->shape(), view.shape());
  view.data = planned->data;
  view.space = planned->space;
  return Buffer(view);
}

}  // namespace qt
