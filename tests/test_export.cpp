// Export and import of Hugging Face folders: against transformers' own folders and logits, bit for bit
// against the checkpoint, there and back again, and with files that are damaged on their way.
#include <cmath>
#include <map>
#include <set>

#include "kernels/backend.h"
#include "quant/nf4.h"
#include "src/core/half.h"
#include "src/io/checkpoint.h"
#include "src/io/json.h"
#include "src/io/safetensors.h"
#include "src/io/safetensors_writer.h"
#include "src/train/export.h"
#include "src/train/hf_config.h"
#include "src/train/streamed_forward.h"
#include "src/train/trained_model.h"
#include "tests/support/cli.h"
#include "tests/support/fault_fs.h"

namespace qt::test {
namespace {

namespace fs = std::filesystem;

const std::string kGolden = std::string(QTRAIN_SOURCE_DIR) + "/tests/golden/";

// The message of the error that `body` throws; "" if it throws none of this kind.
template <class Kind, class Body>
std::string message_of(Body&& body) {
  try {
    body();
  } catch (const Kind& e) {
    return e.what();
  }
  return {};
}

LoadedOptions options(const Words& words) { return load_options(words); }

// f32 values of a stored tensor.
std::vector<float> values_of(const StoredTensor& t) {
  std::vector<float> values(static_cast<std::size_t>(t.elems()));
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (t.type == StoredType::f32) {
      std::memcpy(&values[i], t.data + 4 * i, 4);
    } else {
      std::uint16_t bits = 0;
      std::memcpy(&bits, t.data + 2 * i, 2);
      values[i] = t.type == StoredType::bf16 ? to_float(bf16{bits}) : to_float(f16{bits});
    }
  }
  return values;
}

std::vector<std::int32_t> ids_of(const StoredTensor& t) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(t.elems()));
  std::memcpy(ids.data(), t.data, t.bytes);
  return ids;
}

float worst(const std::vector<float>& a, const std::vector<float>& b) {
  EXPECT_EQ(a.size(), b.size());
  float most = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const float off = std::abs(a[i] - b[i]);
    most = off <= most ? most : off;
  }
  return most;
}

std::vector<float> engine_logits(LoadedModel& model, std::vector<std::int32_t> ids) {
  const ModelConfig& c = model.engine->options().model;
  const std::size_t wanted = ids.size() * static_cast<std::size_t>(c.vocab_size);
  ids.resize(static_cast<std::size_t>(c.seq_len), 0);
  std::vector<float> logits(static_cast<std::size_t>(c.seq_len * c.vocab_size));
  model.engine->logits(ids, logits);
  logits.resize(wanted);
  return logits;
}

// File names and hashes.
std::map<std::string, std::string> contents(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(folder))
    files[entry.path().filename()] = InputFile(entry.path()).hash_hex();
  return files;
}

// Params from memory; what a second reader gets can be made to differ.
class MemoryParams : public ParamSource {
 public:
  explicit MemoryParams(const ModelParams& model) {
    std::uint32_t state = 7;
    for (const Param& p : model.params) {
      auto& values = values_.emplace_back(static_cast<std::size_t>(p.elems()));
      for (float& v : values) {
        state = state * 1664525u + 1013904223u;
        v = static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-33f;
      }
    }
  }
  void read(std::size_t index, std::int64_t first, std::span<float> out) override {
    std::copy_n(values_[index].begin() + first, out.size(), out.begin());
    if (++reads_ == change_at) out.front() += 1;
  }

  DType type() const override { return DType::f32; }

  std::vector<std::vector<float>> values_;
  std::int64_t reads_ = 0, change_at = -1;
};

ModelConfig small_config(const std::string& model) {
  const bool gpt = model == "gpt";
  ModelOverrides o{.vocab_size = 265, .seq_len = 24, .n_layer = 2, .n_head = 4, .n_embd = 32};
  if (gpt) o.bias = true;
  return model_by_name(model, o);
}

// --- against transformers --------------------------------------------------------------------------------

