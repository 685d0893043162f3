#include "src/plan/remedies.h"

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "src/core/units.h"
#include "src/io/checkpoint.h"
#include "src/model/family.h"
#include "src/plan/command.h"
#include "src/plan/estimate.h"
#include "src/plan/machine.h"
#include "src/plan/remedy_list.h"
#include "src/plan/screen.h"

namespace qt {

namespace {

constexpr std::int64_t kLeastSeqLen = 64;  // shorter sequences are no language
// A byte over the bus takes as long as this many operations, as on the cards of cards.h: it only puts changes
// in order where no card is known.
constexpr double kOperationsPerPagedByte = 2000;
// Differences below are not worth a word.
constexpr double kNoticedShare = 0.005;
// Kept back for planning what is proposed, and for smaller models.
constexpr int kRehearsalsOfProposals = 24;

using Changes = std::vector<const Change*>;

double paged_bytes(const Plan& run) {
  return run.rehearsed.optimizer_step.host_to_device_bytes +
         run.rehearsed.optimizer_step.device_to_host_bytes;
}
double operations_per_token(const Plan& run) {
  return run.rehearsed.train_step(run.config.engine.accumulation).executed_flops /
         static_cast<double>(run.config.engine.step_tokens());
}

std::optional<Estimate> estimate_on(const Card* card, const Plan& run) {
  if (card == nullptr) return std::nullopt;
  EstimateInput in;
  in.card = card;
  return estimate_run(run, in);
}

// Of a step; seconds with a card, operations without.
double time_of(const Plan& run, const Card* card) {
  if (const std::optional<Estimate> e = estimate_on(card, run)) return e->step_s.low + e->step_s.high;
  return operations_per_token(run) * static_cast<double>(run.config.engine.step_tokens()) +
         kOperationsPerPagedByte * paged_bytes(run);
}

std::int64_t needed_bytes(const Plan& run, Resource resource) {
  for (const Verdict& v : run.verdicts) {
    if (v.resource == resource) return v.needed_bytes;
  }
  return 0;
}

// Whether it takes less of something that `base` has too little of.
bool helps(const Plan& with, const Plan& base) {
  return std::any_of(base.verdicts.begin(), base.verdicts.end(), [&](const Verdict& v) {
    return !v.fits && needed_bytes(with, v.resource) < v.needed_bytes;
  });
}

std::string days_text(Range days) { return fmt::format("{:.3g} to {:.3g} days", days.low, days.high); }

class Proposer {
 public:
  Proposer(Plan& run, const PlanRequest& request, const RemedyScope& scope)
      : run_(run), request_(request), o_(request.options), scope_(scope) {}

  void propose() {
    for (Change& change : changes_for(run_, request_, scope_.begun)) add(std::move(change));
    singles();
    if (proposed_.empty()) combinations();
    if (proposed_.size() < kMostChanges && !scope_.begun && !scope_.has_weights) shorter_sequences();
    // Where only the disk is too small, room on it is what helps: fit_hint() says so.
    if (proposed_.empty() && !run_.fits_memory() && !scope_.begun && !scope_.has_weights) smaller_model();
    run_.changes = std::move(proposed_);
  }

 private:
  // --- what may be changed ---

  // The largest phase decides what an arena takes: what does not help alone may with others that make another
  // phase the largest.
  void add(Change change) {
    const OptionSpec* option = different_options(o_, options_with({&change})).front();
    const Plan with = least({&change});
    const bool alone = helps(with, run_);
    if (change.trades && !alone) return;
    const double more_time = time_of(with, scope_.card) - time_of(run_, scope_.card);
    changes_.push_back(std::make_unique<Change>(std::move(change)));
    facts_[changes_.back().get()] = {
        .option = option, .helps = alone, .fits = with.fits(), .more_time = more_time};
  }

  // --- planning ---

