// What a run is made of: the same bits whatever the threads, checkpointing or paging, and across a save and a
// fresh process's load; and each saved item is needed.
#include <algorithm>
#include <map>
#include <set>

#include <gtest/gtest.h>

#include "src/cli/resume.h"
#include "src/cli/run_data.h"
#include "src/io/checkpoint.h"
#include "src/train/run_state.h"
#include "src/train/stop.h"
#include "src/train/trainer.h"
#include "tests/support/reseal.h"
#include "tests/support/tiny_run.h"
#include "tests/support/toy_rules.h"

namespace qt::test {
namespace {

constexpr std::int64_t kSteps = 6;

class Resume : public ::testing::Test {
 protected:
  TempDir dir;
  TinyData data{dir.path()};

  // Trains `steps` windows from `window` on; t counts applied updates.
  void train(Engine& engine, std::int64_t first, std::int64_t steps) {
    const TokenBatches batches = data.batches(engine.options().model.seq_len);
    const std::int64_t rows = engine.options().layout.micro_batch_rows;
    std::vector<std::int32_t> ids(static_cast<std::size_t>(engine.options().micro_batch_tokens())),
        targets(ids.size());
    const Schedule schedule{.steps = kSteps, .warmdown_fraction = 0.5};
    for (std::int64_t step = first; step < first + steps; ++step) {
      const StepStats stats = engine.train_step(
          [&](std::int64_t micro) {
            batches.fill((step * engine.options().accumulation + micro) * rows, rows, ids, targets);
            return HostBatch{ids, targets};
          },
          {}, schedule.multiplier(step), step + 1);
      ASSERT_TRUE(stats.finite);
    }
  }

  std::string hash_after_training(const TinyShape& shape) {
    const auto engine = tiny_engine(shape);
    engine->init_weights(7);
    train(*engine, 0, kSteps);
    return state_hash(*engine);
  }

  TrainerOptions trainer_options(const std::string& name, std::int64_t steps) {
    TrainerOptions o = tiny_trainer_options(dir / name, steps, 0);
    o.schedule.warmdown_fraction = 0.5;
    return o;
  }
};

TEST_F(Resume, TrainingChangesEveryKindOfState) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  const std::string before = state_hash(*engine);
  train(*engine, 0, 3);
  EXPECT_NE(before, state_hash(*engine));
}

TEST_F(Resume, CheckpointingOnAndOffGiveTheSameBits) {
  EXPECT_EQ(hash_after_training({.checkpoint = true}), hash_after_training({.checkpoint = false}));
  EXPECT_EQ(hash_after_training({.checkpoint = true, .compute = DType::bf16}),
            hash_after_training({.checkpoint = false, .compute = DType::bf16}));
}

TEST_F(Resume, PagingOnAndOffGiveTheSameBits) {
  EXPECT_EQ(hash_after_training({.paged = true}), hash_after_training({.paged = false}));
  EXPECT_EQ(hash_after_training({.paged = true, .rule = &rules::adamw}),
            hash_after_training({.paged = false, .rule = &rules::adamw}));
  EXPECT_EQ(hash_after_training({.paged = true, .master = DType::bf16}),
            hash_after_training({.paged = false, .master = DType::bf16}));
}

TEST_F(Resume, EveryNumberOfThreadsGivesTheSameBits) {
  for (TinyShape shape : {TinyShape{}, TinyShape{.compute = DType::bf16}, TinyShape{.master = DType::bf16}}) {
    shape.threads = 1;
    const std::string one = hash_after_training(shape);
    for (const int threads : {2, 3, 8}) {
      shape.threads = threads;
      EXPECT_EQ(one, hash_after_training(shape)) << threads << " threads";
    }
  }
}

TEST_F(Resume, DifferentSettingsThatMatterGiveDifferentBits) {
  // The comparisons above would be worthless if the hash did not see the state.
  const std::string packed = hash_after_training({});
  EXPECT_NE(packed, hash_after_training({.packed = false}));
  EXPECT_NE(packed, hash_after_training({.rule = &rules::adamw}));
  EXPECT_NE(packed, hash_after_training({.master = DType::bf16}));
}

TEST_F(Resume, PagedBytesAreWhatThePlanSays) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  train(*engine, 0, 1);
  engine->backend().reset_totals();
  engine->measure(1.0, 2);
  engine->update();
  const BackendTotals done = engine->backend().totals();
  const Rehearsed plan = Engine::rehearse(tiny_engine_options({}), test_target(2));
  EXPECT_EQ(done.host_to_device_bytes, plan.optimizer_step.host_to_device_bytes);
  EXPECT_EQ(done.device_to_host_bytes, plan.optimizer_step.device_to_host_bytes);
  EXPECT_EQ(done.host_to_device_bytes, static_cast<double>(engine->optimizer().paged_bytes()));

