// NaN and infinity in gradients: none reaches a weight or a moment, every one is in the log, and a run that
// meets nothing else stops after three restores. POISONS in the environment sets how many windows are
// poisoned
// (`scripts/prove nan` runs 1,000).
//
// The poison is put into a random element of the gradients after a random op of the window's forward and
// backward passes, as a broken kernel or a flipped bit would.
#include <array>
#include <bit>
#include <cstdio>
#include <random>
#include <set>

#include <gtest/gtest.h>

#include "src/io/json.h"
#include "src/train/trainer.h"
#include "tests/support/mini_engine.h"
#include "tests/support/process.h"
#include "tests/support/tiny_run.h"

namespace qt::test {
namespace {

// Quiet, negative and signalling NaN, both infinities; as bf16 the upper half of each says the same.
constexpr std::array<std::uint32_t, 5> kPoisons = {0x7FC00000, 0xFFC00001, 0x7F810000, 0x7F800000,
                                                   0xFF800000};

// Puts poison into the gradients of an engine's windows. It listens to the backend's ops and counts them.
class Poisoner {
 public:
  explicit Poisoner(Engine& engine) : engine_(engine) {
    engine.backend().set_observer([this](const char*, const Cost&, double) { on_op(); });
  }
  ~Poisoner() { engine_.backend().set_observer({}); }
  Poisoner(const Poisoner&) = delete;
  Poisoner& operator=(const Poisoner&) = delete;

  // Before a window: whether it will be poisoned.
  void begin_window(bool poisoned) {
    ops_ = 0;
    target_ = poisoned ? std::uniform_int_distribution<int>(kFirstOp, window_ops_ - 1)(random_) : -1;
  }
  // Ops of a window until its gradients are complete, from one that is run for this.
  void measure_window(const Engine::FetchBatch& fetch) {
    begin_window(false);
    engine_.accumulate(fetch, {});
    window_ops_ = ops_;
  }
  int injected() const { return injected_; }

  void poison_now() {
    const ParamList& params = engine_.model().params();
    const Param& p = params[random_() % params.size()];
    const std::uint32_t bits = kPoisons[random_() % kPoisons.size()];
    const auto half = static_cast<std::uint16_t>(bits >> 16);
    const auto element = static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(p.elems()));
    const bool wide = p.grad.dtype == DType::f32;
    engine_.backend().upload(wide ? std::as_bytes(std::span(&bits, 1)) : std::as_bytes(std::span(&half, 1)),
                             p.grad.flat(element, 1));
    ++injected_;
  }

 private:
  // The first two ops clear the gradients and the sums; poison before that would be wiped out.
  static constexpr int kFirstOp = 3;

  void on_op() {
    if (++ops_ == target_) poison_now();
  }

  Engine& engine_;
  std::mt19937_64 random_{20251117};
  int ops_ = 0, target_ = -1, window_ops_ = 0, injected_ = 0;
};

class NanInjection : public ::testing::Test {
 protected:
  TempDir dir;
  TinyData data{dir.path()};
  TokenBatches batches = data.batches(32);

  void SetUp() override { set_log_level(LogLevel::error); }
  void TearDown() override { set_log_level(LogLevel::info); }

  static std::unique_ptr<Engine> make_engine(DType gradient) {
    EngineOptions e = tiny_engine_options({.rows = 1});
    e.layout.gradient = e.layout.compute = gradient;
    e.model.n_embd = 32;
    const Target target = test_target(1);
    return std::make_unique<Engine>(make_test_backend(target), e, Engine::rehearse(e, target));
  }

  Engine::FetchBatch some_batch(const Engine& engine) {
    const auto tokens = static_cast<std::size_t>(engine.options().micro_batch_tokens());
    ids_.resize(tokens);
    targets_.resize(tokens);
    batches.fill(0, engine.options().layout.micro_batch_rows, ids_, targets_);
    return [this](std::int64_t) { return HostBatch{ids_, targets_}; };
  }

  TrainerOptions options(const std::string& name, std::int64_t steps) {
    return tiny_trainer_options(dir / name, steps, 50);
  }

  std::vector<Json> log_of(const std::string& name) {
    std::vector<Json> records;
    std::ifstream in(dir / name + "/log.jsonl");
    for (std::string line; std::getline(in, line);) records.push_back(parse_json(line, "log.jsonl"));
    return records;
  }