class Golden : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Folders, Golden, ::testing::Values("hf_nanochat", "hf_gpt2"),
                         [](const auto& test) { return std::string(test.param); });

TEST_P(Golden, FolderOfTransformersGivesItsLogits) {
  const std::string folder = kGolden + GetParam();
  const Safetensors expected = Safetensors::open(folder + "/expected.safetensors");
  LoadedModel model =
      load_model(options({"--init-from", folder, "--dtype", "f32", "--threads", "1", "--device", "cpu"}),
                 make_backend, 1, true);
  const std::vector<float> want = values_of(expected.get("logits"));
  const float most = std::abs(*std::max_element(want.begin(), want.end(),
                                                [](float a, float b) { return std::abs(a) < std::abs(b); }));
  EXPECT_GT(most, 0.5f);
  const std::vector<std::int32_t> ids = ids_of(expected.get("ids"));
  EXPECT_LE(worst(engine_logits(model, ids), want), 1e-5f * std::max(1.0f, most));

  // The streamed pass, which is written down a second time, says the same.
  const TrainedModel trained = find_trained(options({"--init-from", folder}), Target{});
  const ModelParams params = make_params(trained.config);
  const auto source = open_params(trained, params, WeightsOf::packed);
  EXPECT_LE(worst(streamed_logits(trained.config, params, *source, ids), want), 1e-5f * std::max(1.0f, most));
}

TEST_P(Golden, AnotherEpsWouldShow) {
  const std::string folder = kGolden + GetParam();
  const Safetensors expected = Safetensors::open(folder + "/expected.safetensors");
  TrainedModel trained = find_trained(options({"--init-from", folder}), Target{});
  trained.config.norm_eps *= 1000;
  const ModelParams params = make_params(trained.config);
  const auto source = open_params(trained, params, WeightsOf::packed);
  EXPECT_GT(worst(streamed_logits(trained.config, params, *source, ids_of(expected.get("ids"))),
                  values_of(expected.get("logits"))),
            1e-5f);
}

TEST(Export, StreamedPassEqualsTheEngineOnARun) {
  TempDir dir;
  for (const std::string model : {"nanochat", "gpt"}) {
    const ModelConfig config = small_config(model);
    const ModelParams params = make_params(config);
    MemoryParams source(params);
    export_model(config, source, Tokenizer::make_bytes(), {.folder = dir / model});
    LoadedModel loaded = load_model(
        options({"--init-from", dir / model, "--dtype", "f32", "--threads", "1", "--device", "cpu"}),
        make_backend, 1, true);
    const std::vector<std::int32_t> ids{3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 89, 79, 264};
    EXPECT_LE(worst(engine_logits(loaded, ids), streamed_logits(config, params, source, ids)), 1e-5f)
        << model;
  }
}

// --- what is written -------------------------------------------------------------------------------------

class ExportCli : public Cli {
 protected:
  void train_nanochat() { expect_success(run(train(dir / "run", "3"))); }
  void train_gpt(const Words& more = {}) {
    const Words words{
        "--model",        "gpt",          "--n-layer",        "2",    "--n-head",  "2",
        "--n-embd",       "64",           "--quant",          "nf4",  "--seq-len", "32",
        "--batch-tokens", "128",          "--dtype",          "f32",  "--threads", "1",
        "--eval-tokens",  "256",          "--sample-tokens",  "4",    "--data",    dir / "text.txt",
        "--cache",        dir / "tokens", "--tokenizer-kind", "char", "--steps",   "3",
        "--out",          dir / "run"};
    expect_success(run(words + more));
  }
  Ended exported(const std::string& to, const Words& more = {}) const {
    return run(Words{"export", "--out", dir / "run", "--to", dir / to} + more);
  }
  fs::path checkpoint() const { return fs::path(dir / "run") / checkpoint_name(3); }

