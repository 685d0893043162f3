// nanoGPT's configuration files: what is read of them and what is refused, and that its own keys and values
// are the same run as configs/. The texts are written for these tests.
#include <filesystem>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "src/options/nanogpt_file.h"
#include "tests/support/option_fixture.h"

namespace qt::test {
namespace {

using NanogptFiles = OptionFixture;
using NanogptConfigs = OptionFixture;

// --- files -------------------------------------------------------------------------------------------------

TEST_F(NanogptFiles, AreReadAsAssignmentsOfLiterals) {
  const NanogptFile parsed = parse_nanogpt_file(
      "# a comment\n"
      "import time\n"
      "from os import path\n"
      "\n"
      "   # indented comment\n"
      "a = 12\r\n"
      "b = 1e-3 # trailing\n"
      "c=True\n"
      "d = 'x # y'\n"
      "e = \"it's\"\n"
      "f = 5 * 8\n"
      "g = 2 + 3 * (4 - 1)\n"
      "h = 'out-' + \"dir\"\n"
      "i = 600_000\n"
      "j = 0.5 * 4\n"
      "k = 'a\\'b\\\\'\n"
      "l = .5\n"
      "m = -2 * -3\n"
      "wandb_run_name = 'ft-' + str(time.time())\n"
      "a = 13\n"
      "n = ''",
      "run.py");
  std::vector<std::pair<std::string, std::string>> got;
  for (const NanogptLine& line : parsed.lines) got.emplace_back(line.key, line.value);
  const std::vector<std::pair<std::string, std::string>> expected = {
      {"b", "0.001"}, {"c", "True"},    {"d", "x # y"},         {"e", "it's"}, {"f", "40"},
      {"g", "11"},    {"h", "out-dir"}, {"i", "600000"},        {"j", "2"},    {"k", "a'b\\"},
      {"l", "0.5"},   {"m", "6"},       {"wandb_run_name", ""}, {"a", "13"},   {"n", ""}};
  EXPECT_EQ(got, expected);
  EXPECT_EQ(parsed.lines.front().origin, "run.py:7");
  ASSERT_EQ(parsed.notes.size(), 2u);
  expect_words(parsed.notes[0], {"run.py:2", "import time"});
  EXPECT_TRUE(parse_nanogpt_file("", "x.py").lines.empty());
}

TEST_F(NanogptFiles, RefuseWhatWouldHaveToBeExecuted) {
  const std::pair<const char*, const char*> cases[] = {
      {"out_dir = 'x-' + str(time.time())", "str(time.time())"},
      {"out_dir = f'x-{n}'", "f'x-{n}'"},
      {"out_dir = os.path.join('a', 'b')", "not a literal"},
      {"x = 'a' * 3", "two numbers"},
      {"x = True + 1", "two numbers"},
      {"x = 'a' + 1", "two numbers"},
      {"x = -'a'", "two numbers"},
      {"x = 1 / 2", "not a literal"},
      {"x = 2 ** 3", "not a literal"},
      {"x = 0x10", "not a number"},
      {"x = 1.2.3", "not a number"},
      {"x = 1e", "not a number"},
      {"x = 9223372036854775808", "not a number"},
      {"x = 9223372036854775807 + 1", "too large"},
      {"x = 1 1", "not a literal"},
      {"x = [1, 2]", "not a literal"},
      {"x = {}", "not a literal"},
      {"x = None", "leave the line out"},
      {"x = y", "not a literal"},
      {"x =", "the value is missing"},
      {"x = # nothing", "the value is missing"},
      {"x = 1 +", "the value is missing"},
      {"x = (1", "not closed"},
      {"x = 'a", "not closed"},
      {"x = 'a\\n'", "backslash"},
      {"x = '''a'''", "several lines"},
      {"x += 1", "sets no name"},
      {"x == 1", "sets no name"},
      {"x: int = 1", "sets no name"},
      {"1 = x", "sets no name"},
      {"print('x')", "sets no name"},
      {"if True:", "sets no name"},
      {"    x = 1", "indented"},
      {"exec(open('configurator.py').read())", "sets no name"},
      {"x = 1; y = 2", "not a literal"},
  };
  for (const auto& [line, why] : cases) {
    SCOPED_TRACE(line);
    try {
      parse_nanogpt_file(fmt::format("seed = 1\n{}\n", line), "run.py");
      ADD_FAILURE() << "accepted";
    } catch (const ConfigError& e) {
      expect_words(std::string(e.what()), {"run.py:2", why});
      expect_words(e.hint(), {"never executed"});
    }
  }
  EXPECT_THROW(parse_nanogpt_file("x = " + std::string(100000, '('), "run.py"), ConfigError);
}

TEST_F(NanogptFiles, NameFileAndLineOfWhatIsWrong) {
  const std::string path = python("seed = 3\nmax_iter = 5\n");
  expect_words(refusal({"--config", path}), {"'max_iter'", path + ":2", "did you mean --max-iters?"});
  const std::string bad = python("\n\nmax_iters = 'many'\n");
  expect_words(refusal({"--config", bad}), {"--steps", bad + ":3", "'many'"});
  const std::string negative = python("batch_size = -1\n");
  expect_words(refusal({"--config", negative}), {"--batch-size", negative + ":1", "'-1'"});
  const std::string evaluates = python("eval_only = True\n");
  expect_words(refusal({"--config", evaluates}), {evaluates + ":1", "qtrain eval"});
  expect_words(refusal({"--config", "/nowhere/at-all.py"}), {"/nowhere/at-all.py", "--config"});
  expect_words(refusal({"--config", python(std::string((1 << 16) + 1, '#'))}), {"64 KiB"});
  // The same text is no INI file.
  expect_words(refusal({"--config", ini("import time\n")}), {"name = value"});
}

TEST_F(NanogptFiles, StandOnTheDefaultsOfTrainPy) {
  const LoadedOptions loaded = load({"--config", python("")});
  const std::pair<const char*, const char*> expected[] = {
      {"model", "gpt2"},
      {"seq-len", "1024"},
      {"n-layer", "0"},
      {"batch-tokens", "491520"},
      {"batch-size", "12"},
      {"gradient-accumulation-steps", "40"},
      {"steps", "600000"},
      {"learning-rate", "0.0006"},
      {"weight-decay", "0.1"},
      {"warmup-steps", "2000"},
      {"decay-steps", "600000"},
      {"min-lr", "6e-05"},
      {"schedule", "cosine"},
      {"eval-every", "2000"},
      {"eval-tokens", "2457600"},
      {"out", "out"},
      {"data", "data/openwebtext"},
      {"data-order", "random"},
      {"seed", "1337"},
      {"dtype", "auto"},
      {"optim", "adamw"},
      {"device", "auto"},
      {"clip", "1"},
      {"log-every", "1"},
  };
  for (const auto& [name, text] : expected) EXPECT_EQ(text_of(loaded, name), text) << name;
  EXPECT_EQ(loaded.source_of("steps"), OptionSource::file);
  EXPECT_TRUE(loaded.notes.empty());
  EXPECT_EQ(load({"--config", python("seed = 3")}).options.seed, 3u);
  EXPECT_EQ(load({"--config", python("quant = 'nf4'\nsteps = 7")}).options.steps, 7) << "our words too";
  EXPECT_EQ(load({"--config", python("data = 'a b.txt'")}).options.data, Words{"a b.txt"});
}

TEST_F(NanogptFiles, TellTheModelByItsShape) {
  const LoadedOptions small = load({"--config", python("n_layer = 6\n")});
  EXPECT_EQ(small.options.model, "gpt");
  EXPECT_EQ(small.options.n_layer, 6);
  EXPECT_EQ(small.options.n_head, 12);
  EXPECT_EQ(small.options.n_embd, 768);
  const LoadedOptions same = load({"--config", python("n_layer = 12\nn_head = 12\nn_embd = 768\n")});
  EXPECT_EQ(same.options.model, "gpt2");
  EXPECT_EQ(same.options.n_embd, 0);
  EXPECT_EQ(load({"--config", python(""), "--n_layer=3"}).options.model, "gpt");
  const LoadedOptions other = load({"--config", python("n_layer = 6\ndropout = 0.2"), "--model", "d4"});
  EXPECT_EQ(other.options.model, "d4");
  EXPECT_EQ(other.options.n_layer, 0);
  EXPECT_EQ(other.options.dropout, 0);
  EXPECT_EQ(load({"--config", python("dropout = 0.2"), "--model", "gpt2-xl"}).options.dropout, 0.2);
  EXPECT_EQ(load({"--config", python(""), "--model", "gpt2-xl"}).options.n_layer, 0);
}

// --- configs -----------------------------------------------------------------------------------------------

constexpr const char* kShakespeareChar = R"(
out_dir = 'out-shakespeare-char'
eval_interval = 250
eval_iters = 200
log_interval = 10
always_save_checkpoint = False
wandb_log = False
wandb_project = 'shakespeare-char'
wandb_run_name = 'mini-gpt'
dataset = 'shakespeare_char'
gradient_accumulation_steps = 1
batch_size = 64
block_size = 256
n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
learning_rate = 1e-3
max_iters = 5000
lr_decay_iters = 5000
min_lr = 1e-4
beta2 = 0.99
warmup_iters = 100
)";
constexpr const char* kGpt2 = R"(
wandb_log = True
wandb_project = 'owt'
wandb_run_name = 'gpt2-124M'
batch_size = 12
block_size = 1024
gradient_accumulation_steps = 5 * 8
max_iters = 600000
lr_decay_iters = 600000
eval_interval = 1000
eval_iters = 200
log_interval = 10
weight_decay = 1e-1
)";

