// Plans: the bytes and the work of a run before it starts, against figures worked out here by hand, and the
// table of models.
#include <algorithm>
#include <ctime>
#include <optional>
#include <string>

#include <gtest/gtest.h>

#include "src/core/units.h"
#include "src/model/family.h"
#include "src/options/option_table.h"
#include "src/plan/command.h"
#include "src/plan/machine.h"
#include "src/plan/planner.h"
#include "tests/support/shell_words.h"

namespace qt {
namespace {

constexpr double kGi = 1024.0 * 1024.0 * 1024.0;

Target card() { return cuda_target(89); }

Options d32(FormatId quant, std::int64_t micro_batch = 0, std::optional<DType> grad_dtype = {}) {
  Options o;
  o.model = "d32";
  o.quant = quant;
  o.ckpt_activations = true;
  o.micro_batch = micro_batch;
  o.grad_dtype = grad_dtype;
  return o;
}

Plan plan(Options o, std::int64_t vram_bytes = 12 * kGiB) {
  o.vram_bytes = vram_bytes;
  Limits limits;
  limits.device_bytes = vram_bytes;
  limits.reserve_bytes = kGiB;  // of a card that was not measured
  return plan_run({.options = o, .target = card(), .limits = limits});
}

// What the promise is about: everything but the driver's own share.
double device_gib(const Plan& run) {
  return static_cast<double>(run.device_bytes - run.config.target.context_bytes) / kGi;
}

std::string breakdown(const Plan& run) {
  std::string text;
  for (const PlanRow& row : run.device_rows)
    text += fmt::format("{} {}, ", row.name, format_bytes(row.bytes));
  return text;
}

std::int64_t row_bytes(const std::vector<PlanRow>& rows, std::string_view name) {
  for (const PlanRow& row : rows) {
    if (row.name == name) return row.bytes;
  }
  return 0;
}

// --- bytes of d32 ------------------------------------------------------------------------------------------

constexpr std::int64_t kMatrix = 12LL * 32 * 2048 * 2048;  // 1,610,612,736 weights in blocks
constexpr std::int64_t kVocabulary = 2LL * 65536 * 2048;   // embedding and head
constexpr std::int64_t kAll = kMatrix + kVocabulary;       // 1,879,048,192
constexpr std::int64_t kRope = 2LL * 2048 * 64 * 2;        // cos and sin in bf16

TEST(PlanOfD32, StaysWithinTheDeviceBytesThatArePromised) {
  const struct {
    const char* quant;
    std::int64_t micro_batch;
    double most_gib;
  } promises[] = {{"nf4", 1, 6.3}, {"nf4", 4, 7.6}, {"none", 1, 8.4}, {"none", 4, 9.8}};
  for (const auto& p : promises) {
    const Plan run = plan(d32(format_from_name(p.quant), p.micro_batch, DType::bf16));
    EXPECT_LE(device_gib(run), p.most_gib)
        << p.quant << ", micro-batch " << p.micro_batch << ": " << breakdown(run);
    // The step arena is what planning can win or lose: no more than 1 % may be lost to holes between
    // lifetimes.
    const PhasePlan* largest = run.rehearsed.step.largest();
    EXPECT_LE(static_cast<double>(largest->bytes), 1.01 * static_cast<double>(largest->live_bytes))
        << largest->name;
  }
}

TEST(PlanOfD32, CountsTheBytesOfWeightsAndGradientsThatArithmeticGives) {
  const Plan nf4 = plan(d32(FormatId::nf4, 1, DType::bf16));
  EXPECT_EQ(row_bytes(nf4.device_rows, "weights"), kMatrix / 2 + kMatrix / 64 * 4 + kVocabulary * 2 + kRope);
  EXPECT_EQ(row_bytes(nf4.device_rows, "gradients"), kAll * 2);
  const Plan plain = plan(d32(FormatId::none, 1, DType::f32), 0);
  EXPECT_EQ(row_bytes(plain.device_rows, "weights"), kAll * 2 + kRope);
  EXPECT_EQ(row_bytes(plain.device_rows, "gradients"), kAll * 4);
}

TEST(PlanOfD32, KeepsMasterAndMomentsInTheHostMemoryThatIsPromised) {
  const Plan run = plan(d32(FormatId::nf4, 1, DType::bf16));
  EXPECT_EQ(row_bytes(run.host_rows, "master"), kAll * 4);
  // One byte each for m and v, a scale each per 256; f32 for embedding and head.
  EXPECT_EQ(row_bytes(run.host_rows, "moments"), 2 * (kMatrix + kMatrix / 256 * 4) + 2 * kVocabulary * 4);
  EXPECT_LE(static_cast<double>(run.host_bytes) / kGi, 12.4);

  Options resident = d32(FormatId::nf4, 1, DType::bf16);
  resident.paging = Paging::off;
  const Plan all_on_device = plan(resident, 0);
  EXPECT_EQ(all_on_device.host_bytes, 0);
  EXPECT_EQ(row_bytes(all_on_device.device_rows, "master"), kAll * 4);
}

TEST(PlanOfD32, HalvesTheMasterCopyWithMastersInBf16) {
  Options o = d32(FormatId::nf4, 1, DType::bf16);
  const Plan wide = plan(o);
  o.master = DType::bf16;
  const Plan run = plan(o);
  EXPECT_EQ(row_bytes(run.host_rows, "master"), kAll * 2);
  EXPECT_EQ(row_bytes(run.host_rows, "moments"), row_bytes(wide.host_rows, "moments"));
  EXPECT_LE(static_cast<double>(run.host_bytes) / kGi, 8.9);
  EXPECT_EQ(run.checkpoint_bytes, wide.checkpoint_bytes - kAll * 2);
  EXPECT_EQ(run.device_bytes, wide.device_bytes) << "what is on the device stays what it is";
  EXPECT_NE(run.command.find("--master bf16-sr"), std::string::npos) << run.command;
}

TEST(PlanOfD32, WritesCheckpointsOfTheSizeThatIsPromised) {
  const Plan run = plan(d32(FormatId::nf4, 1, DType::bf16));
  EXPECT_LE(static_cast<double>(run.checkpoint_bytes), 14.6e9);
  EXPECT_NEAR(static_cast<double>(run.checkpoint_bytes), 14.4e9, 0.1e9);
  EXPECT_GE(run.checkpoint_bytes, run.host_bytes)
      << "a checkpoint holds all of the host's state, and the weights";
}

TEST(PlanOfD32, FitsATwelveGibibyteCardWithTheHeadlineCommand) {
  const std::clock_t start = std::clock();  // of this process: a busy machine must not decide
  const Plan run = plan(d32(FormatId::nf4));
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  EXPECT_TRUE(run.fits());
  EXPECT_LE(static_cast<double>(run.device_bytes) / kGi, 11.0) << breakdown(run);
  EXPECT_GT(run.config.target.context_bytes, 0) << "the driver's share is part of the figure";
  EXPECT_LT(seconds, 2.0);
  EXPECT_EQ(run.config.engine.step_tokens(), 524288);
  EXPECT_EQ(run.config.steps, 71680);
  std::int64_t rows = 0;
  for (const PlanRow& row : run.device_rows) rows += row.bytes;
  EXPECT_EQ(rows, run.device_bytes) << "the rows are the whole figure";
}

// Least memory has its price in the plan too: nothing of it is for expanded weights.
TEST(PlanOfD32, HasNoLineForScratchWithFusedProducts) {
  Options o = d32(FormatId::nf4, 4, DType::bf16);
  const Target target = [] {
    Target t = card();
    t.gemm = GemmRoute::fused;
    return t;
  }();
  Limits limits;
  limits.device_bytes = 12 * kGiB;
  EXPECT_GT(row_bytes(plan(o).device_rows, "scratch"), 0);
  const Plan fused = plan_run({.options = o, .target = target, .limits = limits});
  EXPECT_EQ(row_bytes(fused.device_rows, "scratch"), 0) << breakdown(fused);
}

TEST(PlanOfD32, EndsWithTheCommandThatRepeatsIt) {
  Options o = d32(FormatId::nf4);
  o.out = "runs/it's mine";
  const Plan run = plan(o, 8 * kGiB);
  ASSERT_TRUE(run.fits());
  EXPECT_EQ(run.command,
            "qtrain --model d32 --quant nf4 --ckpt-activations --grad-dtype bf16 --micro-batch 4 --vram 8GiB "
            "--out 'runs/it'\\''s mine'");
  Options again = o;
  again.micro_batch = 4;
  again.grad_dtype = DType::bf16;
  EXPECT_EQ(plan(again, 8 * kGiB).device_bytes, run.device_bytes);
}

TEST(PlanCommand, LeadsToTheSamePlanWhateverWasAskedFor) {
  using Words = std::vector<std::string>;
  const Words cases[] = {
      {"--model", "d32", "--quant", "nf4", "--ckpt-activations", "--vram", "8GiB"},
      {"--model", "d12", "--data", "a b.txt", "c\"d'e.txt", "--prompt", "", "--no-quiet"},
      {"--model", "gpt2"},
      // What gpt models would have otherwise.
      {"--model", "gpt2", "--beta1", "0.8", "--weight-decay", "0", "--eps", "1e-10", "--schedule", "warmdown",
       "--final-lr", "0", "--split-pattern", "nanochat"},
      {"--model", "gpt2", "--matrix-lr", "1e-3"},
      {"--model", "gpt2", "--batch_size", "12", "--gradient_accumulation_steps", "4", "--eval_iters", "20",
       "--min_lr", "6e-5"},
      {"--model", "gpt2", "--learning-rate", "0"},
      // Paged at this micro-batch; the same micro-batch alone would be tried resident.
      {"--model", "gpt", "--n-layer", "24", "--n-head", "6", "--n-embd", "384", "--seq-len", "4032",
       "--batch-tokens", "32256", "--vocab-size", "256", "--dtype", "fp16", "--vram", "3GiB"},
  };
  for (const Words& words : cases) {
    SCOPED_TRACE(fmt::format("{}", fmt::join(words, " ")));
    const auto planned = [](const Words& args) {
      Options o = load_options(args).options;
      if (o.vram_bytes == 0) o.vram_bytes = 24 * kGiB;
      const Plan run = plan(o, o.vram_bytes);
      return std::pair(run, run.config.options);
    };
    const auto [first, meant] = planned(words);
    ASSERT_EQ(test::shell_words(first.command).front(), "qtrain");
    const auto [again, read] = planned(test::arguments_of(first.command));
    EXPECT_EQ(read, meant) << first.command;
    EXPECT_EQ(again.device_bytes, first.device_bytes) << first.command;
    EXPECT_EQ(again.command, first.command);
  }
}

// The least memory decides where nothing else fits; the plan says so and repeats it.
TEST(PlanOfD32, TakesTheRouteWithoutScratchWhereNothingElseFits) {
  const Options o = d32(FormatId::nf4, 4, DType::bf16);
  const Plan wide = plan(o);
  Target floor = card();
  floor.gemm = GemmRoute::fused;
  Limits limits;
  limits.device_bytes = 12 * kGiB;
  const Plan least = plan_run({.options = o, .target = floor, .limits = limits});
  ASSERT_LT(least.device_bytes, wide.device_bytes);
  const Plan run = plan(o, least.device_bytes + wide.reserve_bytes);
  EXPECT_TRUE(run.fits());
  EXPECT_EQ(run.device_bytes, least.device_bytes);
  EXPECT_EQ(run.config.target.gemm, GemmRoute::fused);
  EXPECT_NE(run.command.find("--gemm fused"), std::string::npos) << run.command;
  const std::string said = "--gemm fused: without scratch for expanded weights it fits";
  EXPECT_EQ(std::count(run.decisions.begin(), run.decisions.end(), said), 1);
  EXPECT_EQ(plan(o, wide.device_bytes + wide.reserve_bytes).config.target.gemm, GemmRoute::automatic);
  EXPECT_FALSE(plan(o, least.device_bytes + wide.reserve_bytes - 1).fits());
}

TEST(PlanOfD32, FitsAnEightGibibyteCardAtOneRow) {
  EXPECT_TRUE(plan(d32(FormatId::nf4, 1, DType::bf16), 8 * kGiB).fits());
  EXPECT_TRUE(plan(d32(FormatId::nf4), 8 * kGiB).fits());
  EXPECT_EQ(plan(d32(FormatId::nf4), 8 * kGiB).config.engine.layout.gradient, DType::bf16);
}

TEST(PlanOfD32, SaysSoWhereItDoesNotFit) {
  EXPECT_FALSE(plan(d32(FormatId::nf4, 1, DType::f32), 8 * kGiB).fits());
  EXPECT_FALSE(plan(d32(FormatId::nf4), 6 * kGiB).fits());
  EXPECT_FALSE(plan(d32(FormatId::none), 8 * kGiB).fits());
  // One byte decides.
  const Plan run = plan(d32(FormatId::nf4, 1, DType::bf16), 0);
  const std::int64_t reserve = plan(d32(FormatId::nf4, 1, DType::bf16)).reserve_bytes;
  EXPECT_TRUE(plan(d32(FormatId::nf4, 1, DType::bf16), run.device_bytes + reserve).fits());
  EXPECT_FALSE(plan(d32(FormatId::nf4, 1, DType::bf16), run.device_bytes + reserve - 1).fits());
}

TEST(PlanOfD32, TellsThat16BitWeightsFitTooWhereTheyDo) {
  const auto note = [](const Plan& run) { return run.notes.empty() ? std::string() : run.notes.front(); };
  EXPECT_NE(note(plan(d32(FormatId::nf4, 1, DType::bf16))).find("bf16 weights fit too"), std::string::npos);
  EXPECT_NE(note(plan(d32(FormatId::nf4, 1, DType::bf16))).find("--quant none"), std::string::npos);
  EXPECT_TRUE(note(plan(d32(FormatId::nf4, 1, DType::bf16), 8 * kGiB)).empty()) << "they do not fit 8 GiB";
  EXPECT_TRUE(note(plan(d32(FormatId::none, 1, DType::bf16))).empty()) << "they are what is used";
}

TEST(PlanOfD32, JudgesTheDiskByWhatIsFree) {
  Options o = d32(FormatId::nf4, 1, DType::bf16);
  const auto on_disk = [&](std::optional<std::int64_t> free_bytes) {
    return plan_run(
        {.options = o, .target = card(), .limits = {.device_bytes = 12 * kGiB, .disk_bytes = free_bytes}});
  };
  const Plan unknown = on_disk(std::nullopt);
  EXPECT_TRUE(unknown.fits());
  EXPECT_TRUE(on_disk(unknown.disk_bytes).fits());
  EXPECT_FALSE(on_disk(unknown.disk_bytes - 1).fits());
  const Plan full = on_disk(0);
  EXPECT_FALSE(full.fits()) << "a disk without a free byte is no unknown disk";
  EXPECT_TRUE(full.fits_memory());
}

TEST(PlanOfD32, TellsWhatADayOfSavesWritesAndHowLargeTheTokensAre) {
  const Plan run = plan(d32(FormatId::nf4, 1, DType::bf16));
  EXPECT_EQ(run.token_cache_bytes, 2 * run.config.steps * run.config.engine.step_tokens());
  // 1 % of a day at half a gigabyte a second; and small models no more than a save a minute.
  EXPECT_EQ(run.written_bytes_per_day, 864LL * 500'000'000);
  Options small;
  small.model = "d2";
  small.vocab_size = 300;
  const Plan tiny = plan(small, 0);
  EXPECT_EQ(tiny.written_bytes_per_day, 1440 * tiny.checkpoint_bytes);
}

TEST(Plan, IsTheSameForEveryNumberOfMicroBatches) {
  EngineOptions e = plan(d32(FormatId::nf4, 1, DType::bf16)).config.engine;
  const Rehearsed many = Engine::rehearse(e, card());
  e.accumulation = 1;
  const Rehearsed one = Engine::rehearse(e, card());
  EXPECT_EQ(many.device_bytes(), one.device_bytes());
  EXPECT_EQ(many.host.bytes, one.host.bytes);
  EXPECT_EQ(many.micro_step.model_flops, one.micro_step.model_flops);
  EXPECT_EQ(many.train_step(3).model_flops, 3 * one.train_step(1).model_flops);
}

TEST(Plan, PagesTheWholeStateOnceEachWayInAStep) {
  const Plan run = plan(d32(FormatId::nf4, 1, DType::bf16));
  const BackendTotals& step = run.rehearsed.optimizer_step;
  // The host arena pads tensors to its alignment; what travels are the tensors. A few scalars come back
  // besides.
  std::int64_t tensors = 0;
  for (const Request& r : run.rehearsed.host.largest()->requests) tensors += r.bytes;
  EXPECT_EQ(step.host_to_device_bytes, static_cast<double>(tensors));
  EXPECT_GE(step.device_to_host_bytes, static_cast<double>(tensors));
  EXPECT_LE(step.device_to_host_bytes, static_cast<double>(tensors + 4096));
}

// --- small models in fp16
// ------------------------------------------------------------------------------------

// nanoGPT users' two cases on a 12 GiB card: rows of 1,024 tokens under a vocabulary of 50,304, 16 and 64 at
// a time.
TEST(PlanOfGpt, FitsTwelveGibibytesUnchangedWithEvaluationInside) {
  for (const char* config : {"gpt2-124m-fp16-12g.cfg", "gpt-12x576-fp16-12g.cfg"}) {
    for (const std::int64_t batch_size : {16, 64}) {
      SCOPED_TRACE(fmt::format("{}, batch size {}", config, batch_size));
      const std::vector<std::string> args{
          "--config",     std::string(QTRAIN_SOURCE_DIR) + "/configs/" + config,
          "--batch-size", std::to_string(batch_size),
          "--ram",        "16GiB"};
      const Options o = load_options(args).options;
      const Target target = target_from_options(o);
      Limits limits = limits_from_options(o, target);
      limits.disk_bytes.reset();
      const Plan run = plan_run({.options = o, .target = target, .limits = limits, .vocab_size = 50257});
      EXPECT_TRUE(run.fits()) << breakdown(run);
      EXPECT_EQ(limits.device_bytes, 12 * kGiB);
      EXPECT_EQ(run.config.engine.layout.compute, DType::f16);
      EXPECT_EQ(run.config.engine.model.vocab_size, 50304);
      EXPECT_EQ(run.config.engine.step_tokens() % (batch_size * 1024), 0)
          << "tokens per step are as asked for";
      EXPECT_FALSE(run.config.engine.optim.paged) << "so small a state stays on the device";
      // Evaluating asks for nothing that training has not been given.
      const auto bytes_of = [&](std::string_view phase) {
        for (const PhasePlan& p : run.rehearsed.step.phases) {
          if (p.name == phase) return p.bytes;
        }
        return std::int64_t{-1};
      };
      EXPECT_GT(bytes_of("eval_step"), 0);
      EXPECT_LE(bytes_of("eval_step"), bytes_of("micro_step"));
    }
  }
}

TEST(PlanOfGpt, TakesTheSameBytesInFp16AsInBf16) {
  const auto in = [](DType dtype) {
    Options o;
    o.model = "gpt2";
    o.dtype = dtype;
    o.grad_dtype = DType::f32;
    o.paging = Paging::on;
    o.micro_batch = 4;
    return plan(o);
  };
  const Plan fp16 = in(DType::f16), bf16 = in(DType::bf16);
  for (const char* row : {"weights", "activations", "gradients", "logits"})
    EXPECT_EQ(row_bytes(fp16.device_rows, row), row_bytes(bf16.device_rows, row)) << row;
  EXPECT_EQ(fp16.rehearsed.device_bytes(), bf16.rehearsed.device_bytes());
  EXPECT_EQ(fp16.host_bytes, bf16.host_bytes);
}

TEST(PlanOfGpt, PagesAnFp16StateOnlyWhereItDoesNotFit) {
  Options o;
  o.model = "gpt2-large";
  o.dtype = DType::f16;
  o.optim = &rules::adamw;
  o.ckpt_activations = true;
  EXPECT_FALSE(plan(o, 24 * kGiB).config.engine.optim.paged);
  EXPECT_TRUE(plan(o, 8 * kGiB).config.engine.optim.paged);
  EXPECT_TRUE(plan(o, 8 * kGiB).fits());
}

// --- words of commands ----------------------------------------------------------------------------------

TEST(Commands, SayWhatTwoOptionsDifferIn) {
  const Options before;
  Options after;
  after.bias = true;
  after.quant = FormatId::nf4;
  after.paging = Paging::off;
  after.vram_bytes = 12 * kGiB;
  after.prompt = "it's";
  EXPECT_EQ(change_words(before, after),
            R"(--bias --quant nf4 --paging off --vram 12GiB --prompt 'it'\''s')");
  EXPECT_EQ(change_words(after, after), "");
  after.bias = false;
  Options with_bias = after;
  with_bias.bias = true;
  EXPECT_EQ(change_words(with_bias, after), "--no-bias");
  EXPECT_EQ((words_of<&Options::micro_batch, &Options::quant>(after)), "--micro-batch 0 --quant nf4")
      << "in the order asked for, also where it is the default";
}

// --- work --------------------------------------------------------------------------------------------------

TEST(PlannedWork, IsThePublishedCountWithAndWithoutCheckpointing) {
  for (const char* name : {"d4", "d12", "d32"}) {
    for (const char* quant : {"none", "nf4"}) {
      double executed[2] = {};
      for (const bool checkpointing : {false, true}) {
        Options o = d32(format_from_name(quant), 2, DType::bf16);
        o.model = name;
        o.ckpt_activations = checkpointing;
        const Plan run = plan(o, 0);
        const BackendTotals step = run.rehearsed.train_step(run.config.engine.accumulation);
        const double tokens = static_cast<double>(run.config.engine.step_tokens());
        const double want = run.config.engine.model.model_flops_per_token();
        EXPECT_NEAR(step.model_flops / tokens / want, 1.0, 1e-12)
            << name << " " << quant << " checkpointing " << checkpointing;
        executed[checkpointing] = step.executed_flops / tokens;
      }
      // Done again: a forward pass of the blocks without their last product, attention causal as the kernels
      // do it.
      const ModelConfig model = model_by_name(name);
      const double L = static_cast<double>(model.n_layer), C = static_cast<double>(model.n_embd),
                   T = static_cast<double>(model.seq_len);
      const double recomputed = L * (2 * 8 * C * C + 2 * C * (T + 1));
      EXPECT_NEAR((executed[1] - executed[0]) / recomputed, 1.0, 0.02)
          << name << " " << quant << ": norms and rotations are the rest";
    }
  }
}

TEST(PlannedWork, OfAnEvaluationIsAThirdOfAStep) {
  const Plan run = plan(d32(FormatId::nf4, 1, DType::bf16));
  EXPECT_NEAR(run.rehearsed.eval_step.model_flops * 3 / run.rehearsed.micro_step.model_flops, 1.0, 1e-12);
}

// --- models ------------------------------------------------------------------------------------------------

TEST(Models, HaveThePublishedSizesAndCosts) {
  const struct {
    int depth;
    std::int64_t heads, params;
    double gflop, tolerance;  // per token, and half a unit of the last printed digit
    std::int64_t steps;       // of 524,288 tokens at 20 tokens per parameter
  } table[] = {{4, 2, 36'700'160, 0.1447, 5e-5, 1'400},       {6, 3, 60'948'480, 0.2713, 5e-5, 2'325},
               {8, 4, 92'274'688, 0.4530, 5e-5, 3'520},       {10, 5, 133'038'080, 0.7039, 5e-5, 5'075},
               {12, 6, 185'597'952, 1.0381, 5e-5, 7'080},     {16, 8, 335'544'320, 2.0133, 5e-5, 12'800},
               {20, 10, 560'988'160, 3.4918, 5e-5, 21'400},   {24, 12, 880'803'840, 5.5868, 5e-5, 33'600},
               {26, 13, 1'081'999'360, 6.9009, 5e-5, 41'275}, {28, 14, 1'313'865'728, 8.4117, 5e-5, 50'120},
               {30, 15, 1'578'762'240, 10.133, 5e-4, 60'225}, {32, 16, 1'879'048'192, 12.0796, 5e-5, 71'680},
               {34, 17, 2'217'082'880, 14.2651, 5e-5, 84'575}};
  for (const auto& row : table) {
    const std::string name = fmt::format("d{}", row.depth);
    const ModelConfig model = model_by_name(name);
    EXPECT_EQ(model.n_embd, 64 * row.depth) << name;
    EXPECT_EQ(model.n_head, row.heads) << name;
    EXPECT_EQ(model.head_dim(), 128) << name;
    EXPECT_EQ(model.param_count(), row.params) << name;
    EXPECT_NEAR(model.model_flops_per_token() / 1e9, row.gflop, row.tolerance) << name;
    Options o;
    o.model = name;
    o.micro_batch = 1;
    EXPECT_EQ(plan(o, 0).config.steps, row.steps) << name;
  }
}

TEST(Models, AreFoundByTheirNames) {
  EXPECT_EQ(families::nanochat.shapes.size(), 17u);
  EXPECT_EQ(families::gpt.shapes.size(), 4u);
  for (const Family* family : all_families()) {
    for (const NamedShape& shape : family->shapes) {
      const ModelConfig model = model_by_name(shape.name);
      EXPECT_EQ(model.name, shape.name);
      EXPECT_EQ(model.family, family) << shape.name;
    }
    const ModelConfig own = model_by_name(family->name, {.n_layer = 2, .n_head = 2, .n_embd = 32});
    EXPECT_EQ(own.name, family->name);
    EXPECT_EQ(own.family, family) << own.name;
  }
}

TEST(Models, OfTheGptFamilyHaveTheirPublishedSizes) {
  const struct {
    const char* name;
    std::int64_t params;  // with GPT-2's 50,257 tokens and biases, as published; the position table included
  } table[] = {{"gpt2", 124'439'808},
               {"gpt2-medium", 354'823'168},
               {"gpt2-large", 774'030'080},
               {"gpt2-xl", 1'557'611'200}};
  for (const auto& row : table)
    EXPECT_EQ(model_by_name(row.name, {.vocab_size = 50257, .bias = true}).param_count(), row.params)
        << row.name;
  const ModelConfig small = model_by_name("gpt", {.n_layer = 12, .n_head = 12, .n_embd = 576});
  EXPECT_EQ(small.head_dim(), 48);
  EXPECT_EQ(small.param_count() - small.position_params(), 76'765'248)
      << "what nanoGPT prints: 76.8M, not 40M";
  EXPECT_EQ(model_vocab_size("gpt2", 50257), 50304);
  EXPECT_EQ(model_vocab_size("gpt", 65), 65);
  EXPECT_EQ(model_vocab_size("d4", 50257), 50257);
}

TEST(Models, CountTheParametersThatTheModelPlaces) {
  for (const char* name : {"d2", "d6", "d32", "gpt2", "gpt2-xl"}) {
    Options o;
    o.model = name;
    o.micro_batch = 1;
    o.n_kv_head = 1;
    o.bias = find_family(name) == &families::gpt;
    const Plan run = plan(o, 0);
    EXPECT_EQ(row_bytes(run.host_rows, "master"), 4 * run.config.engine.model.param_count()) << name;
  }
}

TEST(Models, AreRefusedWithAnExplanationWhereTheyDoNotExist) {
  const auto refusal = [](std::string_view name, const ModelShape& overrides = {}) -> std::string {
    try {
      model_by_name(name, overrides);
    } catch (const ConfigError& e) {
      return std::string(e.what()) + " | " + e.hint();
    }
    return "accepted";
  };
  for (const char* name : {"d21", "d5", "d33"}) {
    const std::string text = refusal(name);
    EXPECT_NE(text.find("does not divide into heads of 128"), std::string::npos) << text;
    EXPECT_NE(text.find("d2, d4, d6 ... d34"), std::string::npos) << "what exists instead: " << text;
  }
  EXPECT_NE(refusal("d21").find("1344"), std::string::npos) << "the width that does not divide";
  for (const char* name : {"d0", "d36", "d-4", "d1000000"})
    EXPECT_NE(refusal(name).find("d2 .. d34"), std::string::npos) << refusal(name);
  EXPECT_EQ(refusal("d04").find("model 'd04' is written d4, without a leading zero | "), 0U)
      << refusal("d04");
  for (const char* name : {"", "d", "32", "d4x", "gpt5", "D4", "d 4", "d99999999999999999999"}) {
    EXPECT_NE(refusal(name).find("unknown model"), std::string::npos) << refusal(name);
  }
  EXPECT_NE(refusal("d12", {.n_kv_head = 4}).find("--n-kv-head"), std::string::npos)
      << refusal("d12", {.n_kv_head = 4});
}

}  // namespace
}  // namespace qt
