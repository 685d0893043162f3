// Exports and imports that are refused: usage, damaged folders, disks that fail at any operation; and that
// the reading back finds what it looks for.
#include <cmath>

#include "src/core/log.h"
#include "tests/support/export_fixture.h"
#include "tests/support/fault_fs.h"

namespace qt::test {
namespace {

namespace fs = std::filesystem;

// --- refusals --------------------------------------------------------------------------------------------

TEST_F(ExportCli, RefusesWhatItCannotDo) {
  expect_refusal(run({"export", "--out", dir / "nowhere"}), 2, {"no run folder", dir / "nowhere"});
  fs::create_directory(dir / "empty");
  expect_refusal(run({"export", "--out", dir / "empty"}), 2, {"holds no checkpoint"});
  expect_refusal(run({"export", "--init-from", dir / "empty"}), 2, {"config.json"});
  expect_refusal(run({"export", "--init-from", kGolden + "hf_gpt2"}), 2, {"--to"});
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
    const fs::path weights = entry.path() / "weights.safetensors";
    if (fs::exists(weights)) edit(weights, flip_a_bit);
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
      {"hf_nanochat", json([](Json& j) { j["num_hidden_layers"] = 1 << 29; }), {"config.json", "--n-layer"}},
      {"hf_nanochat",
       json([](Json& j) { j["hidden_size"] = 1 << 20, j["intermediate_size"] = 1 << 22; }),
       {"config.json"}},
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
      {"hf_gpt2", json([](Json& j) { j["n_inner"] = 31; }), {"n_inner"}},
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
  ModelShape o{.vocab_size = 265, .seq_len = 24, .n_kv_head = 2, .n_layer = 1, .n_head = 4, .n_embd = 32};
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
  set_log_level(LogLevel::error);  // what cannot be removed is told each time
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
      // A single failure anywhere; from there on nothing, at every third place.
      const std::int64_t step = fault == Fault::fail_once ? 1 : 3;
      for (std::int64_t at = 0; at < counted.operations() + 10; at += step) {
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
  set_log_level(LogLevel::info);
}

}  // namespace
}  // namespace qt::test
