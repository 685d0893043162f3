#include "src/cli/run.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <optional>
#include <ostream>

#include "src/cli/rehearse.h"
#include "src/cli/resume.h"
#include "src/cli/run_data.h"
#include "src/cli/run_watch.h"
#include "src/cli/trained_model.h"
#include "src/convert/export.h"
#include "src/convert/hf_names.h"
#include "src/convert/init_from.h"
#include "src/core/units.h"
#include "src/io/checkpoint.h"
#include "src/plan/machine.h"
#include "src/plan/planner.h"
#include "src/plan/remedies.h"
#include "src/plan/screen.h"
#include "src/train/stop.h"
#include "src/train/trainer.h"

namespace qt {

namespace {

namespace fs = std::filesystem;

TrainerOptions trainer_options(const Options& o, const PlannedRun& run) {
  TrainerOptions t;
  t.run_dir = o.out;
  t.schedule = Schedule{.kind = schedule_from_name(o.schedule),
                        .steps = run.steps,
                        .decay_steps = o.decay_steps,
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
  t.tensorboard = o.tensorboard;
  t.show_progress = !o.quiet && isatty(STDOUT_FILENO) != 0;
  t.device_bytes = run.device_bytes;
  return t;
}

// 0: none.
std::int64_t halt_in_step_of(const VerbValues& words) {
  const std::string* text = words.find("halt-in-step");
  if (text == nullptr) return 0;
  const std::int64_t step = parse_count(*text, "--halt-in-step");
  QT_CHECK(step > 0, ConfigError, "--halt-in-step {}: steps are counted from 1", *text);
  return step;
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

// `target`: as it was before the plan chose a route.
void require_fit(PlannedRun& run, const Options& o, const Target& target, const Limits& limits,
                 std::int64_t vocab_size) {
  if (run.fits()) return;
  propose_changes(run, o, target, limits, vocab_size, remedy_scope(o));
  throw FitError("this run does not fit:\n\n" + plan_text(run, limits), fit_hint(run));
}

// For verbs that keep nothing: stopping them loses nothing and leaves nothing to continue.
void poll_read_only() {
  if (stop_requested())
    throw StopRequested("stopped on request", "nothing was changed; the same command starts over");
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
    throw ConfigError(fmt::format("--prompt: {}", e.what()), tokenizer.kind() == TokenizerKind::ids
                                                                 ? "give token numbers, as \"1 2 3\""
                                                                 : "use letters that the training text has");
  }
}

}  // namespace

void run_train(const LoadedOptions& loaded, const VerbValues& words, BackendFactory make_backend,
               std::ostream& out) {
  Options o = loaded.options;
  const std::int64_t halt_in_step = halt_in_step_of(words);
  install_stop_handlers();
  adopt_named_weights(o);
  check_options(o);
  Target target = target_from_options(o);
  std::unique_ptr<Backend> backend = open_backend(make_backend, target);
  check_data_options(o);

  // All that can be refused is refused now, before hours of tokenizing; and a run that cannot be leaves no
  // folder.
  Limits limits = limits_from_options(o, target);
  adopt_facts(backend->device(), target, limits);
  const auto require_plan = [&] {
    const std::int64_t vocab_size = expected_vocab_size(o);
    PlannedRun expected = plan_run(o, target, limits, vocab_size);
    if (vocab_size > 0) require_fit(expected, o, target, limits, vocab_size);
  };
  const bool run_exists = fs::is_directory(o.out);
  if (!run_exists) require_plan();
  if (o.init_from == "resume" && find_checkpoints(o.out).empty()) {
    throw ConfigError(fmt::format("--init-from resume, but '{}' holds no checkpoint", o.out),
                      "leave --init-from out to begin a run, or name the run folder with --out");
  }
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
    if (!o.init_from.empty() && o.init_from != "resume")
      log_info("--init-from {} is not read: '{}' holds a run, which is continued", o.init_from, o.out);
  }
  if (run_exists) require_plan();

  const PreparedData data = load_data(o);
  require_vocabulary(*data.tokenizer, o);
  o.prompt = usable_prompt(loaded, *data.tokenizer);
  PlannedRun run = plan_run(o, target, limits, data.tokenizer->vocab_size());
  require_fit(run, o, target, limits, data.tokenizer->vocab_size());

  RunState now;
  now.seed = o.seed;
  now.vocab_hash = data.tokenizer->hash();
  now.data_hash = data_hash(data.train_shards);
  now.options = effective_options(o, run);
  std::vector<std::string> changes;
  if (!checkpoint.empty()) changes = check_resume(state, now, o.allow_changes);

  const std::int64_t seq_len = run.engine.model.seq_len;
  const TokenBatches train(TokenStream(open_shards(data.train_shards, *data.tokenizer)), seq_len, o.seed,
                           row_order_from_name(o.data_order));
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
  const DeviceFacts facts = backend->device();
  const Card* const card = run.target.kind == DeviceKind::cuda ? card_of_device(facts) : nullptr;
  PowerWatch power(run.target.kind, facts, watts_given(o.watts));
  if (!o.quiet) {
    info.outlook =
        run_outlook(o, run, facts, card, validation.get(), checkpoint.empty() ? nullptr : &state, power);
    out << start_screen(run, limits, info) << std::endl;
  }

