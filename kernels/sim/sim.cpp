#include "kernels/sim/sim.h"

namespace qt::sim {

namespace {

int reversed = 0;

std::map<std::string, std::int64_t>& launches() {
  static std::map<std::string, std::int64_t> launches;
  return launches;
}

}  // namespace

ReversedOrder::ReversedOrder() { ++reversed; }
ReversedOrder::~ReversedOrder() { --reversed; }
bool reversed_order() { return reversed > 0; }

const std::map<std::string, std::int64_t>& launch_counts() { return launches(); }
void count_launch(const std::string& kernel) { ++launches()[kernel]; }

Card& card() {
  static Card card;
  return card;
}

}  // namespace qt::sim
