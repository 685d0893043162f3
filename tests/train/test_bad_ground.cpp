// The cuda backend on bad ground, on the simulator: no driver, no card, too little memory, no pinned memory,
// and every call of the runtime failing in its turn. One clear error of the right kind each time, and the
// last checkpoint as it was.
#include <algorithm>
#include <filesystem>
#include <functional>
#include <numeric>
#include <set>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/cuda/runtime.h"
#include "kernels/cuda_entry.h"
#include "kernels/sim/sim.h"
#include "src/cli/doctor_probe.h"
#include "src/core/error.h"
#include "src/core/log.h"
#include "src/core/units.h"
#include "src/io/checkpoint.h"
#include "tests/support/tiny_run.h"

namespace qt::test {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

class BadGround : public ::testing::Test {
 protected:
  void SetUp() override { reset(); }
  void TearDown() override {
    reset();
    set_log_level(LogLevel::info);
  }
  static void reset() {
    sim::card() = sim::Card();
    sim::begin_process();
  }
};

struct Outcome {
  ExitCode code = ExitCode::ok;
  std::string what, hint;
};

template <class Body>
Outcome outcome_of(Body&& body) {
  try {
    body();
  } catch (const Error& e) {
    return {e.code(), e.what(), e.hint()};
  }
  return {};
}

Outcome opening() {
  return outcome_of([] { make_cuda_backend(cuda_target(86)); });
}

// ---- what there is to open ---------------------------------------------------------------------------

TEST_F(BadGround, WithoutADriverSaysSo) {
  sim::card().driver_version = 0;
  const Outcome got = opening();
  EXPECT_EQ(got.code, ExitCode::device);
  EXPECT_THAT(got.what, HasSubstr("no NVIDIA driver"));
  EXPECT_THAT(got.hint, HasSubstr("--device cpu"));
}

TEST_F(BadGround, WithADriverOlderThanTheBuildNamesBothVersions) {
  sim::card().driver_version = 11080;
  const Outcome got = opening();
  EXPECT_EQ(got.code, ExitCode::device);
  EXPECT_THAT(got.what,
              AllOf(HasSubstr("driver is too old"), HasSubstr("CUDA 11.8"), HasSubstr("CUDA 12.0")));
  EXPECT_THAT(got.hint, HasSubstr("update the driver"));
}

TEST_F(BadGround, WithoutACardSaysHowToSeeOne) {
  sim::card().count = 0;
  const Outcome got = opening();
  EXPECT_EQ(got.code, ExitCode::device);
  EXPECT_THAT(got.what, HasSubstr("no CUDA card"));
  EXPECT_THAT(got.hint, HasSubstr("CUDA_VISIBLE_DEVICES"));
}

TEST_F(BadGround, WithACardThatIsTooOldNamesItAndWhatWorks) {
  sim::card().name = "NVIDIA GeForce RTX 2080";
  sim::card().major = 7;
  sim::card().minor = 5;
  const Outcome got = opening();
  EXPECT_EQ(got.code, ExitCode::device);
  EXPECT_THAT(got.what, AllOf(HasSubstr("RTX 2080 has compute capability 7.5"), HasSubstr("needs 8.0")));
  EXPECT_THAT(got.hint, HasSubstr("RTX 30 series"));
}

TEST_F(BadGround, WithAPlanForANewerCardNamesTheOption) {
  const Outcome got = outcome_of([] { make_cuda_backend(cuda_target(120)); });
  EXPECT_EQ(got.code, ExitCode::usage);
  EXPECT_THAT(got.what, AllOf(HasSubstr("sm_120"), HasSubstr("simulated card is sm_86")));
  EXPECT_THAT(got.hint, HasSubstr("--arch sm_86"));
}

TEST_F(BadGround, ProbingTakesNoMemoryAndOpeningMeasuresItsOwn) {
  sim::card().drives_display = true;
  const DeviceFacts probed = probe_cuda_device();
  EXPECT_EQ(probed.name, "simulated card");
  EXPECT_EQ(probed.sm, 86);
  EXPECT_EQ(probed.multiprocessors, 28);
  EXPECT_EQ(probed.total_bytes, 12 * kGiB);
  EXPECT_TRUE(probed.drives_display);
  EXPECT_EQ(probed.context_bytes, 0);
  const std::int64_t used_before = sim::used_bytes_of_card();
  const auto backend = make_cuda_backend(cuda_target(80));
  EXPECT_EQ(backend->device().name, "simulated card");
  EXPECT_EQ(backend->device().free_bytes, 12 * kGiB - used_before - 280 * kMiB);
  EXPECT_NEAR(static_cast<double>(backend->device().context_bytes), static_cast<double>(280 * kMiB), 4096);
}

// ---- memory ------------------------------------------------------------------------------------------

TEST_F(BadGround, WithLessMemoryFreeThanPlannedNamesBothAndTheOption) {
  sim::card().free_bytes = 100 * kMiB;
  const auto backend = make_cuda_backend(cuda_target(86));
  const Outcome got = outcome_of([&] { backend->allocate(Space::device, 200 * kMiB); });
  EXPECT_EQ(got.code, ExitCode::no_fit);
  EXPECT_THAT(got.what, AllOf(HasSubstr("needs 200.0 MiB on the simulated card"),
                              HasSubstr("of its 12.0 GiB are free")));
  EXPECT_THAT(got.hint, AllOf(HasSubstr("nvidia-smi"), HasSubstr("--vram 91MiB")));
  EXPECT_EQ(parse_bytes("91MiB", "--vram"), 91 * kMiB);
}

TEST_F(BadGround, WithAnAllocationRefusedAllTheSameSaysTheSame) {
  const auto backend = make_cuda_backend(cuda_target(86));
  sim::reset_runtime_calls();
  sim::fail_runtime_call(1, cudaErrorMemoryAllocation, false);
  const Outcome got = outcome_of([&] { backend->allocate(Space::device, kMiB); });
  ASSERT_EQ(sim::runtime_call_names().at(1), "cudaMalloc");
  EXPECT_EQ(got.code, ExitCode::no_fit);
  EXPECT_THAT(got.what, HasSubstr("needs 1.0 MiB on the simulated card"));
  // The refusal is forgotten: the next allocation is not blamed for it.
  EXPECT_EQ(outcome_of([&] { backend->allocate(Space::device, kMiB); }).code, ExitCode::ok);
}

// Writes a host region of 40 MB through the card into another and compares.
void copy_through_the_card() {
  constexpr std::int64_t kElems = 10'000'001;  // not a whole number of pieces
  const auto backend = make_cuda_backend(cuda_target(86));
  const auto host = backend->allocate(Space::host, 4 * kElems),
             back = backend->allocate(Space::host, 4 * kElems);
  const auto device = backend->allocate(Space::device, 4 * kElems);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(host->base()) % 4096, 0u);
  const TensorView there(host->base(), DType::f32, {kElems}, Space::host);
  const TensorView again(back->base(), DType::f32, {kElems}, Space::host);
  const TensorView x(device->base(), DType::f32, {kElems});
  std::span numbers(there.as<float>(), static_cast<std::size_t>(kElems));
  EXPECT_TRUE(std::all_of(numbers.begin(), numbers.end(), [](float v) { return v == 0; }));
  std::iota(numbers.begin(), numbers.end(), 0.0f);
  backend->copy(there, x, Stream::copy_in);
  const Event arrived = backend->record(Stream::copy_in);
  backend->wait(Stream::compute, arrived);
  backend->run(Add{.a = x, .b = x, .y = x});
  const Event added = backend->record(Stream::compute);
  backend->wait(Stream::copy_out, added);
  backend->copy(x, again, Stream::copy_out);
  backend->synchronize();
  std::int64_t wrong = 0;
  for (std::int64_t i = 0; i < kElems; ++i) wrong += again.as<float>()[i] != 2 * there.as<float>()[i] ? 1 : 0;
  EXPECT_EQ(wrong, 0);
}