  const auto resident = tiny_engine({.paged = false});
  EXPECT_EQ(resident->optimizer().paged_bytes(), 0);
}

TEST_F(Resume, AnEngineForInferenceSaysThatItHasNoOptimizer) {
  EngineOptions options = tiny_engine_options({});
  options.inference = true;
  const Target target = test_target(1);
  Engine engine(make_test_backend(target), options, Engine::rehearse(options, target));
  const auto says_so = [](auto&& use) {
    try {
      use();
      ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ExitCode::internal);
      EXPECT_STREQ(e.what(), "Engine::optimizer: an engine for inference has none");
    }
  };
  says_so([&] { engine.optimizer(); });
  says_so([&] { engine.init_weights(7); });
  says_so([&] { engine.encode_weights(); });
  says_so([&] { engine.time_paging(); });
  says_so([&] { engine.measure(1.0, 1); });
  says_so([&] { engine.update(); });
  EXPECT_TRUE(engine.state().empty());
}

TEST_F(Resume, AFreshEngineContinuesBitForBit) {
  for (const DType master : {DType::f32, DType::bf16}) {
    const std::string name(dtype_name(master));
    SCOPED_TRACE(name);
    const std::string straight = hash_after_training({.master = master});
    CheckpointStore store(dir / name, 2);
    RunState state;
    {
      const auto engine = tiny_engine({.master = master});
      engine->init_weights(7);
      train(*engine, 0, 3);
      state.step = state.applied = state.window = 3;
      store.save(*engine, state);
    }
    const auto engine = tiny_engine({.checkpoint = false, .paged = false, .threads = 1, .master = master});
    std::string explanation;
    const RunState loaded = store.load(store.newest(explanation), *engine);
    EXPECT_EQ(loaded.step, 3);
    train(*engine, loaded.step, 3);
    EXPECT_EQ(straight, state_hash(*engine));

    // What is stored is what the run keeps: another master copy is not read as this one.
    const auto other = tiny_engine({.master = master == DType::f32 ? DType::bf16 : DType::f32});
    EXPECT_THROW(store.load(store.newest(explanation), *other), DataError);
  }
}

// Descends in every other step, and counts the steps where no checkpoint sees it.
std::map<std::string, int> hidden_steps;
constexpr UpdateRule kHides = [] {
  UpdateRule rule = kSgd;
  rule.name = "hides";
  rule.update = [](const SlabUpdate& slab) {
    const Buffer unused = slab.step.alloc("unused", MemoryTag::scratch, DType::f32, {slab.master.elems()});
    slab.backend.run(Fill{.x = unused, .value = 0});
    descend(slab, hidden_steps[slab.param.name]++ % 2 == 0 ? slab.master : unused.view(), slab.grad);
  };
  return rule;
}();

// A rule of whole matrices does; one with state that it does not describe is noticed.
TEST_F(Resume, AFreshEngineContinuesByARuleThatDescribesItsState) {
  const auto hashes = [&](const UpdateRule& rule) {
    const auto fresh = [&] {
      auto engine = tiny_engine({.rule = &rule});
      engine->init_weights(7);
      hidden_steps.clear();
      return engine;
    };
    const auto straight = fresh();
    train(*straight, 0, 6);
    const auto first = fresh();
    train(*first, 0, 3);
    CheckpointStore store(dir / std::string(rule.name), 2);
    RunState state;
    state.step = state.applied = state.window = 3;
    store.save(*first, state);
    const auto second = fresh();
    std::string explanation;
    store.load(store.newest(explanation), *second);
    train(*second, 3, 3);
    return std::pair(state_hash(*straight), state_hash(*second));
  };
  for (const UpdateRule* rule : {&kSgd, &kCubic, &kCubic16}) {
    const auto [straight, continued] = hashes(*rule);
    EXPECT_EQ(straight, continued) << rule->name;
  }
  const auto [straight, continued] = hashes(kHides);
  EXPECT_NE(straight, continued);
}

// Each tensor of a checkpoint, zeroed after loading, must change the outcome: nothing is stored in vain, and
// a restore that forgot an item would be noticed by the test above.
TEST_F(Resume, DroppingAnySavedTensorIsNoticed) {
  const std::string straight = hash_after_training({});
  CheckpointStore store(dir / "run", 2);
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  train(*engine, 0, 3);
  RunState state;
  state.step = state.applied = state.window = 3;
  store.save(*engine, state);
  std::string explanation;
  const std::string checkpoint = store.newest(explanation);

  std::vector<NamedView> items = engine->weights();
  for (const NamedView& v : engine->state()) items.push_back(v);
  ASSERT_GE(items.size(), 12u);
  for (const NamedView& item : items) {
    store.load(checkpoint, *engine);
    std::vector<std::byte> bytes(static_cast<std::size_t>(item.view.bytes()), std::byte{0});
    engine->backend().upload(bytes, item.view.flat());
    train(*engine, 3, 3);
    EXPECT_NE(straight, state_hash(*engine)) << item.name;
  }
  // And the same loop without the damage agrees.
  store.load(checkpoint, *engine);
  train(*engine, 3, 3);
  EXPECT_EQ(straight, state_hash(*engine));
}