std::string config(const std::string& name) { return QTRAIN_SOURCE_DIR "/configs/" + name; }

TEST_F(NanogptConfigs, ShakespeareOnACardIsTheSameRun) {
  const LoadedOptions theirs = load({"--config", python(kShakespeareChar)});
  const LoadedOptions ours = load({"--config", config("shakespeare-char-gpu.cfg")});
  // Its data has been cut into letters beforehand; ours is text.
  EXPECT_EQ(differences(theirs, ours), (std::set<std::string>{"data", "out", "tokenizer-kind"}));
  EXPECT_EQ(theirs.options.out, "out-shakespeare-char");
  EXPECT_EQ(theirs.options.data, Words{"data/shakespeare_char"});
  EXPECT_EQ(ours.options.batch_tokens, 64 * 256);
  EXPECT_EQ(ours.options.model, "gpt");
}

TEST_F(NanogptConfigs, ShakespeareOnAProcessorIsTheSameRun) {
  const LoadedOptions theirs =
      load({"--config", python(kShakespeareChar), "--device=cpu", "--compile=False", "--eval_iters=20",
            "--log_interval=1", "--block_size=64", "--batch_size=12", "--n_layer=4", "--n_head=4",
            "--n_embd=128", "--max_iters=2000", "--lr_decay_iters=2000", "--dropout=0.0"});
  const LoadedOptions ours = load({"--config", config("shakespeare-char-cpu.cfg")});
  // --device auto is the cpu where there is no card.
  EXPECT_EQ(differences(theirs, ours), (std::set<std::string>{"data", "device", "out", "tokenizer-kind"}));
  EXPECT_EQ(ours.options.batch_tokens, 12 * 64);
  EXPECT_EQ(ours.options.eval_tokens, 20 * 12 * 64);
}