std::string said_while_copying() {
  ::testing::internal::CaptureStderr();
  copy_through_the_card();
  return ::testing::internal::GetCapturedStderr();
}

TEST_F(BadGround, WithoutPinnedMemoryCopiesThroughTwoPiecesOrTheDriverAndSaysWhich) {
  EXPECT_EQ(said_while_copying(), "");
  reset();
  sim::card().pinned_limit_bytes = 33 * kMiB;
  EXPECT_THAT(said_while_copying(),
              AllOf(HasSubstr("no 38.1 MiB of pinned host memory"),
                    HasSubstr("go through 32.0 MiB of pinned memory, which is slower")));
  reset();
  sim::card().pinned_limit_bytes = 0;
  EXPECT_THAT(said_while_copying(), HasSubstr("go through buffers of the driver, which is slower"));
}

TEST_F(BadGround, TheDoctorCountsWhatIsPinnedAndNotWhatStandsInForIt) {
  ::testing::internal::CaptureStderr();
  sim::card().pinned_limit_bytes = 40 * kMiB;
  const auto backend = make_cuda_backend(cuda_target(86));
  EXPECT_EQ(pinnable_bytes(*backend, 8 * kMiB), 8 * kMiB);
  EXPECT_EQ(pinnable_bytes(*backend, 64 * kMiB), 0) << "one piece, refused";
  EXPECT_FALSE(backend->allocate(Space::host, kMiB)->pageable());
  EXPECT_TRUE(backend->allocate(Space::host, 64 * kMiB)->pageable());
  ::testing::internal::GetCapturedStderr();
}

