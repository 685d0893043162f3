// What tests see of the simulator: the order blocks run in, how often each kernel ran, the card that is
// pretended, and faults that the runtime's calls are to meet.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "kernels/sim/bank_counter.h"
#include "kernels/sim/shared_memory.h"

namespace qt::sim {

// Blocks, warps and lanes run in ascending order, or in descending while one of these lives: what differs
// between the two depends on an order that a card does not keep.
class ReversedOrder {
 public:
  ReversedOrder();
  ~ReversedOrder();
  ReversedOrder(const ReversedOrder&) = delete;
  ReversedOrder& operator=(const ReversedOrder&) = delete;
};
bool reversed_order();

// Launches by name of kernel, since the program began. At its end the names go to the file that
// QTRAIN_SIM_LAUNCHES names, one a line.
const std::map<std::string, std::int64_t>& launch_counts();
void count_launch(const std::string& kernel);

// The card that the runtime's twins report.
struct Card {
  int count = 1;               // of devices; 0: none
  int driver_version = 13000;  // 0: no driver; below kRuntimeVersion: too old
  int major = 8, minor = 6;
  int multiprocessors = 28;
  std::int64_t total_bytes = 12LL << 30;
  std::int64_t context_bytes = 280 << 20;  // what opening it takes
  std::int64_t free_bytes = -1;            // once it is open; -1: all but that and 300 MiB of others
  std::int64_t pinned_limit_bytes = -1;    // what cudaHostAlloc gives in all; -1: everything
  bool drives_display = false;
  bool served_by_build = true;  // there is code for it
  std::string name = "simulated card";
};
inline constexpr int kRuntimeVersion = 12000;
inline constexpr int kSharedOptInBytes = 99 * 1024;  // what a block may have when the launch asks for it
Card& card();
// In use by anyone, the context included once the card is open.
std::int64_t used_bytes_of_card();
// What this process has taken and not given back, on the card and pinned on the host.
std::int64_t allocated_bytes();

// When a stream does its work; what is right under each is ordered by events and not by luck.
//   lazy      once something synchronises with it: who reads too early what a copy brings sees what was there
//   eager     at once, in program order, as the cpu backend does
//   copies_in_first, copies_out_first   lazily but for copies to the card, or from it, on streams without
//             kernels, which come at once: one that waits for too little overwrites what kernels have still
//             to read, or takes what they have still to write
// Lazy, unless QTRAIN_SIM_STREAMS names another when the program begins.
enum class Streams : std::uint8_t { lazy, eager, copies_in_first, copies_out_first };
void set_streams(Streams how);

// ---- faults ------------------------------------------------------------------------------------------

// Names of the calls of the runtime's twins since the last reset, launches among them, in order.
const std::vector<std::string>& runtime_call_names();
void reset_runtime_calls();
// As a new process finds the card: no memory taken, nothing queued, no error, no fault to come. Whatever the
// old one had is gone; nothing of it may be used any more.
void begin_process();
// From now on, counted from the last reset, call number `call` (from 0) and all later ones fail with the
// error (a cudaError_t); -1: none does.
void fail_runtime_call(std::int64_t call, int error, bool sticky = true);

}  // namespace qt::sim
