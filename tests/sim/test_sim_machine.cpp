// What the simulator computes: collectives and matrix instructions against plain loops, and streams that show
// a missing wait.
#include <array>
#include <memory>
#include <random>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/backend.h"
#include "kernels/cuda_entry.h"
#include "tests/support/sim_rig.h"

namespace qt::test {
namespace {

using cuda::kFullWarp;
using cuda::lane_id;
using cuda::SharedMemory;

// ---- collectives -------------------------------------------------------------------------------------

struct LaneResults {
  float by_lane, by_xor, up, down;
  std::int64_t wide;
  unsigned ballot;
  int any, all;
  float sum, max;
  double block_sum;
};

__global__ void collectives_kernel(const float* x, LaneResults* out) {
  SharedMemory memory;
  const auto partial = memory.take<double>(32);
  const int t = static_cast<int>(threadIdx.x);
  const float mine = x[t];
  LaneResults r{};
  r.by_lane = __shfl_sync(kFullWarp, mine, (lane_id() * 7 + 3) % 64);
  r.by_xor = __shfl_xor_sync(kFullWarp, mine, 5);
  r.up = __shfl_up_sync(kFullWarp, mine, 3);
  r.down = __shfl_down_sync(kFullWarp, mine, 9);
  r.wide = __shfl_sync(kFullWarp, std::int64_t{1} << (lane_id() + 8), 31);
  r.ballot = __ballot_sync(kFullWarp, mine > 0);
  r.any = __any_sync(kFullWarp, lane_id() == 17);
  r.all = __all_sync(kFullWarp, lane_id() != 17);
  r.sum = cuda::warp_sum(mine);
  r.max = cuda::warp_max(mine);
  r.block_sum = cuda::block_sum(static_cast<double>(t), partial);
  r.block_sum += cuda::block_sum(1.0, partial);  // at once again
  out[t] = r;
}

TEST(Collectives, MoveAndSumAsTheirDefinitionsSay) {
  constexpr int kThreads = 96;
  std::vector<float> x(kThreads);
  std::mt19937 random(4);
  for (float& v : x) v = static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 8;
  std::vector<LaneResults> out(kThreads);
  for (const bool backwards : {false, true}) {
    std::unique_ptr<sim::ReversedOrder> reversed;
    if (backwards) reversed = std::make_unique<sim::ReversedOrder>();
    run_kernel({"collectives_kernel", 1, kThreads, 256}, collectives_kernel, x.data(), out.data());
    for (int t = 0; t < kThreads; ++t) {
      const int base = t / 32 * 32, lane = t % 32;
      const auto at = [&](int l) { return x[static_cast<std::size_t>(base + l)]; };
      const LaneResults& r = out[static_cast<std::size_t>(t)];
      EXPECT_EQ(r.by_lane, at((lane * 7 + 3) % 32));
      EXPECT_EQ(r.by_xor, at(lane ^ 5));
      EXPECT_EQ(r.up, at(lane < 3 ? lane : lane - 3));
      EXPECT_EQ(r.down, at(lane + 9 > 31 ? lane : lane + 9));
      EXPECT_EQ(r.wide, std::int64_t{1} << 39);
      unsigned ballot = 0;
      float sum = 0, max = at(0);
      for (int l = 0; l < 32; ++l) {
        if (at(l) > 0) ballot |= 1u << l;
        sum += at(l);  // eighths below 2^17: exact in any order
        max = std::max(max, at(l));
      }
      EXPECT_EQ(r.ballot, ballot);
      EXPECT_EQ(r.any, 1);
      EXPECT_EQ(r.all, 0);
      EXPECT_EQ(r.sum, sum);
      EXPECT_EQ(r.max, max);
      EXPECT_EQ(r.block_sum, kThreads * (kThreads - 1) / 2 + kThreads);
    }
  }
}

TEST(Intrinsics, AgreeWithTheirDefinitions) {
  EXPECT_EQ(__byte_perm(0x33221100u, 0x77665544u, 0x7531u), 0x77553311u);
  EXPECT_EQ(__byte_perm(0x80FF0180u, 0, 0xBA98u), 0xFFFF00FFu);  // the sign of each byte
  EXPECT_EQ(__umulhi(0xFFFFFFFFu, 0xFFFFFFFFu), 0xFFFFFFFEu);
  EXPECT_EQ(__popc(0xF0F00001u), 9);
  EXPECT_EQ(__ffs(0), 0);
  EXPECT_EQ(__ffs(8), 4);
  EXPECT_EQ(__clz(1), 31);
  EXPECT_EQ(__clz(0), 32);
}

// ---- matrix instructions -----------------------------------------------------------------------------

template <class T>
std::uint32_t pair_of(float low, float high) {
  return static_cast<std::uint32_t>(from_float<T>(low).bits) |
         static_cast<std::uint32_t>(from_float<T>(high).bits) << 16;
}

// The layout that the PTX manual gives for lane 4 g + t.
template <class T>
__global__ void mma_kernel(const float* a, const float* b, float* c) {
  const int g = lane_id() / 4, t = lane_id() % 4;
  const auto a_at = [&](int row, int k) { return pair_of<T>(a[row * 16 + k], a[row * 16 + k + 1]); };
  const auto b_at = [&](int k, int column) { return pair_of<T>(b[k * 8 + column], b[(k + 1) * 8 + column]); };
  const std::uint32_t fa[4] = {a_at(g, 2 * t), a_at(g + 8, 2 * t), a_at(g, 2 * t + 8),
                               a_at(g + 8, 2 * t + 8)};
  const std::uint32_t fb[2] = {b_at(2 * t, g), b_at(2 * t + 8, g)};
  float fc[4];
  for (int i = 0; i < 4; ++i) fc[i] = c[(g + i / 2 * 8) * 8 + 2 * t + i % 2];
  cuda::mma_m16n8k16<T>(fc, fa, fb);
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = fc[i];
}

template <class T>
void expect_mma() {
  std::mt19937 random(7);
  // Small integers: every product and sum is exact, so that only the placement can be wrong.
  const auto draw = [&] { return static_cast<float>(static_cast<int>(random() % 15) - 7); };
  std::vector<float> a(16 * 16), b(16 * 8), c(16 * 8);
  for (auto* m : {&a, &b, &c}) {
    for (float& x : *m) x = draw();
  }
  std::vector<float> want = c;
  for (std::size_t m = 0; m < 16; ++m) {
    for (std::size_t n = 0; n < 8; ++n) {
      for (std::size_t k = 0; k < 16; ++k) want[m * 8 + n] += a[m * 16 + k] * b[k * 8 + n];
    }
  }
  run_kernel({"mma_kernel"}, mma_kernel<T>, a.data(), b.data(), c.data());
  EXPECT_EQ(c, want);
}

TEST(MatrixInstructions, MultiplyAsPlainLoopsDo) {
  expect_mma<bf16>();
  expect_mma<f16>();
}

template <bool kTransposed>
__global__ void load_matrices_kernel(std::uint32_t* out) {
  SharedMemory memory;
  constexpr int kPitch = 24;  // elements; rows of 48 bytes
  const auto tile = memory.take<f16>(32 * kPitch);
  for (int i = lane_id(); i < 32 * kPitch; i += 32) tile.write(i, f16{static_cast<std::uint16_t>(i)});
  __syncwarp();
  std::uint32_t r[4];
  if constexpr (kTransposed) {
    cuda::ldmatrix_x4_trans(r, tile, lane_id() * kPitch + 8);
  } else {
    cuda::ldmatrix_x4(r, tile, lane_id() * kPitch + 8);
  }
  for (int i = 0; i < 4; ++i) out[lane_id() * 4 + i] = r[i];
}

TEST(MatrixInstructions, LoadRowsOrColumnsOfFourMatrices) {
  std::vector<std::uint32_t> plain(128), transposed(128);
  run_kernel({"load_matrices_kernel", 1, 32, 2048}, load_matrices_kernel<false>, plain.data());
  run_kernel({"load_matrices_kernel", 1, 32, 2048}, load_matrices_kernel<true>, transposed.data());
  // Element (row, column) of matrix i, as it was stored.
  const auto element = [](std::size_t i, std::size_t row, std::size_t column) {
    return static_cast<std::uint32_t>((8 * i + row) * 24 + 8 + column);
  };
  for (std::size_t lane = 0; lane < 32; ++lane) {
    const std::size_t g = lane / 4, t = 2 * (lane % 4);
    for (std::size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(plain[4 * lane + i], element(i, g, t) | element(i, g, t + 1) << 16);
      EXPECT_EQ(transposed[4 * lane + i], element(i, t, g) | element(i, t + 1, g) << 16);
    }
  }
}

// ---- streams -----------------------------------------------------------------------------------------

class Streams : public ::testing::TestWithParam<sim::Streams> {
 protected:
  void SetUp() override {
    sim::begin_process();
    sim::set_streams(GetParam());
  }
  void TearDown() override { sim::set_streams(sim::Streams::lazy); }
  bool copies_in_wait() const {
    return GetParam() == sim::Streams::lazy || GetParam() == sim::Streams::copies_out_first;
  }
  bool kernels_wait() const { return GetParam() != sim::Streams::eager; }
};

// On the card x is 1, or 5 once the host's number has been copied over it; y = x + x on the compute stream.
struct SumAndCopy {
  std::unique_ptr<Backend> backend = make_cuda_backend(cuda_target(86));
  std::unique_ptr<MemoryRegion> device = backend->allocate(Space::device, 4096),
                                host = backend->allocate(Space::host, 4096);
  TensorView x{device->base(), DType::f32, {1}}, y{device->base() + 512, DType::f32, {1}};
  TensorView there{host->base(), DType::f32, {1}, Space::host};

