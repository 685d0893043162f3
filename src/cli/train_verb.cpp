// `qtrain train`: trains, or continues, the run in --out. Prints the start screen before step 0. Throws ConfigError, FitError
// (the plan does not fit), DataError, DivergedError, DiskError, StopRequested.
#include <filesystem>
#include <optional>
#include <ostream>

#include "src/cli/prompt.h"
#include "src/cli/resume.h"
#include "src/cli/run_data.h"
#include "src/cli/run_watch.h"
#include "src/cli/session_events.h"
#include "src/cli/verb.h"
#include "src/convert/init_from.h"
#include "src/core/units.h"
#include "src/io/checkpoint.h"
#include "src/io/run_folder.h"
#include "src/plan/machine.h"
#include "src/plan/planner.h"
#include "src/plan/remedies.h"
#include "src/plan/screen.h"
#include "src/train/stop.h"
#include "src/train/trainer.h"
#include "src/watch/step_log.h"

namespace qt {

namespace {

namespace fs = std::filesystem;

constexpr VerbWord kWords[] = {
    {"halt-in-step", "N",
     "for rehearsals: the process halts itself (SIGSTOP) inside this step, to be killed there"},
};

TrainerOptions trainer_options(const Options& o, const PlannedRun& run) {
  TrainerOptions t;
  t.run_dir = o.out;
  t.schedule = Schedule{.kind = o.schedule,
                        .steps = run.steps,
                        .decay_steps = o.decay_steps,
                        .warmup_steps = o.warmup_steps,
                        .warmdown_fraction = o.warmdown,
                        .final_fraction = o.final_lr};
  t.eval_every = o.eval_every;
  t.save.every = o.save_every;
  t.sample_every = o.sample_every;
  t.keep = o.keep;
  t.stop_after_s = o.stop_after_s;
  t.sample = SampleOptions{
      .new_tokens = o.sample_tokens, .temperature = o.temperature, .top_k = o.top_k, .seed = o.seed};
  t.prompt = o.prompt;
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
                   "newest {} are kept",
                   o.keep);
}

// `target`: as it was before the plan chose a route.
void require_fit(PlannedRun& run, const Options& o, const Target& target, const Limits& limits,
                 std::int64_t vocab_size) {
  if (run.fits()) return;
  propose_changes(run, o, target, limits, vocab_size, remedy_scope(o));
  throw FitError("this run does not fit:\n\n" + plan_text(run, limits), fit_hint(run));
}

// What was asked for and where it would run, before anything is written.
struct Request {
  Options options;  // `auto` values of a run that is continued are filled in by claim_folder()
  Target target;    // before the plan has chosen a route
  Limits limits;
  std::unique_ptr<Backend> backend;
};

Request open_request(const VerbCall& call) {
  Request r{.options = call.loaded.options};
  adopt_named_weights(r.options);
  check_options(r.options);
  r.target = target_from_options(r.options);
  r.backend = open_backend(call.make_backend, r.target);
  check_data_options(r.options);
  r.limits = limits_from_options(r.options, r.target);
  adopt_facts(r.backend->device(), r.target, r.limits);
  return r;
}

// FitError where the run is known not to fit before its data has been read.
void require_expected_fit(const Request& r) {
  const std::int64_t vocab_size = expected_vocab_size(r.options);
  PlannedRun expected = plan_run(r.options, r.target, r.limits, vocab_size);
  if (vocab_size > 0) require_fit(expected, r.options, r.target, r.limits, vocab_size);
}

// The run folder, locked, and the checkpoint to go on from.
struct FolderClaim {
  CheckpointStore store;
  RunLock lock;
  std::string explanation;  // of the choice of checkpoint
  std::string checkpoint;   // empty: a run begins
  RunState state;           // of that checkpoint