// ---- any call ----------------------------------------------------------------------------------------

EngineOptions tiny_options() {
  TinyShape shape;
  shape.rows = 1;
  shape.accumulation = 1;
  EngineOptions options = tiny_engine_options(shape);
  // As little as launches every kernel: the run is repeated for each call that fails.
  options.model.n_layer = 1;
  options.model.seq_len = 8;
  options.sample_tokens = 4;
  return options;
}

std::unique_ptr<Engine> engine_on(std::unique_ptr<Backend> backend) {
  const EngineOptions options = tiny_options();
  const Rehearsed plan = Engine::rehearse(options, backend->target());
  return std::make_unique<Engine>(std::move(backend), options, plan);
}

// A run folder with one checkpoint, and the engine on the cpu that made it.
class SmallRun {
 public:
  SmallRun() : engine_(engine_on(make_backend("cpu", cpu_target(1)))), store_(run_dir(), 2) {
    engine_->init_weights(1);
    RunState state;
    state.step = state.applied = state.window = kFirstStep;
    store_.save(*engine_, state);
    first_hash_ = state_hash(*engine_);
  }
  const std::string& first_hash() const { return first_hash_; }

  // What a process does on the card: takes the newest checkpoint, trains a step (paged, checkpointed,
  // packed), evaluates, samples and saves.
  void process() {
    const std::unique_ptr<Engine> engine = engine_on(make_cuda_backend(cuda_target(86)));
    const std::int64_t row_tokens = engine->options().model.seq_len;
    const TokenBatches batches = data_.batches(row_tokens);
    const EvalBatches validation = data_.validation(row_tokens, row_tokens);
    std::string explanation;
    RunState state = store_.load(store_.newest(explanation), *engine);
    TrainerOptions options = tiny_trainer_options(run_dir(), kFirstStep + 1, 1);
    options.eval_every = 1;
    Trainer trainer(*engine, batches, &validation, data_.tokenizer(), options, state);
    trainer.run();
  }

  struct Newest {
    std::int64_t step = 0;
    std::string hash;
  };
  // The newest checkpoint as somebody else reads it; then the folder is as it was in the beginning.
  Newest newest_then_rewind() {
    store_.remove_leftovers();
    std::string explanation;
    const std::string newest = store_.newest(explanation);
    EXPECT_EQ(explanation, "");
    const RunState state = store_.load(newest, *engine_);
    if (state.step != kFirstStep) fs::remove_all(newest);
    fs::remove(fs::path(run_dir()) / checkpoint_name(kFirstStep) / "evaluated");  // the next process does too
    return {.step = state.step, .hash = state_hash(*engine_)};
  }

  static constexpr std::int64_t kFirstStep = 1;

 private:
  std::string run_dir() const { return dir_ / "run"; }

  TempDir dir_;
  TinyData data_{dir_.path()};
  std::unique_ptr<Engine> engine_;
  CheckpointStore store_;
  std::string first_hash_;
};

// Calls of a run in order; those from `last` on are made while everything is given back.
struct Calls {
  std::vector<std::string> names;
  std::size_t last = 0;
};

Calls calls_of(const std::function<void()>& process) {
  sim::begin_process();
  process();
  Calls calls{.names = sim::runtime_call_names()};
  const std::set<std::string> returns{"cudaDeviceSynchronize", "cudaFree", "cudaFreeHost",
                                      "cudaStreamDestroy", "cudaEventDestroy"};
  calls.last = calls.names.size();
  while (calls.last > 0 && returns.contains(calls.names[calls.last - 1])) --calls.last;
  return calls;
}

// The first and the last of each name, kernels among them, and of the others `more`, evenly spread.
std::vector<std::size_t> chosen(const Calls& calls, std::size_t more) {
  const std::size_t stride = calls.names.size() / (more + 1) + 1;
  std::set<std::size_t> chosen;
  std::set<std::string> seen, seen_behind;
  for (std::size_t i = 0; i < calls.names.size(); ++i) {
    const std::size_t behind = calls.names.size() - 1 - i;
    if (seen.insert(calls.names[i]).second || i % stride == 0) chosen.insert(i);
    if (seen_behind.insert(calls.names[behind]).second) chosen.insert(behind);
  }
  return {chosen.begin(), chosen.end()};
}

// Nothing is lost: the newest checkpoint is the one before, or the whole one that was just being saved.
void expect_one_of_the_two(SmallRun& run, const std::string& saved_hash) {
  const SmallRun::Newest newest = run.newest_then_rewind();
  EXPECT_EQ(newest.hash, newest.step == SmallRun::kFirstStep ? run.first_hash() : saved_hash);
}