  if (run.target.gemm != backend->target().gemm) {  // the plan's choice; a backend keeps the one it has
    backend.reset();
    backend = open_backend(make_backend, run.target);
  }
  Engine engine(std::move(backend), run.engine, run.plan);
  if (!o.quiet) {
    if (const double seconds = engine.time_paging(); seconds > 0)
      out << fmt::format("  paging     {}\n", paging_text(engine.optimizer().paged_bytes(), seconds))
          << std::endl;
  }
  if (checkpoint.empty()) {
    engine.init_weights(o.seed);
    state = now;
    if (names_weights(o.init_from)) {
      load_weights(engine, o.init_from);
      store.save(engine, state);  // what a run that diverges early goes back to
    }
  } else {
    state = carry_over(store.load(checkpoint, engine), now);
  }
  TrainerOptions how = trainer_options(o, run);
  how.halt_in_step = halt_in_step;
  how.work = step_work(run, card, validation.get());
  how.save_s = save_seconds(run);
  how.power = &power;
  how.start = start_record(o, run, facts, card, state);
  Trainer trainer(engine, train, validation.get(), *data.tokenizer, how, state);
  const TrainResult result = trainer.run();
  out << fmt::format("done: {} steps, {} tokens, {} of training; state {}\n", result.step,
                     format_count(result.tokens), format_duration(result.seconds), result.state_hash);
  out << fmt::format("  energy      {}\n", spent_text(o, result));
  out << fmt::format("  run folder  {}\n  next        qtrain sample --out {} --prompt \"...\"\n", o.out,
                     o.out);
  out.flush();
}

void run_plan(const LoadedOptions& loaded, const VerbValues& words, std::ostream& out) {
  Options o = loaded.options;
  const bool json = words.has("json"), rehearse = words.has("rehearse");
  if (json && rehearse) {
    throw ConfigError("--rehearse and --json exclude each other",
                      "--json is for the plan alone; a rehearsal prints a report");
  }
  if (rehearse) install_stop_handlers();
  adopt_named_weights(o);
  const Target target = target_from_options(o);
  const Limits limits = limits_from_options(o, target);
  const std::int64_t vocab_size = expected_vocab_size(o);
  PlannedRun run = plan_run(o, target, limits, vocab_size);
  if (!run.fits()) propose_changes(run, o, target, limits, vocab_size, remedy_scope(o));
  if (!rehearse || !run.fits()) {
    out << (json ? plan_json(run, limits) + "\n" : plan_text(run, limits));
    out.flush();
  }
  if (!run.fits()) throw FitError("the run does not fit (see the plan)", fit_hint(run));
  if (rehearse) rehearse_run(loaded, out);
}

void run_tokenize(const LoadedOptions& loaded, std::ostream& out) {
  install_stop_handlers();
  check_options(loaded.options);
  fs::path folder;
  const PreparedData data = tokenize_data(loaded.options, folder);
  const DataReport& r = data.report;
  out << fmt::format("{} {}: {} tokenizer of {} tokens\n", r.reused ? "found" : "made", folder.string(),
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

void run_sample(const LoadedOptions& loaded, BackendFactory make_backend, std::ostream& out) {
  const Options& o = loaded.options;
  install_stop_handlers();
  check_use_options(loaded);
  LoadedModel model = load_model(loaded, make_backend, 1);
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

void run_eval(const LoadedOptions& loaded, BackendFactory make_backend, std::ostream& out) {
  const Options& o = loaded.options;
  install_stop_handlers();
  check_use_options(loaded);
  if (uses_folder(loaded)) {
    throw ConfigError(
        "--init-from names weights; eval takes those of a run",
        "start a run from them with `qtrain --init-from FOLDER --data ... --out RUN`, then name it "
        "with --out");
  }
  LoadedModel model = load_model(loaded, make_backend, o.micro_batch > 0 ? o.micro_batch : 4);
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
  out << fmt::format("step {}: {}{}\n", model.state.step, eval_text(result),
                     result.bpb ? fmt::format(", {} bytes", format_thousands(result.bytes)) : std::string());
}

void run_export(const LoadedOptions& loaded, std::ostream& out) {
  const Options& o = loaded.options;
  check_use_options(loaded);
  const WeightsOf which = weights_of_name(o.weights);
  const TrainedModel trained = find_trained(loaded, Target{});  // no device is asked
  if (o.to.empty() && !trained.hf_folder.empty())
    throw ConfigError("export --init-from FOLDER needs a place to write to", "add --to ANOTHER-FOLDER");
  ExportOptions how;
  how.folder = o.to.empty() ? fs::path(o.out) / "hf" : fs::path(o.to);
  how.shard_bytes = o.shard_bytes;
  how.overwrite = o.overwrite;
  const Tokenizer tokenizer = tokenizer_of(trained);
  const ModelParams params = make_params(trained.config);
  const std::unique_ptr<ParamSource> source = open_params(trained, params, which);
  how.type = o.format == "auto" ? source->type() : dtype_from_name(o.format);
  const ExportReport report = export_model(trained.config, *source, tokenizer, how);
  const std::string from = trained.hf_folder.empty() ? trained.checkpoint : trained.hf_folder;
  out << fmt::format("exported {} to {}\n", from, how.folder.string());
  const std::string whose = trained.hf_folder.empty() ? o.weights + " weights" : "its weights";
  out << fmt::format("  {} with {} in {}: {} in {} {}\n", hf_class(trained.config), whose,
                     dtype_name(how.type), format_bytes(report.bytes), report.files,
                     report.files == 1 ? "file" : "files");
  out << fmt::format("  read back: {} tensors and {} logits equal\n", report.tensors,
                     format_thousands(report.checked_logits));
  if (report.rounded > 0) {
    out << fmt::format("  {} does not hold {} of {} values exactly: logits move by up to {:.2g}\n",
                       dtype_name(how.type), format_thousands(report.rounded), format_thousands(report.elems),
                       report.worst_rounding);
  }
  out.flush();
}

}  // namespace qt
