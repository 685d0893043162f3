#include "src/plan/estimate_compare.h"

#include <algorithm>

#include "src/core/units.h"
#include "src/model/family.h"
#include "src/plan/command.h"

namespace qt {

namespace {

constexpr std::int64_t kFewerTokensPerParam = 8;  // nanochat's later recipes; its earlier ones have 20
// A 3090 held at 280 of its 350 W keeps at least 95 % of its speed; measured by others, assumed for all
// cards.
constexpr double kCappedPower = 0.8, kCappedSpeed = 0.95;

// Formats that this version does not have: code and scale bits of a weight, as they would be stored.
struct AbsentFormat {
  const char* name;
  double bits;
};
constexpr AbsentFormat kAbsent[] = {{"3 bits", 3.125}, {"2.6 bits", 2.625}};
constexpr double kDenseBits = 16;

void append(std::string& options, const std::string& words) {
  if (!words.empty()) options += (options.empty() ? "" : " ") + words;
}

// Adds what `o` has otherwise than the run's own options.
template <auto... kMembers>
void say_changes(std::string& options, const Options& own, const Options& o) {
  const auto say_one = [&](auto member) {
    Options before = o;
    before.*member = own.*member;
    append(options, change_words(before, o));
  };
  (say_one(kMembers), ...);
}

class Comparison {
 public:
  Comparison(const PlanRequest& request, const EstimateInput& input) : request_(request), input_(input) {}

  // As asked for where that fits, else with --ckpt-activations where that makes it fit.
  Plan planned(const Options& o, std::string& options) const {
    PlanRequest request = request_;
    request.options = o;
    Plan run = plan_run(request);
    if (run.fits() || o.ckpt_activations) return run;
    request.options.ckpt_activations = true;
    Plan smaller = plan_run(request);
    if (!smaller.fits()) return run;
    append(options, change_words(o, request.options));
    return smaller;
  }

  // The first that is added is what losses are compared with.
  CompareRow& add(std::string name, std::string options, const Plan& run, double bits, CompareTable& table) {
    EstimateInput in = input_;
    in.weight_bits = bits;
    const Estimate e = estimate_run(run, in);
    const auto params = static_cast<double>(run.config.engine.model.matrix_params());
    const auto tokens = static_cast<double>(e.tokens);
    if (table.rows.empty()) {
      reference_params_ = params;
      reference_tokens_ = tokens;
      table.rate_flops = e.rate_flops->high;
    }
    table.rows.push_back(
        {.name = std::move(name),
         .options = std::move(options),
         .fits = run.fits(),
         .device_bytes = run.device_bytes,
         .counted_days = e.flops_total / e.rate_flops->high / kSecondsPerDay,
         .days = e.days,
         .kwh = e.kwh,
         .loss = expected_loss_cost(params, tokens, bits, reference_params_, reference_tokens_)});
    return table.rows.back();
  }