  SumAndCopy() {
    backend->run(Fill{.x = x, .value = 1});
    backend->synchronize();
    *there.as<float>() = 5;
  }
  void sum() { backend->run(Add{.a = x, .b = x, .y = y}); }
  void copy() { backend->copy(there, x, Stream::copy_in); }
  void let(Stream later, Stream earlier) { backend->wait(later, backend->record(earlier)); }
  float result() {
    float value = 0;
    backend->download(y, std::as_writable_bytes(std::span(&value, 1)));
    return value;
  }
};

float sum_behind_a_copy(bool wait) {
  SumAndCopy s;
  s.copy();
  if (wait) s.let(Stream::compute, Stream::copy_in);
  s.sum();
  return s.result();
}

float sum_before_a_copy(bool wait) {
  SumAndCopy s;
  s.sum();
  if (wait) s.let(Stream::copy_in, Stream::compute);
  s.copy();
  return s.result();
}

TEST_P(Streams, ShowAReadThatComesTooEarlyWhenTheyAreLazy) {
  EXPECT_EQ(sum_behind_a_copy(true), 10);
  EXPECT_EQ(sum_behind_a_copy(false), copies_in_wait() ? 2 : 10);
}

TEST_P(Streams, ShowAWriteThatComesTooEarlyWhenCopiesInComeFirst) {
  EXPECT_EQ(sum_before_a_copy(true), 2);
  EXPECT_EQ(sum_before_a_copy(false), GetParam() == sim::Streams::copies_in_first ? 10 : 2);
}

// x on the card is 1 and becomes 2 on the compute stream; x leaves by a copy on its own stream behind that,
// for which the compute stream waits.
float left_behind_a_sum(bool wait) {
  const auto backend = make_cuda_backend(cuda_target(86));
  const auto device = backend->allocate(Space::device, 4096), host = backend->allocate(Space::host, 4096);
  const TensorView x(device->base(), DType::f32, {1}), there(host->base(), DType::f32, {1}, Space::host);
  backend->run(Fill{.x = x, .value = 1});
  backend->synchronize();
  backend->run(Add{.a = x, .b = x, .y = x});
  const Event written = backend->record(Stream::compute);
  if (wait) backend->wait(Stream::copy_out, written);
  backend->copy(x, there, Stream::copy_out);
  backend->wait(Stream::compute, backend->record(Stream::copy_out));
  backend->run(Fill{.x = x, .value = 3});
  backend->synchronize();
  return *there.as<float>();
}

TEST_P(Streams, ShowACopyThatLeavesTooEarlyWhenCopiesOutComeFirst) {
  EXPECT_EQ(left_behind_a_sum(true), 2);
  EXPECT_EQ(left_behind_a_sum(false), GetParam() == sim::Streams::copies_out_first ? 1 : 2);
}

__global__ void note_kernel(std::vector<int>* order, int what) {
  if (lane_id() == 0) order->push_back(what);
}

TEST_P(Streams, KeepAnEventsOldMeaningForThoseWhoWaitForIt) {
  const SimStream first, second, third;
  std::vector<int> order;
  const auto note = [&](const SimStream& stream, int what) {
    cuda::launch({.name = "note_kernel", .blocks = 1, .threads = 32, .stream = stream.get()}, note_kernel,
                 &order, what);
  };
  cudaEvent_t event = nullptr;
  cuda::check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "event");
  cuda::check(cudaStreamWaitEvent(second.get(), event), "a wait for what was never recorded is none");
  note(first, 1);
  cuda::check(cudaEventRecord(event, first.get()), "record");
  note(first, 4);
  cuda::check(cudaStreamWaitEvent(second.get(), event), "wait");
  note(third, 3);
  cuda::check(cudaEventRecord(event, third.get()), "record again, elsewhere");
  note(second, 2);
  cuda::check(cudaStreamSynchronize(second.get()), "synchronize");
  // Lazy: what the second stream waits for, and no more.
  EXPECT_EQ(order, kernels_wait() ? (std::vector<int>{1, 2}) : (std::vector<int>{1, 4, 3, 2}));
  cuda::check(cudaEventSynchronize(event), "synchronize");
  EXPECT_EQ(order, kernels_wait() ? (std::vector<int>{1, 2, 3}) : (std::vector<int>{1, 4, 3, 2}));
  cuda::check(cudaDeviceSynchronize(), "synchronize");
  EXPECT_EQ(order.size(), 4u);
  cudaEventDestroy(event);
}

TEST_P(Streams, DoNoMoreWorkOnceACallHasFailedForGood) {
  const SimStream stream;
  std::vector<int> order;
  cuda::launch({.name = "note_kernel", .blocks = 1, .threads = 32, .stream = stream.get()}, note_kernel,
               &order, 1);
  sim::reset_runtime_calls();
  sim::fail_runtime_call(0, cudaErrorIllegalAddress);
  EXPECT_EQ(cudaStreamSynchronize(stream.get()), cudaErrorIllegalAddress);
  EXPECT_EQ(cudaStreamSynchronize(stream.get()), cudaErrorIllegalAddress);
  EXPECT_EQ(order.size(), kernels_wait() ? 0u : 1u);
  sim::fail_runtime_call(-1, 0);
}

constexpr sim::Streams kStreams[] = {sim::Streams::lazy, sim::Streams::eager, sim::Streams::copies_in_first,
                                     sim::Streams::copies_out_first};
constexpr const char* kStreamNames[] = {"lazy", "eager", "copies_in_first", "copies_out_first"};

INSTANTIATE_TEST_SUITE_P(Every, Streams, ::testing::ValuesIn(kStreams),
                         [](const auto& how) { return kStreamNames[static_cast<std::size_t>(how.param)]; });

}  // namespace
}  // namespace qt::test
