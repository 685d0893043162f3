// The program with models of the gpt family, as nanoGPT users type it: their words, their token files, their
// weights.
#include <cstring>

#include "src/io/checkpoint.h"
#include "src/io/file_system.h"
#include "src/io/safetensors.h"
#include "src/io/safetensors_writer.h"
#include "tests/support/cli.h"

namespace qt::test {
namespace {

namespace fs = std::filesystem;

class CliGpt : public Cli {
 protected:
  // A tiny model, every word nanoGPT's.
  Words words(const std::string& out, const std::string& iters = "4") const {
    return {"--model",      "gpt", "--n_layer",    "2", "--n_head",       "2",   "--n_embd",        "20",
            "--block_size", "32",  "--batch_size", "4", "--max_iters",    iters, "--dtype",         "float32",
            "--eval_iters", "2",   "--threads",    "1", "--warmup_iters", "1",   "--sample-tokens", "4",
            "--save-every", "2",   "--out_dir",    out};
  }
  Words text() const {
    return {"--data", dir / "text.txt", "--cache", dir / "tokens", "--tokenizer-kind", "char"};
  }

  // nanoGPT's files: uint16 tokens and nothing else.
  void write_bins(const std::string& folder, int vocab) const {
    fs::create_directory(folder);
    for (const char* name : {"train.bin", "val.bin"}) {
      std::string bytes;
      for (int i = 0; i < 4000; ++i) {
        const auto token = static_cast<std::uint16_t>((i * i + i / 7) % vocab);
        bytes += std::string(reinterpret_cast<const char*>(&token), 2);
      }
      write_text(folder + "/" + name, bytes);
    }
  }
};

TEST_F(CliGpt, TrainsStopsContinuesSamplesAndEvaluates) {
  const Ended straight = run(words(dir / "straight") + text());
  expect_success(straight);
  expect_words(straight.out, {"gpt gpt: ", "bits per byte", "4/4"});
  EXPECT_EQ(run(words(dir / "run") + text() + Words{"--stop-after", "0.000001s"}).code, 75);
  const Ended continued = run(words(dir / "run") + text());
  expect_success(continued);
  EXPECT_EQ(state_of(continued), state_of(straight));
  expect_success(run({"sample", "--out", dir / "run", "--prompt", "the", "--sample-tokens", "5"}));
  const Ended eval = run({"eval", "--out", dir / "run"});
  expect_success(eval);
  expect_words(eval.out, {"step 4: ", "bits per byte"});
}

TEST_F(CliGpt, TrainsInFp16WithDropoutAndBiasesAndContinuesBitForBit) {
  const Words half =
      with(words(dir / "run"), {"--dtype", "float16"}) + text() + Words{"--bias", "True", "--dropout", "0.2"};
  const Ended straight = run(half);
  expect_success(straight);
  fs::remove_all(fs::path(dir / "run") / checkpoint_name(4));
  const Ended continued = run(half);
  expect_success(continued);
  expect_words(continued.out, {"continues", checkpoint_name(2)});
  EXPECT_EQ(state_of(continued), state_of(straight));
  const Ended dry = run(with(half, {"--out_dir", dir / "dry", "--dropout", "0"}));
  expect_success(dry);
  EXPECT_NE(state_of(dry), state_of(straight));
}

TEST_F(CliGpt, TakesNanoGptsTokenFilesAsTheyAre) {
  write_bins(dir / "bins", 50);
  const Words bins = words(dir / "run") + Words{"--data", dir / "bins"};
  expect_refusal(run(bins), 2, {dir / "bins", "--vocab-size", "--tokenizer"});
  const Ended ended = run(bins + Words{"--vocab-size", "64", "--data-order", "random"});
  expect_success(ended);
  expect_words(ended.out, {"validation at step 4: loss", "ids, 64 tokens"});
  EXPECT_EQ(ended.out.find("bits per byte"), std::string::npos) << "the bytes of these tokens are unknown";
  EXPECT_EQ(read_text(dir / "run/log.jsonl").find("val_bpb"), std::string::npos);
  const Ended eval = run({"eval", "--out", dir / "run"});
  expect_success(eval);
  EXPECT_EQ(eval.out.find("bits per byte"), std::string::npos);
  expect_success(run({"sample", "--out", dir / "run", "--prompt", "3 4 5", "--sample-tokens", "4"}));
  expect_refusal(run({"sample", "--out", dir / "run", "--prompt", "three"}), 2, {"--prompt"});
  // Another order is another run.
  expect_refusal(run(bins + Words{"--vocab-size", "64"}), 2, {"data-order: random -> shuffle"});
  // A token beyond the vocabulary is named, not trained on.
  expect_refusal(run(with(bins, {"--out_dir", dir / "small", "--vocab-size", "40"})), 4, {"train.bin", "40"});
}

TEST_F(CliGpt, StartsFromTheWeightsOfAnother) {
  const Ended first = run(words(dir / "first") + text());
  expect_success(first);
  // The masters under their own names are what tools/convert_nanogpt.py writes.
  const Safetensors state =
      Safetensors::open(fs::path(dir / "first") / checkpoint_name(4) / "state.safetensors");
  const Safetensors shapes =
      Safetensors::open(fs::path(dir / "first") / checkpoint_name(4) / "weights.safetensors");
  const std::string folder = dir / "weights";
  const auto convert = [&](const std::string& leave_out, std::int64_t cut_vector) {
    std::vector<TensorSpec> specs;
    std::vector<const StoredTensor*> sources;
    for (const StoredTensor& t : shapes.tensors()) {
      if (t.name == leave_out) continue;
      std::vector<std::int64_t> shape = t.shape;
      if (shape.front() == 1) shape = {shape.back() - cut_vector};  // vectors have one size there
      specs.push_back({t.name, StoredType::f32, shape});
      sources.push_back(&state.get("master." + t.name));
    }
    fs::create_directories(folder);
    OutputFile out(posix_fs(), fs::path(folder) / "model.safetensors", OutputFile::Existing::replace);
    SafetensorsWriter writer(out, specs, {});
    for (std::size_t i = 0; i < specs.size(); ++i) {
      std::int64_t elems = 1;
      for (const std::int64_t size : specs[i].shape) elems *= size;
      writer.write(specs[i].name, std::span(sources[i]->data, static_cast<std::size_t>(4 * elems)));
    }
    writer.finish();
    out.finish();
  };
  const auto start = [&](const std::string& out) {
    return run(with(words(dir / out, "1"), {"--learning_rate", "1e-30"}) + text() +
               Words{"--init_from", folder});
  };
  convert("", 0);
  const Ended second = start("second");
  expect_success(second);
  // At no rate to speak of the loss stays that of the weights it began with.
  const auto loss = [](const Ended& e) {
    return e.out.substr(e.out.rfind("loss ", e.out.rfind("over")), 11);
  };
  EXPECT_EQ(loss(second), loss(first));
  EXPECT_NE(loss(run(with(words(dir / "fresh", "1"), {"--learning_rate", "1e-30"}) + text())), loss(first));

  // Our own checkpoints do as well: the masters in them.
  const Ended own = run(with(words(dir / "own", "1"), {"--learning_rate", "1e-30"}) + text() +
                        Words{"--init_from", dir / "first/step-000000004"});
  expect_success(own);
  EXPECT_EQ(loss(own), loss(first));

  // A pickle is named as such, before any text is tokenized.
  write_text(dir / "ckpt.pt", "PK pickle");
  expect_refusal(run(words(dir / "pickled") + Words{"--data", dir / "text.txt", "--cache", dir / "unused",
                                                    "--init_from", dir / "ckpt.pt"}),
                 2, {"pickle", "convert_nanogpt.py to-safetensors"});
  EXPECT_FALSE(fs::exists(dir / "unused"));
  EXPECT_FALSE(fs::exists(dir / "pickled"));

  // The shape beside the weights counts, as nanoGPT's does; and what belongs nowhere is refused.
  const std::string vocab = std::to_string(shapes.get("transformer.wte.weight").shape[0]);
  write_text(folder + "/config.json",
             R"({"n_layer": 2, "n_head": 2, "n_embd": 20, "bias": false, "vocab_size": )" + vocab + "}");
  const Ended shaped =
      run(with(words(dir / "shaped", "1"), {"--n_head", "4", "--n_layer", "3", "--learning_rate", "1e-30"}) +
          text() + Words{"--init_from", folder});
  expect_success(shaped);
  EXPECT_EQ(loss(shaped), loss(first));
  expect_words(shaped.out + shaped.err, {"takes the shape", "2 layers, 2 heads"});
  write_text(folder + "/config.json",
             R"({"n_layer": 1, "n_head": 2, "n_embd": 20, "bias": false, "vocab_size": )" + vocab + "}");
  expect_refusal(start("shallow"), 4, {"transformer.h.1.", "belongs to no part"});
  write_text(folder + "/config.json", R"({"n_layer": 2, "n_head": "two"})");
  expect_refusal(start("misshaped"), 4, {"config.json", "n_head"});
  fs::remove(folder + "/config.json");

  convert("transformer.h.1.ln_2.weight", 0);
  expect_refusal(start("third"), 4, {"transformer.h.1.ln_2.weight", "missing", "convert_nanogpt.py"});
  convert("", 1);
  expect_refusal(start("fourth"), 4, {"ln_1.weight", "[19]", "[20]", "--n-embd"});
  fs::remove_all(folder);
  // A run that has begun needs them no more.
  const Ended continued =
      run(with(words(dir / "shaped", "2"), {"--n_head", "4", "--n_layer", "3", "--learning_rate", "1e-30"}) +
          text() + Words{"--init_from", folder});
  expect_success(continued);
  expect_words(continued.out, {"step-000000001", "2 layers, width 20, 2 heads"});
  expect_refusal(start("fifth"), 2, {folder, "convert_nanogpt.py"});
  expect_refusal(run(words(dir / "sixth") + text() + Words{"--init_from", "resume"}), 2,
                 {"resume", "no checkpoint"});
}

}  // namespace
}  // namespace qt::test