  explicit FolderClaim(const Options& o) : store(o.out, o.keep), lock(o.out) {
    store.remove_leftovers();
    checkpoint = store.newest(explanation);
  }
};

// Takes the folder, and the values that `auto` has in the run that lies there. All that can be refused is refused now, before
// hours of tokenizing; a run that cannot be leaves no folder.
std::unique_ptr<FolderClaim> claim_folder(Request& r) {
  Options& o = r.options;
  const bool run_exists = fs::is_directory(o.out);
  if (!run_exists) require_expected_fit(r);
  if (wants_resume(o.init_from) && find_checkpoints(o.out).empty()) {
    throw ConfigError(fmt::format("--init-from resume, but '{}' holds no checkpoint", o.out),
                      "leave --init-from out to begin a run, or name the run folder with --out");
  }
  auto claim = std::make_unique<FolderClaim>(o);
  if (!claim->checkpoint.empty()) {
    if (o.fresh) {
      throw ConfigError(fmt::format("--fresh, but '{}' already holds a run ({})", o.out, claim->checkpoint),
                        "choose another --out, or leave --fresh out");
    }
    claim->state = CheckpointStore::read_state(claim->checkpoint);
    adopt_resolved(o, claim->state);
    if (!o.init_from.empty() && !wants_resume(o.init_from))
      log_info("--init-from {} is not read: '{}' holds a run, which is continued", o.init_from, o.out);
  }
  if (run_exists) require_expected_fit(r);
  return claim;
}

// Tokens and tokenizer, and the plan for the vocabulary that they have.
struct PreparedRun {
  PreparedData data;
  PlannedRun plan;
  RunState now;                      // what the run is with these options
  std::vector<std::string> changes;  // against the checkpoint, those that are allowed
};

PreparedRun prepare_run(const VerbCall& call, Request& r, const FolderClaim& claim) {
  Options& o = r.options;
  PreparedRun p;
  p.data = load_data(o);
  const Tokenizer& tokenizer = *p.data.tokenizer;
  require_vocabulary(tokenizer, o);
  o.prompt = usable_prompt(call.loaded, tokenizer);
  p.plan = plan_run(o, r.target, r.limits, tokenizer.vocab_size());
  require_fit(p.plan, o, r.target, r.limits, tokenizer.vocab_size());
  p.now.seed = o.seed;
  p.now.vocab_hash = tokenizer.hash();
  p.now.data_hash = data_hash(p.data.train_shards);
  p.now.options = effective_options(o, p.plan);
  if (!claim.checkpoint.empty()) p.changes = check_resume(claim.state, p.now, o.allow_changes);
  return p;
}

StartInfo start_info(const Options& o, const PreparedRun& p, const FolderClaim& claim,
                     const TokenBatches& train, const EvalBatches* validation) {
  StartInfo info;
  info.run_folder = o.out;
  info.data = fmt::format(
      "{} tokens to train on ({:.1f} passes in this run), {} to validate", format_count(train.tokens()),
      static_cast<double>(p.plan.steps * p.plan.engine.step_tokens()) / static_cast<double>(train.tokens()),
      validation != nullptr ? format_count(validation->targets()) : "none");
  info.tokenizer =
      fmt::format("{}, {} tokens", name_of(p.data.tokenizer->kind()), p.data.tokenizer->vocab_size());
  info.saves = saves_text(o);
  if (!claim.checkpoint.empty()) {
    info.resumed = fmt::format("{} at step {}{}", claim.checkpoint, claim.state.step,
                               claim.explanation.empty() ? "" : "\n" + claim.explanation);
    for (const std::string& change : p.changes) info.resumed += "\n             " + change;
  }
  return info;
}

// The engine of the plan, on the backend that is open, or on another one where the plan chose another route: a backend keeps
// the one it has.
Engine open_engine(const VerbCall& call, Request& r, const PlannedRun& plan) {
  if (plan.target.gemm != r.backend->target().gemm) {
    r.backend.reset();
    r.backend = open_backend(call.make_backend, plan.target);
  }
  return Engine(std::move(r.backend), plan.engine, plan.plan);
}

// Weights and state to begin or to go on with.
RunState load_or_init(Engine& engine, const Options& o, FolderClaim& claim, const RunState& now) {
  if (!claim.checkpoint.empty()) {
    RunState state = carry_over(claim.store.load(claim.checkpoint, engine), now);
    if (!state.evaluated_step)
      state.evaluated_step = evaluated_step_in_log(RunFolder(o.out).log(), state.step);
    return state;
  }
  engine.init_weights(o.seed);
  if (names_weights(o.init_from)) {
    load_weights(engine, o.init_from);
    claim.store.save(engine, now);  // what a run that diverges early goes back to
  }
  return now;
}

void print_result(std::ostream& out, const Options& o, const TrainResult& result) {
  out << fmt::format("done: {} steps, {} tokens, {} of training; state {}\n", result.step,
                     format_count(result.tokens), format_duration(result.seconds), result.state_hash);
  out << fmt::format("  energy      {}\n", spent_text(o, result));
  out << fmt::format("  run folder  {}\n  next        qtrain sample --out {} --prompt \"...\"\n", o.out,
                     o.out);
  out.flush();
}

void run_train(const VerbCall& call) {
  const std::int64_t halt_in_step = halt_in_step_of(call.words);
  install_stop_handlers();
  Request request = open_request(call);
  const std::unique_ptr<FolderClaim> claim = claim_folder(request);
  const PreparedRun prepared = prepare_run(call, request, *claim);
  const Options& o = request.options;
  const PlannedRun& run = prepared.plan;
  const Tokenizer& tokenizer = *prepared.data.tokenizer;

  const std::int64_t seq_len = run.engine.model.seq_len;
  const TokenBatches train(TokenStream(open_shards(prepared.data.train_shards, tokenizer)), seq_len, o.seed,
                           o.data_order);
  const std::unique_ptr<EvalBatches> validation = open_validation(prepared.data, o, seq_len);
  tokenizer.save(posix_fs(), RunFolder(o.out).tokenizer());

  const DeviceFacts facts = request.backend->device();
  const Card* const card = run.target.kind == DeviceKind::cuda ? card_of_device(facts) : nullptr;
  PowerWatch power(run.target.kind, facts, watts_given(o.watts));
  if (!o.quiet) {
    StartInfo info = start_info(o, prepared, *claim, train, validation.get());
    info.outlook = run_outlook(o, run, facts, card, validation.get(),
                               claim->checkpoint.empty() ? nullptr : &claim->state, power);
    call.out << start_screen(run, request.limits, info) << std::endl;
  }
  Engine engine = open_engine(call, request, run);
  if (const double seconds = o.quiet ? 0 : engine.time_paging(); seconds > 0) {
    call.out << fmt::format("  paging     {}\n", paging_text(engine.optimizer().paged_bytes(), seconds))
             << std::endl;
  }
  RunState state = load_or_init(engine, o, *claim, prepared.now);

  TrainerOptions how = trainer_options(o, run);
  how.power = &power;
  SessionEvents session(o, run, step_work(run, card, validation.get()), state.step + 1, validation != nullptr,
                        halt_in_step);
  session.log().write(start_record(o, run, facts, card, state));
  how.events = session.listeners();
  Trainer trainer(engine, train, validation.get(), tokenizer, how, state);
  print_result(call.out, o, trainer.run());
}

}  // namespace

const Verb verbs::train{
    .name = "train",
    .help = "train, or continue the run in --out (the default verb)",
    .words = kWords,
    .run = run_train,
};

}  // namespace qt
