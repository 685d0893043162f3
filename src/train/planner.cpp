#include "src/train/planner.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <filesystem>

#include "optim/schedule.h"
#include "src/core/units.h"
#include "src/data/batches.h"
#include "src/io/checkpoint.h"
#include "src/train/command.h"
#include "src/train/estimate.h"
#include "src/train/option_table.h"

namespace qt {

namespace {

constexpr std::int64_t kCpuBatchTokens =
    8192;  // more tokens at once no longer make the GEMMs faster, only the arena larger
constexpr std::int64_t kCudaBatchTokens = 32768;
// f32 gradients, and a resident state, are worth their bytes only while the micro-batch keeps the GEMMs busy.
constexpr std::int64_t kBusyTokens = 4096;
constexpr std::int64_t kRunFilesBytes = 64 * kMiB;  // logs, tokenizer, configuration
constexpr std::int64_t kTokensPerParam = 20;        // the default horizon, nanochat's
constexpr std::int64_t kTokenBytes = 2;             // of a shard
constexpr std::string_view kRoundedMaster = "bf16-sr";
// What a day of saves writes at most: 1 % of 86,400 s at this rate, and never more than one save a minute.
constexpr std::int64_t kAssumedDiskBytesPerSecond = 500'000'000;
constexpr std::int64_t kSaveSecondsPerDay = 864;
constexpr std::int64_t kMostSavesPerDay = 1440;
// Above what any run needs, and low enough that no product of two of them overflows.
constexpr std::int64_t kMostSeqLen = std::int64_t{1} << 20;
constexpr std::int64_t kMostVocab = std::int64_t{1} << 20;
constexpr std::int64_t kMostBatchTokens = std::int64_t{1} << 26;
constexpr std::int64_t kMostSteps = 1'000'000'000;
constexpr std::int64_t kMostTokens = 1'000'000'000'000'000;
constexpr std::int64_t kMostKept = 1'000'000;
constexpr std::int64_t kMostLayers = 1024, kMostHeads = 1024, kMostWidth = std::int64_t{1} << 16;

double width_scale(const ModelConfig& model) {
  return 1.0 / std::sqrt(static_cast<double>(model.n_embd) / 768.0);
}

OptimizerControl control_from_name(const std::string& name) {
  if (name == "none") return OptimizerControl::none;
  if (name == "no-master") return OptimizerControl::no_master;
  if (name == "frozen-matrices") return OptimizerControl::frozen_matrices;
  throw ConfigError(fmt::format("unknown control '{}'", name),
                    "use --control none, no-master or frozen-matrices");
}

void require_gradient_dtype(DType compute, const std::string& gradient) {
  if (compute == DType::bf16 || gradient != "bf16") return;
  throw ConfigError(fmt::format("--grad-dtype bf16 needs --dtype bf16: {} products are accumulated in f32",
                                dtype_name(compute)),
                    "leave one of the two out");
}

OptimizerOptions optimizer_options(const Options& o, const ModelConfig& model) {
  OptimizerOptions optim;
  optim.name = o.optim;
  optim.master = o.master == kRoundedMaster ? DType::bf16 : DType::f32;
  optim.seed = o.seed;
  const auto rate = [&](ParamGroup g) -> double& { return optim.peak_lr[static_cast<std::size_t>(g)]; };
  rate(ParamGroup::matrix) = o.matrix_lr;
  rate(ParamGroup::embedding) = o.embedding_lr * width_scale(model);
  rate(ParamGroup::head) = o.head_lr * width_scale(model);
  rate(ParamGroup::norm) = o.matrix_lr;
  if (o.learning_rate > 0) optim.peak_lr.fill(o.learning_rate);
  optim.beta1 = o.beta1;
  optim.beta2 = o.beta2;
  optim.eps = o.eps;
  optim.weight_decay = o.weight_decay;
  optim.max_norm = o.clip;
  optim.control = control_from_name(o.control);
  return optim;
}

// Every micro-batch size worth trying, largest first; all divide the rows of a step, so that tokens per step
// never change.
std::vector<std::int64_t> micro_batch_candidates(const Options& o, std::int64_t step_rows,
                                                 std::int64_t seq_len, const Target& target) {
  if (o.micro_batch > 0) {
    if (step_rows % o.micro_batch != 0) {
      throw ConfigError(
          fmt::format(
              "--micro-batch {} does not divide the {} rows of a step (--batch-tokens {} / --seq-len {})",
              o.micro_batch, step_rows, o.batch_tokens, seq_len),
          "leave it out: the largest that fits is taken");
    }
    return {o.micro_batch};
  }
  const std::int64_t most_tokens = target.kind == DeviceKind::cpu ? kCpuBatchTokens : kCudaBatchTokens;
  const std::int64_t most_rows = std::max<std::int64_t>(1, most_tokens / seq_len);
  std::vector<std::int64_t> rows;
  for (std::int64_t r = std::min(step_rows, most_rows); r >= 1; --r) {
    if (step_rows % r == 0) rows.push_back(r);
  }
  return rows;
}

std::int64_t run_tokens(const Options& o, const ModelConfig& model) {
  if (o.steps > 0) return o.steps * o.batch_tokens;
  return o.tokens > 0 ? o.tokens : kTokensPerParam * model.param_count();
}

void describe_device(PlannedRun& run) {
  std::array<std::int64_t, kMemoryTags> bytes{};
  const PhasePlan* peak = run.plan.step.largest();
  for (const ArenaPlan* arena : {&run.plan.state, &run.plan.step}) {
    const PhasePlan* phase = arena->largest();
    if (phase == nullptr) continue;
    for (std::size_t t = 0; t < kMemoryTags; ++t) bytes[t] += phase->at_peak[t];
  }
  std::int64_t named = 0;
  for (std::size_t t = 0; t < kMemoryTags; ++t) {
    if (bytes[t] == 0) continue;
    run.device_rows.push_back({std::string(memory_tag_name(static_cast<MemoryTag>(t))), bytes[t], ""});
    named += bytes[t];
  }
  // Alignment of the state arena and holes between lifetimes: what packing could not use.
  if (const std::int64_t gaps = run.plan.device_bytes() - named; gaps > 0)
    run.device_rows.push_back({"packing", gaps, ""});
  const std::int64_t workspace =
      run.target.workspace_bytes > 0 ? run.target.workspace_bytes : default_workspace_bytes(run.target);
  if (workspace > 0) run.device_rows.push_back({"workspace", workspace, "libraries and per-thread tiles"});
  if (run.target.context_bytes > 0)
    run.device_rows.push_back(
        {"context", run.target.context_bytes,
         run.target.context_measured ? "driver; measured" : "driver; assumed, no card was measured"});
  run.device_bytes = run.plan.device_bytes() + workspace + run.target.context_bytes;
  if (peak != nullptr)
    run.decisions.push_back(fmt::format("largest phase of the step arena: {}", peak->name));
}

void describe_host(PlannedRun& run) {
  if (const PhasePlan* phase = run.plan.host.largest()) {
    for (std::size_t t = 0; t < kMemoryTags; ++t) {
      if (phase->at_peak[t] > 0) {
        run.host_rows.push_back({std::string(memory_tag_name(static_cast<MemoryTag>(t))), phase->at_peak[t],
                                 run.target.kind == DeviceKind::cuda ? "pinned" : ""});
      }
    }
  }
  run.host_bytes = run.plan.host.bytes;
}

void describe_disk(PlannedRun& run, const Options& o) {
  std::int64_t bytes = 0;
  for (const ArenaPlan* arena : {&run.plan.state, &run.plan.host}) {
    for (const PhasePlan& phase : arena->phases) {
      for (const Request& r : phase.requests) {
        const bool stored =
            r.tag == MemoryTag::weights || r.tag == MemoryTag::master || r.tag == MemoryTag::moments;
        if (stored) bytes += r.bytes;
      }
    }
  }
  run.checkpoint_bytes = bytes;
  run.disk_rows = {
      {"checkpoints", bytes * o.keep, fmt::format("--keep {} of {}", o.keep, format_bytes(bytes))},
      {"being saved", bytes, ""},
      {"logs", kRunFilesBytes, ""}};
  run.disk_bytes = bytes * (o.keep + 1) + kRunFilesBytes;
  // Not part of the total: a corpus may be larger or smaller than the run, and may lie there as shards
  // already.
  run.token_cache_bytes = kTokenBytes * run_tokens(o, run.engine.model);
  run.written_bytes_per_day =
      std::min(kSaveSecondsPerDay * kAssumedDiskBytesPerSecond, kMostSavesPerDay * bytes);
}

void judge(PlannedRun& run, const Limits& limits) {
  const auto verdict = [&](std::string resource, std::int64_t needed, std::optional<std::int64_t> available) {
    run.verdicts.push_back({std::move(resource), needed, available, !available || needed <= *available});
  };
  const auto known = [](std::int64_t bytes) {
    return bytes > 0 ? std::optional<std::int64_t>(bytes) : std::nullopt;
  };
  run.reserve_bytes = limits.reserve_bytes;
  verdict("device", run.device_bytes,
          known(limits.device_bytes > 0 ? std::max<std::int64_t>(limits.device_bytes - run.reserve_bytes, 1)
                                        : 0));
  // On the cpu the device's arena is ordinary memory too.
  const std::int64_t host = run.host_bytes + (run.target.kind == DeviceKind::cpu ? run.device_bytes : 0);
  verdict("host", host, known(limits.host_bytes));
  verdict("disk", run.disk_bytes, limits.disk_bytes);
}

// What the planner may choose.
struct Choice {
  DType compute;
  DType gradient;
  std::int64_t rows;  // of a micro-batch
  bool paged;
};

PlannedRun rehearse_candidate(const Options& o, const ModelConfig& model, const Target& target,
                              const Limits& limits, const Choice& choice, std::int64_t step_rows) {
  PlannedRun run;
  run.target = target;
  EngineOptions& e = run.engine;
  e.model = model;
  e.memory = ModelOptions{.compute = choice.compute,
                          .gradient = choice.gradient,
                          .weights = format_from_name(o.quant),
                          .checkpoint_activations = o.ckpt_activations,
                          .micro_batch_rows = choice.rows,
                          .loss_chunk_tokens = o.loss_chunk,
                          .seed = o.seed};
  e.optim = optimizer_options(o, model);
  e.optim.paged = choice.paged;
  e.accumulation = step_rows / choice.rows;
  e.sample_tokens = o.sample_tokens > 0 ? model.seq_len : 0;
  run.plan = Engine::rehearse(e, target);
  describe_device(run);
  describe_host(run);
  describe_disk(run, o);
  judge(run, limits);
  return run;
}

// 16-bit weights lose nothing: where they fit, whoever packs them should know.
void note_unquantised(PlannedRun& run, const Options& o, const ModelConfig& model, const Limits& limits,
                      std::int64_t step_rows) {
  if (run.engine.memory.weights == FormatId::none || !run.fits()) return;
  Options plain = o;
  plain.quant = "none";
  const ModelOptions& m = run.engine.memory;
  for (const DType gradient : {m.gradient, m.compute}) {
    for (const std::int64_t rows : {m.micro_batch_rows, std::int64_t{1}}) {
      const PlannedRun other = rehearse_candidate(
          plain, model, run.target, limits,
          {.compute = m.compute, .gradient = gradient, .rows = rows, .paged = run.engine.optim.paged},
          step_rows);
      if (!other.fits()) continue;
      run.notes.push_back(fmt::format(
          "{} weights fit too and lose nothing to quantization: --quant none --grad-dtype {} --micro-batch "
          "{} "
          "takes {} on the device; what {} costs in loss is in docs/benchmarks.md",
          dtype_name(m.compute), dtype_name(gradient), rows, format_bytes(other.device_bytes), o.quant));
      return;
    }
  }
}

// Where memory is short, and a master copy of half the size is all that it takes.
void note_smaller_master(PlannedRun& run, const Options& o, const Limits& limits, std::int64_t vocab_size) {
  if (run.fits_memory() || o.master == kRoundedMaster || run.engine.memory.compute == DType::f16) return;
  Options smaller = o;
  smaller.master = kRoundedMaster;
  const PlannedRun other = plan_run(smaller, run.target, limits, vocab_size);
  if (!other.fits_memory()) return;
  run.remedy = fmt::format(
      "add --master {}, which makes it fit: master weights in bf16, rounded at random, take half the memory; "
      "docs/numerics.md says what that does to a run",
      kRoundedMaster);
}

}  // namespace

bool PlannedRun::fits_memory() const {
  return std::all_of(verdicts.begin(), verdicts.end(),
                     [](const Verdict& v) { return v.fits || v.resource == "disk"; });
}

bool PlannedRun::fits() const {
  return std::all_of(verdicts.begin(), verdicts.end(), [](const Verdict& v) { return v.fits; });
}

std::string fit_hint(const PlannedRun& run) {
  if (!run.remedy.empty()) return run.remedy;
  if (run.fits_memory())
    return "free disk space, or choose an --out on another disk; --keep 2 keeps the fewest checkpoints";
  return "try --micro-batch 1, --ckpt-activations, --quant nf4 or --optim adamw8; `qtrain plan` with the "
         "same "
         "options tells what each takes without starting anything";
}

ModelConfig model_from_options(const Options& o, std::int64_t vocab_size) {
  ModelOverrides overrides;
  overrides.vocab_size = o.vocab_size > 0 ? o.vocab_size : model_vocab_size(o.model, vocab_size);
  overrides.seq_len = o.seq_len;
  overrides.n_kv_head = o.n_kv_head;
  overrides.n_layer = o.n_layer;
  overrides.n_head = o.n_head;
  overrides.n_embd = o.n_embd;
  overrides.norm_eps = o.norm_eps;
  overrides.bias = o.bias;
  overrides.dropout = o.dropout;
  return model_by_name(o.model, overrides);
}

void check_options(const Options& o) {
  const auto bounded = [](const char* option, std::int64_t value, std::int64_t most) {
    if (value > most)
      throw ConfigError(fmt::format("{} {} is too large", option, value), fmt::format("at most {}", most));
  };
  bounded("--n-layer", o.n_layer, kMostLayers);
  bounded("--n-head", o.n_head, kMostHeads);
  bounded("--n-kv-head", o.n_kv_head, kMostHeads);
  bounded("--n-embd", o.n_embd, kMostWidth);
  if (o.train != "full") {
    throw ConfigError(fmt::format("--train {} is not available in this version", o.train),
                      "use --train full");
  }
  model_from_options(o, 0);
  format_from_name(o.quant);
  watts_given(o.watts);
  price_given(o.price);
  // Options that were never text: a program's, or a test's.
  for (const OptionSpec& spec : option_table()) {
    if (spec.choices != nullptr)
      require_choice(spec, option_text(o, spec), option_source_name(OptionSource::command_line));
  }
  if (o.dtype == "f32" || o.dtype == "fp16") require_gradient_dtype(dtype_from_name(o.dtype), o.grad_dtype);
  if (o.dtype == "fp16" && o.quant != "none") {
    throw ConfigError(fmt::format("--dtype fp16 does not go with --quant {}", o.quant),
                      "use --dtype bf16, or --quant none");
  }
  if (o.dtype == "fp16" && o.master != "f32") {
    throw ConfigError(
        fmt::format("--dtype fp16 does not go with --master {}: fp16 needs an f32 master", o.master),
        "use --dtype bf16, or --master f32");
  }
  optimizer_by_name(o.optim);
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

PlannedRun plan_run(const Options& o, const Target& target, const Limits& limits, std::int64_t vocab_size) {
  check_options(o);
  const ModelConfig model = model_from_options(o, vocab_size);
  if (o.batch_tokens <= 0 || o.batch_tokens % model.seq_len != 0) {
    throw ConfigError(fmt::format("--batch-tokens {} is not a multiple of the sequence length {}",
                                  o.batch_tokens, model.seq_len),
                      fmt::format("use --batch-tokens {}",
                                  std::max<std::int64_t>(1, o.batch_tokens / model.seq_len) * model.seq_len));
  }
  const std::int64_t step_rows = o.batch_tokens / model.seq_len;

  const DType compute =
      o.dtype == "auto" ? (target.native_bf16 ? DType::bf16 : DType::f32) : dtype_from_name(o.dtype);
  std::vector<DType> gradients{DType::f32, DType::bf16};
  if (o.grad_dtype != "auto") gradients = {dtype_from_name(o.grad_dtype)};
  if (compute != DType::bf16) {
    require_gradient_dtype(compute, o.grad_dtype);
    gradients = {DType::f32};
  }
  // The path for small models keeps master and moments on the device where they fit.
  std::vector<bool> paging{o.paging != "off"};
  if (o.paging == "auto" && compute == DType::f16) paging = {false, true};

  PlannedRun best;
  const std::vector<std::int64_t> candidates = micro_batch_candidates(o, step_rows, model.seq_len, target);
  const auto search = [&](const Target& on) {
    for (const bool paged : paging) {
      for (const DType gradient : gradients) {
        for (const std::int64_t rows : candidates) {
          const bool busy = rows == candidates.front() || rows * model.seq_len >= kBusyTokens;
          const bool wide = gradients.size() > 1 && gradient == DType::f32,
                     resident = paging.size() > 1 && !paged;
          if ((wide || resident) && !busy) break;
          // The last one tried is the smallest: what "does not fit" is told about.
          best = rehearse_candidate(o, model, on, limits,
                                    {.compute = compute, .gradient = gradient, .rows = rows, .paged = paged},
                                    step_rows);
          // The disk holds checkpoints, whose size no candidate changes: it is judged, but it chooses
          // nothing.
          if (best.fits_memory()) return;
        }
      }
    }
  };
  search(target);
  // The route that needs no scratch is the floor of what a card must have.
  const bool has_floor = target.kind == DeviceKind::cuda && target.gemm == GemmRoute::automatic &&
                         format_from_name(o.quant) != FormatId::none;
  if (!best.fits_memory() && has_floor) {
    Target floor = target;
    floor.gemm = GemmRoute::fused;
    search(floor);
    if (best.fits_memory())
      best.decisions.push_back("--gemm fused: without scratch for expanded weights it fits");
  }

  if (o.vocab_size == 0 && vocab_size == 0) {
    best.decisions.push_back(fmt::format("vocabulary {}: the model's own, because no data is there",
                                         format_thousands(model.vocab_size)));
  }
  if (o.dtype == "auto") {
    best.decisions.push_back(fmt::format(
        "--dtype {}: {}", dtype_name(compute),
        target.native_bf16 ? "the device multiplies bf16 natively" : "no bf16 instructions here"));
  }
  if (o.grad_dtype == "auto") {
    const DType gradient = best.engine.memory.gradient;
    best.decisions.push_back(
        fmt::format("--grad-dtype {}: {}", dtype_name(gradient),
                    gradient == DType::f32 ? "f32 accumulators fit" : "f32 accumulators do not fit"));
  }
  if (paging.size() > 1) {
    best.decisions.push_back(best.engine.optim.paged
                                 ? "--paging on: master and moments do not fit on the device"
                                 : "--paging off: master and moments fit on the device");
  }
  if (o.micro_batch == 0) {
    const std::int64_t rows = best.engine.memory.micro_batch_rows;
    best.decisions.push_back(fmt::format(
        "--micro-batch {}: {}, {} per step", rows,
        rows == candidates.front() ? "as many rows as keep the device busy" : "the largest that fits",
        best.engine.accumulation));
  }
  note_unquantised(best, o, model, limits, step_rows);
  note_smaller_master(best, o, limits, vocab_size);
  best.command = command_of(o, best);
  best.steps = std::max<std::int64_t>(1, run_tokens(o, model) / o.batch_tokens);
  return best;
}

}  // namespace qt