  // The weights that forward read, unpacked here and not by the code under test.
  std::vector<float> trained(const std::string& name) const {
    const Safetensors file = Safetensors::open(checkpoint() / "weights.safetensors");
    const StoredTensor& t = file.get(name);
    if (t.type != StoredType::u8) return values_of(t);
    const std::vector<float> scales = values_of(file.get(name + ".absmax"));
    std::vector<float> values(static_cast<std::size_t>(2 * t.elems()));
    Nf4::dequantise(reinterpret_cast<const std::uint8_t*>(t.data), scales.data(), 0,
                    std::span<float>(values));
    return values;
  }
};

TEST_F(ExportCli, WritesEveryTensorOfANanochatByItsName) {
  train_nanochat();
  const Ended ended = exported("hf");
  expect_success(ended);
  expect_words(ended.out,
               {"NanoChatForCausalLM", "packed weights in f32", "read back: 14 tensors", "1 file"});
  const Safetensors file = Safetensors::open(dir / "hf/model.safetensors");
  EXPECT_EQ(file.metadata().at("format"), "pt");
  EXPECT_EQ(file.tensors().size(), 14u);
  const std::pair<const char*, const char*> names[] = {
      {"self_attn.q_proj", "attn.c_q"},    {"self_attn.k_proj", "attn.c_k"}, {"self_attn.v_proj", "attn.c_v"},
      {"self_attn.o_proj", "attn.c_proj"}, {"mlp.fc1", "mlp.c_fc"},          {"mlp.fc2", "mlp.c_proj"}};
  for (int i = 0; i < 2; ++i) {
    for (const auto& [theirs, ours] : names) {
      EXPECT_EQ(values_of(file.get(fmt::format("model.layers.{}.{}.weight", i, theirs))),
                trained(fmt::format("transformer.h.{}.{}.weight", i, ours)))
          << theirs;
    }
  }
  EXPECT_EQ(values_of(file.get("model.embed_tokens.weight")), trained("transformer.wte.weight"));
  EXPECT_EQ(values_of(file.get("lm_head.weight")), trained("lm_head.weight"));
  EXPECT_EQ(file.get("model.layers.1.mlp.fc1.weight").shape, (std::vector<std::int64_t>{512, 128}));

  const Json config = Json::parse(read_text(dir / "hf/config.json"));
  EXPECT_EQ(config["architectures"][0], "NanoChatForCausalLM");
  EXPECT_EQ(config["rms_norm_eps"].get<double>(), 0x1p-23);
  EXPECT_EQ(config["intermediate_size"], 512);
  EXPECT_EQ(config["bos_token_id"], 256);
  EXPECT_EQ(config["dtype"], "float32");
  EXPECT_EQ(Json::parse(read_text(dir / "hf/generation_config.json"))["eos_token_id"], 260);
  EXPECT_EQ(Tokenizer::load(dir / "hf").hash(), Tokenizer::load(dir / "run/tokenizer.txt").hash());
  EXPECT_EQ(contents(dir / "hf").size(), 5u);
}

TEST_F(ExportCli, TurnsGpt2sMatricesRoundAndWritesItsBiases) {
  for (const bool bias : {false, true}) {
    SCOPED_TRACE(bias);
    fs::remove_all(dir / "run");
    train_gpt(bias ? Words{"--bias", "True"} : Words{});
    const std::string to = bias ? "with" : "without";
    expect_success(exported(to));
    const Safetensors file = Safetensors::open(fs::path(dir / to) / "model.safetensors");
    EXPECT_EQ(file.tensors().size(), 2u + 2 * 12 + 2);
    EXPECT_EQ(file.find("lm_head.weight"), nullptr) << "a tied head is stored once";
    const std::vector<float> fused = values_of(file.get("transformer.h.1.attn.c_attn.weight"));
    EXPECT_EQ(file.get("transformer.h.1.attn.c_attn.weight").shape, (std::vector<std::int64_t>{64, 192}));
    const char* parts[] = {"c_q", "c_k", "c_v"};
    for (std::size_t part = 0; part < 3; ++part) {
      const std::vector<float> ours = trained(fmt::format("transformer.h.1.attn.{}.weight", parts[part]));
      for (std::size_t n = 0; n < 64; ++n) {
        for (std::size_t k = 0; k < 64; ++k) ASSERT_EQ(fused[k * 192 + part * 64 + n], ours[n * 64 + k]);
      }
    }
    const std::vector<float> fc = values_of(file.get("transformer.h.0.mlp.c_fc.weight")),
                             our_fc = trained("transformer.h.0.mlp.c_fc.weight");
    EXPECT_EQ(file.get("transformer.h.0.mlp.c_fc.weight").shape, (std::vector<std::int64_t>{64, 256}));
    for (std::size_t n = 0; n < 256; ++n) ASSERT_EQ(fc[5 * 256 + n], our_fc[n * 64 + 5]);
    const std::vector<float> biases = values_of(file.get("transformer.h.0.mlp.c_fc.bias"));
    EXPECT_EQ(biases, bias ? trained("transformer.h.0.mlp.c_fc.bias") : std::vector<float>(256, 0.0f));
    const Json config = Json::parse(read_text(fs::path(dir / to) / "config.json"));
    EXPECT_EQ(config["activation_function"], "gelu");
    EXPECT_EQ(config["layer_norm_epsilon"].get<double>(), 1e-5);
    EXPECT_EQ(config["bias"], bias);
    EXPECT_TRUE(config["bos_token_id"].is_null()) << "characters have no special tokens";
  }
}

