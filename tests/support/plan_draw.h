// Plans drawn at random, and what each has to keep: one that fits is built, trained for a step, evaluated,
// sampled and saved within its bytes; one that does not is exact to the byte, and so is what is proposed.
#pragma once

#include <filesystem>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "src/core/units.h"
#include "src/plan/command.h"
#include "src/plan/remedies.h"
#include "src/train/run_state.h"
#include "tests/support/shell_words.h"
#include "tests/support/temp_dir.h"
#include "tests/support/test_backend.h"

namespace qt::test {

// std's distributions differ between libraries: these do not.
class Draws {
 public:
  explicit Draws(std::uint32_t seed) : random_(seed) {}
  std::int64_t below(std::int64_t n) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(n));
  }
  std::int64_t between(std::int64_t low, std::int64_t high) { return low + below(high - low + 1); }
  bool one_in(std::int64_t n) { return below(n) == 0; }
  template <class T>
  T of(std::initializer_list<T> list) {
    return list.begin()[below(static_cast<std::int64_t>(list.size()))];
  }

 private:
  std::mt19937_64 random_;
};

using DrawnPlan = PlanRequest;  // without a tokenizer

inline Plan planned(const DrawnPlan& d) { return plan_run(d); }
inline Plan planned_with(const DrawnPlan& d, const Options& o, std::int64_t device_bytes) {
  Limits limits = d.limits;
  limits.device_bytes = device_bytes;
  Target target = d.target;
  if (target.kind == DeviceKind::cuda && o.gemm == GemmRoute::fused) target.gemm = GemmRoute::fused;
  return plan_run({.options = o, .target = target, .limits = limits});
}

// Device memory so that about half of all draws fit: on either side of the least that the options need.
inline void draw_memory(DrawnPlan& d, Draws& draws) {
  const std::int64_t most = planned_with(d, d.options, 0).device_bytes;
  const std::int64_t least = planned_with(d, d.options, 1).device_bytes;
  const std::int64_t fixed = default_workspace_bytes(d.target) + d.target.context_bytes;
  if (draws.one_in(2)) {
    d.limits.device_bytes = draws.between(least, least + (most - least) * 11 / 10 + 4096);
  } else {
    const std::int64_t arenas = least - fixed;
    d.limits.device_bytes = least - draws.between(1, arenas / 2);
  }
}

// A step, an evaluation, a sample, a save: in the memory that was planned, and in no more.
inline void run_within(const Plan& run, const DrawnPlan& d, const std::filesystem::path& folder) {
  const EngineOptions& e = run.config.engine;
  Engine engine(make_test_backend(run.config.target), e, run.rehearsed);
  const std::vector<std::int32_t> ids(static_cast<std::size_t>(e.micro_batch_tokens()), 7);
  const HostBatch batch{ids, ids};
  engine.init_weights(1);
  // Scaled as little as a window of fp16 may be: an overflow would leave the update out.
  const StepStats stats = engine.train_step([&](std::int64_t) { return batch; }, {}, 1.0, 1, 1.0);
  EXPECT_TRUE(stats.finite);
  EXPECT_EQ(engine.evaluate(batch).targets, static_cast<double>(ids.size()));
  if (e.sample_tokens > 0) engine.sample(std::vector<std::int32_t>{1}, SampleOptions{.new_tokens = 2});
  EXPECT_EQ(engine.used_device_bytes(), run.rehearsed.device_bytes());
  EXPECT_EQ(engine.used_host_bytes(), run.rehearsed.host.bytes);
  const std::int64_t fixed = default_workspace_bytes(run.config.target) + run.config.target.context_bytes;
  EXPECT_EQ(engine.used_device_bytes() + fixed, run.device_bytes);
  EXPECT_LE(run.device_bytes, d.limits.device_bytes);

  CheckpointStore store(folder.string(), 2);
  RunState state;
  state.step = 1;
  store.save(engine, state);
  std::int64_t saved = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) saved += static_cast<std::int64_t>(entry.file_size());
  }
  constexpr std::int64_t kHeaders = 256 * kKiB;
  EXPECT_LE(saved, run.checkpoint_bytes + kHeaders);
  EXPECT_GE(saved, run.checkpoint_bytes * 9 / 10);
  std::filesystem::remove_all(folder);
}

