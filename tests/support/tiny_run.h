// A run small enough to repeat dozens of times in a test: a nanochat of two layers on a text that is made up
// here.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "src/data/dataset.h"
#include "src/train/engine.h"
#include "src/train/run_log_writer.h"
#include "src/train/trainer.h"
#include "tests/support/test_backend.h"

namespace qt::test {

// A folder of its own per test, removed at the end.
class TempDir {
 public:
  TempDir() {
    std::string name = (std::filesystem::temp_directory_path() / "qtrain-test-XXXXXX").string();
    if (mkdtemp(name.data()) == nullptr) throw std::runtime_error("mkdtemp failed");
    path_ = name;
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

// Prose with enough structure to learn from, the same everywhere.
inline std::string tiny_text(int sentences = 600) {
  const std::vector<std::string> who{"the fox",   "a miller",   "the old king",
                                     "my sister", "one sailor", "the moon"};
  const std::vector<std::string> does{"sees", "follows", "forgets", "paints", "carries", "hears"};
  const std::vector<std::string> what{"the river", "a lamp",        "the red door",
                                      "nothing",   "the long road", "a song"};
  std::string text;
  std::uint32_t state = 12345;
  const auto pick = [&](const std::vector<std::string>& from) {
    state = state * 1664525u + 1013904223u;
    return from[(state >> 16) % from.size()];
  };
  for (int i = 0; i < sentences; ++i) text += pick(who) + " " + pick(does) + " " + pick(what) + ".\n";
  return text;
}

inline void write_text(const std::filesystem::path& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

struct TinyShape {
  bool packed = true;
  bool checkpoint = true;
  bool paged = true;
  int threads = 2;
  DType compute = DType::f32;
  const UpdateRule* rule = &rules::adamw8;
  std::int64_t rows = 2;
  std::int64_t accumulation = 2;
  std::int64_t vocab_size = 265;  // the `bytes` tokenizer
  DType master = DType::f32;
};

inline EngineOptions tiny_engine_options(const TinyShape& shape) {
  EngineOptions e;
  e.model.name = "tiny";
  e.model.n_layer = 2;
  e.model.n_head = 4;
  e.model.n_kv_head = 2;
  e.model.n_embd = 64;
  e.model.vocab_size = shape.vocab_size;
  e.model.seq_len = 32;
  e.layout.compute = shape.compute;
  e.layout.gradient = DType::f32;
  e.layout.weights = shape.packed ? FormatId::nf4 : FormatId::none;
  e.layout.checkpoint_activations = shape.checkpoint;
  e.layout.micro_batch_rows = shape.rows;
  e.optim.rule = shape.rule;
  e.optim.master = shape.master;
  e.optim.peak_lr = {3e-3, 0.02, 0.004, 3e-3};
  e.optim.paged = shape.paged;
  e.accumulation = shape.accumulation;
  e.sample_tokens = 16;
  return e;
}

inline std::unique_ptr<Engine> tiny_engine(const TinyShape& shape) {
  const EngineOptions options = tiny_engine_options(shape);
  const Target target = test_target(shape.threads);
  return std::make_unique<Engine>(make_test_backend(target), options, Engine::rehearse(options, target));
}

// A run of `steps` windows that samples two tokens at its end.
inline TrainerOptions tiny_trainer_options(std::string run_dir, std::int64_t steps, std::int64_t save_every) {
  TrainerOptions o;
  o.run_dir = std::move(run_dir);
  o.schedule = Schedule{.steps = steps};
  o.save.every = save_every;
  o.sample = SampleOptions{.new_tokens = 2};
  return o;
}

// The log of a run; its folder may be missing.
struct TinyLog {
  TinyLog(const std::string& run_dir, bool tensorboard, std::int64_t first_step)
      : writer((std::filesystem::create_directories(run_dir), run_dir), tensorboard, first_step) {}
  RunLogWriter writer;
};

// A trainer whose run is logged, as the train verb wires it; options.events hear of it after the log.
class LoggedTrainer : private TinyLog, public Trainer {
 public:
  LoggedTrainer(Engine& engine, const TokenBatches& train, const EvalBatches* validation,
                const Tokenizer& tokenizer, TrainerOptions options, RunState& state, bool tensorboard = false)
      : TinyLog(options.run_dir, tensorboard, state.step + 1),
        Trainer(engine, train, validation, tokenizer, with(std::move(options), writer), state) {}

 private:
  static TrainerOptions with(TrainerOptions options, RunLogWriter& log) {
    options.events.insert(options.events.begin(), &log);
    return options;
  }
};

// NaN into the embedding's compute copy: every window after it is bad until a restore brings the copy back.
inline void poison(Engine& engine) {
  const Param& wte = engine.model().params().front();
  const std::vector<float> nan(static_cast<std::size_t>(wte.elems()),
                               std::numeric_limits<float>::quiet_NaN());
  engine.backend().upload(std::as_bytes(std::span(nan)), wte.weight.dense.flat());
}

// For Trainer::after_step: poisons the engine after `step`, the first time that it is reached.
inline auto poison_once(Engine& engine, std::int64_t step) {
  return [&engine, step, poisoned = false](const RunState& now, const StepStats&) mutable {
    if (now.step != step || std::exchange(poisoned, true)) return;
    poison(engine);
  };
}

// Token shards of tiny_text() with the `bytes` tokenizer.
class TinyData {
 public:
  explicit TinyData(const std::filesystem::path& dir) {
    write_text(dir / "text.txt", tiny_text());
    DataSpec spec;
    spec.inputs = {(dir / "text.txt").string()};
    spec.tokenizer.kind = TokenizerKind::bytes;
    spec.out_dir = dir / "tokens";
    data_ = std::make_unique<PreparedData>(prepare_data(spec));
  }
  const Tokenizer& tokenizer() const { return *data_->tokenizer; }
  TokenBatches batches(std::int64_t row_tokens, std::uint64_t seed = 1) const {
    return TokenBatches(TokenStream(open_shards(data_->train_shards, tokenizer())), row_tokens, seed);
  }
  EvalBatches validation(std::int64_t row_tokens, std::int64_t tokens = 512) const {
    return EvalBatches(TokenStream(open_shards(data_->val_shards, tokenizer())), row_tokens,
                       tokenizer().token_bytes_table(), tokens);
  }

 private:
  std::unique_ptr<PreparedData> data_;
};

}  // namespace qt::test