TEST_F(ExportCli, CutsShardsAndListsThem) {
  train_nanochat();
  expect_success(exported("whole"));
  expect_success(exported("cut", {"--shard-bytes", "300kB"}));
  const Json index = Json::parse(read_text(dir / "cut/model.safetensors.index.json"));
  const Safetensors whole = Safetensors::open(dir / "whole/model.safetensors");
  std::set<std::string> files;
  std::uint64_t total = 0;
  for (const StoredTensor& t : whole.tensors()) {
    const std::string name = index["weight_map"][t.name];
    files.insert(name);
    const Safetensors shard = Safetensors::open(fs::path(dir / "cut") / name);
    EXPECT_EQ(values_of(shard.get(t.name)), values_of(t)) << t.name;
    total += t.bytes;
  }
  EXPECT_GT(files.size(), 3u);
  for (const std::string& name : files) {
    const Safetensors shard = Safetensors::open(fs::path(dir / "cut") / name);
    std::uint64_t bytes = 0;
    for (const StoredTensor& t : shard.tensors()) bytes += t.bytes;
    EXPECT_LE(bytes, 300'000u);
    EXPECT_NE(name.find(fmt::format("-of-{:05}", files.size())), std::string::npos) << name;
  }
  EXPECT_EQ(index["metadata"]["total_size"], total);
  EXPECT_FALSE(fs::exists(dir / "cut/model.safetensors"));
}

TEST_F(ExportCli, RoundsMastersToNearestInEveryFormat) {
  train_nanochat();
  const Safetensors state = Safetensors::open(checkpoint() / "state.safetensors");
  for (const auto& [format, type] :
       {std::pair{"f32", DType::f32}, {"bf16", DType::bf16}, {"fp16", DType::f16}}) {
    SCOPED_TRACE(format);
    const Ended ended = exported(format, {"--format", format, "--weights", "master"});
    expect_success(ended);
    EXPECT_EQ(ended.out.find("logits move") != std::string::npos, type != DType::f32) << ended.out;
    const Safetensors file = Safetensors::open(fs::path(dir / format) / "model.safetensors");
    std::vector<float> want = values_of(state.get("master.transformer.h.0.mlp.c_fc.weight"));
    for (float& v : want)
      v = type == DType::bf16 ? to_float(to_bf16(v)) : type == DType::f16 ? to_float(to_f16(v)) : v;
    const StoredTensor& t = file.get("model.layers.0.mlp.fc1.weight");
    EXPECT_EQ(t.type, to_stored(type));
    EXPECT_EQ(values_of(t), want);
  }
}

// --- there and back --------------------------------------------------------------------------------------

TEST_F(ExportCli, ExportOfAnImportHasTheSameBytes) {
  train_nanochat();
  expect_success(exported("one"));
  expect_success(run({"export", "--init", dir / "one", "--to", dir / "two"}));
  EXPECT_EQ(contents(dir / "one"), contents(dir / "two"));
  fs::remove_all(dir / "run");
  train_gpt();
  expect_success(exported("three", {"--format", "bf16", "--shard-bytes", "100kB"}));
  expect_success(run({"export", "--init", dir / "three", "--to", dir / "four", "--shard-bytes", "100kB"}));
  EXPECT_EQ(contents(dir / "three"), contents(dir / "four"));
}

TEST_F(ExportCli, RunThatStartsFromAFolderHoldsItsWeightsAndVocabulary) {
  train_nanochat();
  expect_success(exported("hf"));
  const Words more{"--init-from",   dir / "hf",   "--data",          dir / "text.txt",
                   "--cache",       dir / "more", "--batch-tokens",  "128",
                   "--dtype",       "f32",        "--threads",       "1",
                   "--eval-tokens", "256",        "--sample-tokens", "4",
                   "--save-every",  "2",          "--out",           dir / "next"};
  expect_success(run(more + Words{"--steps", "2"}));
  // What it began with, before its first step.
  const std::string begun = (fs::path(dir / "next") / checkpoint_name(0)).string();
  expect_success(run({"export", "--out", begun, "--to", dir / "again"}));
  EXPECT_EQ(contents(dir / "hf"), contents(dir / "again"));
  // It goes on without the folder.
  fs::remove_all(dir / "hf");
  const Ended continued = run(with(more, {"--allow-changes", "--no-fresh"}) + Words{"--steps", "4"});
  expect_success(continued);
  expect_words(continued.out, {"continues"});
}

TEST_F(ExportCli, ImportedModelSamplesAtOnce) {
  train_nanochat();
  expect_success(exported("hf"));
  const Words how{"--prompt", "the ", "--temperature", "0", "--sample-tokens", "12", "--dtype", "f32"};
  const Ended run_says = run(Words{"sample", "--out", dir / "run"} + how);
  const Ended folder_says = run(Words{"sample", "--init-from", dir / "hf"} + how);
  expect_success(run_says);
  expect_success(folder_says);
  EXPECT_EQ(folder_says.out, run_says.out);
  expect_success(run(Words{"sample", "--init", dir / "hf", "--quant", "nf4"} + how));
  // A run that is named goes before the folder it came from.
  const Ended both = run(Words{"sample", "--init-from", dir / "hf", "--out", dir / "run"} + how);
  EXPECT_EQ(both.out, run_says.out);
}

TEST_F(ExportCli, CheckpointCanBeNamedInPlaceOfTheRun) {
  train_nanochat();
  expect_success(exported("newest"));
  expect_success(run({"export", "--out", checkpoint().string() + "/", "--to", dir / "named"}));
  EXPECT_EQ(contents(dir / "newest"), contents(dir / "named"));
  // Without --to it lies in the run.
  expect_success(run({"export", "--out", dir / "run"}));
  EXPECT_EQ(contents(dir / "newest"), contents(dir / "run/hf"));
}

// --- refusals --------------------------------------------------------------------------------------------

TEST_F(ExportCli, RefusesWhatItCannotDo) {
  expect_refusal(run({"export", "--out", dir / "nowhere"}), 2, {"no run folder", dir / "nowhere"});
  fs::create_directory(dir / "empty");
  expect_refusal(run({"export", "--out", dir / "empty"}), 2, {"holds no checkpoint"});
  expect_refusal(run({"export", "--init-from", dir / "empty"}), 2, {"config.json"});
  train_nanochat();
  expect_refusal(exported("x", {"--format", "int8"}), 2, {"--format", "int8", "bf16"});
  expect_refusal(exported("x", {"--weights", "both"}), 2, {"--weights", "both", "master"});
  expect_refusal(run({"eval", "--init-from", dir / "empty"}), 2, {"--init-from"});
  expect_success(exported("hf"));
  expect_refusal(exported("hf"), 2, {"already there", "--overwrite"});
  expect_success(exported("hf", {"--overwrite", "--format", "bf16"}));
  EXPECT_EQ(Json::parse(read_text(dir / "hf/config.json"))["dtype"], "bfloat16");
  // Only an export is replaced.
  write_text(dir / "hf/thesis.txt", "mine");
  expect_refusal(exported("hf", {"--overwrite"}), 2, {"something else", "left alone"});
  EXPECT_EQ(read_text(dir / "hf/thesis.txt"), "mine");
  expect_refusal(exported("text.txt", {"--overwrite"}), 2, {"left alone"});
  EXPECT_FALSE(fs::exists(dir / ".hf.partial"));
}

TEST_F(ExportCli, NamesADamagedCheckpoint) {
  train_nanochat();
  for (const auto& entry : fs::directory_iterator(dir / "run")) {
    if (entry.is_directory()) edit(entry.path() / "weights.safetensors", flip_a_bit);
  }
  expect_refusal(exported("hf"), 4, {"none of its checkpoints can be used", "weights.safetensors"});
  expect_refusal(run({"export", "--out", checkpoint(), "--to", dir / "hf"}), 4, {"weights.safetensors"});
  EXPECT_FALSE(fs::exists(dir / "hf"));
}

TEST_F(ExportCli, NamesWhatIsWrongInAFolder) {
  const auto json = [&](const std::function<void(Json&)>& change) {
    return [change](const fs::path& folder) {
      edit(folder / "config.json", [&](std::string& text) {
        Json parsed = Json::parse(text);
        change(parsed);
        text = parsed.dump();
      });
    };
  };
  const auto index = [&](const std::function<void(Json&)>& change) {
    return [change](const fs::path& folder) {
      edit(folder / "model.safetensors.index.json", [&](std::string& text) {
        Json parsed = Json::parse(text);
        change(parsed);
        text = parsed.dump();
      });
    };
  };
  struct Case {
    const char* golden;
    std::function<void(const fs::path&)> change;
    Words words;
  };
  const Case cases[] = {
      {"hf_nanochat",
       [](const fs::path& f) { edit(f / "model.safetensors", cut_in_half); },
       {"model.safetensors"}},
      {"hf_nanochat", [](const fs::path& f) { edit(f / "config.json", cut_in_half); }, {"config.json"}},
      {"hf_nanochat",
       json([](Json& j) { j["intermediate_size"] = 100; }),
       {"intermediate_size", "100", "96"}},
      {"hf_nanochat", json([](Json& j) { j["hidden_act"] = "silu"; }), {"hidden_act", "silu"}},
      {"hf_nanochat",
       json([](Json& j) { j["final_logit_softcapping"] = nullptr; }),
       {"final_logit_softcapping"}},
      {"hf_nanochat",
       json([](Json& j) { j["rope_parameters"]["rope_theta"] = 1e5; }),
       {"rope_theta", "100000"}},
      {"hf_nanochat",
       json([](Json& j) { j["rope_parameters"]["rope_type"] = "yarn"; }),
       {"rope_type", "yarn"}},
      {"hf_nanochat", json([](Json& j) { j["attention_bias"] = true; }), {"attention_bias"}},
      {"hf_nanochat", json([](Json& j) { j["tie_word_embeddings"] = true; }), {"tie_word_embeddings"}},
      {"hf_nanochat", json([](Json& j) { j["rms_norm_eps"] = -1; }), {"rms_norm_eps"}},
      {"hf_nanochat", json([](Json& j) { j["num_attention_heads"] = 5; }), {"config.json", "5 heads"}},
      {"hf_nanochat", json([](Json& j) { j["num_hidden_layers"] = 3; }), {"model.layers.2", "missing"}},
      {"hf_nanochat", json([](Json& j) { j["num_hidden_layers"] = 1; }), {"model.layers.1", "no part"}},
      {"hf_nanochat",
       json([](Json& j) { j["vocab_size"] = 127; }),
       {"embed_tokens", "[128, 24]", "[127, 24]"}},
      {"hf_nanochat", json([](Json& j) { j["vocab_size"] = "many"; }), {"vocab_size"}},
      {"hf_gpt2", json([](Json& j) { j["activation_function"] = "relu"; }), {"activation_function", "relu"}},
      {"hf_gpt2",
       json([](Json& j) { j["scale_attn_by_inverse_layer_idx"] = true; }),
       {"scale_attn_by_inverse_layer_idx"}},
      {"hf_gpt2", json([](Json& j) { j["n_inner"] = 32; }), {"n_inner"}},
      {"hf_gpt2", json([](Json& j) { j["bias"] = false; }), {"not zero", "bias"}},
      {"hf_gpt2",
       [](const fs::path& f) { fs::remove(f / "model-00002-of-00002.safetensors"); },
       {"model-00002"}},
      {"hf_gpt2",
       index([](Json& j) { j["weight_map"]["transformer.wte.weight"] = "../model.safetensors"; }),
       {"weight_map"}},
      {"hf_gpt2",
       index(
           [](Json& j) { j["weight_map"]["transformer.more.weight"] = "model-00001-of-00002.safetensors"; }),
       {"transformer.more.weight"}},
      {"hf_gpt2", index([](Json& j) { j.erase("weight_map"); }), {"weight_map"}},
      {"hf_gpt2", [](const fs::path& f) { edit(f / "tokenizer.json", cut_in_half); }, {"tokenizer.json"}},
  };
  int number = 0;
  for (const Case& c : cases) {
    SCOPED_TRACE(c.words.front());
    const std::string folder = dir / fmt::format("case{}", number++);
    fs::copy(kGolden + c.golden, folder);
    c.change(folder);
    expect_refusal(run({"sample", "--init-from", folder, "--prompt", "1", "--sample-tokens", "2"}), 4,
                   c.words);
    expect_refusal(run({"export", "--init-from", folder, "--to", dir / "to"}), 4, c.words);
    EXPECT_FALSE(fs::exists(dir / "to"));
  }
}

TEST_F(ExportCli, NamesAWeightThatIsNoNumber) {
  const std::string folder = dir / "nan";
  fs::copy(kGolden + "hf_nanochat", folder);
  edit(fs::path(folder) / "model.safetensors", [](std::string& bytes) {
    const float nan = NAN;
    std::memcpy(bytes.data() + bytes.size() - 4, &nan, 4);
  });
  expect_refusal(run({"export", "--init-from", folder, "--to", dir / "to"}), 4, {"not a finite number"});
  EXPECT_FALSE(fs::exists(dir / "to"));
}

TEST_F(ExportCli, TrainingAsksForTheFamilyThatAFolderHolds) {
  const Words rest{"--data",    dir / "text.txt", "--cache", dir / "tokens", "--out",
                   dir / "run", "--batch-tokens", "64",      "--steps",      "1"};
  expect_refusal(run(Words{"--init-from", kGolden + "hf_gpt2"} + rest), 2, {"GPT", "--model gpt"});
  expect_refusal(run(Words{"--init-from", kGolden + "hf_nanochat", "--model", "gpt"} + rest), 2,
                 {"nanochat", "--model"});
  const Ended ended =
      run(Words{"--init-from", kGolden + "hf_gpt2", "--model", "gpt", "--sample-tokens", "2"} + rest);
  expect_success(ended);
  expect_words(ended.out, {"bpe, 1001 tokens"});
}

// --- guards ----------------------------------------------------------------------------------------------

TEST(Export, ReadingBackFindsWhatIsNotTheSource) {
  TempDir dir;
  const ModelConfig config = small_config("nanochat");
  const ModelParams params = make_params(config);
  const auto try_with = [&](std::int64_t change_at) {
    MemoryParams source(params);
    source.change_at = change_at;
    return message_of<DiskError>([&] {
      export_model(config, source, Tokenizer::make_bytes(), {.folder = dir / fmt::format("to{}", change_at)});
    });
  };
  EXPECT_EQ(try_with(-1), "");
  const auto reads = static_cast<std::int64_t>(params.params.size());  // one for each, all are small
  // A value that was written wrong, one that reads otherwise, and one that only the forward pass meets.
  for (const std::int64_t at : {std::int64_t{1}, reads, reads + 1, 2 * reads}) {
    EXPECT_NE(try_with(at).find("does not read back"), std::string::npos) << at;
    EXPECT_FALSE(fs::exists(dir / fmt::format("to{}", at)));
  }
  EXPECT_NE(try_with(2 * reads + 3).find("logits differ"), std::string::npos);
}

TEST(Export, ValueBeyondFp16IsNamed) {
  TempDir dir;
  const ModelConfig config = small_config("gpt");
  const ModelParams params = make_params(config);
  MemoryParams source(params);
  source.values_[3].front() = 1e5f;
  const ExportOptions how{.folder = dir / "to", .type = DType::f16};
  EXPECT_NE(
      message_of<DataError>([&] { export_model(config, source, Tokenizer::make_bytes(), how); }).find("fp16"),
      std::string::npos);
  EXPECT_FALSE(fs::exists(dir / "to"));
}

TEST(Export, SharedKeysOfAGptCannotBeRepresented) {
  ModelOverrides o{.vocab_size = 265, .seq_len = 24, .n_kv_head = 2, .n_layer = 1, .n_head = 4, .n_embd = 32};
  const ModelConfig config = model_by_name("gpt", o);
  EXPECT_THROW(hf_tensors(config, make_params(config)), ConfigError);
  const ModelConfig nanochat = model_by_name("nanochat", o);
  EXPECT_NO_THROW(hf_tensors(nanochat, make_params(nanochat)));
}

TEST(Export, EveryParamIsInOneTensor) {
  for (const char* name : {"d2", "d4", "gpt2"}) {
    const ModelConfig config = model_by_name(name, {.vocab_size = 300});
    const ModelParams model = make_params(config);
    std::vector<int> times(model.params.size());
    std::int64_t elems = 0;
    for (const HfTensor& t : hf_tensors(config, model)) {
      for (const std::size_t index : t.params) ++times[index];
      if (!t.is_zero()) elems += t.elems();
    }
    EXPECT_EQ(times, std::vector<int>(model.params.size(), 1)) << name;
    EXPECT_EQ(elems, config.param_count()) << name;
  }
}

// Any operation may fail, or be the last one: the place holds nothing, or the whole export.
TEST(Export, FailingDiskLeavesThePlaceAsItWas) {
  TempDir dir;
  const ModelConfig config = small_config("gpt");
  const ModelParams params = make_params(config);
  const Tokenizer tokenizer = Tokenizer::make_bytes();
  const fs::path to = dir / "to";
  MemoryParams old_source(params);
  old_source.values_[0].front() = 3;
  MemoryParams source(params);
  const auto export_on = [&](FileSystem& disk, ParamSource& from, bool overwrite) {
    export_model(config, from, tokenizer, {.folder = to, .overwrite = overwrite}, disk);
  };
  FaultFs counted;
  export_on(counted, source, false);
  const auto whole = contents(to);
  fs::remove_all(to);
  for (const bool replaces : {false, true}) {
    for (const Fault fault : {Fault::fail_once, Fault::crash, Fault::disk_full}) {
      for (std::int64_t at = 0; at < counted.operations() + 10; ++at) {
        fs::remove_all(to);
        std::map<std::string, std::string> before;
        if (replaces) {
          export_on(posix_fs(), old_source, false);
          before = contents(to);
        }
        FaultFs disk(fault, at);
        bool threw = false;
        try {
          export_on(disk, source, replaces);
        } catch (const DiskError&) {
          threw = true;
        }
        const auto after = fs::exists(to) ? contents(to) : std::map<std::string, std::string>{};
        if (!threw) {
          EXPECT_EQ(after, whole);
        } else {
          EXPECT_TRUE(after == before || after == whole) << at;
        }
        // The next one finds its way past what is left.
        export_on(posix_fs(), source, true);
        EXPECT_EQ(contents(to), whole);
      }
    }
  }
}

}  // namespace
}  // namespace qt::test
