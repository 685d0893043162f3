#include "src/train/run.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <optional>
#include <ostream>

#include "src/core/units.h"
#include "src/data/dataset.h"
#include "src/io/checkpoint.h"
#include "src/io/hash.h"
#include "src/train/planner.h"
#include "src/train/resume.h"
#include "src/train/screen.h"
#include "src/train/stop.h"
#include "src/train/trainer.h"

namespace qt {

namespace {

namespace fs = std::filesystem;

constexpr const char* kDefaultData = "data";
constexpr std::int64_t kDefaultBpeVocab = 4096;

// What --data means when it is not given: a folder `data`, if there is one.
std::vector<std::string> data_inputs(const Options& o) {
  if (!o.data.empty()) return o.data;
  if (fs::exists(kDefaultData)) return {kDefaultData};
  throw ConfigError(
      "no training data: --data is not given and there is no folder 'data'",
      "for a first run type `scripts/quickstart`; for your own text `qtrain --data book.txt` (also .jsonl, "
      ".gz, .zst, or a "
      "folder of them); to tokenize once and keep the shards `qtrain tokenize --data corpus/ --cache data`");
}

DataSpec data_spec(const Options& o) {
  DataSpec spec;
  spec.inputs = data_inputs(o);
  spec.val_inputs = o.val_data;
  spec.val_fraction = o.val_fraction;
  spec.tokenizer.kind = parse_tokenizer_kind(o.tokenizer_kind);
  spec.tokenizer.vocab_size = o.vocab_size > 0 ? o.vocab_size : kDefaultBpeVocab;
  spec.tokenizer.pattern = o.split_pattern;
  spec.tokenizer_file = o.tokenizer;
  if (!o.cache.empty()) {
    spec.out_dir = o.cache;
  } else if (spec.inputs.front() == "-") {
    throw ConfigError("text from standard input needs a place for its tokens", "add --cache FOLDER");
  } else {
    spec.out_dir = fs::path(spec.inputs.front()).lexically_normal().string() + ".tokens";
  }
  return spec;
}

// The one line of a long preparation, redrawn on a terminal and left out elsewhere.
DataHooks data_hooks(bool quiet) {
  DataHooks hooks;
  hooks.stop = [] { return stop_requested(); };
  if (quiet || isatty(STDERR_FILENO) == 0) return hooks;
  hooks.progress = [](const DataProgress& p) {
    const std::string total = p.total_bytes > 0 ? " of " + format_bytes(p.total_bytes) : "";
    const std::string line = fmt::format("\r\x1b[K  {}: {}{}, {:.1f} MB/s", p.phase,
                                         format_bytes(p.done_bytes), total, p.mb_per_s);
    std::fputs(line.c_str(), stderr);
    if (p.total_bytes > 0 && p.done_bytes >= p.total_bytes) std::fputs("\r\x1b[K", stderr);
  };
  return hooks;
}

// Token shards as they are: with the tokenizer beside them, or with --tokenizer where there is none.
PreparedData open_shard_data(const Options& o, const std::string& path) {
  PreparedData data = open_dataset(path);
  if (!o.tokenizer.empty()) {
    Tokenizer named = Tokenizer::load(o.tokenizer);
    if (data.tokenizer && data.tokenizer->hash() != named.hash()) {
      throw ConfigError(fmt::format("--tokenizer '{}' is not the one that the shards in '{}' were made with",
                                    o.tokenizer, path),
                        "leave --tokenizer out, or tokenize the text again");
    }
    data.tokenizer = std::move(named);
  }
  if (!data.tokenizer) {
    throw ConfigError(fmt::format("the shards in '{}' come without a tokenizer", path),
                      "put its tokenizer.txt beside them, or name it with --tokenizer FILE");
  }
  if (!o.val_data.empty()) data.val_shards.assign(o.val_data.begin(), o.val_data.end());
  return data;
}

// Shards and text are different worlds: a .bin file among text would be read as prose.
void require_one_kind(const Options& o, const std::vector<std::string>& inputs) {
  const bool shards = is_shard_path(inputs.front());
  if (shards && inputs.size() > 1) {
    throw ConfigError("--data takes one folder of token shards, or one shard",
                      "put them in one folder as train_*.bin and val_*.bin");
  }
  for (const std::string& input : inputs) {
    if (is_shard_path(input) != shards) {
      throw ConfigError(fmt::format("--data '{}' holds token shards, '{}' does not",
                                    shards ? inputs.front() : input, shards ? input : inputs.front()),
                        "name either text or one folder of shards");
    }
  }
  for (const std::string& input : o.val_data) {
    if (is_shard_path(input) == shards && !(shards && fs::is_directory(input))) continue;
    throw ConfigError(fmt::format("--val-data '{}' must be {}, as --data is", input,
                                  shards ? "a token shard (.bin)" : "text"),
                      shards ? "name .bin files, or put them into the folder of --data as val_*.bin"
                             : "name text files or folders of them");
  }
}

PreparedData load_data(const Options& o) {
  const DataSpec spec = data_spec(o);
  require_one_kind(o, spec.inputs);
  if (is_shard_path(spec.inputs.front())) return open_shard_data(o, spec.inputs.front());
  return prepare_data(spec, data_hooks(o.quiet));
}

std::string data_hash(const std::vector<fs::path>& shards) {
  Xxh3 hash;
  for (const fs::path& shard : shards) {
    const std::optional<ShardInfo> side = read_shard_side(shard);
    hash.update(bytes_of(side ? side->xxh3_128 : InputFile(shard).hash_hex()));
  }
  return hash.hex();
}

TrainerOptions trainer_options(const Options& o, const PlannedRun& run) {
  TrainerOptions t;
  t.run_dir = o.out;
  t.schedule = Schedule{.kind = schedule_from_name(o.schedule),
                        .steps = run.steps,
                        .warmup_steps = o.warmup_steps,
                        .warmdown_fraction = o.warmdown,
                        .final_fraction = o.final_lr};
  t.seed = o.seed;
  t.eval_every = o.eval_every;
  t.save_every = o.save_every;
  t.sample_every = o.sample_every;
  t.log_every = o.quiet ? 0 : o.log_every;
  t.keep = o.keep;
  t.stop_after_s = o.stop_after_s;
  t.sample = SampleOptions{
      .new_tokens = o.sample_tokens, .temperature = o.temperature, .top_k = o.top_k, .seed = o.seed};
  t.prompt = o.prompt;
  t.show_progress = !o.quiet && isatty(STDOUT_FILENO) != 0;
  t.device_bytes = run.device_bytes;
  return t;
}

std::string saves_text(const Options& o) {
  return o.save_every > 0
             ? fmt::format("every {} steps, before each evaluation and at the end; the newest {} are kept",
                           o.save_every, o.keep)
             : fmt::format(
                   "so that saving takes at most 1 % of the time, before each evaluation and at the end; the "
                   "newest {} "
                   "are kept",
                   o.keep);
}

void require_fit(const PlannedRun& run, const Limits& limits) {
  if (run.fits()) return;
  throw FitError("this run does not fit:\n\n" + plan_text(run, limits),
                 "try --micro-batch 1, --ckpt-activations, --quant nf4 or --optim adamw8; `qtrain plan` with "
                 "the same options tells without "
                 "starting anything");
}

// Before any work: a run that this build cannot compute is refused at once, not after an hour of tokenizing.
std::unique_ptr<Backend> open_backend(const Target& target) {
  return make_backend(target.kind == DeviceKind::cuda ? "cuda" : "cpu", target);
}

void require_vocabulary(const Tokenizer& tokenizer, const Options& o) {
  if (o.vocab_size == 0 || o.vocab_size >= tokenizer.vocab_size()) return;
  throw ConfigError(fmt::format("--vocab-size {} is smaller than the tokenizer's {} tokens", o.vocab_size,
                                tokenizer.vocab_size()),
                    "leave it out: the model takes the tokenizer's");
}

std::unique_ptr<EvalBatches> open_validation(const PreparedData& data, const Options& o,
                                             std::int64_t seq_len) {
  if (data.val_shards.empty()) return nullptr;
  return std::make_unique<EvalBatches>(TokenStream(open_shards(data.val_shards, *data.tokenizer)), seq_len,
                                       data.tokenizer->token_bytes_table(), o.eval_tokens);
}

// For verbs that keep nothing: stopping them loses nothing and leaves nothing to continue.
void poll_read_only() {
  if (stop_requested())
    throw StopRequested("stopped on request", "nothing was changed; the same command starts over");
}

// An engine with the weights of the newest checkpoint and nothing else, for sample and eval.
struct LoadedModel {
  std::unique_ptr<Engine> engine;
  RunState state;
  Tokenizer tokenizer;
};

// The options a checkpoint carries. ConfigError where its text is none of ours.
Options stored_options(const RunState& state, const std::string& origin) {
  Options options;
  for (const OptionSpec& spec : option_table()) {
    const auto it = state.options.find(spec.name);
    if (it != state.options.end()) set_option(options, spec, option_values(spec, it->second, origin), origin);
  }
  return options;
}

LoadedModel load_model(const Options& o, std::int64_t micro_batch_rows) {
  const Target target = target_from_options(o);
  std::unique_ptr<Backend> backend = open_backend(target);
  constexpr const char* kHint =
      "name the run folder with --out; a checkpoint is there once training has saved one";
  if (!fs::is_directory(o.out)) throw ConfigError(fmt::format("there is no run folder '{}'", o.out), kHint);
  const CheckpointStore store(o.out, o.keep);
  std::string explanation;
  const std::string checkpoint = store.newest(explanation);
  if (!explanation.empty()) log_warning("{}", explanation);
  if (checkpoint.empty()) throw ConfigError(fmt::format("'{}' holds no checkpoint", o.out), kHint);
  RunState state = CheckpointStore::read_state(checkpoint);
  EngineOptions engine;
  try {
    const Options trained = stored_options(state, checkpoint);
    engine.model = model_by_name(trained.model, {trained.vocab_size, trained.seq_len, trained.n_kv_head});
    engine.memory.compute = dtype_from_name(trained.dtype);
    engine.memory.weights = format_from_name(trained.quant);
  } catch (const ConfigError& e) {
    // Not typed by anybody: advice about options would mislead.
    throw DataError(fmt::format("{}/run.json: field 'options': {}", checkpoint, e.what()));
  }
  engine.memory.micro_batch_rows = micro_batch_rows;
  engine.sample_tokens = engine.model.seq_len;
  engine.inference = true;
  const RunPlan plan = Engine::rehearse(engine, target);
  LoadedModel model{std::make_unique<Engine>(std::move(backend), engine, plan), std::move(state),
                    Tokenizer::load(fs::path(o.out) / "tokenizer.txt")};
  store.load(checkpoint, *model.engine);
  return model;
}

// --prompt, unless it is the default and the vocabulary cannot spell it: a run must not end over a sample.
std::string usable_prompt(const LoadedOptions& loaded, const Tokenizer& tokenizer) {
  const std::string& prompt = loaded.options.prompt;
  try {
    std::vector<std::int32_t> ids;
    tokenizer.encode(prompt, ids);
    return prompt;
  } catch (const DataError& e) {
    if (!loaded.given("prompt")) return {};
    throw ConfigError(fmt::format("--prompt: {}", e.what()), "use letters that the training text has");
  }
}

// The data to evaluate on: by default the run's own. What the training tokenized is used as it lies in the
// cache where it is still that; anything else is cut with the run's tokenizer.
PreparedData load_eval_data(const LoadedOptions& loaded, const RunState& state) {
  Options o = loaded.options;
  const Options trained = stored_options(state, o.out);
  if (!loaded.given("data")) o.data = trained.data;
  if (o.data == trained.data) {
    if (!loaded.given("val-data")) o.val_data = trained.val_data;
    if (!loaded.given("val-fraction")) o.val_fraction = trained.val_fraction;
    if (!loaded.given("cache")) o.cache = trained.cache;
    const DataSpec spec = data_spec(o);
    if (!is_shard_path(spec.inputs.front()) && o.val_data == trained.val_data &&
        o.val_fraction == trained.val_fraction && is_shard_path(spec.out_dir)) {
      PreparedData made = open_dataset(spec.out_dir);
      const bool same = made.tokenizer && made.tokenizer->hash() == state.vocab_hash &&
                        data_hash(made.train_shards) == state.data_hash;
      if (same) return made;
    }
  }
  o.tokenizer = (fs::path(o.out) / "tokenizer.txt").string();
  // A folder of its own: preparing other data in the training run's cache would replace that run's tokens.
  if (!loaded.given("cache")) o.cache = (fs::path(o.out) / "eval.tokens").string();
  return load_data(o);
}

}  // namespace

void run_train(const LoadedOptions& loaded, std::ostream& out) {
  Options o = loaded.options;
  install_stop_handlers();
  check_options(o);
  const Target target = target_from_options(o);
  std::unique_ptr<Backend> backend = open_backend(target);
  const PreparedData data = load_data(o);
  require_vocabulary(*data.tokenizer, o);
  o.prompt = usable_prompt(loaded, *data.tokenizer);

  CheckpointStore store(o.out, o.keep);
  const RunLock lock(o.out);
  store.remove_leftovers();
  std::string explanation;
  const std::string checkpoint = store.newest(explanation);
  if (!checkpoint.empty() && o.fresh) {
    throw ConfigError(fmt::format("--fresh, but '{}' already holds a run ({})", o.out, checkpoint),
                      "choose another --out, or leave --fresh out");
  }
  RunState state;
  if (!checkpoint.empty()) {
    state = CheckpointStore::read_state(checkpoint);
    adopt_resolved(o, state);
  }

  const Limits limits = limits_from_options(o, target);
  const PlannedRun run = plan_run(o, target, limits, data.tokenizer->vocab_size());
  require_fit(run, limits);

  RunState now;
  now.seed = o.seed;
  now.vocab_hash = data.tokenizer->hash();
  now.data_hash = data_hash(data.train_shards);
  now.options = effective_options(o, run);
  std::vector<std::string> changes;
  if (!checkpoint.empty()) changes = check_resume(state, now, o.allow_changes);

  const std::int64_t seq_len = run.engine.model.seq_len;
  const TokenBatches train(TokenStream(open_shards(data.train_shards, *data.tokenizer)), seq_len, o.seed);
  const std::unique_ptr<EvalBatches> validation = open_validation(data, o, seq_len);
  data.tokenizer->save(posix_fs(), fs::path(o.out) / "tokenizer.txt");

  StartInfo info;
  info.run_folder = o.out;
  info.data = fmt::format(
      "{} tokens to train on ({:.1f} passes in this run), {} to validate", format_count(train.tokens()),
      static_cast<double>(run.steps * run.engine.step_tokens()) / static_cast<double>(train.tokens()),
      validation ? format_count(validation->targets()) : "none");
  info.tokenizer =
      fmt::format("{}, {} tokens", name_of(data.tokenizer->kind()), data.tokenizer->vocab_size());
  info.saves = saves_text(o);
  if (!checkpoint.empty()) {
    info.resumed =
        fmt::format("{} at step {}{}", checkpoint, state.step, explanation.empty() ? "" : "\n" + explanation);
    for (const std::string& change : changes) info.resumed += "\n             " + change;
  }
  if (!o.quiet) out << start_screen(run, limits, info) << std::endl;

  Engine engine(std::move(backend), run.engine, run.plan);
  if (checkpoint.empty()) {
    engine.init_weights(o.seed);
    state = now;
  } else {
    state = store.load(checkpoint, engine);
    state.options = now.options;
    state.vocab_hash = now.vocab_hash;
    state.data_hash = now.data_hash;
    state.seed = now.seed;
  }
  Trainer trainer(engine, train, validation.get(), *data.tokenizer, trainer_options(o, run), state);
  const TrainResult result = trainer.run();
  out << fmt::format("done: {} steps, {} tokens, {} of training; state {}\n", result.step,
                     format_count(result.step * run.engine.step_tokens()), format_duration(result.seconds),
                     result.state_hash);
  out << fmt::format("  run folder  {}\n  next        qtrain sample --out {} --prompt \"...\"\n", o.out,
                     o.out);
  out.flush();
}

bool run_plan(const LoadedOptions& loaded, bool json, std::ostream& out) {
  const Options& o = loaded.options;
  const Target target = target_from_options(o);
  const Limits limits = limits_from_options(o, target);
  std::int64_t vocab_size = 0;
  if (!o.tokenizer.empty()) vocab_size = Tokenizer::load(o.tokenizer).vocab_size();
  const PlannedRun run = plan_run(o, target, limits, vocab_size);
  out << (json ? plan_json(run, limits) + "\n" : plan_text(run, limits));
  return run.fits();
}

void run_tokenize(const LoadedOptions& loaded, std::ostream& out) {
  install_stop_handlers();
  check_options(loaded.options);
  const DataSpec spec = data_spec(loaded.options);
  const PreparedData data = prepare_data(spec, data_hooks(loaded.options.quiet));
  const DataReport& r = data.report;
  out << fmt::format("{} {}: {} tokenizer of {} tokens\n", r.reused ? "found" : "made", spec.out_dir.string(),
                     name_of(data.tokenizer->kind()), data.tokenizer->vocab_size());
  out << fmt::format("  training    {} tokens of {} bytes ({:.2f} bytes per token)\n",
                     format_thousands(r.train.tokens), format_thousands(r.train.text_bytes),
                     static_cast<double>(r.train.text_bytes) /
                         static_cast<double>(std::max<std::int64_t>(r.train.tokens, 1)));
  out << fmt::format("  validation  {} tokens of {} bytes\n", format_thousands(r.val.tokens),
                     format_thousands(r.val.text_bytes));
  if (!r.reused) out << fmt::format("  {:.1f} MB/s, {} in all\n", r.mb_per_s, format_duration(r.seconds));
  out << fmt::format("  unigram_bpb={:.4f}\n", r.unigram_bpb);
}

void run_sample(const LoadedOptions& loaded, std::ostream& out) {
  const Options& o = loaded.options;
  install_stop_handlers();
  check_options(o);
  LoadedModel model = load_model(o, 1);
  std::vector<std::int32_t> prompt;
  if (model.tokenizer.bos() >= 0) prompt.push_back(model.tokenizer.bos());
  const std::string text_before = usable_prompt(loaded, model.tokenizer);
  model.tokenizer.encode(text_before, prompt);
  if (prompt.empty()) prompt.push_back(0);
  const std::int64_t room = model.engine->options().sample_tokens;
  const std::int64_t left = room - static_cast<std::int64_t>(prompt.size());
  // The default length bends to the model, a wish does not.
  const std::int64_t wanted = loaded.given("sample-tokens")
                                  ? o.sample_tokens
                                  : std::min(o.sample_tokens, std::max<std::int64_t>(left, 1));
  if (wanted > left) {
    throw ConfigError(fmt::format("--prompt ({} tokens) and its continuation (--sample-tokens {}) are longer "
                                  "than the model's {} tokens",
                                  prompt.size(), wanted, room),
                      "shorten one of the two");
  }
  SampleOptions how{.new_tokens = wanted,
                    .temperature = o.temperature,
                    .top_k = o.top_k,
                    .seed = o.seed,
                    .stream = static_cast<std::uint64_t>(model.state.step)};
  how.ids = model.tokenizer.vocab_size();
  const std::vector<std::int32_t> text =
      model.engine->sample(prompt, how, [](std::int64_t) { poll_read_only(); });
  out << text_before << model.tokenizer.decode(text) << "\n";
}

void run_eval(const LoadedOptions& loaded, std::ostream& out) {
  const Options& o = loaded.options;
  install_stop_handlers();
  check_options(o);
  LoadedModel model = load_model(o, o.micro_batch > 0 ? o.micro_batch : 4);
  const PreparedData data = load_eval_data(loaded, model.state);
  const std::unique_ptr<EvalBatches> validation =
      open_validation(data, o, model.engine->options().model.seq_len);
  if (!validation)
    throw ConfigError("there is no validation data",
                      "name some with --val-data, or give --val-fraction above 0");
  if (data.tokenizer->hash() != model.state.vocab_hash) {
    throw ConfigError("the data was tokenized with another vocabulary than this run's",
                      "name the text itself with --data, not its shards");
  }
  const EvalResult result = evaluate(*model.engine, *validation, [] { poll_read_only(); });
  out << fmt::format("step {}: {:.4f} bits per byte, loss {:.4f} over {} tokens, {} bytes\n",
                     model.state.step, result.bpb, result.loss, format_thousands(result.tokens),
                     format_thousands(result.bytes));
}

}  // namespace qt