 private:
  std::vector<std::int32_t> ids_, targets_;
};

void print_result(const std::string& gradients, int poisoned, int changed, std::size_t logged) {
  std::printf("%s gradients: %d windows poisoned, %d reached the state, %zu logged\n", gradients.c_str(),
              poisoned, changed, logged);
}

TEST_F(NanInjection, NoneReachesAWeightOrAMomentAndAllAreLogged) {
  for (const DType gradient : {DType::f32, DType::bf16}) {
    const std::string name(dtype_name(gradient));
    const int wanted = repeats("POISONS", 60) / 2;
    const auto engine = make_engine(gradient);
    Poisoner poisoner(*engine);
    engine->init_weights(7);
    poisoner.measure_window(some_batch(*engine));

    RunState state;
    std::mt19937_64 random(11);
    int poisoned_in_a_row = 0, poisoned = 0, changed = 0, unchanged = 0;
    std::set<std::int64_t> poisoned_steps;
    std::string before = state_hash(*engine);
    const auto next_window = [&](std::int64_t step) {
      // Three in a row would be taken for divergence.
      const bool poison = poisoned < wanted && poisoned_in_a_row < 2 && random() % 3 != 0;
      poisoned_in_a_row = poison ? poisoned_in_a_row + 1 : 0;
      if (poison) poisoned_steps.insert(step + 1);
      poisoned += poison ? 1 : 0;
      poisoner.begin_window(poison);
    };
    LoggedTrainer trainer(*engine, batches, nullptr, data.tokenizer(), options(name, 3 * wanted), state);
    trainer.after_step = [&](const RunState& now, const StepStats& stats) {
      const std::string after = state_hash(*engine);
      const bool bad = poisoned_steps.count(now.step) > 0;
      EXPECT_EQ(stats.finite, !bad) << "step " << now.step;
      changed += bad && after != before ? 1 : 0;
      unchanged += !bad && after == before ? 1 : 0;
      before = after;
      next_window(now.step);
    };
    next_window(0);
    trainer.run();

    std::set<std::int64_t> logged;
    for (const Json& record : log_of(name)) {
      if (json_string(record, "kind", "log") == "step" && json_bool(record, "skipped", "log"))
        logged.insert(json_int(record, "step", "log"));
    }
    print_result(name, poisoned, changed, logged.size());
    EXPECT_EQ(poisoned, wanted);
    EXPECT_EQ(poisoner.injected(), wanted);
    EXPECT_EQ(changed, 0);
    EXPECT_EQ(unchanged, 0) << "windows without poison must train";
    EXPECT_EQ(logged, poisoned_steps);
    EXPECT_EQ(state.restores, 0);
    EXPECT_EQ(state.applied, state.step - wanted);
    // Loading refuses a number that is not finite: what was saved holds none.
    std::string explanation;
    const CheckpointStore store(dir / name, 2);
    EXPECT_NO_THROW(store.load(store.newest(explanation), *engine));
    EXPECT_EQ(state_hash(*engine), before);
  }
}

TEST_F(NanInjection, ThreeInARowRestoreAndThreeRestoresEndTheRun) {
  const auto engine = make_engine(DType::f32);
  Poisoner poisoner(*engine);
  engine->init_weights(7);
  poisoner.measure_window(some_batch(*engine));
  RunState state;
  TrainerOptions o = options("run", 1000);
  o.save.every = 4;
  std::string saved;
  LoggedTrainer trainer(*engine, batches, nullptr, data.tokenizer(), o, state);
  trainer.after_step = [&](const RunState& now, const StepStats&) {
    if (now.step == 8 && saved.empty()) saved = state_hash(*engine);
    poisoner.begin_window(now.step >= 8);
  };
  poisoner.begin_window(false);
  try {
    trainer.run();
    FAIL() << "poisoned for ever, it must stop";
  } catch (const DivergedError& e) {
    EXPECT_EQ(e.code(), ExitCode::diverged);
  }
  EXPECT_EQ(state.restores, 3);
  int restores = 0, diverged = 0, skipped = 0;
  for (const Json& record : log_of("run")) {
    const std::string kind = json_string(record, "kind", "log");
    restores += kind == "restore" ? 1 : 0;
    diverged += kind == "diverged" ? 1 : 0;
    skipped += kind == "step" && json_bool(record, "skipped", "log") ? 1 : 0;
  }
  EXPECT_EQ(restores, 3);
  EXPECT_EQ(diverged, 1);
  EXPECT_EQ(skipped, 12) << "three windows before each restore, three before the end";
  EXPECT_EQ(poisoner.injected(), 12);
  std::string explanation;
  const CheckpointStore store(dir / "run", 2);
  EXPECT_EQ(store.load(store.newest(explanation), *engine).step, 8);
  EXPECT_EQ(state_hash(*engine), saved);
}

// The control: the same poison behind the norm's back.
TEST_F(NanInjection, AfterTheNormWasTakenItDestroysTheState) {
  const auto engine = make_engine(DType::f32);
  Poisoner poisoner(*engine);
  const auto fetch = some_batch(*engine);
  const CheckpointStore store(dir / "control", 2);
  int destroyed = 0;
  for (int i = 0; i < 20; ++i) {
    engine->init_weights(7);
    engine->accumulate(fetch, {});
    EXPECT_TRUE(engine->measure(1.0, 1).finite);
    poisoner.poison_now();
    try {
      engine->update();
    } catch (const DivergedError&) {
      ++destroyed;  // found while packing the matrix: it is in the master by then
      continue;
    }
    CheckpointStore(dir / "control", 2).save(*engine, state_at(i));
    std::string explanation;
    try {
      store.load(store.newest(explanation), *engine);
    } catch (const DataError&) {
      ++destroyed;
    }
  }
  EXPECT_EQ(destroyed, 20);
}

}  // namespace
}  // namespace qt::test
