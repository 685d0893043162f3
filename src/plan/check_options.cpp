// What can be judged of options alone, before any work.
#include "src/options/option_table.h"
#include "src/plan/estimate.h"
#include "src/plan/planner.h"

namespace qt {

namespace {

// Above what any run needs, and low enough that no product of two of them overflows.
constexpr std::int64_t kMostSeqLen = std::int64_t{1} << 20;
constexpr std::int64_t kMostVocab = std::int64_t{1} << 20;
constexpr std::int64_t kMostBatchTokens = std::int64_t{1} << 26;
constexpr std::int64_t kMostSteps = 1'000'000'000;
constexpr std::int64_t kMostTokens = 1'000'000'000'000'000;
constexpr std::int64_t kMostKept = 1'000'000;

}  // namespace

void require_gradient_dtype(DType compute, std::optional<DType> gradient) {
  if (compute == DType::bf16 || gradient != DType::bf16) return;
  throw ConfigError(fmt::format("--grad-dtype bf16 needs --dtype bf16: {} products are accumulated in f32",
                                dtype_name(compute)),
                    "leave one of the two out");
}

ModelConfig model_from_options(const Options& o, std::int64_t vocab_size) {
  ModelShape shape = o;
  if (shape.vocab_size == 0) shape.vocab_size = model_vocab_size(o.model, vocab_size);
  return model_by_name(o.model, shape);
}

void check_options(const Options& o) {
  const auto bounded = [](const char* option, std::int64_t value, std::int64_t most) {
    if (value > most)
      throw ConfigError(fmt::format("{} {} is too large", option, value), fmt::format("at most {}", most));
  };
  for (const ShapeDimension& d : shape_dimensions()) bounded(d.option, o.*d.asked, d.most_option);
  model_from_options(o, 0);
  watts_given(o.watts);
  price_given(o.price);
  // Options that were never text: a program's, or a test's.
  for (const OptionSpec& spec : option_table())
    require_choice(spec, option_text(o, spec), option_source_name(OptionSource::command_line));
  if (o.dtype) require_gradient_dtype(*o.dtype, o.grad_dtype);
  if (o.dtype == DType::f16 && o.quant != FormatId::none) {
    throw ConfigError(
        fmt::format("--dtype fp16 does not go with --quant {}", option_text<&Options::quant>(o)),
        "use --dtype bf16, or --quant none");
  }
  if (o.dtype == DType::f16 && o.master != DType::f32) {
    throw ConfigError(fmt::format("--dtype fp16 does not go with --master {}: fp16 needs an f32 master",
                                  option_text<&Options::master>(o)),
                      "use --dtype bf16, or --master f32");
  }
  for (const auto& [option, value] :
       {std::pair{"--warmdown", o.warmdown}, std::pair{"--final-lr", o.final_lr}}) {
    if (!(value <= 1))
      throw ConfigError(fmt::format("{} {} is above 1", option, value), "it is a share: 0 to 1");
  }
  if (!(o.val_fraction < 1)) {
    throw ConfigError(fmt::format("--val-fraction {} leaves nothing to train on", o.val_fraction),
                      "it is a share: 0 to below 1, as 0.1");
  }
  bounded("--seq-len", o.seq_len, kMostSeqLen);
  bounded("--vocab-size", o.vocab_size, kMostVocab);
  bounded("--batch-tokens", o.batch_tokens, kMostBatchTokens);
  bounded("--micro-batch", o.micro_batch, kMostBatchTokens);
  bounded("--steps", o.steps, kMostSteps);
  bounded("--tokens", o.tokens, kMostTokens);
  bounded("--decay-steps", o.decay_steps, kMostSteps);
  bounded("--keep", o.keep, kMostKept);
  if (o.keep < 2) {
    throw ConfigError(
        fmt::format("--keep must be at least 2, got {}: one checkpoint can always be the damaged one",
                    o.keep),
        "each takes the disk space that `qtrain plan` tells");
  }
  if (o.steps > 0 && o.warmup_steps > o.steps) {
    throw ConfigError(
        fmt::format("--warmup-steps {} is longer than the run of --steps {}", o.warmup_steps, o.steps),
        "warm up over a small part of the steps");
  }
}

}  // namespace qt