TEST_F(Resume, DroppingAnySavedNumberIsNoticed) {
  // step drives the schedule, applied Adam's bias correction, window the data; seed the data order of a fresh
  // Trainer.
  const auto outcome = [&](const std::string& name, auto change) {
    const auto engine = tiny_engine({});
    engine->init_weights(7);
    train(*engine, 0, 3);
    RunState state;
    state.step = state.applied = state.window = 3;
    change(state);
    const TokenBatches batches = data.batches(32);
    // The horizon is far enough that a changed step still leaves three to go.
    TrainerOptions options = trainer_options(name, state.step + 3);
    options.schedule.steps = 12;
    Trainer trainer(*engine, batches, nullptr, data.tokenizer(), options, state);
    trainer.after_step = [&, last = state.step + 3](const RunState& now, const StepStats&) {
      if (now.step == last) request_stop();
    };
    try {
      trainer.run();
    } catch (const StopRequested&) {
      clear_stop_request();
    }
    return state_hash(*engine);
  };
  const std::string right = outcome("right", [](RunState&) {});
  EXPECT_EQ(right, outcome("again", [](RunState&) {}));
  EXPECT_NE(right, outcome("step", [](RunState& s) { s.step = 7; }));
  EXPECT_NE(right, outcome("applied", [](RunState& s) { s.applied = 0; }));
  EXPECT_NE(right, outcome("window", [](RunState& s) { s.window = 0; }));
  EXPECT_NE(right, outcome("bad_windows", [](RunState& s) { s.bad_windows = {4}; }));
}

TEST_F(Resume, RunStateSurvivesItsFileAndRefusesDamage) {
  RunState s;
  s.step = 12;
  s.applied = 11;
  s.window = 14;
  s.tokens = 1536;
  s.bad_in_a_row = 2;
  s.bad_windows = {3, 9};
  s.restores = 1;
  s.seconds = 1.5;
  s.seed = 18446744073709551615u;
  s.vocab_hash = "v";
  s.data_hash = "d";
  s.options = {{"model", "d4"}};
  s.algorithms = "a library\n1 2 3: 00ff\n";
  const RunState t = parse_run_state(run_state_json(s), "run.json");
  EXPECT_EQ(run_state_json(t), run_state_json(s));

  const auto refused = [](const std::string& text, const std::string& what) {
    try {
      parse_run_state(text, "run.json");
      ADD_FAILURE() << "accepted: " << text;
    } catch (const DataError& e) {
      EXPECT_NE(std::string(e.what()).find(what), std::string::npos) << e.what();
    }
  };
  std::string text = run_state_json(s);
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    const std::size_t at = changed.find(from);
    EXPECT_NE(at, std::string::npos);
    return changed.replace(at, from.size(), to);
  };
  refused("[]", "run.json");
  refused("", "run.json");
  refused(with("\"applied\": 11", "\"applied\": 13"), "applied");
  refused(with("\"step\": 12", "\"step\": -1"), "step");
  refused(with("\"step\": 12", "\"step\": \"12\""), "step");
  refused(with("\"format_version\": 1", "\"format_version\": 2"), "format_version");
  refused(with("\"seconds\": 1.5", "\"seconds\": -1.5"), "seconds");
  refused(with("\"model\": \"d4\"", "\"model\": 4"), "options.");
  refused(with("\"algorithms\": \"", "\"algorithms\": 1, \"x\": \""), "algorithms");
  // Checkpoints written before there was a choice.
  EXPECT_EQ(parse_run_state(with("\"algorithms\"", "\"unknown\""), "run.json").algorithms, "");
}

