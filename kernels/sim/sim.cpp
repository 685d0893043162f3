#include "kernels/sim/sim.h"

#include <cstdlib>
#include <fstream>

namespace qt::sim {

namespace {

int reversed = 0;

// Never destroyed: what ends last may still launch.
std::map<std::string, std::int64_t>& launches() {
  static auto& launches = *new std::map<std::string, std::int64_t>;
  return launches;
}

void write_launches() {
  std::ofstream out(std::getenv("QTRAIN_SIM_LAUNCHES"));
  for (const auto& [kernel, times] : launches()) out << kernel << "\n";
}

}  // namespace

ReversedOrder::ReversedOrder() { ++reversed; }
ReversedOrder::~ReversedOrder() { --reversed; }
bool reversed_order() { return reversed > 0; }

const std::map<std::string, std::int64_t>& launch_counts() { return launches(); }
void count_launch(const std::string& kernel) {
  static const bool listed =
      std::getenv("QTRAIN_SIM_LAUNCHES") != nullptr && std::atexit(write_launches) == 0;
  (void)listed;
  ++launches()[kernel];
}

Card& card() {
  static Card card;
  return card;
}

}  // namespace qt::sim