TEST_F(NanogptConfigs, Gpt2IsTheSameRun) {
  const LoadedOptions theirs = load({"--config", python(kGpt2)});
  const LoadedOptions ours = load({"--config", config("gpt2-124m.cfg")});
  // Ours names the vocabulary that nanoGPT pads to.
  EXPECT_EQ(differences(theirs, ours), (std::set<std::string>{"data", "out", "vocab-size"}));
  EXPECT_EQ(ours.options.batch_tokens, 491520);
  EXPECT_EQ(ours.options.vocab_size, 50304);
  // The comparison can fail.
  EXPECT_EQ(differences(load({"--config", python(kGpt2), "--beta2=0.9"}), ours).count("beta2"), 1u);
}

TEST_F(NanogptConfigs, EachIsReadAndPrintsAsAConfiguration) {
  std::size_t read = 0;
  for (const auto& entry : std::filesystem::directory_iterator(config(""))) {
    SCOPED_TRACE(entry.path().string());
    if (entry.path().extension() == ".service") continue;  // systemd's, not ours
    const LoadedOptions loaded = load({"--config", entry.path().string()});
    std::ostringstream out;
    print_config(out, loaded);
    const LoadedOptions again = load({"--config", ini(out.str())});
    EXPECT_EQ(differences(again, loaded), std::set<std::string>{});
    ++read;
  }
  EXPECT_GE(read, 6u);
  const Options small = load({"--config", config("gpt2-124m-fp16-12g.cfg")}).options;
  EXPECT_EQ(small.batch_tokens, 16 * 1024 * 30);
  EXPECT_EQ(small.dtype, DType::f16);
  EXPECT_EQ(load({"--config", config("gpt-12x576-fp16-12g.cfg")}).options.batch_tokens, 64 * 1024 * 8);
}

TEST_F(NanogptConfigs, PrintedImportsReadBack) {
  for (const char* text :
       {"", kShakespeareChar, kGpt2, "decay_lr = False\nlearning_rate = 3e-5\n", "min_lr = 0\n"}) {
    const LoadedOptions loaded = load({"--config", python(text)});
    std::ostringstream out;
    print_config(out, loaded);
    EXPECT_EQ(differences(load({"--config", ini(out.str())}), loaded), std::set<std::string>{}) << text;
  }
}

}  // namespace
}  // namespace qt::test
