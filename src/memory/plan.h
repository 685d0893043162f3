// Plan: lifetimes to offsets. Pure arithmetic; knows neither devices nor what the bytes mean.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "src/core/tensor.h"

namespace qt {

// What a request is for: the rows of the plan that a user reads, in their order. The one list of them.
#define QT_FOR_EACH_MEMORY_TAG(X) \
  X(weights) X(gradients) X(master) X(moments) X(activations) X(logits) X(scratch) X(inputs) X(slots) X(cache)

#define QT_MEMORY_TAG(name) name,
enum class MemoryTag : std::uint8_t { QT_FOR_EACH_MEMORY_TAG(QT_MEMORY_TAG) };
#undef QT_MEMORY_TAG
#define QT_COUNT_MEMORY_TAG(name) +1
inline constexpr int kMemoryTags = 0 QT_FOR_EACH_MEMORY_TAG(QT_COUNT_MEMORY_TAG);
#undef QT_COUNT_MEMORY_TAG
std::string_view memory_tag_name(MemoryTag tag);

using TagBytes = std::array<std::int64_t, kMemoryTags>;

// Every request starts on such a boundary: what cudaMalloc promises, and a multiple of any vector width.
inline constexpr std::int64_t kRequestAlignment = 256;

struct Request {
  std::string name;
  MemoryTag tag = MemoryTag::activations;
  std::int64_t bytes = 0;   // as asked for
  std::int64_t offset = 0;  // set by pack()
  std::int32_t born = 0;    // event numbers within the phase: [born, died)
  std::int32_t died = 0;
};

// One allocation or release, in the order in which they happened. A replay must repeat the list.
struct PlanEvent {
  bool is_alloc = true;
  std::int32_t request = 0;
};

struct PhasePlan {
  std::string name;
  std::vector<Request> requests;
  std::vector<PlanEvent> events;
  std::int64_t bytes = 0;       // what the packed phase occupies
  std::int64_t live_bytes = 0;  // the largest sum of live requests: no packing can do better
  TagBytes at_peak{};           // composition of that moment
};

struct ArenaPlan {
  std::string name;
  Space space = Space::device;
  std::vector<PhasePlan> phases;
  std::int64_t bytes = 0;  // maximum over the phases: they follow each other in any order

  const PhasePlan* find(std::string_view phase) const;  // nullptr when absent
  const PhasePlan* largest() const;                     // nullptr when empty
};

// Chooses offsets so that requests alive together never overlap: largest first, lowest offset that is free
// for the whole lifetime. Deterministic. Sets bytes, live_bytes and at_peak.
void pack(PhasePlan& phase);

}  // namespace qt
