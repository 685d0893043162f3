#include "src/memory/plan.h"

#include <algorithm>
#include <numeric>

namespace qt {

namespace {

#define QT_MEMORY_TAG_NAME(name) #name,
constexpr std::string_view kTagNames[kMemoryTags] = {QT_FOR_EACH_MEMORY_TAG(QT_MEMORY_TAG_NAME)};
#undef QT_MEMORY_TAG_NAME

std::int64_t aligned(std::int64_t bytes) {
  return (bytes + kRequestAlignment - 1) / kRequestAlignment * kRequestAlignment;
}

bool alive_together(const Request& a, const Request& b) { return a.born < b.died && b.born < a.died; }

void find_peak(PhasePlan& phase) {
  TagBytes now{};
  std::int64_t live = 0;
  for (const PlanEvent& event : phase.events) {
    const Request& r = phase.requests[static_cast<std::size_t>(event.request)];
    const std::int64_t change = event.is_alloc ? aligned(r.bytes) : -aligned(r.bytes);
    now[static_cast<std::size_t>(r.tag)] += change;
    live += change;
    if (live > phase.live_bytes) {
      phase.live_bytes = live;
      phase.at_peak = now;
    }
  }
}

}  // namespace

std::string_view memory_tag_name(MemoryTag tag) { return kTagNames[static_cast<std::size_t>(tag)]; }

const PhasePlan* ArenaPlan::find(std::string_view phase) const {
  const auto it =
      std::find_if(phases.begin(), phases.end(), [&](const PhasePlan& p) { return p.name == phase; });
  return it == phases.end() ? nullptr : &*it;
}

const PhasePlan* ArenaPlan::largest() const {
  const auto it = std::max_element(phases.begin(), phases.end(),
                                   [](const PhasePlan& a, const PhasePlan& b) { return a.bytes < b.bytes; });
  return it == phases.end() ? nullptr : &*it;
}

void pack(PhasePlan& phase) {
  phase.bytes = phase.live_bytes = 0;
  phase.at_peak = {};
  std::vector<std::size_t> order(phase.requests.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return phase.requests[a].bytes > phase.requests[b].bytes;
  });

  std::vector<const Request*> placed;  // sorted by offset
  placed.reserve(order.size());
  for (const std::size_t i : order) {
    Request& r = phase.requests[i];
    const std::int64_t bytes = aligned(r.bytes);
    std::int64_t offset = 0;
    // Walking upwards, every placed request that is alive at the same time and would overlap pushes the
    // candidate above itself; what remains is the lowest hole that is large enough.
    for (const Request* other : placed) {
      if (!alive_together(r, *other)) continue;
      if (other->offset >= offset + bytes) break;
      offset = std::max(offset, other->offset + aligned(other->bytes));
    }
    r.offset = offset;
    phase.bytes = std::max(phase.bytes, offset + bytes);
    placed.insert(std::upper_bound(placed.begin(), placed.end(), &r,
                                   [](const Request* a, const Request* b) { return a->offset < b->offset; }),
                  &r);
  }
  find_peak(phase);
}

}  // namespace qt