  Options options_with(const Changes& changes) const {
    Options o = o_;
    for (const Change* c : changes) c->apply(o);
    return o;
  }
  // The route is the target's affair.
  PlanRequest request_with(const Options& o) const {
    PlanRequest request = request_;
    request.options = o;
    if (request.target.kind == DeviceKind::cuda && o.gemm == GemmRoute::fused)
      request.target.gemm = GemmRoute::fused;
    return request;
  }
  Plan least(const Options& o) {
    Plan with = plan_least(request_with(o));
    run_.rehearsals += with.rehearsals;
    return with;
  }
  Plan least(const Changes& changes) { return least(options_with(changes)); }
  bool fits(const Changes& changes) { return !changes.empty() && least(changes).fits(); }
  bool may_rehearse() const { return run_.rehearsals < kMostRehearsals - kRehearsalsOfProposals; }

  const OptionSpec* option_of(const Change* c) const { return facts_.at(c).option; }
  std::set<const OptionSpec*> options_of(const Changes& set) const {
    std::set<const OptionSpec*> options;
    for (const Change* c : set) options.insert(option_of(c));
    return options;
  }
  // What the user says to get the change, with what the planner chose where it leaves that open.
  std::string words_of(const Change* c, const Plan& with) const {
    Options to = o_;
    copy_option(with_choices(options_with({c}), with.config), to, *option_of(c));
    return change_words(o_, to);
  }

  // --- in order of cost ---

  // The worst loss, then the time that all of them take.
  std::pair<Loss, double> price(const Changes& changes) const {
    std::pair<Loss, double> sum{Loss::time, 0};
    for (const Change* c : changes) {
      sum.first = std::max(sum.first, c->loss);
      sum.second += facts_.at(c).more_time;
    }
    return sum;
  }
  void sort_by_price(std::vector<Changes>& sets) const {
    std::stable_sort(sets.begin(), sets.end(),
                     [&](const Changes& a, const Changes& b) { return price(a) < price(b); });
  }

  // Every option once, in its strongest form: of two changes of one the later.
  Changes strongest(bool with_trades) const {
    Changes all;
    for (const auto& change : changes_) {
      if (change->trades && !with_trades) continue;
      if (!all.empty() && option_of(all.back()) == option_of(change.get())) all.pop_back();
      all.push_back(change.get());
    }
    return all;
  }

  // All sets of `size`, of changes that help alone, that change no option twice.
  std::vector<Changes> sets_of(std::size_t size) const {
    std::vector<Changes> sets{{}};
    for (const auto& change : changes_) {
      if (!facts_.at(change.get()).helps) continue;
      const std::size_t n = sets.size();
      for (std::size_t i = 0; i < n; ++i) {
        const bool twice = options_of(sets[i]).contains(option_of(change.get()));
        if (sets[i].size() == size || twice) continue;
        sets.push_back(sets[i]);
        sets.back().push_back(change.get());
      }
    }
    std::erase_if(sets, [&](const Changes& set) { return set.size() != size; });
    sort_by_price(sets);
    return sets;
  }

  // --- the search ---

  // Of two sets that change the same options, the milder one alone is proposed.
  bool is_new(const Changes& set) const { return !proposed_options_.contains(options_of(set)); }

  void singles() {
    for (const Changes& set : sets_of(1)) {
      if (facts_.at(set.front()).fits && is_new(set)) propose(set);
    }
  }

  // Of pairs and more the smallest that do; where the search would take too long, or a change helps only
  // beside others, what is left of all of them once nothing can be left out.
  void combinations() {
    const Changes all = strongest(false);
    const bool all_fit = fits(all);
    if (!all_fit && !fits(strongest(true))) return;
    for (std::size_t size = 2; size <= changes_.size() && proposed_.empty(); ++size) {
      for (const Changes& set : sets_of(size)) {
        if (proposed_.size() == kMostChanges || !may_rehearse()) break;
        if (is_new(set) && fits(set)) propose(set);
      }
    }
    if (proposed_.empty()) propose(needed_of(all_fit ? all : strongest(true)));
  }