TEST_F(Resume, ANaNIsNeitherSavedNorLoaded) {
  const auto engine = tiny_engine({});
  engine->init_weights(7);
  CheckpointStore store(dir / "run", 2);
  const std::vector<NamedView> state = engine->state();
  const auto master = std::find_if(state.begin(), state.end(), [](const NamedView& v) {
    return v.name == "master.transformer.h.1.attn.c_q.weight";
  });
  ASSERT_NE(master, state.end());
  RunState run;
  store.save(*engine, run);
  const float nan = std::numeric_limits<float>::quiet_NaN();
  // A value that no weight has, to find the place in the file by.
  const float mark = 12345.678f;
  engine->backend().upload(std::as_bytes(std::span<const float>(&mark, 1)), master->view.flat(17, 1));
  run.step = 1;
  store.save(*engine, run);
  reseal(dir / "run", 1, "state.safetensors", [&](std::string& file) {
    const std::string bytes(reinterpret_cast<const char*>(&mark), sizeof mark);
    const std::size_t at = file.find(bytes);
    ASSERT_NE(at, std::string::npos);
    file.replace(at, sizeof nan, reinterpret_cast<const char*>(&nan), sizeof nan);
  });
  std::string explanation;
  try {
    store.load(store.newest(explanation), *engine);
    FAIL() << "a NaN was loaded";
  } catch (const DataError& e) {
    EXPECT_NE(std::string(e.what()).find("master.transformer.h.1.attn.c_q.weight"), std::string::npos)
        << e.what();
    EXPECT_NE(std::string(e.what()).find("element 17"), std::string::npos) << e.what();
  }

  engine->backend().upload(std::as_bytes(std::span<const float>(&nan, 1)), master->view.flat(17, 1));
  run.step = 2;
  try {
    store.save(*engine, run);
    FAIL() << "a NaN was saved";
  } catch (const DivergedError& e) {
    EXPECT_NE(std::string(e.what()).find("master.transformer.h.1.attn.c_q.weight"), std::string::npos)
        << e.what();
    EXPECT_NE(std::string(e.what()).find("element 17"), std::string::npos) << e.what();
  }
  EXPECT_EQ(find_checkpoints(dir / "run").back().step, 1) << "a refused save leaves nothing behind";
}

TEST_F(Resume, AnotherStepSizeStartsAtTheFirstWindowWithNothingTrainedYet) {
  RunState stored, now;
  stored.window = 7;
  stored.bad_windows = {3};
  stored.options = now.options = {{"batch-tokens", "128"}};
  EXPECT_EQ(carry_over(stored, now).window, 7);
  EXPECT_EQ(carry_over(stored, now).bad_windows.size(), 1u);
  now.options["batch-tokens"] = "256";  // 896 tokens are used up: 3.5 of the new windows
  EXPECT_EQ(carry_over(stored, now).window, 4);
  EXPECT_TRUE(carry_over(stored, now).bad_windows.empty());
  now.options["batch-tokens"] = "64";
  EXPECT_EQ(carry_over(stored, now).window, 14);
  now = stored;
  now.seed = 5;  // another order: the window numbers mean other tokens
  EXPECT_EQ(carry_over(stored, now).window, 7);
  EXPECT_TRUE(carry_over(stored, now).bad_windows.empty());
  now = stored;
  now.options["data-order"] = "shuffle";  // what runs had before the option was there
  EXPECT_EQ(carry_over(stored, now).bad_windows.size(), 1u);
  now.options["data-order"] = "random";
  EXPECT_TRUE(carry_over(stored, now).bad_windows.empty());
}

TEST_F(Resume, OptionsThatAreNoMoreDoNotStandInTheWay) {
  RunState now;
  for (const OptionSpec& spec : option_table()) now.options[spec.name] = option_text(Options{}, spec);
  RunState stored = now;
  stored.options["control"] = "none";  // in checkpoints from before update rules
  ASSERT_EQ(find_option("control"), nullptr);
  EXPECT_TRUE(check_resume(stored, now, false).empty());
  EXPECT_FALSE(carry_over(stored, now).options.contains("control"));
  Options options;
  adopt_resolved(options, stored);
  EXPECT_EQ(option_text(options, *find_option("optim")), "adamw8");
  EXPECT_EQ(stored_options(parse_run_state(run_state_json(stored), "run.json"), "run.json").optim,
            &rules::adamw8);
}

TEST_F(Resume, ChangesAreListedWithWhatTheyMean) {
  RunState stored;
  for (const OptionSpec& spec : option_table()) stored.options[spec.name] = option_text(Options{}, spec);
  const auto listed = [&](const std::string& name, const std::string& value) {
    RunState now = stored;
    now.options[name] = value;
    const std::vector<std::string> lines = check_resume(stored, now, false);
    return lines.empty() ? std::string() : lines.front();
  };
  EXPECT_NE(listed("micro-batch", "3").find("bits may differ"), std::string::npos);
  EXPECT_NE(listed("threads", "3").find("threads: 0 -> 3; no result depends on it"), std::string::npos);
  EXPECT_NE(listed("device", "cuda").find("device: auto -> cuda; bits may differ"), std::string::npos);
  EXPECT_NE(listed("vram", "8GiB").find("vram: "), std::string::npos);
  EXPECT_EQ(listed("matrix-lr", "0.5").find(";"), std::string::npos);
  EXPECT_NE(listed("matrix-lr", "0.5").find("matrix-lr: "), std::string::npos);
  EXPECT_TRUE(listed("log-every", "7").empty());
}

}  // namespace
}  // namespace qt::test