// What a library's twin is called where a person reads it.
std::string said_as(const std::string& call) { return call == "sort_pairs" ? "a sort" : call; }

bool given_back_midway(const std::string& name) { return name == "cudaFree" || name == "cudaFreeHost"; }

// Sticky errors that a card reports; each call gets another.
cudaError_t error_of(std::size_t call) {
  constexpr cudaError_t kErrors[] = {cudaErrorIllegalAddress, cudaErrorLaunchFailure,
                                     cudaErrorECCUncorrectable, cudaErrorLaunchTimeout, cudaErrorUnknown};
  return kErrors[call % std::size(kErrors)];
}

void expect_named(const Outcome& got, const Calls& calls, std::size_t call) {
  if (call >= calls.last) {
    EXPECT_EQ(got.code, ExitCode::ok);  // all work was done
    return;
  }
  EXPECT_EQ(got.code, ExitCode::device);
  // A failure to give something back is found by the next call.
  if (!given_back_midway(calls.names[call])) {
    EXPECT_THAT(got.what, HasSubstr("failed at " + said_as(calls.names[call])));
  }
  EXPECT_THAT(got.what, HasSubstr(cudaGetErrorName(error_of(call))));
  EXPECT_NE(got.hint, "");
}

TEST_F(BadGround, AnyCallThatFailsForGoodEndsTheRunWithItsNameAndLeavesTheLastCheckpoint) {
  set_log_level(LogLevel::error);
  SmallRun run;
  const Calls calls = calls_of([&] { run.process(); });
  const std::string hash = run.newest_then_rewind().hash;
  ASSERT_NE(hash, run.first_hash());
  const std::vector<std::size_t> sites = chosen(calls, 20);
  for (const std::size_t call : sites) {
    SCOPED_TRACE(fmt::format("call {} of {}: {}", call, calls.names.size(), calls.names[call]));
    sim::begin_process();
    sim::fail_runtime_call(static_cast<std::int64_t>(call), error_of(call));
    expect_named(outcome_of([&] { run.process(); }), calls, call);
    expect_one_of_the_two(run, hash);
  }
  const std::set<std::string> names(calls.names.begin(), calls.names.end());
  fmt::print("{} calls in a run, of {} names; {} of them failed in turn\n", calls.names.size(), names.size(),
             sites.size());
  // Every kernel that a training of this kind launches is among them.
  EXPECT_GE(names.size(), 52u);
  EXPECT_GT(sites.size(), 100u);
}

TEST_F(BadGround, AnyCallThatFailsForGoodWhileCopiesAreStagedEndsTheRunWithItsName) {
  set_log_level(LogLevel::error);
  sim::card().pinned_limit_bytes = 33 * kMiB;
  const Calls calls = calls_of(copy_through_the_card);
  EXPECT_GT(std::count(calls.names.begin(), calls.names.end(), "cudaEventSynchronize"), 0);
  for (std::size_t call = 0; call < calls.names.size(); ++call) {
    SCOPED_TRACE(fmt::format("call {} of {}: {}", call, calls.names.size(), calls.names[call]));
    sim::begin_process();
    sim::fail_runtime_call(static_cast<std::int64_t>(call), error_of(call));
    expect_named(outcome_of(copy_through_the_card), calls, call);
  }
}

TEST_F(BadGround, AnyCallThatIsRefusedMemoryOnceEndsInExitThreeOrIsSurvivedAndLeaksNothing) {
  set_log_level(LogLevel::error);
  SmallRun run;
  const Calls calls = calls_of([&] { run.process(); });
  const std::string hash = run.newest_then_rewind().hash;
  std::set<std::string> survived;
  for (const std::size_t call : chosen(calls, 0)) {
    SCOPED_TRACE(fmt::format("call {} of {}: {}", call, calls.names.size(), calls.names[call]));
    sim::begin_process();
    sim::fail_runtime_call(static_cast<std::int64_t>(call), cudaErrorMemoryAllocation, false);
    const Outcome got = outcome_of([&] { run.process(); });
    if (got.code == ExitCode::ok) {
      survived.insert(calls.names[call]);
    } else {
      EXPECT_EQ(got.code, ExitCode::no_fit) << got.what;
      EXPECT_NE(got.hint, "");
    }
    if (call < calls.last && !given_back_midway(calls.names[call])) {
      EXPECT_EQ(sim::allocated_bytes(), 0);
    }
    expect_one_of_the_two(run, hash);
  }
  // What has a way round it, and what gives back.
  EXPECT_TRUE(survived.contains("cudaHostAlloc"));
  EXPECT_FALSE(survived.contains("cudaMalloc"));
  EXPECT_FALSE(survived.contains("cudaMemcpyAsync"));
  EXPECT_FALSE(survived.contains("embedding_fwd_kernel"));
}

}  // namespace
}  // namespace qt::test
