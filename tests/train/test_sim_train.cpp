// Whole runs through the cuda backend, on the simulator or on a card: a nanochat with heads of 64 and one
// with heads of 128, packed, by both routes of packed products; a GPT-2 with heads of 48 in fp16. Each is
// trained, evaluated, saved, killed and continued, and ends in the bits of the undisturbed run; so is
// one with masters in bf16. Each loss is held against the cpu backend's for the same weights. Packed weights
// lie in tiles throughout, which files do not show.
//
// Every run is a child process: that is what kill -9 is for, and the simulator keeps one state per process.
// The parent opens no card, which its children could not use then.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#ifdef QTRAIN_TEST_SIM
#include "kernels/sim/sim.h"
#endif
#include "src/io/checkpoint.h"
#include "src/io/json.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/reseal.h"
#include "tests/support/run_folder.h"
#include "tests/support/tiny_run.h"

namespace qt::test {
namespace {

#ifdef QTRAIN_TEST_SIM
constexpr const char *kFused = "sim-fused", *kScratch = "sim-scratch";
#else
constexpr const char *kFused = "cuda-fused", *kScratch = "cuda-scratch";
#endif

constexpr std::int64_t kSteps = 4, kDiesAfter = 3, kSaveEvery = 2;

struct TrainedModel {
  const char* name;
  EngineOptions options;
};

EngineOptions common(ModelConfig model, DType compute, FormatId weights) {
  EngineOptions e;
  model.vocab_size = 265;  // the `bytes` tokenizer
  e.model = model;
  e.layout.compute = compute;
  e.layout.gradient = compute == DType::f16 ? DType::f32 : DType::bf16;
  e.layout.weights = weights;
  e.layout.checkpoint_activations = true;
  e.layout.micro_batch_rows = 1;
  e.optim.rule = &rules::adamw8;
  e.optim.peak_lr = {3e-3, 0.02, 0.004, 3e-3};
  e.optim.paged = true;
  e.accumulation = 2;
  e.sample_tokens = 16;
  return e;
}

// Sequences are no multiple of a tile; two query heads share a key head.
EngineOptions nanochat(std::int64_t head_width) {
  ModelConfig m;
  m.name = "tiny";
  m.n_layer = 2;
  m.n_head = 2;
  m.n_kv_head = 1;
  m.n_embd = 2 * head_width;
  m.seq_len = 72;
  return common(m, DType::bf16, FormatId::nf4);
}

EngineOptions gpt2() {
  ModelShape o;
  o.n_layer = 2;
  o.n_head = 2;
  o.n_embd = 96;  // heads of 48
  o.seq_len = 72;
  o.vocab_size = 265;
  o.bias = true;
  o.dropout = 0.1;
  return common(model_by_name("gpt", o), DType::f16, FormatId::none);
}

// How many packed matrices lie so.
std::int64_t packed_matrices(Engine& engine, PackedLayout layout) {
  const ParamList& params = engine.model().params();
  return std::ranges::count_if(
      params, [&](const Param& p) { return p.weight.is_packed() && p.weight.packed.layout == layout; });
}

class SimTrain : public ::testing::Test {
 protected:
  TempDir dir;

