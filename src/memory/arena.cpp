#include "src/memory/arena.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <utility>

namespace qt {

namespace {

// Far above anything mapped: an accidental access faults. Every recorder gets 16 TiB of its own, so that ops'
// alias checks see what they will see at run time.
std::uintptr_t next_fake_base() {
  static std::atomic<std::uintptr_t> recorders{0};
  return (std::uintptr_t{1} << 56) + (recorders.fetch_add(1) << 44);
}

std::int64_t shape_bytes(DType dtype, std::initializer_list<std::int64_t> shape) {
  std::int64_t elems = 1;
  for (const std::int64_t size : shape) elems *= size;
  return elems * dtype_bytes(dtype);
}

}  // namespace

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this != &other) {
    release();
    arena_ = std::exchange(other.arena_, nullptr);
    request_ = other.request_;
    epoch_ = other.epoch_;
    view_ = std::exchange(other.view_, TensorView());
  }
  return *this;
}

void Buffer::release() {
  if (arena_ != nullptr) std::exchange(arena_, nullptr)->release(request_, epoch_);
  view_ = TensorView();
}

Arena::Arena(std::string name, Space space) : fake_base_(next_fake_base()) {
  plan_.name = std::move(name);
  plan_.space = space;
}

Arena::Arena(ArenaPlan plan, std::byte* base) : plan_(std::move(plan)), base_(base) {
  QT_CHECK(base != nullptr || plan_.bytes == 0, PlanError, "arena '{}' has no memory", plan_.name);
}

std::string Arena::position_text() const {
  return fmt::format("arena '{}', phase '{}', event {}", plan_.name,
                     phase_ != nullptr ? phase_->name : "none", next_event_);
}

void Arena::begin(std::string_view phase) {
  QT_CHECK(phase_ == nullptr, PlanError, "arena '{}': phase '{}' begins inside phase '{}'", plan_.name, phase,
           phase_->name);
  const auto it = std::find_if(plan_.phases.begin(), plan_.phases.end(),
                               [&](const PhasePlan& p) { return p.name == phase; });
  checking_ = it != plan_.phases.end();
  QT_CHECK(checking_ || recording(), PlanError, "arena '{}': phase '{}' was never rehearsed", plan_.name,
           phase);
  if (checking_) {
    phase_ = &*it;
  } else {
    plan_.phases.push_back(PhasePlan{.name = std::string(phase)});
    phase_ = &plan_.phases.back();
  }
  next_event_ = 0;
  fake_offset_ = 0;
  violation_.clear();
  ++epoch_;
}

void Arena::end() {
  QT_CHECK(phase_ != nullptr, PlanError, "arena '{}': end of a phase that never began", plan_.name);
  std::string violation = std::move(violation_);
  if (!checking_) {
    for (Request& r : phase_->requests) {
      if (r.died < 0) r.died = static_cast<std::int32_t>(phase_->events.size());
    }
  } else if (violation.empty() && next_event_ != phase_->events.size()) {
    const PlanEvent& event = phase_->events[next_event_];
    violation = fmt::format("{}: the phase ends where the recording {} '{}'", position_text(),
                            event.is_alloc ? "requests" : "releases",
                            phase_->requests[static_cast<std::size_t>(event.request)].name);
  }
  leave();
  QT_CHECK(violation.empty(), PlanError, "{}", violation);
}

void Arena::abandon() noexcept {
  // Half a recording is none: the next attempt starts over.
  if (phase_ != nullptr && !checking_) plan_.phases.pop_back();
  leave();
}

void Arena::leave() noexcept {
  phase_ = nullptr;
  ++epoch_;
  violation_.clear();
}

