// A family that no production file knows (tests/support/toy_family.h) through everything that a family is asked
// for: names and messages, options, parameters, a training step, plans and exports.
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "src/convert/export.h"
#include "src/convert/export_check.h"
#include "src/convert/hf_config.h"
#include "src/io/json.h"
#include "src/io/safetensors.h"
#include "src/model/family.h"
#include "src/options/nanogpt.h"
#include "src/plan/planner.h"
#include "tests/support/engine_fixture.h"
#include "tests/support/temp_dir.h"

namespace qt::test {
namespace {

ModelConfig small_toy() { return model_by_name("toy-small", {.n_kv_head = 1}); }

using Weights = std::vector<Floats>;

class WeightSource : public ParamSource {
 public:
  explicit WeightSource(const Weights& weights) : weights_(weights) {}
  void read(std::size_t index, std::int64_t first, std::span<float> out) override {
    std::copy_n(weights_[index].begin() + first, out.size(), out.begin());
  }
  DType type() const override { return DType::f32; }

 private:
  const Weights& weights_;
};

Weights lively(const ModelParams& model) {
  Weights weights;
  for (const Param& p : model.params) {
    weights.push_back(lively_weights(p));
    if (p.group != ParamGroup::norm) continue;
    for (float& x : weights.back()) x += 1;
  }
  return weights;
}

// --- names -----------------------------------------------------------------------------------------------

TEST(ToyFamily, IsFoundByItsNames) {
  EXPECT_EQ(all_families().size(), 3u);
  const ModelConfig small = model_by_name("toy-small");
  EXPECT_EQ(small.family, &families::toy);
  EXPECT_EQ(small.n_embd, 32);
  EXPECT_EQ(small.vocab_size, 96);
  EXPECT_EQ(default_seq_len("toy"), 16);
  EXPECT_EQ(model_vocab_size("toy-small", 9), 9);
  EXPECT_EQ(model_vocab_size("toy-small", 17), 24);
  EXPECT_EQ(small.head_dim(), 24);
  EXPECT_EQ(small.mlp_width(), 40);
  EXPECT_EQ(model_by_name("toy", {.n_layer = 1, .n_head = 2, .n_embd = 64}).mlp_width(), 256);
  EXPECT_NE(message_of<ConfigError>([] { model_by_name("toy-large", {.n_layer = 1}); }).find("its name"),
            std::string::npos);
  EXPECT_EQ(model_by_name("d4").family, &families::nanochat);
  EXPECT_NE(message_of<ConfigError>([] { model_by_name("toy"); }).find("--n-layer"), std::string::npos);
  EXPECT_NE(message_of<ConfigError>([] {
              model_by_name("toy", {.n_layer = 1, .n_head = 1, .n_embd = 16, .bias = true});
            }).find("biases"),
            std::string::npos);
}

TEST(ToyFamily, IsListedWhereAModelDoesNotExist) {
  try {
    model_by_name("toy-medium");
    ADD_FAILURE() << "accepted";
  } catch (const ConfigError& e) {
    EXPECT_NE(e.hint().find("gpt2-xl, toy-small, toy-large, or toy (or "), std::string::npos) << e.hint();
  }
}

TEST(ToyFamily, TrainsWithItsDefaults) {
  LoadedOptions loaded;
  loaded.options.model = "toy-small";
  loaded.options.beta1 = 0.7;
  loaded.source["beta1"] = OptionSource::command_line;
  settle_nanogpt_words(loaded);
  EXPECT_EQ(loaded.options.beta1, 0.7);
  EXPECT_EQ(loaded.options.beta2, 0.99);
  EXPECT_EQ(loaded.options.learning_rate, 0.01);
  EXPECT_EQ(loaded.origin_of("beta2"), "default of toy models");
}

// --- parameters ------------------------------------------------------------------------------------------

TEST(ToyFamily, HasItsParameters) {
  const ModelConfig config = small_toy();
  const ModelParams model = make_params(config);
  std::vector<std::string> names;
  std::int64_t elems = 0;
  for (const Param& p : model.params) {
    names.push_back(p.name);
    elems += p.elems();
  }
  const std::vector<std::string> first = {"tokens.weight",
                                          "block.0.before_attention.weight",
                                          "block.0.query.weight",
                                          "block.0.key.weight",
                                          "block.0.value.weight",
                                          "block.0.mixed.weight",
                                          "block.0.before_mlp.weight",
                                          "block.0.gate.weight",
                                          "block.0.up.weight",
                                          "block.0.down.weight"};
  ASSERT_EQ(names.size(), 1u + 2 * 9 + 2);
  EXPECT_EQ(std::vector(names.begin(), names.begin() + 10), first);
  EXPECT_EQ(names[19], "last_norm.weight");
  EXPECT_EQ(names[20], "unembed.weight");
  EXPECT_EQ(elems, config.param_count());
  EXPECT_EQ(model.params[0].init.stddev, 0.5f);
  EXPECT_EQ(model.params[2].init.stddev, 0.125f);
  EXPECT_EQ(model.params[5].init.stddev, 0.125f) << "0.25 by two layers";
  EXPECT_EQ(model.params[20].init.stddev, 0.25f);
  EXPECT_EQ(config.model_flops_per_token(),
            6.0 * static_cast<double>(config.param_count() - 96 * 32) + 12.0 * 2 * 48 * 16);
}

// --- training --------------------------------------------------------------------------------------------

struct Rig {
  ModelConfig config = small_toy();
  ModelParams model = make_params(config);
  Weights weights = lively(model);
  std::vector<std::int32_t> ids = random_ids(16, 96, 3), targets = random_ids(16, 96, 4);

