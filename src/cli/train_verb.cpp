// `qtrain train`: trains, or continues, the run in --out. Prints the start screen before step 0. Throws ConfigError, FitError
// (the plan does not fit), DataError, DivergedError, DiskError, StopRequested.
#include <filesystem>
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

// 0: none.
std::int64_t halt_in_step_of(const VerbValues& words) {
  const std::string* text = words.find("halt-in-step");
  if (text == nullptr) return 0;
  const std::int64_t step = parse_count(*text, "--halt-in-step");
  QT_CHECK(step > 0, ConfigError, "--halt-in-step {}: steps are counted from 1", *text);
  return step;
}

std::string saves_text(const TrainerOptions& t) {
  return t.save.every > 0
             ? fmt::format("every {} steps, before each evaluation and at the end; the newest {} are kept",
                           t.save.every, t.keep)
             : fmt::format(
                   "so that saving takes at most 1 % of the time, before each evaluation and at the end; the "
                   "newest {} are kept",
                   t.keep);
}

// What was asked for and where it would run, before anything is written. `auto` values of a run that is continued are filled in
// by adopt_claimed(), the vocabulary by prepare_run().
PlanRequest open_request(const VerbCall& call, std::unique_ptr<Backend>& backend) {
  PlanRequest r{.options = call.loaded.options};
  adopt_named_weights(r.options);
  check_options(r.options);
  r.target = target_from_options(r.options);
  backend = open_backend(call.make_backend, r.target);
  r.limits = limits_from_options(r.options, r.target);
  adopt_facts(backend->device(), r.target, r.limits);
  return r;
}

// FitError where the run is known not to fit before its data has been read.
void require_expected_fit(PlanRequest& r, const RunData& data) {
  r.vocab_size = data.expected_vocab_size();
  Plan expected = plan_run(r);
  if (r.vocab_size > 0) require_fit(expected, r);
}

// What can be refused of a run before its folder is made: FitError where it is known not to fit, ConfigError where its data is
// not there, or where it is to be resumed and is not there.
void require_beginnable(PlanRequest& r) {
  const Options& o = r.options;
  const RunData data(o);
  data.check();
  if (!fs::is_directory(o.out)) require_expected_fit(r, data);
  if (wants_resume(o.init_from) && find_checkpoints(o.out).empty()) {
    throw ConfigError(fmt::format("--init-from resume, but '{}' holds no checkpoint", o.out),
                      "leave --init-from out to begin a run, or name the run folder with --out");
  }
}

// The run folder, locked, and the checkpoint to go on from.
struct FolderClaim {
  bool existed;
  CheckpointStore store;
  RunLock lock;
  std::string explanation;  // of the choice of checkpoint
  std::string checkpoint;   // empty: a run begins
  RunState state;           // of that checkpoint

  FolderClaim(const std::string& folder, std::int64_t keep)
      : existed(fs::is_directory(folder)), store(folder, keep), lock(folder) {
    store.remove_leftovers();
    checkpoint = store.newest(explanation);
  }
};

// Gives `auto` the values that it has in the run that lies in the folder.
void adopt_claimed(PlanRequest& r, FolderClaim& claim) {
  Options& o = r.options;
  if (!claim.checkpoint.empty()) {
    if (o.fresh) {
      throw ConfigError(fmt::format("--fresh, but '{}' already holds a run ({})", o.out, claim.checkpoint),
                        "choose another --out, or leave --fresh out");
    }
    claim.state = CheckpointStore::read_state(claim.checkpoint);
    adopt_resolved(o, claim.state);
    if (!o.init_from.empty() && !wants_resume(o.init_from))
      log_info("--init-from {} is not read: '{}' holds a run, which is continued", o.init_from, o.out);
  }
}

// Tokens and tokenizer, and the plan for the vocabulary that they have.
struct PreparedRun {
  PreparedData data;
  Plan plan;
  RunState now;                      // what the run is with these options
  std::vector<std::string> changes;  // against the checkpoint, those that are allowed
};

PreparedRun prepare_run(const VerbCall& call, PlanRequest& r, const RunData& data, const FolderClaim& claim) {
  Options& o = r.options;
  PreparedRun p;
  p.data = data.load();
  const Tokenizer& tokenizer = *p.data.tokenizer;
  data.require_vocabulary(tokenizer);
  o.prompt = usable_prompt(call.loaded, tokenizer);
  r.vocab_size = tokenizer.vocab_size();
  p.plan = plan_run(r);
  require_fit(p.plan, r);
  p.now.seed = p.plan.config.seed;
  p.now.vocab_hash = tokenizer.hash();
  p.now.data_hash = data_hash(p.data.train_shards);
  p.now.options = p.plan.config.options;
  if (!claim.checkpoint.empty()) p.changes = check_resume(claim.state, p.now, p.plan.config.allow_changes);
  return p;
}