  // Calls body in a child, on the backend. Returns the child's status.
  static int in_child(const std::string& backend, const std::function<void()>& body) {
    std::fflush(nullptr);  // what is buffered would be printed by the child once more
    const pid_t pid = fork();
    if (pid == 0) {
      int code = 1;
      try {
        setenv("QTRAIN_TEST_BACKEND", backend.c_str(), 1);
        body();
        code = 0;
      } catch (const std::exception& e) {
        std::fprintf(stderr, "%s\n", e.what());
      }
      std::fflush(nullptr);
      _exit(code);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return status;
  }

  // Trains until the end, or until the process kills itself after step `dies_after`.
  int train(const EngineOptions& options, const std::string& backend, const std::string& run,
            std::int64_t dies_after, std::int64_t save_every = kSaveEvery) {
    return in_child(backend, [&] { train_here(options, run, dies_after, save_every); });
  }

  void train_here(const EngineOptions& options, const std::string& run, std::int64_t dies_after,
                  std::int64_t save_every) {
    const Target target = test_target(1);
    Engine engine(make_test_backend(target), options, Engine::rehearse(options, target));
    // Six matrices a block, all of multiples of 64.
    const bool packed = options.layout.weights != FormatId::none;
    if (packed_matrices(engine, PackedLayout::tiles) != (packed ? 6 * options.model.n_layer : 0) ||
        packed_matrices(engine, PackedLayout::flat) != 0) {
      throw std::runtime_error("packed matrices do not lie in tiles");
    }
    const TinyData data(dir.path());
    const TokenBatches batches = data.batches(options.model.seq_len);
    const EvalBatches validation = data.validation(options.model.seq_len);
    CheckpointStore store(run, 2 * kSteps);
    std::string explanation;
    const std::string checkpoint = store.newest(explanation);
    RunState state;
    if (checkpoint.empty()) {
      engine.init_weights(7);
    } else {
      state = store.load(checkpoint, engine);
    }
    TrainerOptions o = tiny_trainer_options(run, kSteps, save_every);
    o.keep = 2 * kSteps;
    o.eval_every = 2;
    LoggedTrainer trainer(engine, batches, &validation, data.tokenizer(), o, state);
    trainer.after_step = [&](const RunState& now, const StepStats&) {
      if (now.step == dies_after) raise(SIGKILL);
    };
    trainer.run();
  }

  // The loss of the window that each checkpoint of the run stands before, or of the one `ahead` of it, as the
  // backend computes it from the same weights; by the step that the window leads to.
  std::map<std::int64_t, double> replay(const EngineOptions& options, const std::string& backend,
                                        const std::string& run, std::int64_t ahead = 0) {
    const std::string file = dir / "replayed";
    expect_ended(in_child(backend, [&] {
      std::ofstream out(file);
      const Target target = test_target(1);
      Engine engine(make_test_backend(target), options, Engine::rehearse(options, target));
      const TinyData data(dir.path());
      const TokenBatches batches = data.batches(options.model.seq_len);
      const CheckpointStore store(run, 2 * kSteps);
      for (const Checkpoint& checkpoint : find_checkpoints(run)) {
        const RunState state = store.load(checkpoint.path.string(), engine);
        if (state.step == kSteps) continue;
        std::vector<std::int32_t> ids(static_cast<std::size_t>(options.micro_batch_tokens())),
            targets(ids.size());
        const double scale = options.layout.compute == DType::f16 ? state.loss_scale.scale : 1;
        engine.accumulate(
            [&](std::int64_t micro) {
              const std::int64_t rows = options.layout.micro_batch_rows;
              const std::int64_t first = ((state.window + ahead) * options.accumulation + micro) * rows;
              batches.fill(first, rows, ids, targets);
              return HostBatch{.ids = ids, .targets = targets, .first_row = first};
            },
            {}, scale);
        out << fmt::format("{} {}\n", state.step + 1, engine.measure(1, state.applied + 1, scale).loss);
      }
    }));
    std::map<std::int64_t, double> losses;
    std::ifstream in(file);
    for (std::int64_t step = 0; in >> step;) in >> losses[step];
    return losses;
  }

  // How far two implementations may lie apart, relative to the loss. Their products are exact and their f32
  // sums of K terms differ in order, which is a random walk of sqrt(K) roundings of 2^-24. Such a difference
  // d lets a stored value round the other way once in ulp / d times, so in the mean square it costs sqrt(d
  // ulp). Some thirteen tensors a block, LayerNorm's input counting twice, and four more stand on the way to
  // the loss (tests/model/test_gpt2_golden.cpp); the errors add as independent ones do, those of the tokens of a
  // window average out, and the worst of a few lies three standard deviations out.
  static double share(const EngineOptions& options) {
    const double ulp = options.layout.compute == DType::bf16 ? 0x1p-7 : 0x1p-10;
    const double widest_sum = 4.0 * static_cast<double>(options.model.n_embd);
    const double one = std::sqrt(std::sqrt(widest_sum) * 0x1p-24 * ulp);
    const double tensors = 4.0 + 26.0 * static_cast<double>(options.model.n_layer);
    return 3 * one * std::sqrt(tensors / static_cast<double>(options.step_tokens()));
  }
  // The largest difference relative to the bound, over the steps that both have.
  static double worst(const std::map<std::int64_t, double>& a, const std::map<std::int64_t, double>& b,
                      double bound) {
    double most = 0;
    int both = 0;
    for (const auto& [step, loss] : a) {
      if (!b.contains(step)) continue;
      ++both;
      most = std::max(most, std::abs(loss - b.at(step)) / (bound * loss));
    }
    EXPECT_EQ(both, kSteps - 1);
    return most;
  }

  static void expect_ended(int status) {
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  }
  static void expect_killed(int status) {
    ASSERT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) << status;
  }

