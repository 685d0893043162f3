#include "optim/optimizer.h"

#include <algorithm>
#include <utility>

#include "kernels/scratch.h"
#include "quant/q8.h"
#include "quant/tiles.h"

namespace qt {

namespace {

constexpr std::int64_t kStateBlock = kQ8BlockElems;  // slabs are cut between blocks that share scales
static_assert(SecondMoment::kZeroCode == 0);

// The draws that round a param's masters in step t. Neither number reaches 2^32: no two of these streams are
// one, so that a run that is continued at t draws what the uninterrupted one did.
RngStream rounding_draws(std::uint64_t seed, const Param& p, std::int64_t t) {
  return {.seed = seed,
          .purpose = RngPurpose::stochastic_rounding,
          .stream = static_cast<std::uint64_t>(t) << 32 | p.rng_stream};
}

}  // namespace

const std::vector<OptimizerInfo>& optimizer_table() {
  static const std::vector<OptimizerInfo> kTable = {
      {"adamw8", true},
      {"adamw", false},
  };
  return kTable;
}

const OptimizerInfo& optimizer_by_name(std::string_view name) {
  for (const OptimizerInfo& info : optimizer_table()) {
    if (info.name == name) return info;
  }
  std::string names;
  for (const OptimizerInfo& info : optimizer_table())
    names += fmt::format("{}{}", names.empty() ? "" : ", ", info.name);
  throw ConfigError(fmt::format("unknown optimizer '{}'", name), "use --optim with one of: " + names);
}

Optimizer::Optimizer(Backend& backend, Arena& state, Arena& host, ParamList& params,
                     std::vector<TensorView> gradients, OptimizerOptions options, std::int64_t max_slab_bytes)
    : backend_(backend),
      pager_(backend, max_slab_bytes),
      params_(params),
      gradients_(std::move(gradients)),
      options_(std::move(options)) {
  const OptimizerInfo& info = optimizer_by_name(options_.name);
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
    ParamState s;
    s.eight_bit = info.eight_bit_moments && p.group == ParamGroup::matrix;
    const DType master = p.group == ParamGroup::norm ? DType::f32 : options_.master;
    s.master = home.keep("master." + p.name, MemoryTag::master, master, {n});
    if (s.eight_bit) {
      s.m = home.keep("m." + p.name, MemoryTag::moments, DType::u8, {n});
      s.v = home.keep("v." + p.name, MemoryTag::moments, DType::u8, {n});
      s.m_absmax = home.keep("m." + p.name + ".absmax", MemoryTag::moments, DType::f32, {q8_scale_count(n)});
      s.v_absmax = home.keep("v." + p.name + ".absmax", MemoryTag::moments, DType::f32, {q8_scale_count(n)});
    } else {
      s.m = home.keep("m." + p.name, MemoryTag::moments, DType::f32, {n});
      s.v = home.keep("v." + p.name, MemoryTag::moments, DType::f32, {n});
    }
    states_.push_back(s);
  }
  grad_sumsq_ =
      state.keep("grad_sumsq", MemoryTag::inputs, DType::f64, {static_cast<std::int64_t>(gradients_.size())});
  step_params_ = state.keep("step_params", MemoryTag::inputs, DType::f32, {kStepParamFloats});
  stats_ = state.keep("step_stats", MemoryTag::inputs, DType::f64, {kStepStatDoubles});
  bad_index_ =
      state.keep("bad_index", MemoryTag::inputs, DType::f64, {static_cast<std::int64_t>(params_.size())});
  cut_slabs(max_slab_bytes);
}

Slab Optimizer::slab_of(std::size_t param, std::int64_t first, std::int64_t elems) const {
  const ParamState& s = states_[param];
  Slab slab;
  slab.parts[0] = s.master.flat(first, elems);
  slab.parts[1] = s.m.flat(first, elems);
  slab.parts[2] = s.v.flat(first, elems);
  slab.count = 3;
  if (s.eight_bit) {
    slab.parts[3] = s.m_absmax.flat(first / kStateBlock, q8_scale_count(elems));
    slab.parts[4] = s.v_absmax.flat(first / kStateBlock, q8_scale_count(elems));
    slab.count = 5;
  }
  return slab;
}

