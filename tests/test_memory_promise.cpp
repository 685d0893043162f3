// The memory promise: what the plan says is what the run uses, to the byte, and nothing large is allocated
// after step 0.
//
// malloc and its kin are replaced here for the whole program, so that libraries are watched too. Not under
// sanitizers, which bring their own. oneDNN packs operands in buffers that it takes from posix_memalign and
// gives back inside each call: those are held against what the plan counts for them, kLibraryPackingBytes;
// everything else must stay below 64 KiB.
#include <atomic>
#include <cstdlib>

#include <gtest/gtest.h>

#include "src/train/trainer.h"
#include "tests/support/tiny_run.h"

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
  if (bytes > static_cast<std::size_t>(qt::kLibraryPackingBytes)) note_allocation(bytes);
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
    {"adamw paged", {.optim = "adamw"}},
    {"adamw resident", {.paged = false, .optim = "adamw"}},
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
  batches.fill(0, o.memory.micro_batch_rows, ids, targets);
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
    const RunPlan plan = Engine::rehearse(options, test_target(c.shape.threads));
    Engine engine(make_test_backend(test_target(c.shape.threads)), options, plan);
    run_every_phase(engine, data);
    EXPECT_EQ(engine.used_device_bytes(), plan.device_bytes()) << c.name;
    EXPECT_EQ(engine.used_host_bytes(), plan.host.bytes) << c.name;
    EXPECT_EQ(plan.host.bytes > 0, c.shape.paged) << c.name;
  }
}

TEST(MemoryPromise, APlanForAnotherRunIsRefused) {
  const TinyShape planned{.rows = 1}, built{.rows = 2};
  const RunPlan plan = Engine::rehearse(tiny_engine_options(planned), test_target(1));
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
  g_watching = false;
  g_large = 0;

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
    options.log_every = 0;
    options.sample.new_tokens = 5;
    Trainer trainer(*engine, batches, &validation, data.tokenizer(), options, state);
    // Step 0 may still fill caches; evaluation, sampling and a save come after it and are watched.
    trainer.after_step = [](const RunState&, const StepStats&) { g_watching = true; };
    trainer.run();
    g_watching = false;
    EXPECT_EQ(g_large.exchange(0), 0u) << c.name << ": largest " << g_largest.exchange(0) << " bytes";
  }
#endif
}

}  // namespace
}  // namespace qt::test
