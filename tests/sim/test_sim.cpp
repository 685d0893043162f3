// The simulator finds each defect that it looks for, says which and where, and finds none in the same
// kernel without it.
#include <algorithm>
#include <array>
#include <numeric>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/sim_rig.h"

namespace qt::test {
namespace {

using cuda::lane_id;
using cuda::SharedMemory;
using ::testing::AllOf;
using ::testing::HasSubstr;

int thread() { return static_cast<int>(threadIdx.x); }

// ---- asynchronous copies -----------------------------------------------------------------------------

enum class Wait : std::uint8_t { none, for_all, for_all_but_one };

struct CopyPlan {
  bool commit = true;
  Wait wait = Wait::for_all;
  bool barrier = true;
  bool reads = true;
  bool aligned = true;
};

// Every thread copies four numbers and reads one that its neighbour copied.
__global__ void copy_kernel(const float* from, float* to, CopyPlan plan) {
  SharedMemory memory;
  const int n = static_cast<int>(blockDim.x), t = thread();
  const auto tile = memory.take<float>(4 * n);
  cuda::cp_async16(tile, 4 * t, from + 4 * t + (plan.aligned ? 0 : 1), t % 8 != 7);
  if (plan.commit) cuda::cp_async_commit();
  if (plan.wait == Wait::for_all) cuda::cp_async_wait<0>();
  if (plan.wait == Wait::for_all_but_one) cuda::cp_async_wait<1>();
  if (plan.barrier) {
    __syncthreads();
  } else {
    __shfl_sync(cuda::kFullWarp, 0, 0);  // all have waited, and nothing orders it
  }
  if (plan.reads) to[t] = tile.read((4 * t + 5) % (4 * n));
}

class AsyncCopy : public ::testing::Test {
 protected:
  static constexpr int kThreads = 32;
  alignas(16) std::array<float, 4 * kThreads + 4> from{};
  std::array<float, kThreads> to{};

