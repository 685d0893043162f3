#include "optim/optimizer.h"

#include <algorithm>
#include <utility>

#include "kernels/scratch.h"

namespace qt {

namespace {

// The draws that round a param's masters in step t. Neither number reaches 2^32: no two of these streams are
// one, so that a run that is continued at t draws what the uninterrupted one did.
RngStream rounding_draws(std::uint64_t seed, const Param& p, std::int64_t t) {
  return {.seed = seed,
          .purpose = RngPurpose::stochastic_rounding,
          .stream = static_cast<std::uint64_t>(t) << 32 | p.rng_stream};
}

}  // namespace

Optimizer::Optimizer(Backend& backend, Arena& state, Arena& host, ParamList& params,
                     std::vector<TensorView> gradients, const OptimizerOptions& options,
                     std::int64_t max_slab_bytes)
    : backend_(backend),
      pager_(backend, max_slab_bytes),
      params_(params),
      gradients_(std::move(gradients)),
      options_(options) {
  for (const auto& [option, beta] :
       {std::pair{"--beta1", options_.beta1}, std::pair{"--beta2", options_.beta2}}) {
    QT_CHECK(beta >= 0 && beta < 1, ConfigError, "{} must be at least 0 and below 1, got {}", option, beta);
  }
  QT_CHECK(options_.master == DType::f32 || options_.master == DType::bf16, ConfigError,
           "there is no master copy in {}", dtype_name(options_.master));
  Arena& home = options_.paged ? host : state;
  states_.reserve(params_.size());
  for (const Param& p : params_) {
    const std::int64_t n = p.elems();
    const DType master = p.group == ParamGroup::norm ? DType::f32 : options_.master;
    ParamState& s = states_.emplace_back();
    s.master = home.keep(master_of(p.name), MemoryTag::master, master, {n});
    for (const StatePiece& piece : rule_of(p.group).state)
      s.pieces.push_back(
          home.keep(piece.tensor_name(p), MemoryTag::moments, piece.dtype, {piece.elems_of(n)}));
  }
  grad_sumsq_ =
      state.keep("grad_sumsq", MemoryTag::inputs, DType::f64, {static_cast<std::int64_t>(gradients_.size())});
  step_params_ = state.keep("step_params", MemoryTag::inputs, DType::f32, {kStepParamFloats});
  stats_ = state.keep("step_stats", MemoryTag::inputs, DType::f64, {kStepStatDoubles});
  bad_index_ =
      state.keep("bad_index", MemoryTag::inputs, DType::f64, {static_cast<std::int64_t>(params_.size())});
  for (std::size_t i = 0; i < params_.size(); ++i) {
    if (rule_of(params_[i].group).gather == nullptr) {
      cut_slabs({.param = i}, max_slab_bytes);
    } else {
      cut_slabs({.param = i, .has_master = false}, max_slab_bytes);
      cut_slabs({.param = i, .has_state = false}, max_slab_bytes);
    }
  }
}

const UpdateRule& Optimizer::rule_of(ParamGroup group) const {
  const UpdateRule& rule = *options_.rule;
  return group == ParamGroup::matrix || rule.others == nullptr ? rule : *rule.others;
}

Slab Optimizer::slab_of(const SlabOrigin& origin) const {
  const ParamState& s = states_[origin.param];
  Slab slab;
  const auto add = [&](const TensorView& view) {
    slab.parts.at(static_cast<std::size_t>(slab.count++)) = view;
  };
  if (origin.has_master) add(s.master.flat(origin.first, origin.elems));
  for (std::size_t k = 0; origin.has_state && k < s.pieces.size(); ++k) {
    const StatePiece& piece = rule_of(params_[origin.param].group).state[k];
    add(s.pieces[k].flat(origin.first / piece.block_elems, piece.elems_of(origin.elems)));
  }
  return slab;
}

std::span<const TensorView> Optimizer::state_in(const SlabOrigin& origin, std::span<const TensorView> parts) {
  return parts.subspan(origin.has_master ? 1 : 0);
}

void Optimizer::cut_slabs(SlabOrigin origin, std::int64_t max_slab_bytes) {
  const Param& p = params_[origin.param];
  const std::int64_t n = p.elems();
  std::int64_t block_bytes = 0;
  if (origin.has_master) block_bytes += dtype_bytes(states_[origin.param].master.dtype) * kStateBlock;
  if (origin.has_state) {
    for (const StatePiece& piece : rule_of(p.group).state)
      block_bytes += dtype_bytes(piece.dtype) * piece.elems_of(kStateBlock);
  }
  // The largest multiple of the state block with parts that, each padded to the request alignment, stay within a
  // slab. A slab without parts is as large as the param.
  std::int64_t most = n;
  if (block_bytes > 0)
    most = (max_slab_bytes - kMaxSlabParts * kRequestAlignment) / block_bytes * kStateBlock;
  QT_CHECK(most > 0, PlanError, "slabs of {} bytes cannot hold a block of optimizer state", max_slab_bytes);
  // A strip that two slabs share would be written byte by byte, so cut between strips where one fits.
  const std::int64_t strip = p.weight.packed.strip_elems();
  if (most >= strip) most -= most % strip;
  for (origin.first = 0; origin.first < n; origin.first += most) {
    origin.elems = std::min(most, n - origin.first);
    slabs_.push_back(slab_of(origin));
    origins_.push_back(origin);
  }
}

void Optimizer::encode_slab(const SlabOrigin& origin, const TensorView& master) {
  const Param& p = params_[origin.param];
  if (!p.weight.is_packed()) {
    backend_.run(Cast{.x = master, .y = p.weight.dense.flat(origin.first, origin.elems)});
    return;
  }
  backend_.run(Quantize{.src = master,
                        .w = p.weight.packed,
                        .first = origin.first,
                        .bad_index = bad_index_.flat(static_cast<std::int64_t>(origin.param), 1)});
}

void Optimizer::check_finite() {
  const std::vector<double> bad = backend_.read_scalars(bad_index_);
  for (std::size_t i = 0; i < bad.size(); ++i) {
    if (bad[i] == 0) continue;
    throw DivergedError(fmt::format("weight '{}', element {}: not a finite number", params_[i].name,
                                    static_cast<std::int64_t>(bad[i]) - 1),
                        "lower the learning rates, or check the file the weights came from");
  }
}

void Optimizer::init_weights(Arena& step, std::uint64_t seed) {
  backend_.run(Fill{.x = bad_index_, .value = 0});
  pager_.stream(step, slabs_, [&](std::size_t i, std::span<const TensorView> parts) {
    const SlabOrigin& origin = origins_[i];
    const Param& p = params_[origin.param];
    if (origin.has_master) {
      backend_.run(
          InitNormal{.x = parts[0],
                     .stddev = p.init.stddev,
                     .constant = p.init.constant,
                     .rng = RngStream{.seed = seed, .purpose = RngPurpose::init, .stream = p.rng_stream},
                     .first_element = origin.first});
    }
    const std::span<const TensorView> state = state_in(origin, parts);
    for (std::size_t k = 0; k < state.size(); ++k)
      backend_.run(Fill{.x = state[k], .value = rule_of(p.group).state[k].initial});
    if (origin.has_master) encode_slab(origin, parts[0]);
  });
  check_finite();
}

void Optimizer::encode_weights(Arena& step) {
  backend_.run(Fill{.x = bad_index_, .value = 0});
  pager_.stream(step, slabs_, [&](std::size_t i, std::span<const TensorView> parts) {
    if (origins_[i].has_master) encode_slab(origins_[i], parts[0]);
  });
  check_finite();
}

StepStats Optimizer::measure(Arena& step, const TensorView& totals, double lr_multiplier, std::int64_t t,
                             double gradient_tokens) {
  for (std::size_t region = 0; region < gradients_.size(); ++region) {
    SumSquares op{.x = gradients_[region],
                  .out = grad_sumsq_.flat(static_cast<std::int64_t>(region), 1),
                  .scratch = {}};
    Buffer scratch;
    if (const std::int64_t bytes = scratch_bytes(op, backend_.target()); bytes > 0) {
      scratch = step.alloc(SumSquares::kName, MemoryTag::scratch, DType::u8, {bytes});
      op.scratch = scratch;
    }
    backend_.run(op);
  }
  PrepareStep prepare{.grad_sumsq = grad_sumsq_,
                      .totals = totals,
                      .params = step_params_,
                      .stats = stats_,
                      .hyper = {},
                      .max_norm = options_.max_norm,
                      .gradient_tokens = gradient_tokens};
  for (std::size_t g = 0; g < kParamGroups; ++g) {
    const auto group = static_cast<ParamGroup>(g);
    prepare.hyper[g] = rule_of(group).hyper(options_, group, options_.peak_lr[g] * lr_multiplier, t);
  }
  backend_.run(prepare);
  t_ = t;
  const std::vector<double> stats = backend_.read_scalars(stats_);
  return StepStats{.loss = stats[0], .norm = stats[1], .finite = stats[2] == 0, .tokens = stats[3]};
}

void Optimizer::update(Arena& step) {
  backend_.run(Fill{.x = bad_index_, .value = 0});
  Buffer direction_NK;  // of the param that is being gathered or applied
  pager_.stream(step, slabs_, [&](std::size_t i, std::span<const TensorView> parts) {
    const SlabOrigin& origin = origins_[i];
    const Param& p = params_[origin.param];
    const UpdateRule& rule = rule_of(p.group);
    const bool gathers = !origin.has_master, ends = origin.first + origin.elems == p.elems();
    if (gathers && origin.first == 0)
      direction_NK = step.alloc("direction", MemoryTag::scratch, rule.direction, {p.N, p.K});
    const SlabUpdate slab{
        .backend = backend_,
        .step = step,
        .param = p,
        .first = origin.first,
        .master = origin.has_master ? parts[0] : TensorView(),
        .grad = p.grad.flat(origin.first, origin.elems),
        .state = state_in(origin, parts),
        .direction = rule.gather != nullptr ? direction_NK->flat(origin.first, origin.elems) : TensorView(),
        .step_params = step_params_,
        .draws = rounding_draws(options_.seed, p, t_)};
    if (gathers) {
      rule.gather(slab);
      if (ends) {
        rule.transform({.backend = backend_,
                        .step = step,
                        .param = p,
                        .direction_NK = direction_NK,
                        .step_params = step_params_});
      }
      return;
    }
    rule.update(slab);
    encode_slab(origin, parts[0]);
    if (ends) direction_NK.release();
  });
  check_finite();
}

void Optimizer::page_through(Arena& step) {
  pager_.stream(step, slabs_, [](std::size_t, std::span<const TensorView>) {});
}

std::int64_t Optimizer::paged_bytes() const {
  std::int64_t bytes = 0;
  for (const Slab& slab : slabs_) {
    for (int part = 0; part < slab.count; ++part) {
      const TensorView& view = slab.parts[static_cast<std::size_t>(part)];
      if (view.space == Space::host) bytes += view.bytes();
    }
  }
  return bytes;
}

std::vector<NamedView> Optimizer::state() const {
  std::vector<NamedView> list;
  for (std::size_t i = 0; i < params_.size(); ++i) {
    const Param& p = params_[i];
    list.push_back({master_of(p.name), states_[i].master});
    for (std::size_t k = 0; k < states_[i].pieces.size(); ++k)
      list.push_back({rule_of(p.group).state[k].tensor_name(p), states_[i].pieces[k]});
  }
  return list;
}

}  // namespace qt