  // By step; where a step was trained twice, the last.
  std::map<std::int64_t, double> numbers(const std::string& run, const std::string& kind,
                                         const std::string& field) {
    std::map<std::int64_t, double> found;
    for (const std::string& line : whole_lines(read_text(run + "/log.jsonl"))) {
      const Json json = parse_json(line, "log.jsonl");
      if (json["kind"] == kind) found[json["step"].get<std::int64_t>()] = json[field].get<double>();
    }
    return found;
  }
  std::string final_hash(const std::string& run) {
    const Json last = last_record(run);
    return last.is_object() && last.contains("state_hash") ? last["state_hash"].get<std::string>() : "none";
  }

  // Straight through, and killed after a step that is not saved.
  void expect_the_same_bits_after_a_kill(const EngineOptions& options, const std::string& backend) {
    const std::string straight = dir / ("straight-" + backend), killed = dir / ("killed-" + backend);
    expect_ended(train(options, backend, straight, -1));
    expect_killed(train(options, backend, killed, kDiesAfter));
    EXPECT_EQ(final_hash(killed), "none");
    expect_ended(train(options, backend, killed, -1));
    EXPECT_EQ(final_hash(straight).size(), 32u) << final_hash(straight);
    EXPECT_EQ(final_hash(killed), final_hash(straight));
    EXPECT_EQ(numbers(killed, "step", "loss"), numbers(straight, "step", "loss"));
    const auto validation = numbers(straight, "eval", "val_loss");
    EXPECT_GE(validation.size(), 2u);
    EXPECT_EQ(numbers(killed, "eval", "val_loss"), validation);
    const auto losses = numbers(straight, "step", "loss");
    ASSERT_EQ(losses.size(), static_cast<std::size_t>(kSteps));
    EXPECT_LT(losses.at(kSteps), losses.at(1)) << "something must have been learned";
  }
};

// Trajectories of Adam part, whatever computes them; the same weights must give the same loss.
TEST_F(SimTrain, LossesAgreeWithTheCpuBackendAndBetweenTheRoutes) {
  const TrainedModel models[] = {{"nanochat, heads of 64", nanochat(64)},
                                 {"nanochat, heads of 128", nanochat(128)},
                                 {"gpt2 in fp16, heads of 48", gpt2()}};
  for (const TrainedModel& model : models) {
    SCOPED_TRACE(model.name);
    const std::string run = dir / model.name;
    const double bound = share(model.options);
    expect_ended(train(model.options, kFused, run, -1, 1));
    const auto fused = numbers(run, "step", "loss");
    const double cpu = worst(fused, replay(model.options, "cpu", run), bound);
    const double scratch = worst(fused, replay(model.options, kScratch, run), bound);
    std::printf("%s: share of the bound %.3g, cpu %.3g of it, the other route %.3g\n", model.name, bound, cpu,
                scratch);
    EXPECT_LE(cpu, 1);
    EXPECT_LE(scratch, 1);
    // Other tokens under the same weights are far outside: the bound says something.
    EXPECT_GT(worst(fused, replay(model.options, "cpu", run, 5), bound), 1);
  }
}

TEST_F(SimTrain, ANanochatWithHeadsOf64GivesTheSameBitsAfterAKillByBothRoutes) {
  for (const char* backend : {kFused, kScratch}) {
    SCOPED_TRACE(backend);
    expect_the_same_bits_after_a_kill(nanochat(64), backend);
  }
}

TEST_F(SimTrain, ANanochatWithHeadsOf128GivesTheSameBitsAfterAKillByBothRoutes) {
  for (const char* backend : {kFused, kScratch}) {
    SCOPED_TRACE(backend);
    expect_the_same_bits_after_a_kill(nanochat(128), backend);
  }
}

#ifdef QTRAIN_TEST_SIM

// Another algorithm sums in another order: what continues a run continues with those it had.
TEST_F(SimTrain, ACheckpointHoldsTheLibrarysAlgorithmsAndARunThatLosesThemSaysSo) {
  const EngineOptions options = nanochat(64);
  const std::string run = dir / "run", here = "simulated library 1", there = "another card";
  expect_ended(train(options, "sim-scratch", run, -1));
  std::string ignored;
  const std::string newest = CheckpointStore(run, 2).newest(ignored);
  const std::string saved = CheckpointStore::read_state(newest).algorithms;
  EXPECT_EQ(saved.find(here), 0u) << saved;
  EXPECT_GE(std::count(saved.begin(), saved.end(), '\n'), 8) << saved;  // a linear's three products, and more

  const std::string heard = dir / "heard";
  const auto load = [&](const std::string& backend) {
    expect_ended(in_child(backend, [&] {
      const Target target = test_target(1);
      Engine engine(make_test_backend(target), options, Engine::rehearse(options, target));
      ::testing::internal::CaptureStderr();
      CheckpointStore(run, 2).load(newest, engine);
      std::ofstream(heard) << engine.backend().algorithms()
                           << "heard: " << ::testing::internal::GetCapturedStderr();
    }));
    return read_text(heard);
  };
  EXPECT_EQ(load("sim-scratch"), saved + "heard: ");
  EXPECT_NE(load("cpu").find("bits may differ"), std::string::npos);
  reseal(run, kSteps, "run.json",
         [&](std::string& text) { text.replace(text.find(here), here.size(), there); });
  const std::string other = load("sim-scratch");
  EXPECT_EQ(other.find(saved), std::string::npos);
  for (const std::string& word : {there, std::string("bits may differ"), newest})
    EXPECT_NE(other.find(word), std::string::npos) << other;
}

#endif

TEST_F(SimTrain, MastersRoundedAtRandomGiveTheSameBitsAfterAKill) {
  EngineOptions options = nanochat(64);
  options.optim.master = DType::bf16;
  expect_the_same_bits_after_a_kill(options, kFused);
}

TEST_F(SimTrain, AGpt2InFp16WithHeadsOf48GivesTheSameBitsAfterAKill) {
  for (const char* backend : {kFused, kScratch}) {
    SCOPED_TRACE(backend);
    expect_the_same_bits_after_a_kill(gpt2(), backend);
  }
}

#ifdef QTRAIN_TEST_SIM

// ---- tiles and files -----------------------------------------------------------------------------------

// The keys' and values' matrices have 32 rows: too few for tiles.
EngineOptions partly_in_tiles() {
  EngineOptions e = nanochat(64);
  e.model.n_head = 4;
  return e;
}

class SimCheckpoint : public ::testing::Test {
 protected:
  void SetUp() override { sim::begin_process(); }