StartInfo start_info(const PreparedRun& p, const FolderClaim& claim, const TokenBatches& train,
                     const EvalBatches* validation) {
  const RunConfig& config = p.plan.config;
  StartInfo info;
  info.run_folder = config.trainer.run_dir;
  info.data = fmt::format(
      "{} tokens to train on ({:.1f} passes in this run), {} to validate", format_count(train.tokens()),
      static_cast<double>(config.steps * config.engine.step_tokens()) / static_cast<double>(train.tokens()),
      validation != nullptr ? format_count(validation->targets()) : "none");
  info.tokenizer =
      fmt::format("{}, {} tokens", name_of(p.data.tokenizer->kind()), p.data.tokenizer->vocab_size());
  info.saves = saves_text(config.trainer);
  if (!claim.checkpoint.empty()) {
    info.resumed = fmt::format("{} at step {}{}", claim.checkpoint, claim.state.step,
                               claim.explanation.empty() ? "" : "\n" + claim.explanation);
    for (const std::string& change : p.changes) info.resumed += "\n             " + change;
  }
  return info;
}

// The engine of the plan, on the backend that is open, or on another one where the plan chose another route: a backend keeps
// the one it has.
Engine open_engine(const Plan& plan, BackendFactory make_backend, std::unique_ptr<Backend> backend) {
  if (plan.config.target.gemm != backend->target().gemm) {
    backend.reset();
    backend = open_backend(make_backend, plan.config.target);
  }
  return Engine(std::move(backend), plan.config.engine, plan.rehearsed);
}

// Weights and state to begin or to go on with.
RunState load_or_init(Engine& engine, const RunConfig& config, FolderClaim& claim, const RunState& now) {
  if (!claim.checkpoint.empty()) {
    RunState state = carry_over(claim.store.load(claim.checkpoint, engine), now);
    if (!state.evaluated_step)
      state.evaluated_step = evaluated_step_in_log(RunFolder(config.trainer.run_dir).log(), state.step);
    return state;
  }
  engine.init_weights(config.seed);
  if (!config.weights_from.empty()) {
    load_weights(engine, config.weights_from);
    claim.store.save(engine, now);  // what a run that diverges early goes back to
  }
  return now;
}

void print_result(std::ostream& out, const RunConfig& config, const TrainResult& result) {
  const std::string& folder = config.trainer.run_dir;
  out << fmt::format("done: {} steps, {} tokens, {} of training; state {}\n", result.step,
                     format_count(result.tokens), format_duration(result.seconds), result.state_hash);
  out << fmt::format("  energy      {}\n", spent_text(config, result));
  out << fmt::format("  run folder  {}\n  next        qtrain sample --out {} --prompt \"...\"\n", folder,
                     folder);
  out.flush();
}

void run_train(const VerbCall& call) {
  const std::int64_t halt_in_step = halt_in_step_of(call.words);
  install_stop_handlers();
  std::unique_ptr<Backend> backend;
  PlanRequest request = open_request(call, backend);
  require_beginnable(request);
  FolderClaim claim(request.options.out, request.options.keep);
  adopt_claimed(request, claim);
  const RunData data(request.options);
  // All that can be refused is refused now, before hours of tokenizing.
  if (claim.existed) require_expected_fit(request, data);
  const PreparedRun prepared = prepare_run(call, request, data, claim);
  const Plan& run = prepared.plan;
  const RunConfig& config = run.config;
  const Tokenizer& tokenizer = *prepared.data.tokenizer;

  const std::int64_t seq_len = config.engine.model.seq_len;
  const TokenBatches train(TokenStream(open_shards(prepared.data.train_shards, tokenizer)), seq_len,
                           config.seed, config.data_order);
  const std::unique_ptr<EvalBatches> validation = open_validation(prepared.data, config.eval_tokens, seq_len);
  tokenizer.save(posix_fs(), RunFolder(config.trainer.run_dir).tokenizer());

  const DeviceFacts facts = backend->device();
  const Card* const card = config.target.kind == DeviceKind::cuda ? card_of_device(facts) : nullptr;
  PowerWatch power(config.target.kind, facts, watts_given(config.watts));
  if (!config.quiet) {
    StartInfo info = start_info(prepared, claim, train, validation.get());
    info.outlook = run_outlook(run, facts, card, validation.get(),
                               claim.checkpoint.empty() ? nullptr : &claim.state, power);
    call.out << start_screen(run, request.limits, info) << std::endl;
  }
  Engine engine = open_engine(run, call.make_backend, std::move(backend));
  if (const double seconds = config.quiet ? 0 : engine.time_paging(); seconds > 0) {
    call.out << fmt::format("  paging     {}\n", paging_text(engine.optimizer().paged_bytes(), seconds))
             << std::endl;
  }
  RunState state = load_or_init(engine, config, claim, prepared.now);

  TrainerOptions how = config.trainer;
  how.power = &power;
  SessionEvents session(run, step_work(run, card, validation.get()), state.step + 1, validation != nullptr,
                        halt_in_step);
  session.log().write(start_record(run, facts, card, state));
  how.events = session.listeners();
  Trainer trainer(engine, train, validation.get(), tokenizer, how, state);
  print_result(call.out, config, trainer.run());
}

}  // namespace

const Verb verbs::train{
    .name = "train",
    .help = "train, or continue the run in --out (the default verb)",
    .words = kWords,
    .run = run_train,
};

}  // namespace qt
