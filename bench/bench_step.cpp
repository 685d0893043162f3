// Whole training steps through the engine, on synthetic tokens: tokens/s, FLOP/s and their share of what
// plain products of the model's widest matrix reach here, planned bytes and peak RSS, and with --profile
// where the time goes. Nothing is read from or written to disk. On a card the profile is of one step more, in
// which the host waits for each op: that step hides no copy and no launch.
//
//   bench_step --model d4 --vocab-size 4096 --seq-len 512 --rows 8 --quant nf4 --ckpt-activations --profile
//   bench_step --model d32 --rows 32 --quant nf4 --ckpt-activations --device cuda --profile
//
// All options are qtrain's own, read by the same table and planned by the same planner; --rows (sequences per
// step, instead of --batch-tokens) and --profile are added. One configuration per process: the peak is the
// process's.
#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "bench/harness.h"
#include "src/core/units.h"
#include "src/options/option_table.h"
#include "src/plan/machine.h"
#include "src/plan/planner.h"
#include "src/train/engine.h"

namespace qt {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::int64_t kDefaultRows = 8;
constexpr std::int64_t kDefaultSteps = 10;
constexpr std::int64_t kWarmupSteps = 2;  // page faults and just-in-time kernels: left out of every figure

struct ProfileRow {
  std::int64_t calls = 0;
  double seconds = 0, flops = 0, bytes = 0;
};
using Profile = std::map<std::string, ProfileRow, std::less<>>;

struct Arguments {
  Options options;
  bool profile = false;
};

Arguments read_arguments(std::vector<std::string> words) {
  Arguments arguments;
  const std::string rows_given = bench::take_option(words, "rows", "");
  std::int64_t rows = rows_given.empty() ? 0 : parse_count(rows_given, "--rows");
  arguments.profile = std::erase(words, "--profile") > 0;
  const LoadedOptions loaded = load_options(words);
  Options& o = arguments.options = loaded.options;
  if (!loaded.given("steps")) o.steps = kDefaultSteps;
  QT_CHECK(o.steps > 0, ConfigError, "--steps must be at least 1");
  QT_CHECK(rows == 0 || !loaded.given("batch-tokens"), ConfigError,
           "--rows and --batch-tokens say the same: give one");
  if (rows == 0) rows = kDefaultRows;
  if (!loaded.given("batch-tokens")) {
    o.batch_tokens = rows * model_from_options(o, 0).seq_len;
  }
  return arguments;
}

std::int64_t peak_rss_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * kKiB;
}

// Uniform over the vocabulary. Speed does not depend on what the tokens are, but for the rows of the
// embedding's gradient.
std::vector<std::int32_t> synthetic_tokens(std::int64_t count, std::int64_t vocab_size, std::uint64_t seed) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(count));
  const RngStream rng{.seed = seed, .purpose = RngPurpose::data_order};
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    tokens[i] = static_cast<std::int32_t>(rng_u32(rng, i) % static_cast<std::uint64_t>(vocab_size));
  }
  return tokens;
}

// Operations per second of y = x w^T with the widest matrix of the model, the tokens of a micro-batch at a
// time.
double product_flops(Backend& backend, const EngineOptions& e) {
  const std::int64_t M = e.micro_batch_tokens(), C = e.model.n_embd, F = 4 * C;
  bench::Buffers buffers(backend);
  Matmul op{.a = buffers.normal({M, C}, e.layout.compute),
            .b = buffers.normal({F, C}, e.layout.compute),
            .c = buffers.empty({M, F}, e.layout.compute)};
  buffers.add_scratch(op, backend.target());
  return op.cost().executed_flops / bench::median_seconds(backend, [&] { backend.run(op); });
}

