// The cp.async copies of one simulated thread. They land when the thread waits for their group, never before:
// a kernel that reads earlier fails every time, not only on the card where the copy is late.
#pragma once

#include <deque>
#include <vector>

#include "kernels/sim/shared_memory.h"

namespace qt::sim {

class CopyGroups {
 public:
  struct Copy {
    SharedShadow::Span span;
    const std::byte* from = nullptr;  // null: zeros
  };

  void clear() {
    open_.clear();
    closed_.clear();
  }
  void start(const Copy& copy) { open_.push_back(copy); }
  void commit() {
    closed_.push_back(std::move(open_));
    open_.clear();
  }
  // Lands the oldest groups until at most `pending` are left.
  void wait(int pending, SharedShadow& shared, const AccessBy& by) {
    while (static_cast<int>(closed_.size()) > pending) {
      for (const Copy& copy : closed_.front()) shared.land(copy.span, copy.from, by);
      closed_.pop_front();
    }
  }
  bool unfinished() const {
    for (const auto& group : closed_) {
      if (!group.empty()) return true;
    }
    return !open_.empty();
  }

 private:
  std::vector<Copy> open_;
  std::deque<std::vector<Copy>> closed_;
};

// Of the running thread.
CopyGroups& this_copies();

}  // namespace qt::sim
