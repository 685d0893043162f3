// The program as a person meets it: the whole way once, and every kind of wrong word on its command line.
#include <cstdlib>

#include <nlohmann/json.hpp>

#include "src/options/option_table.h"
#include "tests/support/cli.h"
#include "tests/support/shell_words.h"

namespace qt::test {
namespace {

// One that is set for the time of a test.
class Variable {
 public:
  Variable(std::string name, const std::string& value) : name_(std::move(name)) {
    setenv(name_.c_str(), value.c_str(), 1);
  }
  ~Variable() { unsetenv(name_.c_str()); }
  Variable(const Variable&) = delete;
  Variable& operator=(const Variable&) = delete;

 private:
  std::string name_;
};

// What follows `label` up to the end of its line.
std::string after(const std::string& text, const std::string& label) {
  const std::size_t at = text.rfind(label);
  if (at == std::string::npos) return "no '" + label + "' in: " + text;
  const std::size_t begin = at + label.size();
  return text.substr(begin, text.find('\n', begin) - begin);
}

// --- the whole way -----------------------------------------------------------------------------------------

TEST_F(Cli, TrainsStopsContinuesSamplesAndEvaluates) {
  const Ended straight = run(train(dir / "straight"));
  expect_success(straight);
  expect_words(straight.out, {"verdict: fits", "step/total", "4/4", "validation at step 4",
                              "sample at step 4", "done: 4 steps"});

  const Ended stopped = run(train(dir / "run") + Words{"--stop-after", "0.001"});
  expect_refusal(stopped, 75, {"--stop-after", "the same command again continues"});
  const Ended continued = run(train(dir / "run"));
  expect_success(continued);
  EXPECT_EQ(state_of(continued), state_of(straight));
  const Ended complete = run(train(dir / "run"));
  expect_success(complete);
  expect_words(complete.out, {"continues  "});
  EXPECT_EQ(state_of(complete), state_of(straight));

  const Words sample{"sample", "--out", dir / "run", "--sample-tokens", "8", "--prompt", "the fox"};
  const Ended first = run(sample), second = run(sample),
              other = run(sample + Words{"--seed", "7", "--temperature", "5"});
  expect_success(first);
  EXPECT_TRUE(first.out.starts_with("the fox")) << first.out;
  EXPECT_EQ(first.out, second.out);
  EXPECT_NE(first.out, other.out);

  const Ended eval = run({"eval", "--out", dir / "run", "--eval-tokens", "256"});
  expect_success(eval);
  const std::string printed = after(straight.out, "validation at step 4: ");
  EXPECT_EQ(after(eval.out, "step 4: ").substr(0, printed.size()), printed);
}

TEST_F(Cli, EvaluatesOnTheRunsOwnTokensWithoutTouchingThem) {
  expect_success(run(train(dir / "run", "2")));
  const auto written = std::filesystem::last_write_time(dir / "tokens/dataset.json");
  expect_success(run({"eval", "--out", dir / "run"}));
  EXPECT_EQ(std::filesystem::last_write_time(dir / "tokens/dataset.json"), written);
  // Other text is cut with the run's tokenizer, whatever the options for new ones say.
  write_text(dir / "other.txt", tiny_text(50));
  const Ended other =
      run({"eval", "--out", dir / "run", "--data", dir / "other.txt", "--val-fraction", "0.5"});
  expect_success(other);
  EXPECT_TRUE(std::filesystem::exists(dir / "run/eval.tokens/dataset.json"));
  // Another validation text for the same training text: the run's own tokens stay as they are.
  expect_success(run({"eval", "--out", dir / "run", "--val-data", dir / "other.txt"}));
  EXPECT_EQ(std::filesystem::last_write_time(dir / "tokens/dataset.json"), written);
}

// A model's vocabulary may be padded; the tokens of the padding spell nothing.
TEST_F(Cli, SamplesWithAVocabularyLargerThanTheTokenizers) {
  expect_success(run(train(dir / "run", "1") + Words{"--vocab-size", "2048", "--temperature", "1000"}));
  const Ended sample = run({"sample", "--out", dir / "run", "--temperature", "1000"});
  expect_success(sample);
  EXPECT_GT(sample.out.size(), 20u) << "the default length bends to the 32 tokens of this model";
}

TEST_F(Cli, TokenizesOnceAndTrainsOnTheShards) {
  const Words tokenize{"tokenize",         "--data", dir / "text.txt", "--cache", dir / "shards",
                       "--tokenizer-kind", "char"};
  const Ended made = run(tokenize), found = run(tokenize);
  expect_success(made);
  expect_words(made.out, {"made " + dir / "shards", "char tokenizer", "validation", "unigram_bpb="});
  expect_words(found.out, {"found " + dir / "shards"});
  expect_success(run(shape() + Words{"--data", dir / "shards", "--steps", "1", "--out", dir / "run"}));
  // Elsewhere, without the tokenizer beside them, it can be named.
  std::filesystem::create_directory(dir / "bare");
  for (const char* name : {"train_000000.bin", "val_000000.bin"}) {
    std::filesystem::copy_file(dir.path() / "shards" / name, dir.path() / "bare" / name);
  }
  const Words bare = shape() + Words{"--data", dir / "bare", "--steps", "1", "--out", dir / "run2"};
  expect_refusal(run(bare), 2, {dir / "bare", "--tokenizer"});
  expect_success(run(bare + Words{"--tokenizer", dir / "shards/tokenizer.txt"}));
}

TEST_F(Cli, PlansAsTextAndAsJson) {
  const Ended text = run(Words{"plan"} + shape());
  expect_success(text);
  expect_words(text.out, {"device", "host", "disk", "master", "moments", "gradients", "verdict: fits"});
  const Ended json = run(Words{"plan", "--json"} + shape());
  expect_success(json);
  const auto plan = nlohmann::json::parse(json.out);
  for (const char* key : {"fits", "device_bytes", "host_bytes", "disk_bytes", "micro_batch", "accumulation",
                          "margin_bytes", "checkpoint_bytes", "device", "host"}) {
    EXPECT_TRUE(plan.contains(key)) << key;
  }
  EXPECT_EQ(plan["fits"], true);
  EXPECT_TRUE(std::filesystem::is_empty(dir / "work")) << "a plan leaves nothing behind";
}

TEST_F(Cli, PlansForTheVocabularyThatTrainingWouldUse) {
  const auto vocabulary = [&](const Words& more) {
    const Ended ended =
        run(Words{"plan", "--model", "d2", "--seq-len", "32", "--batch-tokens", "128"} + more);
    expect_success(ended);
    return ended.out.substr(ended.out.find("vocabulary "), 17);
  };
  EXPECT_EQ(vocabulary({}), "vocabulary 65536,");
  EXPECT_EQ(vocabulary({"--data", dir / "text.txt"}), "vocabulary 4096, ");
  EXPECT_EQ(vocabulary({"--data", dir / "text.txt", "--tokenizer-kind", "bytes"}), "vocabulary 265, s");
  EXPECT_EQ(vocabulary({"--data", dir / "text.txt", "--vocab-size", "300"}), "vocabulary 300, s");
  EXPECT_TRUE(std::filesystem::is_empty(dir / "work")) << "a plan leaves nothing behind";
}

TEST_F(Cli, RefusesBeforeItTokenizes) {
  struct Case {
    Words changes;
    int code;
    Words words;
  };
  const Case cases[] = {{{"--batch-tokens", "100"}, 2, {"--batch-tokens"}},
                        {{"--micro-batch", "3"}, 2, {"--micro-batch"}},
                        {{"--ram", "1MiB"}, 3, {"does not fit"}},
                        {{"--data", dir / "missing.txt"}, 2, {"--data", "missing.txt"}},
                        {{"--val-data", dir / "missing.txt"}, 2, {"--val-data", "missing.txt"}},
                        {{"--tokenizer", dir / "missing"}, 2, {"--tokenizer", "missing"}}};
  for (const Case& c : cases) {
    expect_refusal(run(with(train(dir / "run"), c.changes)), c.code, c.words);
    EXPECT_FALSE(std::filesystem::exists(dir / "tokens")) << "text was tokenized for a run that cannot be";
    EXPECT_FALSE(std::filesystem::exists(dir / "run")) << "a run that cannot be left a folder";
  }
  expect_success(run(train(dir / "run")));
  std::filesystem::remove_all(dir / "tokens");
  expect_refusal(run(train(dir / "run") + Words{"--fresh"}), 2, {"--fresh"});
  EXPECT_FALSE(std::filesystem::exists(dir / "tokens"));
}

TEST_F(Cli, IsQuietWhenAskedTo) {
  const Ended loud = run(train(dir / "loud")), quiet = run(train(dir / "quiet") + Words{"--quiet"});
  expect_success(quiet);
  expect_words(loud.out, {"step/total", "4/4"});
  EXPECT_EQ(quiet.out.find("step/total"), std::string::npos) << quiet.out;
  EXPECT_EQ(quiet.out.find("4/4"), std::string::npos) << quiet.out;
  EXPECT_EQ(state_of(loud), state_of(quiet));
}

TEST_F(Cli, ExplainsItself) {
  const Ended help = run({"--help"}), version = run({"--version"});
  expect_success(help);
  expect_words(help.out, {"tokenize", "--config", "Exit codes"});
  for (const OptionSpec& spec : option_table()) expect_words(help.out, {std::string("--") + spec.name + " "});
  EXPECT_EQ(run({"help"}).out, help.out);
  EXPECT_EQ(run({"train", "-h"}).out, help.out);
  expect_success(version);
  EXPECT_TRUE(version.out.starts_with("qtrain ")) << version.out;
  const Variable variable("QTRAIN_SEED", "11");
  write_text(dir / "run.ini", "keep = 3\n");
  const Ended config = run({"train", "--config", dir / "run.ini", "--model", "d8", "--print-config"});
  expect_success(config);
  EXPECT_EQ(after(config.out, "\nmodel ").substr(after(config.out, "\nmodel ").find('=')).substr(0, 4),
            "= d8");
  expect_words(config.out, {"# command line", "# environment", "# " + dir / "run.ini", "# default"});
}

// --- the command line --------------------------------------------------------------------------------------

struct Refusal {
  Words args;
  Words words;
  int code = 2;
};

TEST_F(Cli, RefusesWrongWords) {
  const Refusal cases[] = {
      {{"trian"}, {"'trian'", "qtrain train"}},
      {{"d32"}, {"'d32'", "verbs are"}},
      {{"--quants", "nf4"}, {"'quants'", "did you mean --quant?"}},
      {{"plan", "--jsn"}, {"'jsn'", "--help"}},
      {{"train", "--json"}, {"--json is not for `qtrain train`", "`qtrain plan`, `qtrain estimate`"}},
      {{"--steps"}, {"--steps", "missing"}},
      {{"--steps", "many"}, {"--steps", "'many'"}},
      {{"--steps", "-1"}, {"--steps", "'-1'"}},
      {{"--steps", "3", "stray"}, {"'stray'"}},
      {{"--steps", "3", "--steps", "4"}, {"--steps", "twice"}},
      {{"--matrix-lr", "fast"}, {"--matrix-lr", "'fast'"}},
      {{"--temperature", "-1"}, {"--temperature", "'-1'"}},
      {{"--vram", "much"}, {"--vram", "'much'", "12GiB"}},
      {{"--stop-after", "soon"}, {"--stop-after", "'soon'"}},
      {{"--quiet", "no"}, {"'no'", "--no-quiet"}},
      {{"--seed", "18446744073709551616"}, {"--seed"}},
  };
  for (const Refusal& c : cases) {
    SCOPED_TRACE(c.args.back());
    expect_refusal(run(c.args), c.code, c.words);
  }
}

// Judged before the data is looked at: each also without any.
TEST_F(Cli, RefusesValuesOutOfRangeInEveryVerbThatUsesThem) {
  const Refusal cases[] = {
      {{"--model", "d21"}, {"'d21'", "odd depth", "--model d2"}},
      {{"--model", "d100"}, {"'d100'", "d34"}},
      {{"--model", "gpt5"}, {"'gpt5'", "--model"}},
      {{"--model", ""}, {"unknown model ''"}},
      {{"--model", "d8", "--n-kv-head", "3"}, {"--n-kv-head", "4 heads"}},
      {{"--seq-len", "4611686018427387904"}, {"--seq-len", "1048576"}},
      {{"--vocab-size", "4611686018427387904"}, {"--vocab-size"}},
      {{"--dtype", "fp8"}, {"--dtype fp8", "bf16"}},
      {{"--dtype", "fp16", "--quant", "nf4"}, {"--dtype fp16", "--quant nf4"}},
      {{"--dtype", "fp16", "--grad-dtype", "bf16"}, {"--grad-dtype bf16", "fp16"}},
      {{"--dtype", "int4"}, {"--dtype int4"}},
      {{"--grad-dtype", "fp16"}, {"--grad-dtype fp16"}},
      {{"--dtype", "f32", "--grad-dtype", "bf16"}, {"--grad-dtype bf16", "--dtype bf16"}},
      {{"--quant", "q5"}, {"'q5'", "nf4"}},
      {{"--paging", "perhaps"}, {"--paging perhaps", "auto, on, off"}},
      {{"--master", "bf16"}, {"--master bf16", "f32, bf16-sr"}},
      {{"--dtype", "fp16", "--master", "bf16-sr"}, {"--dtype fp16", "--master bf16-sr"}},
      {{"--gemm", "cublas"}, {"--gemm cublas", "auto, fused, scratch"}},
      {{"--data-order", "sorted"}, {"--data-order sorted", "shuffle, sequential, random"}},
      {{"--dropout", "1", "--model", "gpt2"}, {"--dropout 1"}},
      {{"--dropout", "0.1", "--model", "d4"}, {"'d4'", "--dropout", "--model gpt"}},
      {{"--n-layer", "3", "--model", "d4"}, {"'d4'", "--n-layer"}},
      {{"--model", "gpt", "--n-layer", "3"}, {"--n-head", "--n-embd"}},
      {{"--optim", "sgd"}, {"'sgd'", "adamw8"}},
      {{"--schedule", "linear"}, {"--schedule linear", "cosine"}},
      {{"--train", "lora"}, {"--train lora", "--train full"}},
      {{"--keep", "1"}, {"--keep", "1"}},
      {{"--keep", "9223372036854775807"}, {"--keep"}},
      {{"--device", "tpu"}, {"--device tpu", "auto, cpu, cuda"}},
      {{"--threads", "100000"}, {"--threads", "1024"}},
      {{"--val-fraction", "1"}, {"--val-fraction", "0.1"}},
      {{"--val-fraction", "1e300"}, {"--val-fraction"}},
      {{"--warmdown", "1.5"}, {"--warmdown 1.5", "0 to 1"}},
      {{"--final-lr", "2"}, {"--final-lr 2", "0 to 1"}},
      {{"--warmup-steps", "9", "--steps", "8"}, {"--warmup-steps 9", "--steps 8"}},
      {{"--steps", "9223372036854775807"}, {"--steps", "1000000000"}},
      {{"--tokens", "9223372036854775807"}, {"--tokens"}},
      {{"--batch-tokens", "9223372036854775807"}, {"--batch-tokens"}},
      {{"--micro-batch", "9223372036854775807"}, {"--micro-batch"}},
  };
  for (const Refusal& c : cases) {
    for (const char* verb : {"train", "plan"}) {
      SCOPED_TRACE(verb + (" " + c.args.front()) + " " + c.args[1]);
      expect_refusal(run(Words{verb} + c.args), c.code, c.words);
    }
  }
  EXPECT_TRUE(std::filesystem::is_empty(dir / "work")) << "what is refused leaves nothing behind";
}

TEST_F(Cli, NamesTheVerbsToAWordThatIsNoneAndGuessesOnlyWhatIsNear) {
  expect_refusal(run(Words{"trian"}), 2,
                 {"unknown verb 'trian'", "did you mean `qtrain train`?", "tokenize"});
  const Ended far = run(Words{"bogus"});
  expect_refusal(far, 2, {"unknown verb 'bogus'", "verbs are: train, plan"});
  EXPECT_EQ(far.err.find("did you mean"), std::string::npos) << far.err;
}

TEST_F(Cli, RefusesSizesThatDoNotFitTogether) {
  const Refusal cases[] = {
      {{"--batch-tokens", "100"}, {"--batch-tokens 100", "2048"}},
      {{"--batch-tokens", "0"}, {"--batch-tokens 0"}},
      {{"--micro-batch", "3"}, {"--micro-batch 3", "256 rows"}},
      {{"--vocab-size", "1"}, {"vocabulary 1"}},
      {{"--beta1", "1"}, {"--beta1", "below 1"}},
      {{"--beta2", "7"}, {"--beta2", "below 1"}},
      {{"--device", "cuda", "--arch", "sm_70"}, {"7.0", "8.0"}},
      {{"--device", "cuda", "--arch", "hopper"}, {"--arch hopper", "sm_90"}},
      {{"--device", "cuda", "--arch", "sm_-80"}, {"--arch sm_-80", "sm_90"}},
      {{"--device", "cpu", "--arch", "sm_999"}, {"--arch sm_999", "sm_90"}},
      {{"--tokenizer", dir / "nowhere.txt"}, {"--tokenizer", dir / "nowhere.txt"}},
  };
  for (const Refusal& c : cases) {
    SCOPED_TRACE(c.args.front() + " " + c.args[1]);
    expect_refusal(run(Words{"plan"} + c.args), c.code, c.words);
  }
}

TEST_F(Cli, RefusesACardThatIsNotThereOrThatTheBuildCannotUse) {
#ifdef QTRAIN_HAVE_CUDA
  ASSERT_EQ(setenv("CUDA_VISIBLE_DEVICES", "-1", 1), 0);  // hides a card that the machine has
  const int code = 6;
  const char* reason = "there is no ";  // "NVIDIA driver", or with one "CUDA card"
#else
  const int code = 2;
  const char* reason = "no CUDA backend";
#endif
  for (const Words& verb : {train(dir / "run"), Words{"sample"}, Words{"eval"}}) {
    expect_refusal(run(verb + Words{"--device", "cuda"}), code, {reason, "--device cpu"});
  }
  EXPECT_FALSE(std::filesystem::exists(dir / "tokens")) << "refused before the text is tokenized";
  expect_success(run(Words{"plan", "--device", "cuda"} + shape()));
}

TEST_F(Cli, ExplainsWhatDoesNotFit) {
  for (const char* limit : {"--vram", "--ram"}) {
    SCOPED_TRACE(limit);
    expect_refusal(run(train(dir / "run") + Words{limit, "1MiB"}), 3,
                   {"does not fit", "DOES NOT FIT 1.0 MiB", "master", "--micro-batch 1"});
    const Ended text = run(Words{"plan", limit, "1MiB"} + shape());
    expect_refusal(text, 3, {"does not fit", "--micro-batch 1"});
    expect_words(text.out, {"DOES NOT FIT 1.0 MiB", "verdict: does not fit"});
    const Ended json = run(Words{"plan", "--json", limit, "1MiB"} + shape());
    EXPECT_EQ(json.code, 3);
    EXPECT_EQ(nlohmann::json::parse(json.out)["fits"], false);
  }
}

// From the refusal to a run: what is proposed is typed, and trains.
TEST_F(Cli, NamesWhatMakesARunFitAndThatTrains) {
  const auto device_bytes = [&](const Words& args) {
    const Ended ended = run(Words{"plan", "--json"} + args);
    return nlohmann::json::parse(ended.out)["device_bytes"].get<std::int64_t>();
  };
  const Words checkpointed = train(dir / "run", "1") + Words{"--micro-batch", "4"};
  Words kept = checkpointed;
  std::erase(kept, "--ckpt-activations");
  const std::int64_t bytes = device_bytes(checkpointed);
  ASSERT_GT(device_bytes(kept), bytes);
  const Words cap{"--vram", std::to_string(bytes)};
  expect_refusal(run(kept + cap), 3,
                 {"verdict: does not fit by ", "what makes it fit, the cheapest first", "--ckpt-activations",
                  "type   qtrain --model d2", "it fits: "});
  EXPECT_FALSE(std::filesystem::exists(dir / "run"));
  const Ended plan = run(Words{"plan", "--json"} + kept + cap);
  EXPECT_EQ(plan.code, 3);
  const auto changes = nlohmann::json::parse(plan.out)["changes"];
  ASSERT_GE(changes.size(), 2u);
  for (const auto& change : changes) {
    const std::string command = change["command"];
    SCOPED_TRACE(command);
    expect_success(
        run(with(arguments_of(command), {"--out", dir / "run" + change["options"].get<std::string>()})));
  }
}

TEST_F(Cli, TellsWhenNobodyCouldReadTheResult) {
  const Streams full{.out = "/dev/full", .err = dir / "err", .folder = dir / "work"};
  const int code = finish_process(start_process(Words{QTRAIN_PROGRAM, "plan", "--json"} + shape(), full));
  expect_refusal({code, {}, read_text(dir / "err")}, 7, {"standard output"});
}

// --- configuration files and the environment ---------------------------------------------------------------

TEST_F(Cli, RefusesConfigurationsItCannotUse) {
  struct Config {
    std::string text;
    Words words;
  };
  const Config cases[] = {
      {"this is not a setting\n", {"name = value"}},
      {"[memory\nquant = nf4\n", {}},
      {"stepss = 3\n", {"'stepss'", "did you mean --steps?"}},
      {"[optim]\nquant = nf4\n", {"'quant'", "[memory]", "[optim]"}},
      {"steps = many\n", {"--steps", "'many'"}},
      {"steps = 3\nsteps = 4\n", {"'steps'", "2 times"}},
      {"quiet = perhaps\n", {"--quiet", "'perhaps'"}},
      {"data = \"unclosed\n", {"--data", "quote"}},
      {std::string("\0\0\xff\xfe\0", 5), {}},
  };
  for (const Config& c : cases) {
    SCOPED_TRACE(c.text);
    write_text(dir / "run.ini", c.text);
    expect_refusal(run({"plan", "--config", dir / "run.ini"}), 2, Words{dir / "run.ini"} + c.words);
  }
  expect_refusal(run({"plan", "--config", dir / "nowhere.ini"}), 2, {dir / "nowhere.ini", "--config"});
  expect_refusal(run({"plan", "--config", dir.path().string()}), 2, {dir.path().string()});
  expect_refusal(run({"plan", "--config"}), 2, {"--config"});
}

TEST_F(Cli, RefusesVariablesItCannotUse) {
  {
    const Variable variable("QTRAIN_STEPS", "many");
    expect_refusal(run({"plan"}), 2, {"QTRAIN_STEPS", "'many'"});
  }
  {
    const Variable variable("QTRAIN_STEPSS", "3");
    expect_refusal(run({"plan"}), 2, {"QTRAIN_STEPSS", "did you mean --steps?"});
  }
  const Variable variable("QTRAIN_QUANT", "q5");
  expect_refusal(run({"plan"}), 2, {"'q5'"});
  expect_success(run(Words{"plan"} + shape()));
}

}  // namespace
}  // namespace qt::test
