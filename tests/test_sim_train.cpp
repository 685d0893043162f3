// Whole runs through the cuda backend, on the simulator: a nanochat with heads of 64 and one with heads of
// 128, packed, by both routes of packed products; a GPT-2 with heads of 48 in fp16. Each is trained,
// evaluated, saved, killed and continued, and ends in the bits of the run that nobody touched. Each loss is
// held against the cpu backend's for the same weights.
//
// Every run is a child process: that is what kill -9 is for, and the simulator keeps one state per process.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "src/io/json.h"
#include "tests/support/run_folder.h"
#include "tests/support/tiny_run.h"

namespace qt::test {
namespace {

constexpr std::int64_t kSteps = 4, kDiesAfter = 3, kSaveEvery = 2;

struct Setup {
  const char* name;
  EngineOptions options;
};

EngineOptions common(ModelConfig model, DType compute, FormatId weights) {
  EngineOptions e;
  model.vocab_size = 265;  // the `bytes` tokenizer
  e.model = model;
  e.memory.compute = compute;
  e.memory.gradient = compute == DType::f16 ? DType::f32 : DType::bf16;
  e.memory.weights = weights;
  e.memory.checkpoint_activations = true;
  e.memory.micro_batch_rows = 1;
  e.optim.name = "adamw8";
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
  ModelOverrides o;
  o.n_layer = 2;
  o.n_head = 2;
  o.n_embd = 96;  // heads of 48
  o.seq_len = 72;
  o.vocab_size = 265;
  o.bias = true;
  o.dropout = 0.1;
  return common(model_by_name("gpt", o), DType::f16, FormatId::none);
}

class SimTrain : public ::testing::Test {
 protected:
  TempDir dir;

  // Trains in a child until the end, or until it kills itself after step `dies_after`. Returns its status.
  int train(const EngineOptions& options, const std::string& backend, const std::string& run,
            std::int64_t dies_after, std::int64_t save_every = kSaveEvery) {
    const pid_t pid = fork();
    if (pid == 0) {
      int code = 1;
      try {
        setenv("QTRAIN_TEST_BACKEND", backend.c_str(), 1);
        train_here(options, run, dies_after, save_every);
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

  void train_here(const EngineOptions& options, const std::string& run, std::int64_t dies_after,
                  std::int64_t save_every) {
    const Target target = test_target(1);
    Engine engine(make_test_backend(target), options, Engine::rehearse(options, target));
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
    Trainer trainer(engine, batches, &validation, data.tokenizer(), o, state);
    trainer.after_step = [&](const RunState& now, const StepStats&) {
      if (now.step == dies_after) raise(SIGKILL);
    };
    trainer.run();
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

TEST_F(SimTrain, ANanochatWithHeadsOf64GivesTheSameBitsAfterAKillByBothRoutes) {
  for (const char* backend : {"sim-fused", "sim-scratch"}) {
    SCOPED_TRACE(backend);
    expect_the_same_bits_after_a_kill(nanochat(64), backend);
  }
}

TEST_F(SimTrain, ANanochatWithHeadsOf128GivesTheSameBitsAfterAKillByBothRoutes) {
  for (const char* backend : {"sim-fused", "sim-scratch"}) {
    SCOPED_TRACE(backend);
    expect_the_same_bits_after_a_kill(nanochat(128), backend);
  }
}

TEST_F(SimTrain, AGpt2InFp16WithHeadsOf48GivesTheSameBitsAfterAKill) {
  for (const char* backend : {"sim-fused", "sim-scratch"}) {
    SCOPED_TRACE(backend);
    expect_the_same_bits_after_a_kill(gpt2(), backend);
  }
}

}  // namespace
}  // namespace qt::test