void print_profile(const Profile& profile, double total_seconds) {
  std::vector<std::pair<std::string, ProfileRow>> rows(profile.begin(), profile.end());
  double in_ops = 0;
  for (const auto& [name, row] : rows) in_ops += row.seconds;
  rows.push_back({"outside ops", ProfileRow{.seconds = total_seconds - in_ops}});
  std::sort(rows.begin(), rows.end(),
            [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  std::cout << fmt::format("\n{:<24}{:>9}{:>12}{:>8}{:>10}{:>9}\n", "op", "calls", "ms", "share", "GFLOP/s",
                           "GB/s");
  for (const auto& [name, row] : rows) {
    const double seconds = std::max(row.seconds, 1e-12);
    std::cout << fmt::format("{:<24}{:>9}{:>12.2f}{:>7.1f}%{:>10.1f}{:>9.1f}\n", name, row.calls,
                             1e3 * row.seconds, 100 * row.seconds / total_seconds,
                             row.flops / seconds / bench::kGiga, row.bytes / seconds / bench::kGiga);
  }
}

void run(const std::vector<std::string>& words) {
  const auto [options, profiling] = read_arguments(words);
  Target target = target_from_options(options);
  std::unique_ptr<Backend> opened = bench::open_backend(target);
  const bool on_card = target.kind == DeviceKind::cuda;
  Limits limits = limits_from_options(options, target);
  adopt_facts(opened->device(), target, limits);
  limits.disk_bytes.reset();  // nothing is saved
  const Plan planned = plan_run({.options = options, .target = target, .limits = limits});
  if (!planned.fits())
    throw FitError("this configuration does not fit",
                   "`qtrain plan` with the same options shows what it needs");

  const EngineOptions& e = planned.config.engine;
  const double product_gflops = product_flops(*opened, e) / bench::kGiga;  // before the run takes its memory
  Engine engine(std::move(opened), e, planned.rehearsed);
  engine.init_weights(options.seed);
  const std::vector<std::int32_t> ids =
      synthetic_tokens(e.micro_batch_tokens(), e.model.vocab_size, options.seed);
  const std::vector<std::int32_t> targets =
      synthetic_tokens(e.micro_batch_tokens(), e.model.vocab_size, options.seed + 1);
  const auto fetch = [&](std::int64_t) { return HostBatch{ids, targets}; };

  Profile profile;
  std::vector<double> step_seconds;
  StepStats stats;
  Backend& backend = engine.backend();
  const auto step_once = [&](std::int64_t step) {
    const auto start = Clock::now();
    stats = engine.train_step(fetch, {}, 1.0, step + 1);
    return bench::seconds_since(start);
  };
  // Of the last op seen; ops of a card are timed from one wait to the next.
  Clock::time_point last_end = Clock::now();
  const Backend::Observer observer = [&](const char* name, const Cost& cost, double seconds) {
    if (on_card) {
      backend.synchronize();
      seconds = bench::seconds_since(last_end);
      last_end = Clock::now();
    }
    ProfileRow& row = profile[name];
    ++row.calls;
    row.seconds += seconds;
    row.flops += cost.executed_flops;
    row.bytes += cost.read_bytes + cost.written_bytes;
  };
  for (std::int64_t step = 0; step < kWarmupSteps + options.steps; ++step) {
    if (step == kWarmupSteps) {
      backend.synchronize();
      backend.reset_totals();
      if (profiling && !on_card) backend.set_observer(observer);
    }
    const double seconds = step_once(step);
    if (step >= kWarmupSteps) step_seconds.push_back(seconds);
  }
  const BackendTotals totals = backend.totals();
  double total_seconds = 0;
  for (const double seconds : step_seconds) total_seconds += seconds;
  if (profiling && on_card) {
    backend.synchronize();
    backend.set_observer(observer);
    last_end = Clock::now();
    total_seconds = step_once(kWarmupSteps + options.steps);
  }

  std::sort(step_seconds.begin(), step_seconds.end());
  const auto tokens = static_cast<double>(e.step_tokens());
  const auto steps = static_cast<double>(step_seconds.size());
  const double median = step_seconds[step_seconds.size() / 2];
  const auto rate = [&](double flops) { return flops / steps / median / bench::kGiga; };

  std::cout << "device      " << bench::device_name(target) << "\n";
  std::cout << "command     bench_step";
  for (const std::string& word : words) std::cout << " " << word;
  std::cout << fmt::format(
      "\nmodel       {}, {} parameters, {} x {} tokens, {} micro-batches a step, {}, --quant {}, recompute "
      "{}, paging {}\n",
      e.model.name, format_count(e.model.param_count()), e.layout.micro_batch_rows, e.model.seq_len,
      e.accumulation, dtype_name(e.layout.compute), format_info(e.layout.weights).name,
      e.layout.checkpoint_activations ? "on" : "off", e.optim.paged ? "on" : "off");
  std::cout << fmt::format("memory      planned {} device + {} host, used {} + {}, peak RSS {}\n",
                           format_bytes(planned.rehearsed.device_bytes()),
                           format_bytes(planned.rehearsed.host.bytes),
                           format_bytes(engine.used_device_bytes()), format_bytes(engine.used_host_bytes()),
                           format_bytes(peak_rss_bytes()));
  std::cout << fmt::format(
      "step        median {:.1f} ms of {}, fastest {:.1f}, slowest {:.1f}; loss {:.4f}\n", 1e3 * median,
      step_seconds.size(), 1e3 * step_seconds.front(), 1e3 * step_seconds.back(), stats.loss);
  const double executed_gflops = rate(totals.executed_flops);
  std::cout << fmt::format(
      "products    {:.1f} GFLOP/s of {} x {} x {} alone; the step executes {:.1f} % of that\n",
      product_gflops, e.micro_batch_tokens(), 4 * e.model.n_embd, e.model.n_embd,
      100 * executed_gflops / product_gflops);
  std::cout << fmt::format(
      "BENCH tokens_per_s={:.0f} model_gflops={:.1f} executed_gflops={:.1f} product_gflops={:.1f} "
      "device_bytes={} "
      "host_bytes={} peak_rss_bytes={}\n",
      tokens / median, rate(totals.model_flops), executed_gflops, product_gflops,
      planned.rehearsed.device_bytes(), planned.rehearsed.host.bytes, peak_rss_bytes());
  if (profiling) print_profile(profile, total_seconds);
}

}  // namespace
}  // namespace qt

int main(int argc, char** argv) { return qt::bench::run_benchmark("bench_step", argc, argv, qt::run); }
