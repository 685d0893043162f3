// Export and import of Hugging Face folders: against transformers' own folders and logits, bit for bit
// against the checkpoint, and there and back again. Refusals and failing disks: test_export_errors.cpp.
#include <cmath>
#include <set>

#include "kernels/backend.h"
#include "quant/nf4.h"
#include "src/cli/trained_model.h"
#include "src/convert/export_check.h"
#include "tests/support/export_fixture.h"

namespace qt::test {
namespace {

namespace fs = std::filesystem;

LoadedOptions options(const Words& words) { return load_options(words); }

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
  const ModelParams params = make_params(trained.engine.model);
  const auto source = open_params(trained, params, WeightsOf::packed);
  EXPECT_LE(worst(streamed_logits(trained.engine.model, params, *source, ids), want),
            1e-5f * std::max(1.0f, most));
}

TEST_P(Golden, AnotherEpsWouldShow) {
  const std::string folder = kGolden + GetParam();
  const Safetensors expected = Safetensors::open(folder + "/expected.safetensors");
  TrainedModel trained = find_trained(options({"--init-from", folder}), Target{});
  trained.engine.model.norm_eps *= 1000;
  const ModelParams params = make_params(trained.engine.model);
  const auto source = open_params(trained, params, WeightsOf::packed);
  EXPECT_GT(worst(streamed_logits(trained.engine.model, params, *source, ids_of(expected.get("ids"))),
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
    // Few tokens and many take different ways.
    for (const std::vector<std::int32_t>& ids :
         {std::vector<std::int32_t>{3, 1, 4, 264}, {3, 1, 4, 1, 5, 9, 2, 6, 5, 35, 89, 79, 264}})
      EXPECT_LE(worst(engine_logits(loaded, ids), streamed_logits(config, params, source, ids)), 1e-5f)
          << model;
  }
}

// --- what is written -------------------------------------------------------------------------------------

class ExportedWeights : public ExportCli {
 protected:
  // The weights that forward read, unpacked here and not by the code under test.
  std::vector<float> trained(const std::string& name) const {
    const Safetensors file = Safetensors::open(checkpoint() / "weights.safetensors");
    const StoredTensor& t = file.get(name);
    if (t.type != StoredType::u8) return values_of(t);
    const std::vector<float> scales = values_of(file.get(name + ".absmax"));
    std::vector<float> values(static_cast<std::size_t>(2 * t.elems()));
    Nf4::dequantize(reinterpret_cast<const std::uint8_t*>(t.data), scales.data(), 0,
                    std::span<float>(values));
    return values;
  }
};

TEST_F(ExportedWeights, WritesEveryTensorOfANanochatByItsName) {
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

TEST_F(ExportedWeights, TurnsGpt2sMatricesRoundAndWritesItsBiases) {
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
  // The shape is the folder's, whatever is typed.
  expect_success(run(Words{"sample", "--init", dir / "hf", "--model", "gpt"} + how));
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

}  // namespace
}  // namespace qt::test