  static std::unique_ptr<Engine> engine_on(const std::string& backend) {
    const EngineOptions options = partly_in_tiles();
    const Target target = target_of(backend, 1);
    return std::make_unique<Engine>(make_test_backend(target), options, Engine::rehearse(options, target));
  }
  static void train_step(Engine& engine, std::int64_t t) {
    const EngineOptions& o = engine.options();
    const auto ids = random_ids(static_cast<std::size_t>(o.step_tokens()), o.model.vocab_size, 5);
    engine.train_step(fetch_from(ids, ids, o.micro_batch_tokens()), {}, 1, t);
  }
  // Saves what `from` has after step `t` and loads it into `to`.
  void hand_over(Engine& from, Engine& to, std::int64_t t) {
    RunState state;
    state.step = state.applied = t;
    store.save(from, state);
    std::string explanation;
    EXPECT_EQ(store.load(store.newest(explanation), to).step, t);
  }

  TempDir dir;
  CheckpointStore store{dir / "run", 2};
};

TEST_F(SimCheckpoint, GoesToTheCpuAndBackWithTheSameHash) {
  const auto card = engine_on("sim"), cpu = engine_on("cpu");
  EXPECT_EQ(packed_matrices(*card, PackedLayout::tiles), 8);
  EXPECT_EQ(packed_matrices(*card, PackedLayout::flat), 4);
  EXPECT_EQ(packed_matrices(*cpu, PackedLayout::tiles), 0);
  EXPECT_EQ(packed_matrices(*cpu, PackedLayout::flat), 12);

  card->init_weights(7);
  for (const std::int64_t t : {1, 2}) train_step(*card, t);  // what begins at zero has moved by then
  const std::string after_two = state_hash(*card);
  EXPECT_NE(state_hash(*cpu), after_two);
  hand_over(*card, *cpu, 2);
  EXPECT_EQ(state_hash(*cpu), after_two);
  // In memory the two are different: what the hash sees, and the file has, is neither's own affair.
  const ParamList &on_card = card->model().params(), &on_cpu = cpu->model().params();
  for (std::size_t i = 0; i < on_card.size(); ++i) {
    if (!on_card[i].weight.is_packed()) continue;
    EXPECT_EQ(read_bytes_of(card->backend(), on_card[i].weight.packed.codes) ==
                  read_bytes_of(cpu->backend(), on_cpu[i].weight.packed.codes),
              on_card[i].weight.packed.layout == PackedLayout::flat)
        << on_card[i].name;
  }
  cpu->encode_weights();
  EXPECT_EQ(state_hash(*cpu), after_two) << "these are the codes of the masters";

  train_step(*cpu, 3);
  const std::string after_three = state_hash(*cpu);
  EXPECT_NE(after_three, after_two);
  hand_over(*cpu, *card, 3);
  EXPECT_EQ(state_hash(*card), after_three);
  card->encode_weights();
  EXPECT_EQ(state_hash(*card), after_three);
}

TEST_F(SimCheckpoint, TakesStoredBytesFromAnyAddressAndTouchesNothingElse) {
  const auto card = engine_on("sim");
  card->init_weights(7);
  StoredForm& form = card->stored_form();
  std::map<std::string, std::vector<std::byte>> want;
  for (const NamedView& v : card->weights()) want[v.name] = stored_bytes_of(form, v);
  for (const NamedView& v : card->weights()) {
    std::vector<std::byte>& bytes = want[v.name];
    std::rotate(bytes.begin(), bytes.begin() + 20, bytes.end());
    std::vector<std::byte> shifted(1);
    shifted.insert(shifted.end(), bytes.begin(), bytes.end());
    form.write(v, std::span(shifted).subspan(1));
    EXPECT_THROW(form.write(v, shifted), ShapeError) << v.name;
  }
  for (const NamedView& v : card->weights()) EXPECT_EQ(stored_bytes_of(form, v), want.at(v.name)) << v.name;
}

// A plan that is kept: the card gives what was planned, before the first step, and nothing after it.
TEST(SimMemory, IsTakenBeforeTheFirstStepAsPlannedAndNeverAgain) {
  for (const EngineOptions& options : {nanochat(64), gpt2()}) {
    sim::begin_process();
    for (const GemmRoute route : {GemmRoute::fused, GemmRoute::scratch}) {
      Target target = cuda_target(86);
      target.gemm = route;
      const Rehearsed plan = Engine::rehearse(options, target);
      const std::int64_t before_bytes = sim::allocated_bytes();
      Engine engine(make_test_backend(target), options, plan);
      const std::int64_t taken_bytes = sim::allocated_bytes();
      // The runtime aligns to 256 bytes at most and the arenas to pages: a page more for each arena and for
      // the workspace.
      const std::int64_t pages = plan.host.bytes > 0 ? 3 : 2;
      const std::int64_t planned_bytes =
          plan.device_bytes() + plan.host.bytes + default_workspace_bytes(target);
      EXPECT_EQ(taken_bytes - before_bytes, planned_bytes + pages * 4096);
      engine.init_weights(7);
      const std::vector<std::int32_t> ids(static_cast<std::size_t>(options.micro_batch_tokens()), 5);
      const auto step = [&](std::int64_t t) {
        engine.train_step([&](std::int64_t) { return HostBatch{ids, ids}; }, {}, 1, t);
      };
      step(1);
      sim::reset_runtime_calls();
      step(2);
      engine.evaluate(HostBatch{ids, ids});
      engine.sample(std::vector<std::int32_t>{1, 2}, SampleOptions{.new_tokens = 3});
      const std::vector<std::string>& calls = sim::runtime_call_names();
      EXPECT_GT(calls.size(), 100u);
      for (const char* allocation : {"cudaMalloc", "cudaHostAlloc", "cudaFree", "cudaFreeHost"})
        EXPECT_EQ(std::count(calls.begin(), calls.end(), allocation), 0) << allocation;
      EXPECT_EQ(sim::allocated_bytes(), taken_bytes);
      EXPECT_EQ(engine.used_device_bytes(), plan.device_bytes());
      EXPECT_EQ(engine.used_host_bytes(), plan.host.bytes);
    }
  }
}

#endif

}  // namespace
}  // namespace qt::test
