// nanoGPT's words: each means what it means there, wherever it is given, and of two ways to say a thing the
// stronger source counts.
#include <cctype>
#include <cstdint>
#include <limits>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "src/options/nanogpt.h"
#include "tests/support/option_fixture.h"

namespace qt::test {
namespace {

using NanogptWords = OptionFixture;
using NanogptBatch = OptionFixture;
using NanogptRates = OptionFixture;

bool has_note(const LoadedOptions& loaded, std::string_view words) {
  for (const std::string& note : loaded.notes) {
    if (note.find(words) != std::string::npos) return true;
  }
  return false;
}

// --- words -------------------------------------------------------------------------------------------------

struct Meaning {
  const char* word;
  const char* value;
  const char* option;
  const char* text;
};
constexpr Meaning kMeanings[] = {
    {"block_size", "512", "seq-len", "512"},
    {"max_iters", "70", "steps", "70"},
    {"eval_interval", "71", "eval-every", "71"},
    {"log_interval", "72", "log-every", "72"},
    {"warmup_iters", "73", "warmup-steps", "73"},
    {"lr_decay_iters", "74", "decay-steps", "74"},
    {"grad_clip", "0.5", "clip", "0.5"},
    {"out_dir", "a_b", "out", "a_b"},
    {"dataset", "letters", "data", "data/letters"},
    {"dataset", "my/letters", "data", "my/letters"},
    {"decay_lr", "True", "schedule", "cosine"},
    {"decay_lr", "False", "schedule", "warmdown"},
    {"decay_lr", "False", "warmdown", "0"},
    {"decay_lr", "False", "warmup-steps", "0"},
    {"dtype", "float16", "dtype", "fp16"},
    {"dtype", "bfloat16", "dtype", "bf16"},
    {"dtype", "float32", "dtype", "f32"},
    {"device", "cuda:0", "device", "cuda"},
    {"device", "cuda", "device", "cuda"},
    {"device", "cpu", "device", "cpu"},
    {"device", "mps", "device", "auto"},
    {"bias", "True", "bias", "true"},
    // Its names that are ours too.
    {"n_layer", "3", "n-layer", "3"},
    {"n_head", "4", "n-head", "4"},
    {"n_embd", "5", "n-embd", "5"},
    {"dropout", "0.25", "dropout", "0.25"},
    {"learning_rate", "0.001", "learning-rate", "0.001"},
    {"weight_decay", "0.3", "weight-decay", "0.3"},
    {"beta1", "0.7", "beta1", "0.7"},
    {"beta2", "0.8", "beta2", "0.8"},
    {"batch_size", "6", "batch-size", "6"},
    {"init_from", "resume", "init-from", "resume"},
    {"seed", "9", "seed", "9"},
};

TEST_F(NanogptWords, MeanTheSameInEverySource) {
  for (const Meaning& m : kMeanings) {
    SCOPED_TRACE(fmt::format("{} = {}", m.word, m.value));
    EXPECT_EQ(text_of(load({fmt::format("--{}={}", m.word, m.value)}), m.option), m.text);
    EXPECT_EQ(text_of(load({fmt::format("--{}", m.word), m.value}), m.option), m.text);
    EXPECT_EQ(text_of(load({"--config", ini(fmt::format("{} = {}\n", m.word, m.value))}), m.option), m.text);
    std::string variable = "QTRAIN_" + std::string(m.word);
    for (char& c : variable) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
    set(variable, m.value);
    const LoadedOptions loaded = load({});
    EXPECT_EQ(text_of(loaded, m.option), m.text);
    EXPECT_EQ(loaded.source_of(m.option), OptionSource::environment);
    unsetenv(variable.c_str());
    const bool is_number = std::string_view("0123456789").find(m.value[0]) != std::string_view::npos;
    const bool is_word = std::string_view(m.value) == "True" || std::string_view(m.value) == "False";
    const std::string literal = is_number || is_word ? m.value : fmt::format("'{}'", m.value);
    const bool is_card = std::string_view(m.value).starts_with("cuda");
    const std::string path = python(fmt::format("{} = {}\n", m.word, literal));
    EXPECT_EQ(text_of(load({"--config", path}), m.option), is_card ? "auto" : m.text)
        << "a card is nanoGPT's default, not a wish";
  }
}

TEST_F(NanogptWords, AreNoOptionsOfOursAndPointAtSome) {
  for (const std::string_view word : nanogpt_words()) {
    EXPECT_EQ(find_option(word), nullptr) << word << " would be read as one thing here and another there";
    EXPECT_EQ(word.find('_'), std::string_view::npos) << word;
  }
  EXPECT_EQ(nanogpt_target("max_iters"), find_option("steps"));
  EXPECT_EQ(nanogpt_target("compile"), nullptr);
  EXPECT_FALSE(nanogpt_meaning("steps", "3", "test"));
  EXPECT_FALSE(nanogpt_meaning("device", "cpu", "test"));
}

TEST_F(NanogptWords, ThatNothingNeedsAreAnswered) {
  const std::pair<const char*, const char*> words[] = {
      {"compile", "compile is not needed"},      {"backend", "backend is not needed"},
      {"wandb_log", "wandb is not needed"},      {"wandb_project", "wandb is not needed"},
      {"wandb_run_name", "wandb is not needed"}, {"always_save_checkpoint", "--save-every"},
  };
  const LoadedOptions plain = load({});
  EXPECT_TRUE(plain.notes.empty());
  for (const auto& [word, note] : words) {
    SCOPED_TRACE(word);
    for (const Words& args :
         {Words{fmt::format("--{}=False", word)}, Words{fmt::format("--{}", word), "False"},
          Words{"--config", ini(fmt::format("{} = False\n", word))}}) {
      const LoadedOptions loaded = load(args);
      EXPECT_TRUE(has_note(loaded, note));
      EXPECT_EQ(differences(loaded, plain), std::set<std::string>{});
    }
  }
  EXPECT_EQ(load({"--wandb_log=True", "--wandb_project=owt", "--wandb_run_name=x"}).notes.size(), 1u);
  EXPECT_EQ(differences(load({"--eval_only=False"}), plain), std::set<std::string>{});
  expect_words(refusal({"--eval_only=True"}), {"eval_only", "qtrain eval"});
  expect_words(refusal({"--eval_only=maybe"}), {"eval_only", "'maybe'"});
  expect_words(refusal({"--decay_lr=maybe"}), {"decay_lr", "'maybe'", "command line"});
  expect_words(refusal({"--device=cuda:1"}), {"cuda:1", "CUDA_VISIBLE_DEVICES=1"});
  expect_words(refusal({"--compile"}), {"compile"});
  expect_words(refusal({"--compile", "--steps=3"}), {"--compile needs a value"});
}

TEST_F(NanogptWords, SwitchFlagsInPythonsWay) {
  EXPECT_FALSE(load({"--bias=False"}).options.bias);
  EXPECT_TRUE(load({"--bias=True"}).options.bias);
  EXPECT_TRUE(load({"--bias", "True"}).options.bias);
  EXPECT_FALSE(load({"--bias", "False", "--steps", "3"}).options.bias);
  EXPECT_FALSE(load({"--bias", "--bias=False"}).options.bias) << "the last one counts";
  EXPECT_TRUE(load({"--bias", "--steps", "3"}).options.bias);
  expect_words(refusal({"--bias", "perhaps"}), {"'perhaps'"});
  expect_words(refusal({"--bias=perhaps"}), {"--bias", "'perhaps'"});
}

TEST_F(NanogptWords, AreSuggestedAndRefusedLikeOurs) {
  expect_words(refusal({"--max_iter=3"}), {"'max-iter'", "did you mean --max-iters?"});
  expect_words(refusal({"--max_iters=3", "--steps=4"}), {"--steps", "twice"});
  expect_words(refusal({"--max_iters=many"}), {"--steps", "'many'"});
  expect_words(refusal({"--config", ini("steps = 3\nmax_iters = 4\n")}), {"'steps'", "2 times"});
  expect_words(refusal({"--config", ini("[model]\nmax_iters = 4\n")}), {"'max-iters'", "[run]", "[model]"});
  EXPECT_EQ(load({"--config", ini("[run]\nmax_iters = 4\n")}).options.steps, 4);
  set("QTRAIN_STEPS", "3");
  set("QTRAIN_MAX_ITERS", "4");
  expect_words(refusal({}), {"'steps'", "2 times"});
}

TEST_F(NanogptWords, YieldToStrongerSources) {
  const std::string path = ini("max_iters = 10\nblock_size = 10\nlog_interval = 10\n");
  set("QTRAIN_SEQ_LEN", "20");
  set("QTRAIN_LOG_INTERVAL", "20");
  const LoadedOptions loaded = load({"--config", path, "--log_interval=30"});
  EXPECT_EQ(loaded.options.steps, 10);
  EXPECT_EQ(loaded.options.seq_len, 20);
  EXPECT_EQ(loaded.options.log_every, 30);
}

TEST_F(NanogptWords, DecayOffTakesTheWarmUpWithIt) {
  const LoadedOptions loaded = load({"--warmup_iters=100", "--decay_lr=False"});
  EXPECT_EQ(loaded.options.warmup_steps, 0);
  EXPECT_EQ(loaded.options.schedule, ScheduleKind::warmdown);
  EXPECT_EQ(loaded.options.warmdown, 0);
  EXPECT_EQ(load({"--warmup_iters=100", "--decay_lr=True"}).options.warmup_steps, 100);
  const std::string path = python("decay_lr = False\n");
  EXPECT_EQ(load({"--config", path}).options.warmup_steps, 0);
  EXPECT_EQ(load({"--config", path, "--warmup_iters=5"}).options.warmup_steps, 5);
}

TEST_F(NanogptWords, PretrainedWeightsByNamePointAtTheTool) {
  for (const char* name : {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"}) {
    const std::string path = python(fmt::format("init_from = '{}'\n", name));
    expect_words(refusal({"--config", path}), {name, path, "tools/convert_nanogpt.py", "--init-from FOLDER"});
    EXPECT_EQ(load({"--config", path, "--init-from", "weights"}).options.init_from, "weights");
  }
  EXPECT_EQ(load({"--init_from=./gpt2"}).options.init_from, "./gpt2");
}

// --- batch -------------------------------------------------------------------------------------------------

TEST_F(NanogptBatch, RowsTimesAccumulationTimesLengthAreTheTokensOfAStep) {
  EXPECT_EQ(load({"--batch_size=12", "--block_size=64"}).options.batch_tokens, 12 * 64);
  EXPECT_EQ(
      load({"--batch_size=12", "--block_size=64", "--gradient_accumulation_steps=40"}).options.batch_tokens,
      12 * 64 * 40);
  EXPECT_EQ(load({"--batch_size=12", "--model=gpt2"}).options.batch_tokens, 12 * 1024);
  EXPECT_EQ(load({"--batch_size=12", "--model=gpt"}).options.batch_tokens, 12 * 1024);
  EXPECT_EQ(load({"--batch_size=12", "--model=d4"}).options.batch_tokens, 12 * 2048);
  const LoadedOptions loaded = load({"--batch_size=12", "--eval_iters=5", "--block_size=8"});
  EXPECT_EQ(loaded.options.micro_batch, 0) << "rows computed at once are the plan's choice";
  EXPECT_EQ(loaded.options.eval_tokens, 5 * 12 * 8);
  EXPECT_TRUE(loaded.given("batch-tokens"));
  EXPECT_EQ(loaded.origin_of("eval-tokens"), "command line");
  EXPECT_EQ(load({}).options.batch_tokens, Options().batch_tokens);
  EXPECT_FALSE(load({}).given("batch-tokens"));
}

TEST_F(NanogptBatch, OfTwoWaysToSayItTheStrongerSourceCounts) {
  const std::string rows = ini("batch-size = 12\nseq-len = 64\neval-iters = 2\n");
  const std::string tokens = ini("batch-tokens = 640\nseq-len = 64\neval-tokens = 77\n");
  LoadedOptions loaded = load({"--config", rows, "--batch-tokens", "640"});
  EXPECT_EQ(loaded.options.batch_tokens, 640);
  EXPECT_EQ(loaded.options.batch_size, 0) << "what does not count is not shown";
  EXPECT_EQ(loaded.options.eval_tokens, 2 * 12 * 64);
  loaded = load({"--config", tokens, "--batch-size", "12"});
  EXPECT_EQ(loaded.options.batch_tokens, 12 * 64);
  EXPECT_EQ(loaded.options.eval_tokens, 77);
  EXPECT_EQ(load({"--config", tokens, "--batch-size", "12", "--eval-iters", "2"}).options.eval_tokens,
            2 * 12 * 64);
  EXPECT_EQ(load({"--config", rows, "--eval-tokens", "0"}).options.eval_tokens, 0) << "all";
  EXPECT_EQ(load({"--config", rows, "--seq-len", "32"}).options.batch_tokens, 12 * 32);
  EXPECT_EQ(load({"--config", rows, "--gradient-accumulation-steps", "2"}).options.batch_tokens, 2 * 12 * 64);
}

TEST_F(NanogptBatch, TheSameSourceMayNotSayTwoThings) {
  expect_words(refusal({"--batch-size", "12", "--seq-len", "64", "--batch-tokens", "640"}),
               {"--batch-tokens 640", "--batch-size 12", "768"});
  EXPECT_EQ(load({"--batch-size", "12", "--seq-len", "64", "--batch-tokens", "768"}).options.batch_tokens,
            768);
  expect_words(refusal({"--batch-size", "12", "--seq-len", "64", "--eval-iters", "2", "--eval-tokens", "5"}),
               {"--eval-tokens 5", "--eval-iters 2"});
  const std::string path = ini("batch-size = 12\nseq-len = 64\nbatch-tokens = 640\n");
  expect_words(refusal({"--config", path}), {"--batch-tokens 640", path, "--batch-size 12"});
  expect_words(refusal({"--gradient-accumulation-steps", "3"}),
               {"--gradient-accumulation-steps 3", "--batch-size"});
  expect_words(refusal({"--eval-iters", "3"}), {"--eval-iters 3", "--batch-size", "--eval-tokens"});
  // Above what the plan allows, rather than wrapped around to what it does.
  EXPECT_EQ(load({"--batch-size", "4611686018427387904", "--seq-len", "8"}).options.batch_tokens,
            std::numeric_limits<std::int64_t>::max());
}

// --- rates and defaults ------------------------------------------------------------------------------------

TEST_F(NanogptRates, GptModelsTakeNanogptsTrainingDefaults) {
  const std::pair<const char*, const char*> expected[] = {
      {"beta1", "0.9"},
      {"beta2", "0.95"},
      {"eps", "1e-08"},
      {"weight-decay", "0.1"},
      {"schedule", "cosine"},
      {"final-lr", "0.1"},
      {"learning-rate", "0.0006"},
      {"split-pattern", "gpt2"},
  };
  for (const char* model : {"gpt", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"}) {
    const LoadedOptions loaded = load({"--model", model});
    for (const auto& [name, text] : expected) {
      EXPECT_EQ(text_of(loaded, name), text) << name;
      EXPECT_EQ(loaded.origin_of(name), "default of gpt models") << name;
      EXPECT_FALSE(loaded.given(name)) << name;
    }
  }
  EXPECT_EQ(differences(load({"--model", "d8"}), load({})), std::set<std::string>{"model"});
  std::ostringstream out;
  print_config(out, load({"--model", "gpt2", "--beta1", "0.8"}));
  expect_words(out.str(), {"# default of gpt models\n", "# command line\n", "# default\n"});
}

TEST_F(NanogptRates, DefaultsOfModelsYieldToEverySource) {
  const std::string path = ini("beta1 = 0.5\n");
  set("QTRAIN_BETA2", "0.6");
  const LoadedOptions loaded = load({"--model", "gpt2", "--config", path, "--eps", "0.25"});
  EXPECT_EQ(loaded.options.beta1, 0.5);
  EXPECT_EQ(loaded.options.beta2, 0.6);
  EXPECT_EQ(loaded.options.eps, 0.25);
  EXPECT_EQ(loaded.options.weight_decay, 0.1);
}

TEST_F(NanogptRates, OneRateAndRatesByGroupExcludeEachOther) {
  expect_words(refusal({"--learning-rate", "1e-3", "--matrix-lr", "1e-4"}),
               {"--matrix-lr 0.0001", "--learning-rate 0.001", "--learning-rate 0"});
  const std::string path = ini("matrix-lr = 1e-4\n");
  EXPECT_EQ(load({"--config", path, "--learning-rate", "1e-3"}).options.learning_rate, 1e-3);
  const LoadedOptions grouped = load({"--model", "gpt2", "--matrix-lr", "1e-4"});
  EXPECT_EQ(grouped.options.learning_rate, 0);
  EXPECT_EQ(grouped.options.matrix_lr, 1e-4);
  EXPECT_EQ(grouped.options.embedding_lr, 6e-4) << "not what was swept for nanochat";
  EXPECT_EQ(load({"--model", "d4", "--matrix-lr", "1e-4"}).options.embedding_lr, Options().embedding_lr);
}

TEST_F(NanogptRates, TheLeastRateIsAShareOfThePeak) {
  EXPECT_DOUBLE_EQ(load({"--learning_rate=1e-3", "--min_lr=1e-4"}).options.final_lr, 0.1);
  EXPECT_DOUBLE_EQ(load({"--model=gpt2", "--min_lr=3e-4"}).options.final_lr, 0.5);
  EXPECT_EQ(load({"--model=gpt2", "--min_lr=0"}).options.final_lr, 0);
  EXPECT_EQ(load({"--model=gpt2"}).options.final_lr, 0.1);
  const std::string path = ini("learning-rate = 1e-3\nmin-lr = 1e-4\n");
  const LoadedOptions shared = load({"--config", path, "--final-lr", "0.3"});
  EXPECT_EQ(shared.options.final_lr, 0.3);
  EXPECT_EQ(shared.options.min_lr, 0);
  expect_words(refusal({"--min_lr=1e-4"}), {"--min-lr 0.0001", "--learning-rate", "--final-lr"});
  expect_words(refusal({"--learning_rate=1e-5", "--min_lr=1e-4"}),
               {"--min-lr 0.0001", "--learning-rate 1e-05"});
  EXPECT_EQ(refusal({"--learning_rate=1e-5", "--min_lr=1e-4", "--decay_lr=False"}), "accepted")
      << "a rate that never falls has no end";
}

}  // namespace
}  // namespace qt::test