  // Without those that are not needed, tried from the dearest on. `base` holds what else is changed.
  Changes needed_of(Changes set, const std::function<void(Options&)>& base = {}) {
    Changes dearest = set;
    std::stable_sort(dearest.begin(), dearest.end(),
                     [&](const Change* a, const Change* b) { return price({b}) < price({a}); });
    for (const Change* c : dearest) {
      Changes fewer = set;
      std::erase(fewer, c);
      Options o = options_with(fewer);
      if (base) base(o);
      if (least(o).fits()) set = std::move(fewer);
    }
    return set;
  }

  void shorter_sequences() {
    const std::int64_t full = run_.config.engine.model.seq_len;
    if (!proposed_.empty() && !may_rehearse()) return;
    for (const bool with_others : {false, true}) {
      if (with_others && !proposed_.empty()) return;
      for (std::int64_t tokens = full / 2; tokens >= kLeastSeqLen && full % tokens == 0; tokens /= 2) {
        const auto shorten = [tokens](Options& o) {
          o.seq_len = tokens;
          o.micro_batch = 0;  // rows of another length
        };
        const Changes others = with_others ? strongest(false) : Changes{};
        Options o = options_with(others);
        shorten(o);
        if (!least(o).fits()) continue;
        const Changes needed = needed_of(others, shorten);
        o = options_with(needed);
        shorten(o);
        Options only = o_;
        only.seq_len = tokens;
        propose(needed, o, change_words(o_, only),
                fmt::format("another task: the model sees {} tokens at once instead of {}", tokens, full));
        return;
      }
    }
  }

  // Largest first, all smaller than the run's own: for a shape of one's own the same with fewer blocks, else
  // the names of its family.
  std::vector<Options> smaller_models() const {
    const ModelConfig& model = run_.config.engine.model;
    std::vector<Options> all;
    const Family& family = *model.family;
    if (o_.model == family.name && !family.has_fixed_shapes()) {
      for (std::int64_t blocks = model.n_layer - 1; blocks >= 1; --blocks) {
        all.push_back(o_);
        all.back().n_layer = blocks;
      }
      return all;
    }
    const auto params = [&](const Options& o) {
      return model_from_options(o, request_.vocab_size).param_count();
    };
    for (const NamedShape& shape : family.shapes) {
      Options o = o_;
      o.model = shape.name;
      o.resolve(model);
      o.clear_dimensions();
      if (params(o) < model.param_count()) all.push_back(o);
    }
    std::stable_sort(all.begin(), all.end(),
                     [&](const Options& a, const Options& b) { return params(a) > params(b); });
    return all;
  }

  void smaller_model() {
    const std::vector<Options> models = smaller_models();
    const auto become = [&](std::size_t i) {
      return [&models, i](Options& o) {
        o.model = models[i].model;
        o.copy_dimensions(models[i]);
      };
    };
    // They need less the smaller they are: halved, not tried one by one.
    std::size_t first = 0, fitting = models.size();
    while (first < fitting) {
      const std::size_t middle = (first + fitting) / 2;
      Options o = options_with(strongest(false));
      become(middle)(o);
      if (least(o).fits())
        fitting = middle;
      else
        first = middle + 1;
    }
    if (fitting == models.size()) return;
    const Changes needed = needed_of(strongest(false), become(fitting));
    Options o = options_with(needed);
    become(fitting)(o);
    Options only = o_;
    become(fitting)(only);
    propose(needed, o, change_words(o_, only),
            fmt::format("another model: {} parameters instead of {}",
                        format_count(model_from_options(o, request_.vocab_size).param_count()),
                        format_count(run_.config.engine.model.param_count())));
    if (!proposed_.empty()) proposed_.back().other_model = true;
  }

  // --- a proposal ---

  void propose(const Changes& set) { propose(set, options_with(set), {}, {}); }

