// The memory promise: what the plan says is what the run uses, to the byte, and nothing large is allocated
// after step 0.
//
// malloc and its kin are replaced here for the whole program, so that libraries are watched too. Not under
// sanitizers, which bring their own. Where oneDNN cannot be given scratch (before AVX-512) it packs operands
// in buffers that it takes from posix_memalign and gives back inside each call: those are held against what
// the plan counts for them, kLibraryScratchBytes; everything else must stay below 64 KiB.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include <gtest/gtest.h>

#include "kernels/cpu/gemm_tile.h"
#include "src/train/trainer.h"
#include "tests/support/tiny_run.h"
#include "tests/support/toy_rules.h"

#if defined(__SANITIZE_ADDRESS__)
#define QTRAIN_TEST_SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define QTRAIN_TEST_SANITIZED 1
#endif
#endif

namespace {

constexpr std::size_t kLargeBytes = 64 * 1024;
std::atomic<bool> g_watching{false};
std::atomic<std::size_t> g_large{0};
std::atomic<std::size_t> g_largest{0};
std::atomic<std::size_t> g_aligned_allowance{0};  // what posix_memalign() may give unseen

void note_allocation(std::size_t bytes) {
  if (!g_watching.load(std::memory_order_relaxed) || bytes <= kLargeBytes) return;
  g_large.fetch_add(1);
  if (bytes > g_largest.load()) g_largest.store(bytes);
}

}  // namespace

#ifndef QTRAIN_TEST_SANITIZED
extern "C" {
void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);
void* __libc_memalign(std::size_t, std::size_t);

void* malloc(std::size_t bytes) {
  note_allocation(bytes);
  return __libc_malloc(bytes);
}
void* calloc(std::size_t count, std::size_t bytes) {
  note_allocation(count * bytes);
  return __libc_calloc(count, bytes);
}
void* realloc(void* old, std::size_t bytes) {
  note_allocation(bytes);
  return __libc_realloc(old, bytes);
}
void* memalign(std::size_t alignment, std::size_t bytes) {
  note_allocation(bytes);
  return __libc_memalign(alignment, bytes);
}
void* aligned_alloc(std::size_t alignment, std::size_t bytes) {
  note_allocation(bytes);
  return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** out, std::size_t alignment, std::size_t bytes) {
  if (bytes > g_aligned_allowance.load(std::memory_order_relaxed)) note_allocation(bytes);
  *out = __libc_memalign(alignment, bytes);
  return *out == nullptr ? 12 : 0;  // ENOMEM
}
}
#endif

