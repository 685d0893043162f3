// Options: the four sources and their order, what is refused and how it is named, and that the table's names
// stay what scripts and stored runs rely on.
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/core/suggest.h"
#include "src/options/option_table.h"
#include "tests/support/option_fixture.h"

namespace qt {
namespace {

using test::expect_words;

class OptionTest : public test::OptionFixture {
 protected:
  std::string file(const std::string& text) { return ini(text); }
  LoadedOptions load(const std::vector<std::string>& args) { return load_options(args); }

  // Loads, expects a ConfigError with exit code 2 and returns message and hint.
  std::string refusal(const std::vector<std::string>& args) {
    try {
      load_options(args);
    } catch (const ConfigError& e) {
      EXPECT_EQ(e.code(), ExitCode::usage);
      EXPECT_EQ(static_cast<int>(e.code()), 2);
      return std::string(e.what()) + " | " + e.hint();
    } catch (const std::exception& e) {
      ADD_FAILURE() << "not a ConfigError: " << e.what();
      return e.what();
    }
    return "accepted";
  }
};
using OptionSources = OptionTest;
using OptionRefusals = OptionTest;
using OptionTable = OptionTest;

OptionSource source_of(const LoadedOptions& loaded, std::string_view name) {
  const auto it = loaded.source.find(name);
  return it == loaded.source.end() ? OptionSource::default_value : it->second;
}

// --- sources ---------------------------------------------------------------------------------------------

TEST_F(OptionSources, OverrideEachOtherInTheOrderDefaultFileEnvironmentCommandLine) {
  const std::string path = file("steps = 10\nkeep = 10\neval-every = 10\n");
  set("QTRAIN_KEEP", "20");
  set("QTRAIN_EVAL_EVERY", "20");
  const LoadedOptions loaded = load({"--config", path, "--eval-every", "30"});
  EXPECT_EQ(loaded.options.log_every, Options().log_every);
  EXPECT_EQ(loaded.options.steps, 10);
  EXPECT_EQ(loaded.options.keep, 20);
  EXPECT_EQ(loaded.options.eval_every, 30);
  EXPECT_EQ(source_of(loaded, "log-every"), OptionSource::default_value);
  EXPECT_EQ(source_of(loaded, "steps"), OptionSource::file);
  EXPECT_EQ(source_of(loaded, "keep"), OptionSource::environment);
  EXPECT_EQ(source_of(loaded, "eval-every"), OptionSource::command_line);
  EXPECT_FALSE(loaded.given("log-every"));
  EXPECT_TRUE(loaded.given("keep"));
  EXPECT_EQ(loaded.config_file, path);
}

TEST_F(OptionSources, ReadFilesWithOrWithoutSections) {
  const LoadedOptions sections = load(
      {"--config",
       file("# a run\n[model]\nmodel = d6\n\n[memory]\nquant = nf4  # packed\nckpt-activations = true\n")});
  EXPECT_EQ(sections.options.model, "d6");
  EXPECT_EQ(sections.options.quant, FormatId::nf4);
  EXPECT_TRUE(sections.options.ckpt_activations);
  EXPECT_EQ(load({"--config", file("model = d6\nquant = nf4\n")}).options.quant, FormatId::nf4);
}

TEST_F(OptionSources, TakeUnderscoresForHyphens) {
  EXPECT_EQ(load({"--config", file("vocab_size = 512\n")}).options.vocab_size, 512);
  EXPECT_EQ(load({"--vocab_size", "512"}).options.vocab_size, 512);
  EXPECT_EQ(load({"--vocab_size=512"}).options.vocab_size, 512);
  EXPECT_TRUE(load({"--ckpt_activations"}).options.ckpt_activations);
  EXPECT_EQ(load({"--out=runs/a_b"}).options.out, "runs/a_b") << "values are left alone";
  EXPECT_EQ(load({"--out", "a--b_c"}).options.out, "a--b_c");
  set("QTRAIN_VOCAB_SIZE", "256");
  EXPECT_EQ(load({}).options.vocab_size, 256);
  EXPECT_EQ(find_option("vocab_size"), find_option("vocab-size"));
}

TEST_F(OptionSources, SwitchFlagsOnAndOff) {
  EXPECT_FALSE(load({}).options.ckpt_activations);
  EXPECT_TRUE(load({"--ckpt-activations"}).options.ckpt_activations);
  EXPECT_TRUE(load({"--ckpt_activations"}).options.ckpt_activations);
  EXPECT_FALSE(load({"--ckpt-activations", "--no-ckpt-activations"}).options.ckpt_activations)
      << "the last one counts";
  EXPECT_TRUE(load({"--no_ckpt_activations", "--ckpt-activations"}).options.ckpt_activations);
  for (const char* off : {"false", "0", "off", "no"}) {
    set("QTRAIN_QUIET", off);
    EXPECT_FALSE(load({}).options.quiet) << off;
    EXPECT_TRUE(load({"--quiet"}).options.quiet) << "the command line wins";
  }
  for (const char* on : {"true", "1", "on", "yes"}) {
    set("QTRAIN_QUIET", on);
    EXPECT_TRUE(load({}).options.quiet) << on;
    EXPECT_FALSE(load({"--no-quiet"}).options.quiet) << "the command line wins";
  }
  EXPECT_EQ(source_of(load({"--no-quiet"}), "quiet"), OptionSource::command_line);
}

TEST_F(OptionSources, TakeOtherProgramsWordsForOurValues) {
  const std::pair<const char*, const char*> dtypes[] = {
      {"float32", "f32"}, {"fp32", "f32"},      {"f32", "f32"},   {"float16", "fp16"}, {"f16", "fp16"},
      {"fp16", "fp16"},   {"bfloat16", "bf16"}, {"bf16", "bf16"}, {"auto", "auto"}};
  for (const auto& [word, ours] : dtypes) {
    EXPECT_EQ(option_text<&Options::dtype>(load({"--dtype", word}).options), ours) << word;
    if (std::string_view(ours) != "fp16") {
      EXPECT_EQ(option_text<&Options::grad_dtype>(load({"--grad-dtype", word}).options), ours) << word;
    }
    const LoadedOptions from_file = load({"--config", file(fmt::format("dtype = {}\n", word))});
    EXPECT_EQ(option_text<&Options::dtype>(from_file.options), ours) << word;
    set("QTRAIN_DTYPE", word);
    EXPECT_EQ(option_text<&Options::dtype>(load({}).options), ours) << word;
    unsetenv("QTRAIN_DTYPE");
  }
  EXPECT_EQ(load({"--prompt", "float16"}).options.prompt, "float16") << "only where it names a dtype";
  EXPECT_EQ(load({}).options.paging, Paging::automatic);
  // Checkpoints and files of earlier versions hold a flag here.
  EXPECT_EQ(load({"--config", file("paging = true\n")}).options.paging, Paging::on);
  EXPECT_EQ(load({"--config", file("paging = false\n")}).options.paging, Paging::off);
  EXPECT_EQ(load({"--paging", "off"}).options.paging, Paging::off);
}

TEST_F(OptionSources, RefuseAValueThatIsNoChoiceNamingWhereItStands) {
  const auto refusal = [](const std::function<void()>& body) {
    try {
      body();
    } catch (const ConfigError& e) {
      return std::string(e.what()) + " / " + e.hint();
    }
    return std::string("accepted");
  };
  EXPECT_EQ(refusal([&] {
              load({"--paging", "perhaps"});
            }),
            "--paging perhaps is not available / use --paging with one of: auto, on, off");
  const std::string path = file("[memory]\ngemm = fst\n");
  EXPECT_EQ(
      refusal([&] {
        load({"--config", path});
      }),
      fmt::format("--gemm fst ({}) is not available / use --gemm with one of: auto, fused, scratch", path));
  set("QTRAIN_DTYPE", "int4");
  EXPECT_NE(refusal([&] { load({}); }).find("--dtype int4 (QTRAIN_DTYPE)"), std::string::npos);
}

TEST_F(OptionSources, CollectSeveralDataFiles) {
  using Words = std::vector<std::string>;
  EXPECT_EQ(load({"--data", "a.txt", "b c.txt", "--steps", "3"}).options.data, (Words{"a.txt", "b c.txt"}));
  EXPECT_EQ(load({"--data", "a", "--steps", "3", "--data", "b"}).options.data, (Words{"a", "b"}));
  EXPECT_EQ(load({"--data", "-"}).options.data, (Words{"-"})) << "standard input";
  EXPECT_EQ(load({"--data=-"}).options.data, (Words{"-"}));
  EXPECT_EQ(load({"--config", file("data = a\ndata = b \"c d\"\n")}).options.data, (Words{"a", "b", "c d"}));
  EXPECT_EQ(load({"--config", file("data =\n")}).options.data, Words{});
  set("QTRAIN_DATA", R"(x "y \"z\" \\" C:\w)");
  EXPECT_EQ(load({}).options.data, (Words{"x", R"(y "z" \)", R"(C:\w)"}));
  EXPECT_EQ(load({"--data", "only"}).options.data, (Words{"only"})) << "sources replace, they do not add";
}

TEST_F(OptionSources, ReadNumbersSizesDurationsAndCounts) {
  const Options o = load({"--matrix-lr", "3e-4", "--vram", "12GiB", "--stop-after", "1h30m", "--tokens",
                          "37.6B", "--seed", "18446744073709551615"})
                        .options;
  EXPECT_EQ(o.matrix_lr, 3e-4);
  EXPECT_EQ(o.vram_bytes, std::int64_t{12} << 30);
  EXPECT_EQ(o.stop_after_s, 5400);
  EXPECT_EQ(o.tokens, 37'600'000'000);
  EXPECT_EQ(o.seed, ~std::uint64_t{0});
  EXPECT_EQ(load({"--prompt", ""}).options.prompt, "");
  EXPECT_EQ(load({"--prompt=--steps"}).options.prompt, "--steps");
}

TEST_F(OptionSources, LeaveVariablesOfTestsAndToolsAlone) {
  set("QTRAIN_REQUIRE_CUDA", "1");
  EXPECT_NO_THROW(load({}));
}

// --- refusals --------------------------------------------------------------------------------------------

TEST_F(OptionRefusals, NameTheNearestOptionForAnUnknownOne) {
  expect_words(refusal({"--ckpt-activation"}),
               {"'ckpt-activation'", "command line", "did you mean --ckpt-activations?"});
  expect_words(refusal({"--vocab_sise", "3"}), {"did you mean --vocab-size?"});
  const std::string path = file("[memory]\nquants = nf4\n");
  expect_words(refusal({"--config", path}), {"'quants'", path, "did you mean --quant?"});
  set("QTRAIN_MICROBATCH", "4");
  expect_words(refusal({}), {"'microbatch'", "QTRAIN_MICROBATCH", "did you mean --micro-batch?"});
}

TEST_F(OptionRefusals, SuggestNothingWhereNothingIsNear) {
  const std::string text = refusal({"--zzzzzzzzzz"});
  expect_words(text, {"'zzzzzzzzzz'", "--help"});
  EXPECT_EQ(text.find("did you mean"), std::string::npos) << text;
}

TEST_F(OptionRefusals, NameAStrayWord) {
  expect_words(refusal({"--steps", "3", "d32"}), {"'d32'"});
  expect_words(refusal({"--quiet", "perhaps"}), {"'perhaps'", "--no-quiet"});
  expect_words(refusal({"--", "x"}), {"'x'"});
  expect_words(refusal({"-x"}), {"'-x'"});
}

TEST_F(OptionRefusals, WrongSections) {
  expect_words(refusal({"--config", file("[optim]\nquant = nf4\n")}), {"'quant'", "[memory]", "[optim]"});
  expect_words(refusal({"--config", file("[memories]\nquant = nf4\n")}),
               {"'quant'", "[memory]", "[memories]"});
}

TEST_F(OptionRefusals, ScalarsThatAreGivenTwice) {
  expect_words(refusal({"--steps", "3", "--steps", "4"}), {"--steps", "twice"});
  const std::string path = file("steps = 3\nsteps = 4\n");
  expect_words(refusal({"--config", path}), {"'steps'", "2 times", path});
  expect_words(refusal({"--config", path, "--config", path}), {"--config", "twice"});
}

TEST_F(OptionRefusals, ValuesThatAreNotWhatTheOptionTakes) {
  expect_words(refusal({"--matrix-lr", "fast"}), {"--matrix-lr", "'fast'"});
  for (const char* bad : {"", "-1", "1e999", "nan", "inf", "0x10", "1 2", "1,5", " 1"}) {
    expect_words(refusal({fmt::format("--clip={}", bad)}), {"clip"});
  }
  expect_words(refusal({"--steps", "3.5"}), {"--steps", "'3.5'"});
  expect_words(refusal({"--steps", "-3"}), {"--steps", "'-3'"});
  expect_words(refusal({"--seed", "18446744073709551616"}), {"--seed"});
  expect_words(refusal({"--seed", "-1"}), {"--seed"});
  expect_words(refusal({"--vram", "12 parsecs"}), {"--vram", "'12 parsecs'", "12GiB"});
  expect_words(refusal({"--stop-after", "soon"}), {"--stop-after", "'soon'"});
  expect_words(refusal({"--steps"}), {"steps"});
  expect_words(refusal({"--quiet=perhaps"}), {"quiet"});
  const std::string path = file("quiet = perhaps\n");
  expect_words(refusal({"--config", path}), {"--quiet", path, "'perhaps'"});
  set("QTRAIN_VRAM", "big");
  expect_words(refusal({}), {"--vram", "QTRAIN_VRAM", "'big'"});
}

TEST_F(OptionRefusals, ListsWhoseQuotesDoNotClose) {
  set("QTRAIN_DATA", "a \"b c");
  expect_words(refusal({}), {"--data", "QTRAIN_DATA", "quote"});
}

TEST_F(OptionRefusals, FilesThatCannotBeRead) {
  expect_words(refusal({"--config", "/nowhere/at-all.ini"}), {"/nowhere/at-all.ini"});
  expect_words(refusal({"--config="}), {"--config"});
  const std::string path = file("this is no line of a configuration\n");
  expect_words(refusal({"--config", path}), {path});
}

TEST_F(OptionRefusals, StrangeWordsAreNeverMoreThanUsageErrors) {
  for (const char* word : {"--", "---", "--=", "--=5", "-", "", "--no-", "--no-steps", "--steps=", "--config",
                           "--stray word", "--stray-word=1", "--%s", "--data", "--\xff\xfe", "--no-config"}) {
    try {
      load_options(std::vector<std::string>{word});
    } catch (const ConfigError&) {
    } catch (const std::exception& e) {
      ADD_FAILURE() << "'" << word << "': " << e.what();
    }
  }
}

// --- table -----------------------------------------------------------------------------------------------

// Stored runs, scripts and configuration files name options. Adding one needs a line here; renaming or
// removing one breaks those who use it.
TEST_F(OptionTable, HoldsExactlyTheKnownNames) {
  const std::vector<std::string> frozen = {"model.model",
                                           "model.vocab-size",
                                           "model.seq-len",
                                           "model.n-layer",
                                           "model.n-head",
                                           "model.n-embd",
                                           "model.n-kv-head",
                                           "model.norm-eps",
                                           "model.bias",
                                           "model.dropout",
                                           "memory.train",
                                           "memory.quant",
                                           "memory.ckpt-activations",
                                           "memory.dtype",
                                           "memory.grad-dtype",
                                           "memory.micro-batch",
                                           "memory.loss-chunk",
                                           "memory.master",
                                           "memory.paging",
                                           "memory.device",
                                           "memory.arch",
                                           "memory.gemm",
                                           "memory.vram",
                                           "memory.ram",
                                           "memory.threads",
                                           "optim.optim",
                                           "optim.learning-rate",
                                           "optim.matrix-lr",
                                           "optim.embedding-lr",
                                           "optim.head-lr",
                                           "optim.beta1",
                                           "optim.beta2",
                                           "optim.eps",
                                           "optim.weight-decay",
                                           "optim.clip",
                                           "optim.schedule",
                                           "optim.warmup-steps",
                                           "optim.warmdown",
                                           "optim.final-lr",
                                           "optim.min-lr",
                                           "optim.decay-steps",
                                           "run.batch-tokens",
                                           "run.batch-size",
                                           "run.gradient-accumulation-steps",
                                           "run.init-from",
                                           "run.steps",
                                           "run.tokens",
                                           "run.seed",
                                           "run.out",
                                           "run.stop-after",
                                           "run.fresh",
                                           "run.allow-changes",
                                           "data.data",
                                           "data.val-data",
                                           "data.tokenizer",
                                           "data.tokenizer-kind",
                                           "data.split-pattern",
                                           "data.val-fraction",
                                           "data.data-order",
                                           "data.cache",
                                           "export.to",
                                           "export.format",
                                           "export.weights",
                                           "export.shard-bytes",
                                           "export.overwrite",
                                           "watch.eval-every",
                                           "watch.eval-tokens",
                                           "watch.eval-iters",
                                           "watch.save-every",
                                           "watch.keep",
                                           "watch.sample-every",
                                           "watch.sample-tokens",
                                           "watch.prompt",
                                           "watch.temperature",
                                           "watch.top-k",
                                           "watch.watts",
                                           "watch.price",
                                           "watch.log-every",
                                           "watch.tensorboard",
                                           "watch.quiet"};
  std::vector<std::string> names;
  for (const OptionSpec& spec : option_table())
    names.push_back(fmt::format("{}.{}", spec.section, spec.name));
  EXPECT_EQ(names, frozen);
}

TEST_F(OptionTable, HoldsEachNameAndEachFieldOnce) {
  std::set<std::string> names;
  std::vector<OptionSpec::Member> members;
  for (const OptionSpec& spec : option_table()) {
    EXPECT_TRUE(names.insert(spec.name).second) << spec.name;
    for (const OptionSpec::Member& other : members) EXPECT_FALSE(other == spec.member) << spec.name;
    members.push_back(spec.member);
    EXPECT_FALSE(std::string(spec.name).starts_with("no-")) << "would be read as a flag switched off";
  }
  // A file may leave sections out only because names are unique over all of them.
  EXPECT_EQ(names.size(), option_table().size());
}

// The columns decide which runs continue and which measured steps count: a change of one is a change of behaviour.
TEST(Options, WhatAChangedValueMeansIsFrozen) {
  const auto with = [](auto&& is) {
    std::string names;
    for (const OptionSpec& spec : option_table()) {
      if (is(spec)) names += (names.empty() ? "" : " ") + std::string(spec.name);
    }
    return names;
  };
  const auto on_resume = [&](OnResume meaning) {
    return with([&](const OptionSpec& spec) { return spec.on_resume == meaning; });
  };
  const auto trait = [&](std::uint8_t t) {
    return with([&](const OptionSpec& spec) { return spec.has(t); });
  };
  EXPECT_EQ(on_resume(OnResume::fixed),
            "model vocab-size seq-len n-layer n-head n-embd n-kv-head norm-eps bias train");
  EXPECT_EQ(on_resume(OnResume::stored_as), "quant dtype master optim");
  EXPECT_EQ(on_resume(OnResume::identity), "batch-tokens seed data-order");
  EXPECT_EQ(on_resume(OnResume::bits), "grad-dtype micro-batch loss-chunk device arch gemm");
  EXPECT_EQ(on_resume(OnResume::shown), "ckpt-activations paging vram ram threads");
  EXPECT_EQ(
      on_resume(OnResume::printed),
      "dropout learning-rate matrix-lr embedding-lr head-lr beta1 beta2 eps weight-decay clip schedule warmup-steps "
      "warmdown final-lr min-lr decay-steps steps tokens");
  EXPECT_EQ(
      trait(kSpeed),
      "model vocab-size seq-len n-layer n-head n-embd n-kv-head bias dropout quant ckpt-activations dtype grad-dtype "
      "micro-batch loss-chunk master paging device arch gemm threads optim batch-tokens");
  EXPECT_EQ(trait(kAdopted), "vocab-size seq-len n-kv-head dtype grad-dtype gemm");
  EXPECT_EQ(trait(kOfWeights), "model vocab-size n-layer n-head n-embd n-kv-head norm-eps bias");
}

// A word's place in its row is the enumerator's number: a word in another place would mean another value.
TEST(Options, EachWordMeansItsEnumerator) {
  const auto with = [](const char* name, const char* word) {
    Options o;
    set_option(o, *find_option(name), {word}, "test");
    return o;
  };
  EXPECT_EQ(with("grad-dtype", "f32").grad_dtype, DType::f32);
  EXPECT_EQ(with("grad-dtype", "bf16").grad_dtype, DType::bf16);
  for (const DType type : {DType::f32, DType::bf16, DType::f16}) {
    const std::string word(dtype_name(type));
    EXPECT_EQ(with("dtype", word.c_str()).dtype, type);
    EXPECT_EQ(with("format", word.c_str()).format, type);
  }
  for (const char* name : {"dtype", "grad-dtype", "format", "device"})
    EXPECT_EQ(option_text(with(name, "auto"), *find_option(name)), "auto");
  EXPECT_EQ(with("dtype", "auto").dtype, std::nullopt);
  EXPECT_EQ(with("quant", "none").quant, FormatId::none);
  EXPECT_EQ(with("quant", "nf4").quant, FormatId::nf4);
  EXPECT_EQ(with("master", "f32").master, DType::f32);
  EXPECT_EQ(with("master", "bf16-sr").master, DType::bf16);
  EXPECT_EQ(with("paging", "auto").paging, Paging::automatic);
  EXPECT_EQ(with("paging", "on").paging, Paging::on);
  EXPECT_EQ(with("paging", "off").paging, Paging::off);
  EXPECT_EQ(with("device", "auto").device, std::nullopt);
  EXPECT_EQ(with("device", "cpu").device, DeviceKind::cpu);
  EXPECT_EQ(with("device", "cuda").device, DeviceKind::cuda);
  EXPECT_EQ(with("gemm", "auto").gemm, GemmRoute::automatic);
  EXPECT_EQ(with("gemm", "fused").gemm, GemmRoute::fused);
  EXPECT_EQ(with("gemm", "scratch").gemm, GemmRoute::scratch);
  EXPECT_EQ(with("schedule", "warmdown").schedule, ScheduleKind::warmdown);
  EXPECT_EQ(with("schedule", "cosine").schedule, ScheduleKind::cosine);
  EXPECT_EQ(with("tokenizer-kind", "bpe").tokenizer_kind, TokenizerKind::bpe);
  EXPECT_EQ(with("tokenizer-kind", "bytes").tokenizer_kind, TokenizerKind::bytes);
  EXPECT_EQ(with("tokenizer-kind", "char").tokenizer_kind, TokenizerKind::chars);
  EXPECT_EQ(with("data-order", "shuffle").data_order, RowOrder::shuffled);
  EXPECT_EQ(with("data-order", "sequential").data_order, RowOrder::sequential);
  EXPECT_EQ(with("data-order", "random").data_order, RowOrder::random);
  EXPECT_EQ(with("weights", "packed").weights, WeightsOf::packed);
  EXPECT_EQ(with("weights", "master").weights, WeightsOf::master);
}

// A value different from the default, for every kind.
std::string other_value(const OptionSpec& spec) {
  if (const std::string words = spec.words.text(); !words.empty()) return words.substr(words.rfind(' ') + 1);
  switch (spec.kind) {
    case OptionKind::text: return "some words, with 'quotes' and \\";
    case OptionKind::texts: return "";  // set below
    case OptionKind::flag: return option_text(Options(), spec) == "true" ? "false" : "true";
    case OptionKind::count: return "123457";
    case OptionKind::bytes: return "12884901889";
    case OptionKind::duration: return "5401.25";
    case OptionKind::number: return "0.1234567890123456";
  }
  return {};
}

TEST_F(OptionTable, TextsReadBackAsTheValuesTheyCameFrom) {
  for (const OptionSpec& spec : option_table()) {
    std::vector<std::vector<std::string>> values = {option_values(spec, option_text(Options(), spec), "test"),
                                                    {other_value(spec)}};
    if (spec.kind == OptionKind::texts) values = {{}, {"a"}, {"a b", "c\"d", "e\\", "", "\\\" ", "-", "\tx"}};
    for (const std::vector<std::string>& value : values) {
      Options first, second;
      set_option(first, spec, value, "test");
      const std::string text = option_text(first, spec);
      set_option(second, spec, option_values(spec, text, "test"), "test");
      EXPECT_EQ(option_text(second, spec), text) << spec.name;
      const bool same = std::visit(
          [&](auto member) {
            if constexpr (std::is_same_v<decltype(member), ChoiceMember>)
              return member.word(first) == member.word(second);
            else
              return first.*member == second.*member;
          },
          spec.member);
      EXPECT_TRUE(same) << spec.name << " = " << text;
    }
    // The loop above would also pass if nothing were ever set.
    if (spec.words.text() == option_text(Options(), spec) && !spec.words.text().empty())
      continue;  // one word
    Options changed;
    set_option(changed, spec, {other_value(spec) + (spec.kind == OptionKind::texts ? "x" : "")}, "test");
    EXPECT_NE(option_text(changed, spec), option_text(Options(), spec)) << spec.name;
  }
}

TEST_F(OptionTable, PrintedConfigurationListsEveryOptionWithItsSource) {
  const std::string path = file("keep = 3\n");
  set("QTRAIN_QUANT", "nf4");
  const LoadedOptions loaded = load({"--config", path, "--steps", "77", "--data", "a b", "c"});
  std::ostringstream out;
  print_config(out, loaded);
  std::istringstream in(out.str());
  std::string line;
  std::size_t lines = 0;
  for (const OptionSpec& spec : option_table()) {
    ASSERT_TRUE(std::getline(in, line));
    ++lines;
    EXPECT_TRUE(line.starts_with(std::string(spec.name) + " ")) << line;
    expect_words(line, {" = " + option_text(loaded.options, spec), "# "});
  }
  EXPECT_FALSE(std::getline(in, line)) << line;
  const auto line_of = [&](const std::string& name) {
    const std::size_t at = out.str().find("\n" + name + " ") + 1;
    return out.str().substr(at, out.str().find('\n', at) - at);
  };
  expect_words(line_of("steps"), {"77", "# command line"});
  expect_words(line_of("quant"), {"nf4", "# environment"});
  expect_words(line_of("keep"), {"3", "# " + path});
  expect_words(line_of("beta1"), {"0.8", "# default"});

  // What is printed is a configuration file.
  unsetenv("QTRAIN_QUANT");
  const LoadedOptions again = load({"--config", file(out.str())});
  for (const OptionSpec& spec : option_table()) {
    EXPECT_EQ(option_text(again.options, spec), option_text(loaded.options, spec)) << spec.name;
  }
}

TEST_F(OptionTable, HelpListsEveryOptionWithItsDefault) {
  std::ostringstream out;
  print_option_help(out);
  for (const OptionSpec& spec : option_table()) {
    expect_words(out.str(),
                 {fmt::format("--{} ", spec.name), spec.help,
                  fmt::format("[{}]", option_text(Options(), spec)), fmt::format("\n[{}]\n", spec.section)});
  }
}

// --- suggestions -------------------------------------------------------------------------------------------

TEST(Suggestions, CountTheLettersThatDiffer) {
  EXPECT_EQ(edit_distance("", ""), 0u);
  EXPECT_EQ(edit_distance("", "abc"), 3u);
  EXPECT_EQ(edit_distance("abc", ""), 3u);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3u);
  EXPECT_EQ(edit_distance("flaw", "lawn"), 2u);
}

TEST(Suggestions, AreTheFirstOfTheNearestAndNoneWhereHalfTheLettersDiffer) {
  const std::vector<std::string_view> known = {"alpha", "beta", "zeta"};
  EXPECT_EQ(nearest_name("eta", known), "beta");
  EXPECT_EQ(similar_name("alpah", known), "alpha");
  EXPECT_EQ(nearest_name("gamma", known), "alpha");
  EXPECT_EQ(similar_name("gamma", known), "");
  EXPECT_EQ(nearest_name("x", {}), "");
}

}  // namespace
}  // namespace qt