  // Planned as the user would: what does not fit after all is not proposed.
  void propose(const Changes& set, const Options& o, const std::string& more_words,
               const std::string& more_cost) {
    if (proposed_.size() == kMostChanges) return;
    const Plan with = plan_choice(request_with(o));
    run_.rehearsals += with.rehearsals;
    if (!with.fits()) return;
    FitChange change{.options = more_words, .command = with.command, .cost = more_cost};
    for (const Change* c : set) {
      change.options += (change.options.empty() ? "" : " ") + words_of(c, with);
      change.cost += (change.cost.empty() ? "" : "; ") + c->cost(with);
    }
    change.cost += time_cost(with, more_words.empty());
    proposed_options_.insert(options_of(set));
    proposed_.push_back(std::move(change));
  }

  // In operations and bytes, and where a card is there in days.
  std::string time_cost(const Plan& with, bool same_task) const {
    std::string cost;
    const double more = operations_per_token(with) / operations_per_token(run_) - 1;
    if (same_task && more > kNoticedShare) cost += fmt::format("; {:.0f} % more operations", 100 * more);
    if (request_.target.kind == DeviceKind::cuda &&
        paged_bytes(with) > paged_bytes(run_) * (1 + kNoticedShare)) {
      cost += fmt::format("; {} over the bus in each step",
                          format_bytes(static_cast<std::int64_t>(paged_bytes(with) - paged_bytes(run_))));
    }
    const std::optional<Estimate> then = estimate_on(scope_.card, with), now = estimate_on(scope_.card, run_);
    if (then && now)
      cost += fmt::format("; {} on the {} instead of {}", days_text(then->days), scope_.card->driver_name,
                          days_text(now->days));
    return cost;
  }

  struct Facts {
    const OptionSpec* option = nullptr;  // that it changes
    bool helps = false;                  // alone
    bool fits = false;                   // alone
    double more_time = 0;                // of a step, as time_of() counts it
  };

  Plan& run_;
  const PlanRequest& request_;
  const Options& o_;
  const RemedyScope& scope_;
  std::vector<std::unique_ptr<Change>> changes_;
  std::map<const Change*, Facts> facts_;
  std::vector<FitChange> proposed_;
  std::set<std::set<const OptionSpec*>> proposed_options_;
};

}  // namespace

RemedyScope remedy_scope(const Options& o) {
  RemedyScope scope{.begun = !find_checkpoints(o.out).empty(), .has_weights = names_weights(o.init_from)};
  if (o.device == DeviceKind::cpu) return scope;
  if (const std::optional<DeviceFacts> here = device_here()) scope.card = card_of_device(*here);
  return scope;
}

void propose_changes(Plan& run, const PlanRequest& request, const RemedyScope& scope) {
  if (run.fits()) return;
  Proposer(run, request, scope).propose();
}

std::string fit_hint(const Plan& run) {
  // Costs nothing of the run.
  const std::string disk = run.fits_memory() ? "free disk space, or choose an --out on another disk" : "";
  if (!run.changes.empty()) {
    const FitChange& first = run.changes.front();
    if (first.other_model)
      return fmt::format("no option makes this model fit; {} does, but is {}", first.options, first.cost);
    return fmt::format("{}with {} it fits: {}{}", disk.empty() ? "" : disk + "; or, ", first.options,
                       first.cost,
                       run.changes.size() > 1 ? ". `qtrain plan` with the same options names others" : "");
  }
  if (!disk.empty()) return disk + "; --keep 2 keeps the fewest checkpoints";
  return "try --micro-batch 1, --ckpt-activations, --quant nf4 or --optim adamw8; `qtrain plan` with the "
         "same options tells what each takes without starting anything";
}

void require_fit(Plan& run, const PlanRequest& request) {
  if (run.fits()) return;
  propose_changes(run, request, remedy_scope(request.options));
  throw FitError("this run does not fit:\n\n" + plan_text(run, request.limits), fit_hint(run));
}

}  // namespace qt