 private:
  const PlanRequest& request_;
  EstimateInput input_;
  double reference_params_ = 0, reference_tokens_ = 0;
};

void add_weights(Comparison& comparison, const Options& o, CompareTable& table, const Limits& limits) {
  Options dense = o;
  dense.quant = FormatId::none;
  std::string options = words_of<&Options::quant>(dense);
  const Plan plain = comparison.planned(dense, options);
  comparison.add(fmt::format("{}, weights in 16 bits", o.model), options, plain, kDenseBits, table);
  if (o.dtype == DType::f16) return;  // fp16 does not go with packed weights

  Options packed = o;
  packed.quant = FormatId::nf4;
  options = words_of<&Options::quant>(packed);
  if (plain.fits()) {  // the same step, so that the bytes of the weights are what differs
    const Options chosen = with_choices(dense, plain.config);
    packed.micro_batch = chosen.micro_batch;
    packed.grad_dtype = chosen.grad_dtype;
    append(options, words_of<&Options::micro_batch, &Options::grad_dtype>(packed));
  }
  const Plan nf4 = comparison.planned(packed, options);
  const double nf4_bits = format_info(FormatId::nf4).bits_per_weight;
  comparison.add(fmt::format("{}, {:g} bits (NF4)", o.model, nf4_bits), options, nf4, nf4_bits, table);
  for (const AbsentFormat& format : kAbsent) {
    // A plan with fewer bytes of weights; everything else stays.
    CompareRow& row =
        comparison.add(fmt::format("{}, {}", o.model, format.name),
                       "(not available in this version: bytes by arithmetic)", nf4, format.bits, table);
    row.device_bytes -= static_cast<std::int64_t>(
        static_cast<double>(nf4.config.engine.model.matrix_params()) * (nf4_bits - format.bits) / 8);
    row.fits = row.device_bytes <= limits.device_bytes - limits.reserve_bytes &&
               std::all_of(nf4.verdicts.begin(), nf4.verdicts.end(),
                           [](const Verdict& v) { return v.fits || v.resource == Resource::device; });
  }
}

// Recomputing blocks saves memory and costs time: where the run fits without, a user who asks for it should
// know.
void add_without_recompute(Comparison& comparison, const Options& o, CompareTable& table) {
  if (!o.ckpt_activations) return;
  Options kept = o;
  kept.quant = FormatId::none;
  kept.ckpt_activations = false;
  kept.micro_batch = 0;
  std::string options = words_of<&Options::quant>(kept);
  say_changes<&Options::ckpt_activations>(options, o, kept);
  const Plan run = comparison.planned(kept, options);
  if (run.fits() && !run.config.engine.layout.checkpoint_activations)
    comparison.add(fmt::format("{}, nothing computed twice", o.model), options, run, kDenseBits, table);
}

void add_smaller_models(Comparison& comparison, const Options& o, const ModelConfig& model,
                        CompareTable& table) {
  for (const std::string_view name : model.family->compared) {
    Options smaller = o;
    smaller.model = name;
    smaller.tokens = smaller.steps = 0;
    smaller.warmup_steps = 0;
    smaller.quant = FormatId::none;
    smaller.ckpt_activations = false;
    smaller.resolve(model);
    smaller.clear_dimensions();
    if (model_from_options(smaller, 0).param_count() >= model.param_count()) continue;
    std::string options = words_of<&Options::model, &Options::quant>(smaller);
    const Plan run = comparison.planned(smaller, options);
    // What the command has beside it and this choice has not.
    if (!run.config.engine.layout.checkpoint_activations)
      say_changes<&Options::ckpt_activations>(options, o, smaller);
    say_changes<&Options::tokens, &Options::steps>(options, o, smaller);
    Options reshaped = smaller;
    reshaped.copy_dimensions(o);
    append(options, change_words(reshaped, smaller));
    say_changes<&Options::warmup_steps>(options, o, smaller);
    comparison.add(
        fmt::format("{}, {} tokens", name, format_count(run.config.steps * run.config.engine.step_tokens())),
        options, run, kDenseBits, table);
  }
}

}  // namespace

CompareTable compare_choices(const PlanRequest& request, const EstimateInput& input) {
  const Options& o = request.options;
  const Limits& limits = request.limits;
  QT_CHECK(input.card != nullptr, ConfigError, "choices are compared on a card");
  CompareTable table;
  table.available_bytes = limits.device_bytes - limits.reserve_bytes;
  EstimateInput rated = input;
  if (input.step_seconds) {  // of the run itself; others are compared at the rate that it had
    rated.step_seconds.reset();
    rated.efficiency_of_steps = true;
    EstimateInput whole = rated;
    whole.steps_done = 0;
    const Estimate e = estimate_run(plan_run(request), whole);
    const double paging_s = e.paging_s.low / static_cast<double>(e.steps);
    const auto share = [&](double step_s) {
      const double rest_s = std::max(step_s - paging_s, e.executed_flops_step / *e.peak_flops);
      return e.executed_flops_step / rest_s / *e.peak_flops;
    };
    rated.efficiency = {.low = share(input.step_seconds->high), .high = share(input.step_seconds->low)};
  }
  Comparison comparison(request, rated);
  const ModelConfig model = model_from_options(o, request.vocab_size);
  add_weights(comparison, o, table, limits);
  add_without_recompute(comparison, o, table);
  add_smaller_models(comparison, o, model, table);

  std::string unused;
  const Plan run = comparison.planned(o, unused);
  const double bits = run.config.engine.layout.weights == FormatId::none
                          ? kDenseBits
                          : format_info(run.config.engine.layout.weights).bits_per_weight;
  if (const std::int64_t fewer = kFewerTokensPerParam * model.param_count();
      fewer < run.config.steps * run.config.engine.step_tokens()) {
    Options shorter = o;
    shorter.tokens = fewer;
    shorter.steps = 0;
    shorter.warmup_steps = 0;
    std::string options = words_of<&Options::tokens>(shorter);
    say_changes<&Options::steps>(options, o, shorter);
    const Plan less = comparison.planned(shorter, options);
    comparison.add(fmt::format("{}, {} tokens a parameter", o.model, kFewerTokensPerParam), options, less,
                   bits, table);
  }

  EstimateInput capped_input = rated;
  const double full_watts = input.watts > 0 ? input.watts : input.card->board_watts;
  // The cap takes its share of the board's power; what else --watts holds stays.
  capped_input.watts = std::max(full_watts - (1 - kCappedPower) * input.card->board_watts,
                                kCappedPower * std::min(full_watts, input.card->board_watts));
  capped_input.efficiency = {.low = kCappedSpeed * rated.efficiency.low,
                             .high = kCappedSpeed * rated.efficiency.high};
  const Estimate capped = estimate_run(run, capped_input);
  CompareRow& row = comparison.add(fmt::format("{}, power capped at {:.0f} %", o.model, 100 * kCappedPower),
                                   fmt::format("(nvidia-smi -pl {:.0f}: {:.0f} % of the speed assumed)",
                                               kCappedPower * input.card->board_watts, 100 * kCappedSpeed),
                                   run, bits, table);
  row.counted_days = capped.flops_total / capped.rate_flops->high / kSecondsPerDay;
  row.days = capped.days;
  row.kwh = capped.kwh;

  table.notes = {
      "Fewer bits are never faster: the products stay 16-bit, expanding the weights comes on top."};
  const auto& notes = model.family->compare_notes;
  table.notes.insert(table.notes.end(), notes.begin(), notes.end());
  return table;
}

}  // namespace qt