// At least 90 % of what the machine has, or the next micro-batch would be too large, or there is none.
inline void expect_no_room_for_more(const Plan& run, const DrawnPlan& d) {
  if (run.device_bytes * 10 >= d.limits.device_bytes * 9 || d.options.micro_batch > 0) return;
  const std::int64_t rows = d.options.batch_tokens / run.config.engine.model.seq_len;
  Options larger = with_choices(d.options, run.config);
  larger.paging = run.config.engine.optim.paged ? Paging::on : Paging::off;
  for (std::int64_t r = run.config.engine.layout.micro_batch_rows + 1; r <= rows; ++r) {
    if (rows % r != 0) continue;
    larger.micro_batch = r;
    EXPECT_FALSE(planned_with(d, larger, d.limits.device_bytes).fits()) << "--micro-batch " << r;
    return;
  }
}

// To the byte: with what it needs it fits, with one less it does not.
inline void expect_exact(const DrawnPlan& d, const Options& o, std::int64_t needed_bytes) {
  EXPECT_TRUE(planned_with(d, o, needed_bytes).fits());
  EXPECT_FALSE(planned_with(d, o, needed_bytes - 1).fits());
}

// Whether everything at once that costs least memory would do: then something has to be proposed.
inline bool fits_with_everything(const DrawnPlan& d, std::int64_t seq_len) {
  Options o = d.options;
  const bool fp16 = o.dtype == DType::f16;
  o.micro_batch = 1;
  o.seq_len = seq_len;
  o.ckpt_activations = true;
  o.loss_chunk = 16;
  o.optim = &rules::adamw8;
  o.paging = Paging::on;
  if (d.target.kind == DeviceKind::cuda) o.gemm = GemmRoute::fused;
  if (!fp16) {
    o.dtype = DType::bf16;
    o.quant = FormatId::nf4;
    o.grad_dtype = DType::bf16;
    o.master = DType::bf16;
  }
  return planned_with(d, o, d.limits.device_bytes).fits();
}

struct DrawnCounts {
  int fit = 0, proposals = 0, helped = 0, most_rehearsals = 0;
};

inline void expect_promises_kept(const DrawnPlan& d, const std::filesystem::path& folder,
                                 DrawnCounts& counts) {
  Plan run = planned(d);
  std::int64_t rows = 0;
  for (const PlanRow& row : run.device_rows) rows += row.bytes;
  EXPECT_EQ(rows, run.device_bytes);
  rows = 0;
  for (const PlanRow& row : run.host_rows) rows += row.bytes;
  EXPECT_EQ(rows, run.host_bytes);
  EXPECT_EQ(run.config.engine.step_tokens(), d.options.batch_tokens);
  if (run.fits()) {
    ++counts.fit;
    run_within(run, d, folder);
    expect_no_room_for_more(run, d);
    Options same = with_choices(d.options, run.config);
    same.paging = run.config.engine.optim.paged ? Paging::on : Paging::off;
    expect_exact(d, same, run.device_bytes);
    return;
  }
  EXPECT_GT(run.device_bytes, d.limits.device_bytes);
  expect_exact(d, d.options, run.device_bytes);
  propose_changes(run, d, {});
  counts.most_rehearsals = std::max(counts.most_rehearsals, run.rehearsals);
  counts.helped += run.changes.empty() ? 0 : 1;
  EXPECT_TRUE(!run.changes.empty() || !fits_with_everything(d, d.options.seq_len));
  std::set<std::string> names;  // of two proposals that change the same options one is too many
  for (const FitChange& change : run.changes) {
    SCOPED_TRACE(change.command);
    std::set<std::string> changed;
    for (const std::string& word : shell_words(change.options)) {
      if (word.starts_with("--")) changed.insert(word);
    }
    EXPECT_TRUE(names.insert(fmt::format("{}", fmt::join(changed, " "))).second) << change.options;
    ++counts.proposals;
    Words words{"--quiet"};
    for (const std::string& word : arguments_of(change.command)) words.push_back(word);
    const Plan with = planned_with(d, load_options(words).options, d.limits.device_bytes);
    EXPECT_TRUE(with.fits()) << change.options;
    if (&change == &run.changes.front() && with.fits()) run_within(with, d, folder);
  }
}

}  // namespace qt::test