namespace qt::test {
namespace {

struct Configuration {
  const char* name;
  TinyShape shape;
};

const Configuration kConfigurations[] = {
    {"nf4 checkpointed paged", {}},
    {"nf4 checkpointed resident", {.paged = false}},
    {"nf4 all kept", {.checkpoint = false}},
    {"f32 weights checkpointed", {.packed = false}},
    {"f32 weights all kept resident", {.packed = false, .checkpoint = false, .paged = false}},
    {"bf16 nf4", {.compute = DType::bf16}},
    {"bf16 weights", {.packed = false, .compute = DType::bf16}},
    {"bf16 all kept", {.checkpoint = false, .compute = DType::bf16}},
    {"adamw paged", {.rule = &rules::adamw}},
    {"adamw resident", {.paged = false, .rule = &rules::adamw}},
    {"whole matrices paged", {.rule = &kCubic16}},
    {"whole matrices resident", {.paged = false, .rule = &kCubic16}},
    {"bf16 masters paged", {.master = DType::bf16}},
    {"bf16 masters resident",
     {.packed = false, .paged = false, .rule = &rules::adamw, .master = DType::bf16}},
    {"one row", {.rows = 1, .accumulation = 4}},
    {"eight rows at once", {.rows = 8, .accumulation = 1}},
    {"one thread", {.threads = 1}},
    {"odd vocabulary", {.vocab_size = 331}},
    // A row of logits is 80 KB here: anything sized by the vocabulary would show.
    {"large vocabulary", {.rows = 4, .accumulation = 1, .vocab_size = 20000}},
};

// Every phase of a run, on real memory.
void run_every_phase(Engine& engine, const TinyData& data) {
  const EngineOptions& o = engine.options();
  const TokenBatches batches = data.batches(o.model.seq_len);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(o.micro_batch_tokens())), targets(ids.size());
  batches.fill(0, o.layout.micro_batch_rows, ids, targets);
  const HostBatch batch{ids, targets};
  engine.init_weights(3);
  engine.train_step([&](std::int64_t) { return batch; }, {}, 1.0, 1);
  engine.evaluate(batch);
  engine.sample(std::vector<std::int32_t>{1, 2, 3}, SampleOptions{.new_tokens = 5});
}

TEST(MemoryPromise, PlannedBytesAreUsedBytesInEveryConfiguration) {
  const TempDir dir;
  const TinyData data(dir.path());
  ASSERT_GE(std::size(kConfigurations), 12u);
  for (const Configuration& c : kConfigurations) {
    const EngineOptions options = tiny_engine_options(c.shape);
    const Rehearsed plan = Engine::rehearse(options, test_target(c.shape.threads));
    Engine engine(make_test_backend(test_target(c.shape.threads)), options, plan);
    run_every_phase(engine, data);
    EXPECT_EQ(engine.used_device_bytes(), plan.device_bytes()) << c.name;
    EXPECT_EQ(engine.used_host_bytes(), plan.host.bytes) << c.name;
    EXPECT_EQ(plan.host.bytes > 0, c.shape.paged) << c.name;
  }
}

// As wide as d32: the master of the MLP's matrices is 64 MiB, two slabs.
TEST(MemoryPromise, ARuleOfWholeMatricesIsPlannedForMatricesLargerThanASlab) {
  EngineOptions options = tiny_engine_options({.rule = &kCubic16});
  options.model.n_embd = 2048;
  options.model.n_layer = 1;
  const Rehearsed plan = Engine::rehearse(options, test_target(2));
  std::int64_t slot_bytes = 0, largest_matrix_bytes = 0;
  for (const Request& r : plan.step.find("optimizer_step")->requests) {
    if (r.tag == MemoryTag::slots) slot_bytes += r.bytes;
    if (r.name == "direction") largest_matrix_bytes = std::max(largest_matrix_bytes, r.bytes);
  }
  EXPECT_LE(slot_bytes, 2 * kMaxSlabBytes);
  EXPECT_EQ(largest_matrix_bytes, 2048 * 8192 * 2);
  EXPECT_EQ(plan.optimizer_step.host_to_device_bytes, static_cast<double>(plan.host.bytes));
}

TEST(MemoryPromise, APlanForAnotherRunIsRefused) {
  const TinyShape planned{.rows = 1}, built{.rows = 2};
  const Rehearsed plan = Engine::rehearse(tiny_engine_options(planned), test_target(1));
  Engine engine(make_test_backend(test_target(1)), tiny_engine_options(built), plan);
  EXPECT_THROW(engine.evaluate(HostBatch{std::vector<std::int32_t>(64), std::vector<std::int32_t>(64)}),
               PlanError);
}

TEST(MemoryPromise, NothingLargeIsAllocatedAfterStepZero) {
#ifdef QTRAIN_TEST_SANITIZED
  GTEST_SKIP() << "the sanitizer brings its own allocator";
#else
  // The hook works: a large allocation is seen, a small one is not.
  g_watching = true;
  std::vector<char> seen(kLargeBytes + 1);
  EXPECT_EQ(g_large.load(), 1u);
  void* aligned = nullptr;
  ASSERT_EQ(posix_memalign(&aligned, 64, kLargeBytes + 1), 0);
  std::free(aligned);
  EXPECT_EQ(g_large.load(), 2u);
  g_watching = false;
  g_large = 0;
  g_largest = 0;

  if (!cpu::multiplies_dense()) g_aligned_allowance = kLibraryScratchBytes;
  const TempDir dir;
  const TinyData data(dir.path());
  for (const Configuration& c : kConfigurations) {
    const auto engine = tiny_engine(c.shape);
    const EngineOptions& o = engine->options();
    const TokenBatches batches = data.batches(o.model.seq_len);
    const EvalBatches validation = data.validation(o.model.seq_len);
    engine->init_weights(3);
    RunState state;
    TrainerOptions options;
    options.run_dir = dir / std::string("run ") + c.name;
    options.schedule.steps = 6;
    options.eval_every = 2;
    options.sample_every = 2;
    options.sample.new_tokens = 5;
    LoggedTrainer trainer(*engine, batches, &validation, data.tokenizer(), options, state);
    // Step 0 may still fill caches; evaluation, sampling and a save come after it and are watched.
    trainer.after_step = [](const RunState&, const StepStats&) { g_watching = true; };
    trainer.run();
    g_watching = false;
    EXPECT_EQ(g_large.exchange(0), 0u) << c.name << ": largest " << g_largest.exchange(0) << " bytes";
  }
#endif
}

// Every kind of tile that a matrix product or attention may ask for: whole and ragged, cut out of wider
// matrices or dense, in either order.
TEST(MemoryPromise, TileProductsAllocateNothingLargeAndTheirBitsDoNotDependOnPitches) {
#ifdef QTRAIN_TEST_SANITIZED
  GTEST_SKIP() << "the sanitizer brings its own allocator";
#else
  constexpr std::int64_t kGap = 24;  // elements between the rows of what is cut out of wider matrices
  g_aligned_allowance = cpu::multiplies_dense() ? 0 : kLibraryScratchBytes;
  const auto values = [](DType dtype, std::int64_t n, std::uint32_t seed) {
    std::vector<std::byte> bytes(static_cast<std::size_t>(n * dtype_bytes(dtype)));
    for (std::int64_t i = 0; i < n; ++i) {
      seed = seed * 1664525u + 1013904223u;
      const float x = static_cast<float>(seed >> 8) / static_cast<float>(1 << 24) - 0.5f;
      if (dtype == DType::f32) reinterpret_cast<float*>(bytes.data())[i] = x;
      if (dtype == DType::bf16) reinterpret_cast<bf16*>(bytes.data())[i] = to_bf16(x);
      if (dtype == DType::f16) reinterpret_cast<f16*>(bytes.data())[i] = from_float<f16>(x);
    }
    return bytes;
  };
  // The same elements with a gap behind each row.
  const auto spread = [](const std::vector<std::byte>& from, std::int64_t rows, std::size_t row_bytes,
                         std::size_t gap_bytes) {
    std::vector<std::byte> to(static_cast<std::size_t>(rows) * (row_bytes + gap_bytes), std::byte{0xFF});
    for (std::int64_t i = 0; i < rows; ++i) {
      const auto row = static_cast<std::size_t>(i);
      std::memcpy(to.data() + row * (row_bytes + gap_bytes), from.data() + row * row_bytes, row_bytes);
    }
    return to;
  };
  const std::int64_t sizes[][3] = {{1, 256, 512},  {2, 3, 5},      {17, 1, 64},    {64, 33, 1},
                                   {128, 128, 64}, {128, 64, 113}, {512, 256, 512}};
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
    for (const auto& [M, N, K] : sizes) {
      for (const int orders : {0, 1, 2, 3}) {
        const bool ta = (orders & 1) != 0, tb = (orders & 2) != 0;
        const std::int64_t a_rows = ta ? K : M, a_cols = ta ? M : K, b_rows = tb ? N : K, b_cols = tb ? K : N;
        const auto element = static_cast<std::size_t>(dtype_bytes(dtype));
        const std::vector<std::byte> a = values(dtype, M * K, 1), b = values(dtype, K * N, 2);
        std::vector<std::vector<float>> results;
        for (const std::int64_t gap : {std::int64_t{0}, kGap}) {
          const auto gap_bytes = static_cast<std::size_t>(gap) * element;
          const std::vector<std::byte> a_used =
              spread(a, a_rows, static_cast<std::size_t>(a_cols) * element, gap_bytes);
          const std::vector<std::byte> b_used =
              spread(b, b_rows, static_cast<std::size_t>(b_cols) * element, gap_bytes);
          cpu::Operand left = cpu::Operand::rows(a_used.data(), dtype, a_cols + gap);
          cpu::Operand right = cpu::Operand::rows(b_used.data(), dtype, b_cols + gap);
          if (ta) left = left.transposed();
          if (tb) right = right.transposed();
          const std::int64_t ldc = N + gap;
          std::vector<float> c(static_cast<std::size_t>(M * ldc), std::nanf(""));
          std::vector<std::byte> scratch(
              static_cast<std::size_t>(cpu::tile_gemm_scratch_bytes(dtype, M, N, K)) + 64);
          auto* const aligned =
              reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(scratch.data()) + 63) / 64 * 64);
          for (const bool watch : {false, true}) {  // the first call generates code
            g_watching = watch;
            cpu::tile_gemm(M, N, K, left, right, c.data(), ldc, false, aligned);
            cpu::tile_gemm(M, N, K, left, right, c.data(), ldc, true, aligned);
            g_watching = false;
          }
          EXPECT_EQ(g_large.exchange(0), 0u) << M << " " << N << " " << K << " " << dtype_name(dtype) << " "
                                             << orders << ": " << g_largest.exchange(0) << " bytes";
          std::vector<float> dense;
          for (std::int64_t i = 0; i < M; ++i) {
            dense.insert(dense.end(), c.begin() + i * ldc, c.begin() + i * ldc + N);
            for (std::int64_t j = N; j < ldc; ++j) {
              ASSERT_TRUE(std::isnan(c[static_cast<std::size_t>(i * ldc + j)])) << "the gap was written";
            }
          }
          results.push_back(std::move(dense));
        }
        if (cpu::wants_dense(M)) {
          EXPECT_EQ(results[0], results[1]) << M << " " << N << " " << K << " " << dtype_name(dtype);
        }
      }
    }
  }
#endif
}

}  // namespace
}  // namespace qt::test
