// The simulator's heart: one block of threads, each a fiber, on the calling thread. Blocks run one after the
// other. A thread runs until it meets a barrier or a warp collective; when every thread that has to be there
// has come, all go on. A thread that does not come, or comes to another place, is reported with both places.
//
// What the checks assume of a kernel stands at the head of kernels/cuda/launch.cuh.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#include "kernels/sim/shared_memory.h"
#include "kernels/sim/where.h"

namespace qt::sim {

inline constexpr int kWarpThreads = 32;

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
};

struct Grid {
  std::string kernel;
  Dim3 blocks;
  int threads = 0;  // of a block
  int shared_bytes = 0;
};

// Runs body once for every thread of every block. Throws SimError, naming kernel, block and place.
void run_grid(const Grid& grid, const std::function<void()>& body);
bool inside_kernel();

// ---- what a kernel sees, valid inside run_grid only --------------------------------------------------

struct ThreadState {
  Dim3 thread{0, 0, 0};  // threadIdx
  int linear = 0;        // the same as a number
  int warp = 0;
  int lane = 0;
};
const ThreadState& this_thread();
const Dim3& this_block_index();
const Grid& this_grid();
SharedShadow& shared_memory();

// Waits for all threads of the block; orders their accesses to shared memory.
void block_barrier(const Where& where);

// Waits for the other lanes of the warp, then combine runs once on what each of them passed, by lane. Does
// not order accesses to shared memory unless `orders_memory`.
using Combine = void (*)(void* const* slots);
void warp_collective(const char* what, void* slot, Combine combine, const Where& where,
                     bool orders_memory = false);

// For accesses to shared memory by the running thread, or by its warp together.
AccessBy this_access();
AccessBy this_warp_access();
// Notes an access for the bank counter, when one is listening.
void note_bank_access(std::int64_t offset_bytes, int bytes, const Where& where);

}  // namespace qt::sim