  std::string report(const CopyPlan& plan) {
    std::iota(from.begin(), from.end(), 1.0f);
    return report_of({"copy_kernel", 1, kThreads, 4 * kThreads * 4}, copy_kernel, from.data(), to.data(),
                     plan);
  }
};

TEST_F(AsyncCopy, LandsWhereItIsWaitedForAndReadsNothingWhereItIsNotValid) {
  EXPECT_EQ(report({}), "");
  for (int t = 0; t < kThreads; ++t) {
    const int source = (4 * t + 5) % (4 * kThreads);
    EXPECT_EQ(to[static_cast<std::size_t>(t)],
              source / 4 % 8 == 7 ? 0.0f : from[static_cast<std::size_t>(source)]);
  }
}

TEST_F(AsyncCopy, IsNotThereWithoutAWaitWithoutACommitOrWhileItsGroupMayBePending) {
  const auto early = AllOf(HasSubstr("kernel copy_kernel, block (0, 0, 0): thread 0: read at test_sim.cpp:"),
                           HasSubstr("a cp.async that has not been waited for"));
  EXPECT_THAT(report({.wait = Wait::none}), early);
  EXPECT_THAT(report({.commit = false}), early);
  EXPECT_THAT(report({.wait = Wait::for_all_but_one}), early);
}

TEST_F(AsyncCopy, IsNotThereForOtherThreadsWithoutABarrier) {
  EXPECT_THAT(report({.barrier = false}), HasSubstr("thread 0 reads what thread 1 wrote, with no barrier"));
  const sim::ReversedOrder reversed;
  EXPECT_THAT(report({.barrier = false}), HasSubstr("thread 31 reads what thread 0 wrote, with no barrier"));
}

TEST_F(AsyncCopy, MustBeWaitedForBeforeTheKernelEnds) {
  EXPECT_THAT(report({.wait = Wait::none, .reads = false}),
              HasSubstr("thread 0 left with a cp.async that no thread waited for"));
  EXPECT_THAT(report({.commit = false, .reads = false}),
              HasSubstr("left with a cp.async that no thread waited for"));
}

TEST_F(AsyncCopy, ReadsFromAlignedAddresses) {
  EXPECT_THAT(report({.aligned = false}), HasSubstr("misaligned cp.async of global memory at test_sim.cpp:"));
}

// ---- races -------------------------------------------------------------------------------------------

enum class Fence : std::uint8_t { none, warp, block };

void fence(Fence which) {
  if (which == Fence::warp) __syncwarp();
  if (which == Fence::block) __syncthreads();
}

enum class Access : std::uint8_t { read, write };

// Of two threads that lie `partner` apart, the lower one accesses an element, and behind the fence the other.
__global__ void meeting_kernel(Access lower, Access upper, Fence between, int partner, int* sink) {
  SharedMemory memory;
  const auto tile = memory.take<int>(64);
  const int t = thread();
  tile.write(t, t);
  __syncthreads();
  const auto access = [&](Access how, int at) {
    if (how == Access::read) sink[t] = tile.read(at);
    if (how == Access::write) tile.write(at, 0);
  };
  if ((t & partner) == 0) access(lower, t);
  fence(between);
  if ((t & partner) != 0) access(upper, t ^ partner);
}

TEST(Race, IsReportedInEveryDirectionUnlessAFenceOfTheRightWidthStandsBetween) {
  constexpr int kSameWarp = 1, kOtherWarp = 32;
  const char* const reads = " reads what ";
  const char* const spoils = " read, with no barrier between";
  const char* const overwrites = " wrote, with no barrier between";
  struct Pair {
    Access lower, upper;
    const char *forwards, *backwards;  // the second of the two in time is reported
  };
  const Pair pairs[] = {{Access::write, Access::read, reads, spoils},
                        {Access::read, Access::write, spoils, reads},
                        {Access::write, Access::write, overwrites, overwrites}};
  std::array<int, 64> sink{};
  for (const Pair& pair : pairs) {
    for (const bool backwards : {false, true}) {
      SCOPED_TRACE(std::string(pair.forwards) + (backwards ? ", reversed" : ""));
      std::unique_ptr<sim::ReversedOrder> reversed;
      if (backwards) reversed = std::make_unique<sim::ReversedOrder>();
      const auto report = [&](Fence between, int partner) {
        return report_of({"meeting_kernel", 1, 64, 256}, meeting_kernel, pair.lower, pair.upper, between,
                         partner, sink.data());
      };
      const auto race =
          AllOf(HasSubstr("kernel meeting_kernel, block (0, 0, 0): thread "),
                HasSubstr("race at test_sim.cpp:"), HasSubstr(backwards ? pair.backwards : pair.forwards));
      EXPECT_THAT(report(Fence::none, kSameWarp), race);
      EXPECT_THAT(report(Fence::none, kOtherWarp), race);
      EXPECT_EQ(report(Fence::warp, kSameWarp), "");
      EXPECT_NE(report(Fence::warp, kOtherWarp), "");  // orders each warp in itself
      EXPECT_EQ(report(Fence::block, kSameWarp), "");
      EXPECT_EQ(report(Fence::block, kOtherWarp), "");
    }
  }
}

TEST(Race, IsNoneWhereBothOnlyRead) {
  std::array<int, 64> sink{};
  EXPECT_EQ(report_of({"meeting_kernel", 1, 64, 256}, meeting_kernel, Access::read, Access::read, Fence::none,
                      32, sink.data()),
            "");
  EXPECT_EQ(sink[32], 0);
}

// The reader comes after the writer in time and is a race all the same.
__global__ void late_reader_kernel(bool fenced, int* sink) {
  SharedMemory memory;
  const auto tile = memory.take<int>(1);
  if (lane_id() == 0) tile.write(0, 7);
  if (fenced) {
    __syncwarp();
  } else {
    __shfl_sync(cuda::kFullWarp, 0, 0);  // brings the lanes together, and orders no memory
  }
  sink[lane_id()] = tile.read(0);
}

TEST(Race, IsNotEndedByAShuffle) {
  std::array<int, 32> sink{};
  EXPECT_THAT(report_of({"late_reader_kernel", 1, 32, 128}, late_reader_kernel, false, sink.data()),
              HasSubstr("race at test_sim.cpp"));
  EXPECT_EQ(report_of({"late_reader_kernel", 1, 32, 128}, late_reader_kernel, true, sink.data()), "");
  EXPECT_EQ(sink[31], 7);
}

// Reads that a fence orders before a later read of the writer do not count against it.
__global__ void accumulate_kernel(int* sink) {
  SharedMemory memory;
  const auto sum = memory.take<int>(1);
  if (lane_id() == 0) sum.write(0, 0);
  for (int lane = 0; lane < 3; ++lane) {
    __syncwarp();
    const int seen = sum.read(0);
    __syncwarp();
    if (lane_id() == lane) sum.write(0, sum.read(0) + seen + 1);
  }
  __syncwarp();
  sink[lane_id()] = sum.read(0);
}

TEST(Race, IsNotSeenWhereFencesOrderEveryPair) {
  std::array<int, 32> sink{};
  EXPECT_EQ(report_of({"accumulate_kernel", 1, 32, 128}, accumulate_kernel, sink.data()), "");
  EXPECT_EQ(sink[5], 7);
}

__global__ void matrix_kernel(bool fenced, int at, std::uint32_t* sink) {
  SharedMemory memory;
  constexpr int kElems = 16 * 16 + 64;  // some beyond the matrices
  const auto tile = memory.take<bf16>(kElems);
  for (int i = lane_id(); i < kElems; i += 32) tile.write(i, bf16{static_cast<std::uint16_t>(i)});
  if (fenced) __syncwarp();
  std::uint32_t r[4];
  cuda::ldmatrix_x4(r, tile, at + 8 * lane_id());
  for (int i = 0; i < 4; ++i) sink[4 * lane_id() + i] = r[i];
}

TEST(Race, IsReportedForMatricesReadByTheWholeWarp) {
  std::array<std::uint32_t, 128> sink{};
  const SimShape shape{"matrix_kernel", 1, 32, 640};
  EXPECT_THAT(report_of(shape, matrix_kernel, false, 0, sink.data()),
              AllOf(HasSubstr("race at test_sim.cpp:"), HasSubstr("warp 0 reads what thread")));
  EXPECT_EQ(report_of(shape, matrix_kernel, true, 0, sink.data()), "");
}

// On global memory no access is watched: the two orders of blocks and threads disagree.
__global__ void last_one_wins_kernel(int* x) { *x = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

TEST(Race, OnGlobalMemoryShowsAsADifferenceBetweenTheTwoOrders) {
  int forwards = -1, backwards = -1;
  run_kernel({"last_one_wins_kernel", 3, 64}, last_one_wins_kernel, &forwards);
  {
    const sim::ReversedOrder reversed;
    run_kernel({"last_one_wins_kernel", 3, 64}, last_one_wins_kernel, &backwards);
  }
  EXPECT_EQ(forwards, 3 * 64 - 1);
  EXPECT_EQ(backwards, 0);
}

// ---- bounds, alignment, unwritten memory ------------------------------------------------------------

enum class Touch : std::uint8_t { read, write, vector, part, fine };

__global__ void touch_kernel(Touch how, int at) {
  SharedMemory memory;
  const auto before = memory.take<float>(32), tile = memory.take<float>(32), behind = memory.take<float>(32);
  for (const auto& array : {before, tile, behind}) array.write(lane_id(), 1.0f);
  __syncwarp();
  if (lane_id() != 3) return;
  if (how == Touch::read) tile.read(at);
  if (how == Touch::write) tile.write(at, 2.0f);
  if (how == Touch::vector) tile.read_as<float4>(at);
  if (how == Touch::part) tile.part(at, 8).read(0);
}

TEST(Bounds, AreThoseOfTheArrayEvenWhereAnotherArrayLiesBeside) {
  const auto report = [](Touch how, int at) {
    return report_of({"touch_kernel", 1, 32, 3 * 128}, touch_kernel, how, at);
  };
  EXPECT_THAT(report(Touch::read, 32), HasSubstr("thread 3: read out of bounds at test_sim.cpp:"));
  EXPECT_THAT(report(Touch::read, 32), HasSubstr("bytes 128 to 132 of a shared array of 128"));
  EXPECT_THAT(report(Touch::read, -1), HasSubstr("read out of bounds"));
  EXPECT_THAT(report(Touch::write, 32), HasSubstr("write out of bounds at test_sim.cpp:"));
  EXPECT_THAT(report(Touch::write, 31), "");
  EXPECT_THAT(report(Touch::vector, 30), HasSubstr("read out of bounds"));
  EXPECT_THAT(report(Touch::vector, 28), "");
  EXPECT_THAT(report(Touch::part, 25), HasSubstr("part beyond its shared array at test_sim.cpp:"));
  EXPECT_THAT(report(Touch::part, 24), "");
}

__global__ void misaligned_copy_kernel(const float* from) {
  SharedMemory memory;
  cuda::cp_async16(memory.take<float>(32), 2, from);
}

TEST(Alignment, IsAskedOfVectorsMatrixRowsAndCopies) {
  EXPECT_THAT(report_of({"touch_kernel", 1, 32, 3 * 128}, touch_kernel, Touch::vector, 2),
              HasSubstr("misaligned read at test_sim.cpp:"));
  std::array<std::uint32_t, 128> sink{};
  EXPECT_EQ(report_of({"matrix_kernel", 1, 32, 640}, matrix_kernel, true, 8, sink.data()), "");
  EXPECT_THAT(report_of({"matrix_kernel", 1, 32, 640}, matrix_kernel, true, 4, sink.data()),
              HasSubstr("misaligned read at test_sim.cpp:"));
  alignas(16) const std::array<float, 4> from{};
  EXPECT_THAT(report_of({"misaligned_copy_kernel", 1, 32, 128}, misaligned_copy_kernel, from.data()),
              HasSubstr("misaligned cp.async at test_sim.cpp:"));
}

// Both ways by as many numbers as fit a vector of four.
__global__ void global_kernel(const float* from, float* to) {
  cuda::write_global(to, cuda::read_global<float4>(from));
}

TEST(Alignment, IsAskedOfVectorsInGlobalMemory) {
  alignas(16) const std::array<float, 8> from{1, 2, 3, 4, 5, 6, 7, 8};
  alignas(16) std::array<float, 8> to{};
  const auto report = [&](int from_at, int to_at) {
    return report_of({"global_kernel", 1, 32}, global_kernel, from.data() + from_at, to.data() + to_at);
  };
  EXPECT_EQ(report(4, 0), "");
  EXPECT_EQ(to, (std::array<float, 8>{5, 6, 7, 8}));
  EXPECT_THAT(report(2, 0), AllOf(HasSubstr("kernel global_kernel, block (0, 0, 0): thread 0:"),
                                  HasSubstr("misaligned read of global memory at test_sim.cpp:"),
                                  HasSubstr("16 bytes at an address 8 beyond a multiple")));
  EXPECT_THAT(report(0, 1), HasSubstr("misaligned write of global memory at test_sim.cpp:"));
}

// The first block writes, the others only read.
__global__ void leftover_kernel() {
  SharedMemory memory;
  const auto tile = memory.take<float>(32);
  if (blockIdx.x == 0) tile.write(lane_id(), 1.0f);
  tile.read(lane_id());
}

TEST(SharedMemoryContent, OfABlockIsNothingUntilTheBlockWritesIt) {
  EXPECT_EQ(report_of({"leftover_kernel", 1, 32, 128}, leftover_kernel), "");
  EXPECT_THAT(report_of({"leftover_kernel", 2, 32, 128}, leftover_kernel),
              AllOf(HasSubstr("kernel leftover_kernel, block (1, 0, 0): thread 0: read at test_sim.cpp:"),
                    HasSubstr("of shared memory that no thread wrote")));
}

// ---- meeting places ----------------------------------------------------------------------------------

enum class Parting : std::uint8_t {
  none,
  two_barriers,
  left_before_barrier,
  two_collectives,
  left_before_collective,
  barrier_against_collective,
  part_of_a_warp,
};

__global__ void parting_kernel(Parting how) {
  const int t = thread();
  if (how == Parting::two_barriers) {
    if (t < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  }
  if (how == Parting::left_before_barrier && t == 40) return;
  if (how == Parting::left_before_collective && t == 5) return;
  if (how == Parting::two_collectives) {
    if (t % 2 == 0) {
      __shfl_sync(cuda::kFullWarp, 1, 0);
    } else {
      __ballot_sync(cuda::kFullWarp, 1);
    }
  }
  if (how == Parting::barrier_against_collective && t == 7) __syncthreads();
  if (how == Parting::part_of_a_warp) __shfl_sync(0x0000FFFFu, 1, 0);
  if (how != Parting::left_before_barrier) __shfl_xor_sync(cuda::kFullWarp, 1, 1);
  __syncthreads();
}

TEST(Parting, OfThreadsIsReportedWithBothPlacesAndNeverHangs) {
  const auto report = [](Parting how) { return report_of({"parting_kernel", 1, 64}, parting_kernel, how); };
  EXPECT_EQ(report(Parting::none), "");
  EXPECT_THAT(
      report(Parting::two_barriers),
      ::testing::ContainsRegex("threads part at barriers: thread 0 is at test_sim.cpp:[0-9]+, thread 32 at "
                               "test_sim.cpp:[0-9]+"));
  EXPECT_THAT(report(Parting::left_before_barrier), AllOf(HasSubstr("the barrier at test_sim.cpp:"),
                                                          HasSubstr("waits for thread 40, which has left")));
  EXPECT_THAT(
      report(Parting::two_collectives),
      ::testing::ContainsRegex("lanes of warp 0 part: lane 0 is at test_sim.cpp:[0-9]+ .shuffle., lane 1 at "
                               "test_sim.cpp:[0-9]+ .ballot."));
  EXPECT_THAT(report(Parting::left_before_collective), HasSubstr("lane 5 of warp 0 has left the kernel"));
  EXPECT_THAT(report(Parting::barrier_against_collective),
              ::testing::ContainsRegex("lanes of warp 0 part: .*shuffle.*lane 7 at .*barrier"));
  EXPECT_THAT(report(Parting::part_of_a_warp), HasSubstr("a collective of part of a warp at test_sim.cpp:"));
}

// What waits on the stacks of the other threads is destroyed, and the next kernel finds a clean machine.
int alive = 0;
struct Counted {
  Counted() { ++alive; }
  ~Counted() { --alive; }
};

__global__ void abandoned_kernel(int failing) {
  const Counted counted;
  std::array<char, 4096> deep;
  deep.fill(static_cast<char>(thread()));
  __syncwarp();
  if (thread() == failing) throw sim::SimError(std::string(deep.size(), 'x'));
  __syncthreads();
}

TEST(Parting, AfterADefectLeavesNothingBehind) {
  for (int failing = 0; failing < 96; ++failing) {
    EXPECT_NE(report_of({"abandoned_kernel", 2, 96}, abandoned_kernel, failing), "");
    EXPECT_EQ(alive, 0);
  }
  EXPECT_EQ(report_of({"abandoned_kernel", 2, 96}, abandoned_kernel, -1), "");
  EXPECT_EQ(alive, 0);
}

// ---- launches ----------------------------------------------------------------------------------------

__global__ void greedy_kernel() {
  SharedMemory memory;
  memory.take<float>(32);
  memory.take<float>(1);
}
__global__ void nesting_kernel(cudaStream_t stream) {
  cuda::launch({.name = "greedy_kernel", .blocks = 1, .threads = 32, .shared_bytes = 256, .stream = stream},
               greedy_kernel);
}

TEST(Launch, IsRefusedWhereACardWouldRefuseIt) {
  EXPECT_EQ(report_of({"greedy_kernel", 1, 32, 256}, greedy_kernel), "");
  EXPECT_THAT(
      report_of({"greedy_kernel", 1, 32, 128}, greedy_kernel),
      AllOf(HasSubstr("more shared memory is taken at test_sim.cpp:"), HasSubstr("than was launched with")));
  EXPECT_EQ(report_of({"greedy_kernel", 1, 32, cuda::kMaxSharedBytes}, greedy_kernel), "");
  EXPECT_THAT(report_of({"greedy_kernel", 1, 32, cuda::kMaxSharedBytes + 1}, greedy_kernel),
              HasSubstr("the launch of greedy_kernel is too large for a card"));
  EXPECT_THAT(report_of({"greedy_kernel", std::int64_t{1} << 31, 32, 256}, greedy_kernel),
              HasSubstr("too large for a card"));
  EXPECT_THAT(report_of({"greedy_kernel", -1, 32, 256}, greedy_kernel), HasSubstr("too large for a card"));
  const SimStream stream;
  for (const auto& [y, z] : {std::pair{65536, 1}, {1, 65536}}) {
    EXPECT_THROW(cuda::launch({.name = "greedy_kernel",
                               .blocks = 1,
                               .blocks_y = y,
                               .blocks_z = z,
                               .threads = 32,
                               .shared_bytes = 256,
                               .stream = stream.get()},
                              greedy_kernel),
                 ShapeError);
  }
  EXPECT_THAT(report_of({"greedy_kernel", 1, 48, 256}, greedy_kernel), HasSubstr("blocks of 48 threads"));
  EXPECT_THAT(report_of({"greedy_kernel", 1, 1056, 256}, greedy_kernel), HasSubstr("blocks of 1056 threads"));
  EXPECT_EQ(report_of({"greedy_kernel", 0, 32, 1}, greedy_kernel), "");  // nothing is launched
}

TEST(Launch, AsksForSharedMemoryBeyondWhatEveryBlockMayHaveAndMayBeRefusedIt) {
  const auto asks = [](int shared_bytes) {
    sim::reset_runtime_calls();
    run_kernel({"greedy_kernel", 1, 32, shared_bytes}, greedy_kernel);
    return std::ranges::count(sim::runtime_call_names(), "cudaFuncSetAttribute");
  };
  EXPECT_EQ(asks(48 * 1024), 0);
  EXPECT_EQ(asks(48 * 1024 + 1), 1);
  sim::reset_runtime_calls();
  sim::fail_runtime_call(1, cudaErrorInvalidValue, false);  // behind cudaStreamCreateWithFlags
  EXPECT_THROW(run_kernel({"greedy_kernel", 1, 32, 48 * 1024 + 1}, greedy_kernel), DeviceError);
  EXPECT_EQ(sim::runtime_call_names().at(1), "cudaFuncSetAttribute");
  sim::fail_runtime_call(-1, 0);
}

TEST(Launch, DoesNotHappenInsideAKernel) {
  for (const sim::Streams how : {sim::Streams::eager, sim::Streams::lazy}) {
    sim::set_streams(how);
    const SimStream stream;
    EXPECT_THAT(report_of({"nesting_kernel", 1, 32, 256}, nesting_kernel, stream.get()),
                HasSubstr("greedy_kernel was called inside a kernel"));
  }
}

TEST(Launch, CountsKernelsByName) {
  const auto launches = [] {
    const auto found = sim::launch_counts().find("counted_here_kernel");
    return found == sim::launch_counts().end() ? 0 : found->second;
  };
  const std::int64_t before = launches();
  run_kernel({"counted_here_kernel", 2, 32, 256}, greedy_kernel);
  EXPECT_EQ(launches(), before + 1);
}

TEST(Launch, OnTheDefaultStreamAndDeviceCodeOutsideAKernelAreMistakes) {
  EXPECT_THROW(
      cuda::launch({.name = "greedy_kernel", .blocks = 1, .threads = 32, .shared_bytes = 256}, greedy_kernel),
      sim::SimError);
  EXPECT_THROW(lane_id(), sim::SimError);
  EXPECT_THROW(__syncthreads(), sim::SimError);
  EXPECT_THROW(cuda::global_threads(), sim::SimError);
}

}  // namespace
}  // namespace qt::test