  EngineOptions options() const {
    EngineOptions o;
    o.model = config;
    o.layout.micro_batch_rows = 1;
    o.with_logits = true;
    o.optim.rule = &rules::adamw;
    o.optim.max_norm = 0;
    o.optim.peak_lr = {1e-3, 1e-3, 1e-3, 1e-3};
    return o;
  }
  Engine::FetchBatch fetch() const {
    return [this](std::int64_t) { return HostBatch{ids, targets}; };
  }
  void set(TestEngine& engine) const {
    std::size_t i = 0;
    engine.set_masters([&](const Param&) { return weights[i++]; });
  }

  Floats oracle_logits(const Weights& w) const {
    WeightSource source(w);
    return streamed_logits(config, model, source, ids);
  }
  // Mean over targets, by the oracle's logits.
  double oracle_loss(const Weights& w) const {
    const Floats logits = oracle_logits(w);
    double sum = 0;
    for (std::size_t t = 0; t < targets.size(); ++t) {
      double total = 0;
      for (std::size_t v = 0; v < 96; ++v) total += std::exp(static_cast<double>(logits[t * 96 + v]));
      sum += std::log(total) - static_cast<double>(logits[t * 96 + static_cast<std::size_t>(targets[t])]);
    }
    return sum / static_cast<double>(targets.size());
  }
};

TEST(ToyFamily, ComputesWhatTheOracleDoes) {
  const Rig rig;
  TestEngine engine(rig.options());
  rig.set(engine);
  const Floats got = engine.logits(rig.ids), want = rig.oracle_logits(rig.weights);
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], want[i], 2e-5) << i;
}

// Along the gradient of each param the oracle's loss rises as steeply as the gradient is long.
TEST(ToyFamily, HasTheGradientsOfTheOraclesLoss) {
  const Rig rig;
  TestEngine engine(rig.options());
  rig.set(engine);
  engine->accumulate(rig.fetch(), {});
  EXPECT_NEAR(engine->measure(1.0, 1).loss, rig.oracle_loss(rig.weights), 1e-5);
  constexpr double kStep = 0.02;
  std::size_t index = 0;
  for (const Param& p : engine->model().params()) {
    const Floats g = engine.gradient(p);
    double squares = 0;
    for (const float x : g) squares += static_cast<double>(x) * static_cast<double>(x);
    const double norm = std::sqrt(squares);
    ASSERT_GT(norm, 1e-3) << p.name;
    const auto loss_at = [&](double distance) {
      Weights moved = rig.weights;
      for (std::size_t i = 0; i < g.size(); ++i)
        moved[index][i] += static_cast<float>(distance * static_cast<double>(g[i]) / norm);
      return rig.oracle_loss(moved);
    };
    EXPECT_NEAR((loss_at(kStep) - loss_at(-kStep)) / (2 * kStep) / norm, 1, 0.01) << p.name;
    ++index;
  }
}

TEST(ToyFamily, StepOfTrainingLowersTheLoss) {
  const Rig rig;
  TestEngine engine(rig.options());
  rig.set(engine);
  EXPECT_TRUE(engine->train_step(rig.fetch(), {}, 1.0, 1).finite);
  Weights after;
  for (const Param& p : rig.model.params) after.push_back(engine.state("master." + p.name));
  EXPECT_LT(rig.oracle_loss(after), rig.oracle_loss(rig.weights) - 0.01);
}

// --- Hugging Face ----------------------------------------------------------------------------------------

TEST(ToyFamily, GoesToHuggingFaceAndBack) {
  const TempDir dir;
  const std::filesystem::path folder = dir / "hf";
  const ModelConfig config = small_toy();
  const ModelParams model = make_params(config);
  const Weights weights = lively(model);
  WeightSource source(weights);
  // Reads back what it wrote, and compares tensors and logits.
  EXPECT_EQ(export_model(config, source, Tokenizer::make_bytes(), {.folder = folder}).tensors, 1 + 2 * 6 + 2);

  const Json json = read_json_file(folder / "config.json");
  EXPECT_EQ(json["architectures"][0], "ToyForCausalLM");
  EXPECT_EQ(json["num_key_value_heads"], 1);
  EXPECT_EQ(json["head_dim"], 24);
  EXPECT_EQ(json["intermediate_size"], 40);
  EXPECT_EQ(json["rope_parameters"]["rope_theta"], 5000.0);
  const Safetensors file = Safetensors::open(folder / "model.safetensors");
  EXPECT_EQ(file.get("model.layers.1.attention.qkv.weight").shape, (std::vector<std::int64_t>{96, 32}));
  EXPECT_EQ(file.get("model.layers.1.mlp.gate_up.weight").shape, (std::vector<std::int64_t>{80, 32}));
  EXPECT_EQ(file.get("model.norm.weight").shape, (std::vector<std::int64_t>{32}));

  ASSERT_TRUE(is_hf_folder(folder));
  Options options;
  set_hf_shape(folder, options);
  EXPECT_EQ(options.model, "toy-small");
  const ModelConfig read = model_from_options(options, 0);
  EXPECT_EQ(read.family, &families::toy);
  EXPECT_EQ(read.n_kv_head, 1);
  EXPECT_EQ(hf_config_json(read, {}, DType::f32), hf_config_json(config, {}, DType::f32));
  EXPECT_EQ(hf_model_types(), "nanochat or gpt2 or toy");
}

}  // namespace
}  // namespace qt::test
