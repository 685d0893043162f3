#include "src/plan/planner.h"

#include <algorithm>
#include <array>
#include <optional>
#include <span>
#include <utility>

#include "src/core/units.h"
#include "src/io/checkpoint.h"
#include "src/plan/command.h"
#include "src/train/save_policy.h"

namespace qt {

namespace {

constexpr std::int64_t kCpuBatchTokens =
    8192;  // more tokens at once no longer make the GEMMs faster, only the arena larger
constexpr std::int64_t kCudaBatchTokens = 32768;
// f32 gradients, and a resident state, are worth their bytes only while the micro-batch keeps the GEMMs busy.
constexpr std::int64_t kBusyTokens = 4096;
constexpr std::int64_t kRunFilesBytes = 64 * kMiB;  // logs, tokenizer, configuration
constexpr std::int64_t kTokenBytes = 2;             // of a shard
constexpr std::int64_t kAssumedDiskBytesPerSecond = 500'000'000;

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

void describe_device(Plan& run) {
  std::array<std::int64_t, kMemoryTags> bytes{};
  const PhasePlan* peak = run.rehearsed.step.largest();
  for (const ArenaPlan* arena : {&run.rehearsed.state, &run.rehearsed.step}) {
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
  if (const std::int64_t gaps = run.rehearsed.device_bytes() - named; gaps > 0)
    run.device_rows.push_back({"packing", gaps, ""});
  const std::int64_t workspace = run.config.target.workspace_bytes > 0
                                     ? run.config.target.workspace_bytes
                                     : default_workspace_bytes(run.config.target);
  if (workspace > 0) run.device_rows.push_back({"workspace", workspace, "libraries and per-thread tiles"});
  if (run.config.target.context_bytes > 0)
    run.device_rows.push_back(
        {"context", run.config.target.context_bytes,
         run.config.target.context_measured ? "driver; measured" : "driver; assumed, no card was measured"});
  run.device_bytes = run.rehearsed.device_bytes() + workspace + run.config.target.context_bytes;
  if (peak != nullptr)
    run.decisions.push_back(fmt::format("largest phase of the step arena: {}", peak->name));
}

void describe_host(Plan& run) {
  std::int64_t named = 0;
  if (const PhasePlan* phase = run.rehearsed.host.largest()) {
    for (std::size_t t = 0; t < kMemoryTags; ++t) {
      if (phase->at_peak[t] == 0) continue;
      run.host_rows.push_back({std::string(memory_tag_name(static_cast<MemoryTag>(t))), phase->at_peak[t],
                               run.config.target.kind == DeviceKind::cuda ? "pinned" : ""});
      named += phase->at_peak[t];
    }
  }
  run.host_bytes = run.rehearsed.host.bytes;
  if (run.host_bytes > named) run.host_rows.push_back({"packing", run.host_bytes - named, ""});
}

void describe_disk(Plan& run) {
  std::int64_t bytes = 0;
  for (const ArenaPlan* arena : {&run.rehearsed.state, &run.rehearsed.host}) {
    for (const PhasePlan& phase : arena->phases) {
      for (const Request& r : phase.requests) {
        const bool stored =
            r.tag == MemoryTag::weights || r.tag == MemoryTag::master || r.tag == MemoryTag::moments;
        if (stored) bytes += r.bytes;
      }
    }
  }
  run.checkpoint_bytes = bytes;
  const std::int64_t keep = run.config.trainer.keep;
  run.disk_rows = {{"checkpoints", bytes * keep, fmt::format("--keep {} of {}", keep, format_bytes(bytes))},
                   {"being saved", bytes, ""},
                   {"logs", kRunFilesBytes, ""}};
  run.disk_bytes = bytes * (keep + 1) + kRunFilesBytes;
  // Not part of the total: a corpus may be larger or smaller than the run, and may lie there as shards
  // already.
  run.token_cache_bytes = kTokenBytes * run.config.tokens;
  run.written_bytes_per_day = std::min(SavePolicy::most_seconds_per_day() * kAssumedDiskBytesPerSecond,
                                       SavePolicy::most_saves_per_day() * bytes);
}

void judge(Plan& run, const Limits& limits) {
  const auto verdict = [&](Resource resource, std::int64_t needed, std::optional<std::int64_t> available) {
    run.verdicts.push_back({resource, needed, available, !available || needed <= *available});
  };
  const auto known = [](std::int64_t bytes) {
    return bytes > 0 ? std::optional<std::int64_t>(bytes) : std::nullopt;
  };
  run.reserve_bytes = limits.reserve_bytes;
  verdict(Resource::device, run.device_bytes,
          known(limits.device_bytes > 0 ? std::max<std::int64_t>(limits.device_bytes - run.reserve_bytes, 1)
                                        : 0));
  // On the cpu the device's arena is ordinary memory too.
  const std::int64_t host =
      run.host_bytes + (run.config.target.kind == DeviceKind::cpu ? run.device_bytes : 0);
  verdict(Resource::host, host, known(limits.host_bytes));
  verdict(Resource::disk, run.disk_bytes, limits.disk_bytes);
}

// What the planner may choose.
struct Choice {
  Target target;  // with a route
  DType gradient;
  std::int64_t rows;  // of a micro-batch
  bool paged;
};

// `config`: what the options have settled.
Plan rehearse_candidate(RunConfig config, const Limits& limits, const Choice& choice,
                        std::int64_t step_rows) {
  Plan run;
  run.config = std::move(config);
  run.config.target = choice.target;
  EngineOptions& e = run.config.engine;
  e.layout.gradient = choice.gradient;
  e.layout.micro_batch_rows = choice.rows;
  e.optim.paged = choice.paged;
  e.accumulation = step_rows / choice.rows;
  run.rehearsed = Engine::rehearse(e, choice.target);
  run.rehearsals = 1;
  describe_device(run);
  describe_host(run);
  describe_disk(run);
  judge(run, limits);
  return run;
}

// 16-bit weights lose nothing: where they fit, a user who packs them should know.
void note_unquantized(Plan& run, const Limits& limits) {
  const ModelOptions& m = run.config.engine.layout;
  if (m.weights == FormatId::none || !run.fits()) return;
  RunConfig plain = run.config;
  plain.engine.layout.weights = FormatId::none;
  for (const DType gradient : {m.gradient, m.compute}) {
    for (const std::int64_t rows : {m.micro_batch_rows, std::int64_t{1}}) {
      const Plan other = rehearse_candidate(plain, limits,
                                            {.target = run.config.target,
                                             .gradient = gradient,
                                             .rows = rows,
                                             .paged = run.config.engine.optim.paged},
                                            m.micro_batch_rows * run.config.engine.accumulation);
      if (!other.fits()) continue;
      const Options said{.quant = FormatId::none, .grad_dtype = gradient, .micro_batch = rows};
      run.notes.push_back(fmt::format(
          "{} weights fit too and lose nothing to quantization: {} takes {} on the device; what {} "
          "costs in loss is in docs/benchmarks.md",
          dtype_name(m.compute), words_of<&Options::quant, &Options::grad_dtype, &Options::micro_batch>(said),
          format_bytes(other.device_bytes), format_info(m.weights).name));
      return;
    }
  }
}

// By how much it misses device and host.
std::int64_t missing_bytes(const Plan& run) {
  std::int64_t bytes = 0;
  for (const Verdict& v : run.verdicts) {
    if (!v.fits && v.resource != Resource::disk) bytes += v.needed_bytes - *v.available_bytes;
  }
  return bytes;
}

// What `auto` leaves open, and finding the first of it that fits: what keeps the device busiest comes first.
class Search {
 public:
  // ConfigError for sizes that do not go together.
  explicit Search(const PlanRequest& request);

  // The first choice that fits the memory; where none does, the one that misses it by least.
  Plan run();
  // That one, without looking for others.
  Plan least();

  const ModelConfig& model() const { return model_; }
  std::int64_t step_rows() const { return step_rows_; }
  bool pages_by_choice() const { return paging_.size() > 1; }
  std::int64_t most_rows() const { return rows_.front(); }

 private:
  // Of the micro-batches those that such gradients and such a state are worth their bytes at, largest first.
  std::span<const std::int64_t> rows_with(DType gradient, bool paged) const;
  Plan rehearse(const Target& on, DType gradient, bool paged, std::int64_t rows);
  bool try_all(const Target& on, std::optional<Plan>& best);
  bool has_floor() const;

  const Options& o_;
  const Target& target_;
  const Limits& limits_;
  ModelConfig model_;
  RunConfig config_;  // what the options have settled
  std::int64_t step_rows_ = 0;
  std::vector<DType> gradients_;
  std::vector<bool> paging_;
  std::vector<std::int64_t> rows_;
  int rehearsals_ = 0;
};

Search::Search(const PlanRequest& request)
    : o_(request.options),
      target_(request.target),
      limits_(request.limits),
      model_(model_from_options(request.options, request.vocab_size)) {
  const Options& o = request.options;
  if (o.batch_tokens <= 0 || o.batch_tokens % model_.seq_len != 0) {
    throw ConfigError(
        fmt::format("--batch-tokens {} is not a multiple of the sequence length {}", o.batch_tokens,
                    model_.seq_len),
        fmt::format("use --batch-tokens {}",
                    std::max<std::int64_t>(1, o.batch_tokens / model_.seq_len) * model_.seq_len));
  }
  config_ = config_of(o, model_, target_);
  step_rows_ = o.batch_tokens / model_.seq_len;
  const DType compute = config_.engine.layout.compute;
  gradients_ = {DType::f32, DType::bf16};
  if (o.grad_dtype) gradients_ = {*o.grad_dtype};
  if (compute != DType::bf16) {
    require_gradient_dtype(compute, o.grad_dtype);
    gradients_ = {DType::f32};
  }
  // The path for small models keeps master and moments on the device where they fit.
  paging_ = {o.paging != Paging::off};
  if (o.paging == Paging::automatic && compute == DType::f16) paging_ = {false, true};
  rows_ = micro_batch_candidates(o, step_rows_, model_.seq_len, target_);
}

std::span<const std::int64_t> Search::rows_with(DType gradient, bool paged) const {
  const bool wide = gradients_.size() > 1 && gradient == DType::f32, resident = paging_.size() > 1 && !paged;
  std::size_t n = rows_.size();
  while ((wide || resident) && n > 1 && rows_[n - 1] * model_.seq_len < kBusyTokens) --n;
  return std::span(rows_).first(n);
}

Plan Search::rehearse(const Target& on, DType gradient, bool paged, std::int64_t rows) {
  ++rehearsals_;
  return rehearse_candidate(config_, limits_,
                            {.target = on, .gradient = gradient, .rows = rows, .paged = paged}, step_rows_);
}

// The disk holds checkpoints, and no candidate changes their size: it is judged, but it chooses nothing.
bool Search::try_all(const Target& on, std::optional<Plan>& best) {
  for (const bool paged : paging_) {
    for (const DType gradient : gradients_) {
      const std::span<const std::int64_t> rows = rows_with(gradient, paged);
      // More rows take more bytes: where the fewest do not fit, none do.
      Plan smallest = rehearse(on, gradient, paged, rows.back());
      if (!smallest.fits_memory()) {
        if (!best || missing_bytes(smallest) < missing_bytes(*best)) best = std::move(smallest);
        continue;
      }
      best = std::move(smallest);
      std::size_t first = 0, fitting = rows.size() - 1;
      while (first < fitting) {
        const std::size_t middle = (first + fitting) / 2;
        Plan candidate = rehearse(on, gradient, paged, rows[middle]);
        if (candidate.fits_memory()) {
          best = std::move(candidate);
          fitting = middle;
        } else {
          first = middle + 1;
        }
      }
      return true;
    }
  }
  return false;
}

// The route that needs no scratch is the floor of what a card must have.
bool Search::has_floor() const {
  return target_.kind == DeviceKind::cuda && target_.gemm == GemmRoute::automatic &&
         config_.engine.layout.weights != FormatId::none;
}

Plan Search::run() {
  std::optional<Plan> best;
  if (!try_all(target_, best) && has_floor()) {
    Target floor = target_;
    floor.gemm = GemmRoute::fused;
    if (try_all(floor, best))
      best->decisions.push_back("--gemm fused: without scratch for expanded weights it fits");
  }
  best->rehearsals = rehearsals_;
  return *std::move(best);
}

Plan Search::least() {
  Target on = target_;
  if (has_floor()) on.gemm = GemmRoute::fused;
  const DType gradient = gradients_.back();
  Plan best = rehearse(on, gradient, paging_.back(), rows_with(gradient, paging_.back()).back());
  if (!best.fits_memory() && paging_.size() > 1) {
    Plan resident = rehearse(on, gradient, false, rows_with(gradient, false).back());
    if (missing_bytes(resident) < missing_bytes(best)) best = std::move(resident);
  }
  best.rehearsals = rehearsals_;
  return best;
}

void describe_choices(Plan& run, const PlanRequest& request, const Search& search) {
  const Options& o = request.options;
  const ModelOptions& layout = run.config.engine.layout;
  if (o.vocab_size == 0 && request.vocab_size == 0) {
    run.decisions.push_back(fmt::format("vocabulary {}: the model's own, because no data is there",
                                        format_thousands(search.model().vocab_size)));
  }
  if (!o.dtype) {
    run.decisions.push_back(fmt::format(
        "--dtype {}: {}", dtype_name(layout.compute),
        run.config.target.native_bf16 ? "the device multiplies bf16 natively" : "no bf16 instructions here"));
  }
  if (!o.grad_dtype) {
    run.decisions.push_back(
        fmt::format("--grad-dtype {}: {}", dtype_name(layout.gradient),
                    layout.gradient == DType::f32 ? "f32 accumulators fit" : "f32 accumulators do not fit"));
  }
  if (search.pages_by_choice()) {
    run.decisions.push_back(run.config.engine.optim.paged
                                ? "--paging on: master and moments do not fit on the device"
                                : "--paging off: master and moments fit on the device");
  }
  if (o.micro_batch == 0) {
    run.decisions.push_back(fmt::format("--micro-batch {}: {}, {} per step", layout.micro_batch_rows,
                                        layout.micro_batch_rows == search.most_rows()
                                            ? "as many rows as keep the device busy"
                                            : "the largest that fits",
                                        run.config.engine.accumulation));
  }
}

Plan finished(Plan run, const PlanRequest& request, const Search& search) {
  describe_choices(run, request, search);
  const Options chosen = with_choices(request.options, run.config);
  run.config.options = resolved_options(chosen, run.config);
  run.command = command_of(chosen);
  return run;
}

}  // namespace

std::string_view resource_name(Resource resource) {
  constexpr std::string_view kNames[] = {"device", "host", "disk"};
  return kNames[static_cast<std::size_t>(resource)];
}

bool Plan::fits_memory() const {
  return std::all_of(verdicts.begin(), verdicts.end(),
                     [](const Verdict& v) { return v.fits || v.resource == Resource::disk; });
}

bool Plan::fits() const {
  return std::all_of(verdicts.begin(), verdicts.end(), [](const Verdict& v) { return v.fits; });
}

Plan plan_run(const PlanRequest& request) {
  Plan run = plan_choice(request);
  note_unquantized(run, request.limits);
  return run;
}

Plan plan_choice(const PlanRequest& request) {
  check_options(request.options);
  Search search(request);
  return finished(search.run(), request, search);
}

Plan plan_least(const PlanRequest& request) {
  check_options(request.options);
  Search search(request);
  return finished(search.least(), request, search);
}

}  // namespace qt