void Optimizer::cut_slabs(std::int64_t max_slab_bytes) {
  for (std::size_t i = 0; i < params_.size(); ++i) {
    const std::int64_t n = params_[i].elems();
    // The largest multiple of the state block whose parts, each padded to the request alignment, stay within
    // a slab.
    const std::int64_t moment_bytes = states_[i].eight_bit ? 2 * kStateBlock + 8 : 8 * kStateBlock;
    const std::int64_t block_bytes = dtype_bytes(states_[i].master.dtype) * kStateBlock + moment_bytes;
    std::int64_t most = (max_slab_bytes - kMaxSlabParts * kRequestAlignment) / block_bytes * kStateBlock;
    QT_CHECK(most > 0, PlanError, "slabs of {} bytes cannot hold a block of optimizer state", max_slab_bytes);
    // A strip that two slabs share would be written byte by byte, so cut between strips where one fits.
    const std::int64_t strip = params_[i].weight.packed.strip_elems();
    if (most >= strip) most -= most % strip;
    for (std::int64_t first = 0; first < n; first += most) {
      const std::int64_t elems = std::min(most, n - first);
      slabs_.push_back(slab_of(i, first, elems));
      origins_.push_back({i, first, elems});
    }
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
    backend_.run(
        InitNormal{.x = parts[0],
                   .stddev = p.init.stddev,
                   .constant = p.init.constant,
                   .rng = RngStream{.seed = seed, .purpose = RngPurpose::init, .stream = p.rng_stream},
                   .first_element = origin.first});
    for (std::size_t part = 1; part < parts.size(); ++part) {
      // Code 0 of the signed map is its most negative value, not zero.
      const bool signed_codes = part == 1 && states_[origin.param].eight_bit;
      backend_.run(Fill{.x = parts[part], .value = signed_codes ? double{FirstMoment::kZeroCode} : 0.0});
    }
    encode_slab(origin, parts[0]);
  });
  check_finite();
}

void Optimizer::encode_weights(Arena& step) {
  backend_.run(Fill{.x = bad_index_, .value = 0});
  pager_.stream(step, slabs_, [&](std::size_t i, std::span<const TensorView> parts) {
    encode_slab(origins_[i], parts[0]);
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
    const bool decays = static_cast<ParamGroup>(g) != ParamGroup::norm;
    prepare.hyper[g] = adam_hyper(options_.peak_lr[g] * lr_multiplier, options_.beta1, options_.beta2,
                                  options_.eps, decays ? options_.weight_decay : 0.0, t);
  }
  backend_.run(prepare);
  t_ = t;
  const std::vector<double> stats = backend_.read_scalars(stats_);
  return StepStats{.loss = stats[0], .norm = stats[1], .finite = stats[2] == 0, .tokens = stats[3]};
}

void Optimizer::update_slab(const SlabOrigin& origin, std::span<const TensorView> parts) {
  const Param& p = params_[origin.param];
  const TensorView grad = p.grad.flat(origin.first, origin.elems);
  const RngStream draws = rounding_draws(options_.seed, p, t_);
  if (states_[origin.param].eight_bit) {
    backend_.run(AdamW8{.master = parts[0],
                        .grad = grad,
                        .m_codes = parts[1],
                        .v_codes = parts[2],
                        .m_absmax = parts[3],
                        .v_absmax = parts[4],
                        .params = step_params_,
                        .group = p.group,
                        .rng = draws,
                        .first_element = origin.first});
  } else {
    backend_.run(AdamW{.master = parts[0],
                       .grad = grad,
                       .m = parts[1],
                       .v = parts[2],
                       .params = step_params_,
                       .group = p.group,
                       .rng = draws,
                       .first_element = origin.first});
  }
}

void Optimizer::update(Arena& step) {
  backend_.run(Fill{.x = bad_index_, .value = 0});
  pager_.stream(step, slabs_, [&](std::size_t i, std::span<const TensorView> parts) {
    const SlabOrigin& origin = origins_[i];
    const Param& p = params_[origin.param];
    if (options_.control == OptimizerControl::frozen_matrices && p.group == ParamGroup::matrix) return;
    if (options_.control == OptimizerControl::no_master && p.weight.is_packed()) {
      // The control run keeps no more than the codes: what the last encoding lost is lost.
      backend_.run(Dequantize{.w = p.weight.packed, .first = origin.first, .dst = parts[0]});
    }
    update_slab(origin, parts);
    encode_slab(origin, parts[0]);
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
    const ParamState& s = states_[i];
    const std::string& name = params_[i].name;
    list.push_back({"master." + name, s.master});
    list.push_back({"m." + name, s.m});
    list.push_back({"v." + name, s.v});
    if (!s.eight_bit) continue;
    list.push_back({"m." + name + ".absmax", s.m_absmax});
    list.push_back({"v." + name + ".absmax", s.v_absmax});
  }
  return list;
}

}  // namespace qt
