// `qtrain estimate`: days, energy and cost of a run on a card that does not have to be in this machine. ConfigError where
// there is neither a card nor anything measured. A run that does not fit is estimated all the same, and said not to.
#include <ctime>
#include <filesystem>
#include <ostream>

#include "src/cli/resume.h"
#include "src/cli/run_data.h"
#include "src/cli/verb.h"
#include "src/core/log.h"
#include "src/core/units.h"
#include "src/io/checkpoint.h"
#include "src/io/run_folder.h"
#include "src/plan/calibrate.h"
#include "src/plan/estimate_compare.h"
#include "src/plan/estimate_text.h"
#include "src/plan/machine.h"
#include "src/train/run_state.h"
#include "src/train/stop.h"
#include "src/watch/step_log.h"

namespace qt {

namespace {

constexpr VerbWord kWords[] = {
    {"card", "NAME", "card to estimate for, as 4070 or 'RTX 3060'; absent: the one that is there"},
    {"efficiency", "SHARE",
     "of the card's peak that is reached: 70%, 60-80% or a rate, 45TFLOP/s; absent: measured in --out, or "
     "assumed"},
    {"calibrate", "TIME", "measures this machine for so long, as 20s, with fewer layers of the same model"},
    {"compare", nullptr, "other weights, smaller models, fewer tokens and less power beside it"},
    {"claim-tflops", "T", "a published rate, in TFLOP/s ..."},
    {"claim-days", "D", "... and the days published with it: do they agree?"},
    {"claim-kwh", "E", "the energy published with them"},
    {"json", nullptr, "one line for programs"},
};

constexpr double kMostClaim = 1e9;
constexpr double kMostCalibrationSeconds = 3600;

std::optional<Claim> claim_of(const VerbValues& words) {
  const auto number = [&](const char* name, std::string_view unit) {
    const std::string* text = words.find(name);
    return text == nullptr ? 0.0 : parse_positive(*text, fmt::format("--{}", name), unit, kMostClaim);
  };
  const Claim claim{.tflops = number("claim-tflops", "TFLOP/s"),
                    .days = number("claim-days", "d"),
                    .kwh = number("claim-kwh", "kWh")};
  if (claim.tflops == 0 && claim.days == 0 && claim.kwh == 0) return std::nullopt;
  if (claim.tflops == 0 || claim.days == 0) {
    throw ConfigError(
        "a claim needs a rate and a time: --claim-tflops and --claim-days",
        "as in --claim-tflops 20 --claim-days 40, with --claim-kwh 175 where energy is claimed too");
  }
  return claim;
}

// The device of the estimate: the named card, else the card in this machine, else this processor.
struct Subject {
  const Card* card = nullptr;
  bool is_here = false;   // what was measured in --out counts
  std::string card_here;  // its name, as the driver has it; empty where it is no card
  Target target;
  Limits limits;
};

Subject subject_of(const Options& o, const VerbValues& words) {
  Subject s;
  const std::optional<DeviceFacts> here = o.device == DeviceKind::cpu ? std::nullopt : device_here();
  if (here) s.card_here = here->name;
  const Card* own = here ? card_of_device(*here) : nullptr;
  if (const std::string* name = words.find("card")) {
    s.card = &card_by_name(*name);
    QT_CHECK(o.device != DeviceKind::cpu, ConfigError, "--card {} and --device cpu exclude each other",
             *name);
    s.is_here = s.card == own;
    s.target = target_with_card(o, *s.card);
    s.limits = limits_with_card(o, *s.card);
    return s;
  }
  s.card = own;
  s.is_here = true;
  s.target = target_from_options(o);
  s.limits = limits_from_options(o, s.target);
  return s;
}

// Seconds that --calibrate gives to measuring; 0: nothing is measured. ConfigError where it contradicts another word.
double calibration_seconds(const VerbValues& words, const Subject& subject) {
  const std::string* text = words.find("calibrate");
  if (text == nullptr) return 0;
  const double seconds = parse_duration(*text, "--calibrate");
  QT_CHECK(seconds > 0 && seconds <= kMostCalibrationSeconds, ConfigError,
           "--calibrate {} is not between 1 second and an hour", *text);
  if (!subject.is_here) {
    throw ConfigError(
        fmt::format("--calibrate measures this machine, and no {} is in it", subject.card->name),
        "leave one of --calibrate and --card out");
  }
  if (words.has("efficiency"))
    throw ConfigError("--calibrate measures what --efficiency assumes", "leave one of them out");
  return seconds;
}

// The state of the run in --out, where it is one of the same model.
std::optional<RunState> state_of_same_model(const Options& o) {
  std::optional<RunState> begun = newest_readable_state(o.out);
  if (!begun) return begun;
  const auto it = begun->options.find("model");
  if (it == begun->options.end() || it->second != o.model) begun.reset();
  return begun;
}

// What the options and words say of evaluation, saves and the rate.
void fill_assumptions(const Options& o, const VerbValues& words, EstimateInput& in, EstimateView& view) {
  in.eval_every = o.eval_every;
  in.save_every = o.save_every;
  view.eval_tokens_assumed = o.eval_tokens == 0;
  if (!view.eval_tokens_assumed) in.eval_tokens = o.eval_tokens;
  if (o.val_fraction == 0 && o.val_data.empty()) {  // nothing to evaluate on
    in.eval_tokens = 0;
    view.eval_tokens_assumed = false;
  }
  view.efficiency_why = "no such card was measured; tuned trainers of others report 69 to 85 %";
  const std::string* efficiency = words.find("efficiency");
  if (efficiency != nullptr && in.card != nullptr) {
    in.efficiency = parse_efficiency(*efficiency, in.card->peak_flops(), "--efficiency");
    view.efficiency_why = "as given with --efficiency";
  }
}

void measure_now(const Plan& run, BackendFactory make_backend, double seconds, EstimateInput& in,
                 EstimateView& view) {
  install_stop_handlers();
  log_info("measuring steps of the same model with fewer layers, for {}", format_duration(seconds));
  const Calibration measured = calibrate(run, make_backend, seconds);
  in.step_seconds = measured.step_s;
  const double batches = evaluation_batches(run, in.eval_tokens);
  in.evaluation_seconds = times(measured.evaluation_batch_s, batches);
  view.efficiency_why = "here, with " + calibration_text(measured, run.config.engine.model.n_layer);
}

// The steps that the run in --out has logged on this device.
void take_logged_steps(const RunConfig& config, const Subject& subject, EstimateInput& in,
                       EstimateView& view) {
  const std::filesystem::path log = RunFolder(config.trainer.run_dir).log();
  if (const std::optional<StepTimes> logged = read_step_times(
          log, config.engine.step_tokens(), log_device_name(subject.target.kind, subject.card_here))) {
    in.step_seconds = logged->seconds;
    view.efficiency_why = fmt::format("the last {} steps of {}", logged->steps, log.string());
  }
}

// Nothing tells how fast a step is.
ConfigError nothing_to_estimate_by(const RunConfig& config, bool efficiency_given) {
  std::vector<std::string_view> names;
  for (const Card& card : card_table()) names.emplace_back(card.name);
  return ConfigError(
      efficiency_given
          ? "--efficiency is a share of a card's peak: name one with --card"
          : fmt::format(
                "no card to estimate for: none that is known is here, and nothing was measured in '{}'",
                config.trainer.run_dir),
      fmt::format(
          "name one with --card: {}; without one, --calibrate 20s measures this machine, or a run of some "
          "steps has to lie in --out",
          fmt::join(names, ", ")));
}

void run_estimate(const VerbCall& call) {
  Options o = call.loaded.options;
  EstimateView view{.claim = claim_of(call.words), .now_unix_s = std::time(nullptr)};
  view.price = price_given(o.price);
  EstimateInput in;
  in.watts = watts_given(o.watts);
  adopt_named_weights(o);
  check_options(o);
  const Subject subject = subject_of(o, call.words);
  in.card = subject.card;
  const double calibrate_s = calibration_seconds(call.words, subject);
  // What `auto` became when the run began, with what was free then, is what was measured.
  std::optional<RunState> begun;
  if (subject.is_here) begun = state_of_same_model(o);
  if (begun) adopt_resolved(o, *begun);
  fill_assumptions(o, call.words, in, view);

  const PlanRequest request{.options = o,
                            .target = subject.target,
                            .limits = subject.limits,
                            .vocab_size = RunData(o).expected_vocab_size()};
  const Plan run = plan_run(request);
  const bool efficiency_given = call.words.has("efficiency");
  if (calibrate_s > 0) {
    measure_now(run, call.make_backend, calibrate_s, in, view);
  } else if (!efficiency_given && begun && is_same_work(*begun, run.config)) {
    take_logged_steps(run.config, subject, in, view);
  }
  if (in.card == nullptr && !in.step_seconds) throw nothing_to_estimate_by(run.config, efficiency_given);

  const Estimate e = estimate_run(run, in);
  if (call.words.has("json")) {
    call.out << estimate_json(run, in, e, view) << "\n";
  } else {
    call.out << estimate_text(run, in, e, view);
    if (call.words.has("compare")) {
      QT_CHECK(in.card != nullptr, ConfigError, "--compare needs a card to compare on: name one with --card");
      call.out << "\n" << compare_text(compare_choices(request, in));
    }
  }
  call.out.flush();
}

}  // namespace

const Verb verbs::estimate{
    .name = "estimate",
    .help = "days, energy and cost of the run on a --card, which need not be there; --compare",
    .words = kWords,
    .run = run_estimate,
};

}  // namespace qt