Buffer Arena::alloc(std::string_view name, MemoryTag tag, DType dtype,
                    std::initializer_list<std::int64_t> shape) {
  QT_CHECK(phase_ != nullptr, PlanError, "arena '{}': '{}' was requested outside any phase", plan_.name,
           name);
  QT_CHECK(violation_.empty(), PlanError, "{}", violation_);
  const std::int64_t bytes = shape_bytes(dtype, shape);
  std::int32_t index = 0;
  if (checking_) {
    QT_CHECK(next_event_ < phase_->events.size(), PlanError, "{}: '{}' ({} bytes) was never recorded",
             position_text(), name, bytes);
    const PlanEvent event = phase_->events[next_event_];
    const Request& planned = phase_->requests[static_cast<std::size_t>(event.request)];
    QT_CHECK(event.is_alloc && planned.name == name && planned.bytes == bytes, PlanError,
             "{}: '{}' ({} bytes) was requested where the recording {} '{}' ({} bytes)", position_text(),
             name, bytes, event.is_alloc ? "requests" : "releases", planned.name, planned.bytes);
    index = event.request;
    ++next_event_;
  } else {
    index = static_cast<std::int32_t>(phase_->requests.size());
    phase_->requests.push_back(Request{.name = std::string(name),
                                       .tag = tag,
                                       .bytes = bytes,
                                       .offset = 0,
                                       .born = static_cast<std::int32_t>(phase_->events.size()),
                                       .died = -1});
    phase_->events.push_back(PlanEvent{.is_alloc = true, .request = index});
  }

  Buffer buffer;
  buffer.arena_ = this;
  buffer.request_ = index;
  buffer.epoch_ = epoch_;
  std::byte* address = nullptr;
  if (recording()) {
    address = reinterpret_cast<std::byte*>(fake_base_ + static_cast<std::uintptr_t>(fake_offset_));
    fake_offset_ += (bytes + kRequestAlignment - 1) / kRequestAlignment * kRequestAlignment;
  } else {
    const std::int64_t offset = phase_->requests[static_cast<std::size_t>(index)].offset;
    address = base_ + offset;
    // The plan counts whole alignment units: a request owns its padding.
    const std::int64_t end = offset + (bytes + kRequestAlignment - 1) / kRequestAlignment * kRequestAlignment;
    used_bytes_ = std::max(used_bytes_, end);
  }
  buffer.view_ = TensorView(address, dtype, shape, plan_.space);
  return buffer;
}

TensorView Arena::keep(std::string_view name, MemoryTag tag, DType dtype,
                       std::initializer_list<std::int64_t> shape) {
  Buffer buffer = alloc(name, tag, dtype, shape);
  buffer.arena_ = nullptr;  // never released: the request lives to the end of the phase
  return buffer.view_;
}

void Arena::release(std::int32_t request, std::uint64_t epoch) noexcept {
  if (phase_ == nullptr || epoch != epoch_ || !violation_.empty()) return;
  try {
    if (!checking_) {
      phase_->requests[static_cast<std::size_t>(request)].died =
          static_cast<std::int32_t>(phase_->events.size());
      phase_->events.push_back(PlanEvent{.is_alloc = false, .request = request});
      return;
    }
    const std::string& name = phase_->requests[static_cast<std::size_t>(request)].name;
    if (next_event_ >= phase_->events.size()) {
      violation_ = fmt::format("{}: '{}' is released after the last recorded event", position_text(), name);
      return;
    }
    const PlanEvent event = phase_->events[next_event_];
    if (event.is_alloc || event.request != request) {
      violation_ = fmt::format("{}: '{}' is released where the recording {} '{}'", position_text(), name,
                               event.is_alloc ? "requests" : "releases",
                               phase_->requests[static_cast<std::size_t>(event.request)].name);
      return;
    }
    ++next_event_;
  } catch (...) {
    // Out of memory while noting a release: the next event will not match and says so.
    ++next_event_;
  }
}

void Arena::finish() {
  QT_CHECK(recording() && phase_ == nullptr, PlanError, "arena '{}': only a complete recording can be packed",
           plan_.name);
  plan_.bytes = 0;
  for (PhasePlan& phase : plan_.phases) {
    pack(phase);
    plan_.bytes = std::max(plan_.bytes, phase.bytes);
  }
}

PhaseScope::PhaseScope(Arena& arena, std::string_view phase)
    : arena_(arena), exceptions_(std::uncaught_exceptions()) {
  arena_.begin(phase);
}

PhaseScope::~PhaseScope() noexcept(false) {
  if (std::uncaught_exceptions() > exceptions_) {
    arena_.abandon();
  } else {
    arena_.end();
  }
}

}  // namespace qt
