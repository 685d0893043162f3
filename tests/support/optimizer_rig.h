// A small optimizer with everything around it: one parameter of each kind, arenas, gradients, and what a step
// takes.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <gtest/gtest.h>

#include "kernels/scratch.h"
#include "optim/optimizer.h"
#include "quant/q8.h"
#include "src/core/rng.h"
#include "tests/support/test_backend.h"

namespace qt::test {

struct RigOptions {
  const UpdateRule* rule = &rules::adamw8;
  bool paged = true;
  FormatId weights = FormatId::nf4;  // of the matrices
  std::string dense_matrix;          // the matrix of this name has the format none all the same
  DType gradient = DType::f32;
  double max_norm = 1.0;
  double weight_decay = 0.1;
  std::int64_t max_slab_bytes = 256 * 1024;
  int threads = 1;
  DType master = DType::f32;
};

inline constexpr double kPeakLr[kParamGroups] = {1e-3, 2e-3, 3e-3, 4e-3};
inline constexpr double kGradientTokens = 64;

inline ParamList small_params() {
  ParamList params;
  const auto add = [&](const char* name, ParamGroup group, std::int64_t N, std::int64_t K, ParamInit init) {
    Param p;
    p.name = name;
    p.group = group;
    p.N = N;
    p.K = K;
    p.init = init;
    p.rng_stream = params.size();
    params.push_back(std::move(p));
  };
  add("embedding", ParamGroup::embedding, 37, 24, {.stddev = 1.0f});
  add("small", ParamGroup::matrix, 40, 73, {.stddev = 0.1f});     // 2,920: no multiple of a block of anything
  add("large", ParamGroup::matrix, 512, 301, {.stddev = 0.05f});  // four slabs of 8-bit state, eight of f32
  add("zero", ParamGroup::matrix, 3, 7, {});
  add("norm", ParamGroup::norm, 1, 33, {.constant = 1.0f});
  add("head", ParamGroup::head, 37, 24, {});
  add("tiled", ParamGroup::matrix, 192, 128, {.stddev = 0.05f});  // a card has it in tiles, in three rows
  return params;
}

inline bool of_a_matrix(const std::string& piece) {
  const auto names = {"small", "large", "zero", "tiled"};
  return std::ranges::any_of(names, [&](const char* name) { return piece.find(name) != std::string::npos; });
}

// Places params and optimizer in the given arenas, as model and engine do.
struct Placed {
  Placed(Backend& be, Arena& state, Arena& host, const RigOptions& s) {
    const PhaseScope state_phase(state, "state"), host_phase(host, "state");
    params = small_params();
    std::int64_t elems = 0;
    for (Param& p : params) {
      if (p.group == ParamGroup::matrix && s.weights != FormatId::none && p.name != s.dense_matrix) {
        p.weight.packed = {
            .format = s.weights,
            .N = p.N,
            .K = p.K,
            .layout = packed_layout(s.weights, p.N, p.K, be.target()),
            .codes = state.keep(p.name + ".codes", MemoryTag::weights, DType::u8,
                                {code_bytes(s.weights, p.elems())}),
            .absmax = state.keep(p.name + ".absmax", MemoryTag::weights, format_info(s.weights).scale_dtype,
                                 {scale_count(s.weights, p.elems())})};
      } else {
        p.weight.dense = state.keep(p.name, MemoryTag::weights, DType::bf16, {p.N, p.K});
      }
      elems += (p.elems() + 255) / 256 * 256;
    }
    totals = state.keep("totals", MemoryTag::inputs, DType::f64, {2});
    gradients = state.keep("gradients", MemoryTag::gradients, s.gradient, {elems});
    elems = 0;
    for (Param& p : params) {
      p.grad = gradients.flat(elems, p.elems()).reshape({p.N, p.K});
      elems += (p.elems() + 255) / 256 * 256;
    }
    OptimizerOptions o;
    o.rule = s.rule;
    std::copy(std::begin(kPeakLr), std::end(kPeakLr), o.peak_lr.begin());
    o.eps = 1e-8;
    o.weight_decay = s.weight_decay;
    o.max_norm = s.max_norm;
    o.paged = s.paged;
    o.master = s.master;
    optimizer =
        std::make_unique<Optimizer>(be, state, host, params, std::vector{gradients}, o, s.max_slab_bytes);
  }

  ParamList params;
  TensorView totals;  // f64 [2]: loss sum and targets
  TensorView gradients;
  std::unique_ptr<Optimizer> optimizer;
};

inline constexpr std::pair<DType, DType> kGradientsAndMasters[] = {
    {DType::f32, DType::f32}, {DType::bf16, DType::f32}, {DType::bf16, DType::bf16}};
inline constexpr const UpdateRule* kRules[] = {
#define QT_RULE_ROW(name) &rules::name,
    QT_FOR_EACH_UPDATE_RULE(QT_RULE_ROW)
#undef QT_RULE_ROW
};
inline constexpr std::pair<const UpdateRule*, DType> kRulesAndMasters[] = {
#define QT_RULE_ROW(name) {&rules::name, DType::f32}, {&rules::name, DType::bf16},
    QT_FOR_EACH_UPDATE_RULE(QT_RULE_ROW)
#undef QT_RULE_ROW
};
inline constexpr std::pair<FormatId, DType> kWeightsAndMasters[] = {
    {FormatId::nf4, DType::f32}, {FormatId::none, DType::f32}, {FormatId::nf4, DType::bf16}};

using Bytes = std::vector<std::byte>;
using Snapshot = std::map<std::string, Bytes>;

class Rig {
 public:
  explicit Rig(const RigOptions& s) : setup(s), backend(make_test_backend(test_target(s.threads))) {
    const auto null = make_backend("null", test_target(s.threads));
    Arena state_recorder("state", Space::device), host_recorder("host", Space::host),
        step_recorder("step", Space::device);
    {
      Placed rehearsal(*null, state_recorder, host_recorder, s);
      run_phases(rehearsal, step_recorder);
    }
    const auto replay = [&](Arena& recorder, std::unique_ptr<MemoryRegion>& memory) {
      recorder.finish();
      memory = backend->allocate(recorder.plan().space, recorder.plan().bytes);
      return std::make_unique<Arena>(recorder.plan(), memory->base());
    };
    state = replay(state_recorder, state_memory);
    host = replay(host_recorder, host_memory);
    step_arena = replay(step_recorder, step_memory);
    placed = std::make_unique<Placed>(*backend, *state, *host, s);
    init(7);
  }

  Optimizer& optimizer() { return *placed->optimizer; }
  ParamList& params() { return placed->params; }

  void init(std::uint64_t seed) {
    const PhaseScope phase(*step_arena, "init");
    optimizer().init_weights(*step_arena, seed);
  }
  void encode() {
    const PhaseScope phase(*step_arena, "init");
    optimizer().encode_weights(*step_arena);
  }
  // What a backward pass leaves: gradients of every param (zeros in the gaps), loss sum and targets.
  void set_gradients(const std::vector<float>& values, double targets = kGradientTokens) {
    if (setup.gradient == DType::f32) {
      backend->upload(std::as_bytes(std::span(values)), placed->gradients);
    } else {
      std::vector<bf16> narrow(values.size());
      for (std::size_t i = 0; i < values.size(); ++i) narrow[i] = to_bf16(values[i]);
      backend->upload(std::as_bytes(std::span(narrow)), placed->gradients);
    }
    const double totals[2] = {3.25 * targets, targets};
    backend->upload(std::as_bytes(std::span(totals)), placed->totals);
  }
  StepStats measure(std::int64_t t, double lr = 1.0) {
    const PhaseScope phase(*step_arena, "norm");
    return optimizer().measure(*step_arena, placed->totals, lr, t, kGradientTokens);
  }
  void update() {
    const PhaseScope phase(*step_arena, "optimizer_step");
    optimizer().update(*step_arena);
  }
  void train(int steps, float scale = 0.01f) {
    for (int t = 1; t <= steps; ++t) {
      set_gradients(random_gradients(static_cast<std::uint64_t>(t), scale));
      measure(t);
      update();
    }
  }

  // Of some 100 distinct magnitudes, with zeros; the gaps between params stay zero.
  std::vector<float> random_gradients(std::uint64_t seed, float scale = 0.01f) const {
    std::vector<float> values(static_cast<std::size_t>(placed->gradients.elems()), 0.0f);
    const RngStream rng{.seed = seed};
    std::int64_t first = 0;
    for (const Param& p : placed->params) {
      for (std::int64_t i = 0; i < p.elems(); ++i) {
        const float u = rng_unit(rng_u32(rng, static_cast<std::uint64_t>(first + i)));
        values[static_cast<std::size_t>(first + i)] =
            u < 0.1f ? 0.0f : scale * (u - 0.5f) * (u - 0.5f) * (u < 0.6f ? -1.0f : 4.0f);
      }
      first += (p.elems() + 255) / 256 * 256;
    }
    return values;
  }

  template <class T>
  std::vector<T> values(const TensorView& view) {
    std::vector<T> out(static_cast<std::size_t>(view.elems()));
    backend->download(view, std::as_writable_bytes(std::span(out)));
    return out;
  }
  template <class T>
  std::vector<T> state_values(const std::string& name) {
    for (const NamedView& v : optimizer().state()) {
      if (v.name == name) return values<T>(v.view);
    }
    ADD_FAILURE() << "no state named " << name;
    return {};
  }
  // Of either dtype, widened.
  std::vector<float> master(const std::string& param) {
    for (const NamedView& v : optimizer().state()) {
      if (v.name != "master." + param) continue;
      if (v.view.dtype == DType::f32) return values<float>(v.view);
      std::vector<float> wide;
      for (const bf16 x : values<bf16>(v.view)) wide.push_back(to_float(x));
      return wide;
    }
    ADD_FAILURE() << "no master of " << param;
    return {};
  }
  void write_state(const std::string& name, std::size_t index, float value) {
    const bf16 narrow = to_bf16(value);
    for (const NamedView& v : optimizer().state()) {
      if (v.name != name) continue;
      backend->upload(v.view.dtype == DType::bf16 ? std::as_bytes(std::span(&narrow, 1))
                                                  : std::as_bytes(std::span(&value, 1)),
                      v.view.flat(static_cast<std::int64_t>(index), 1));
    }
  }

  // Everything that lasts: master, moments, compute copies.
  Snapshot snapshot() {
    Snapshot all;
    const auto add = [&](const std::string& name, const TensorView& view) {
      Bytes bytes(static_cast<std::size_t>(view.bytes()));
      backend->download(view, bytes);
      all[name] = std::move(bytes);
    };
    for (const NamedView& v : optimizer().state()) add(v.name, v.view);
    for (const Param& p : params()) {
      if (p.weight.is_packed()) {
        add("codes." + p.name, p.weight.packed.codes);
        add("absmax." + p.name, p.weight.packed.absmax);
      } else {
        add("compute." + p.name, p.weight.dense);
      }
    }
    return all;
  }

  RigOptions setup;
  std::unique_ptr<Backend> backend;
  std::unique_ptr<MemoryRegion> state_memory, host_memory, step_memory;
  std::unique_ptr<Arena> state, host, step_arena;
  std::unique_ptr<Placed> placed;

 private:
  static void run_phases(Placed& rehearsal, Arena& step) {
    {
      const PhaseScope phase(step, "init");
      rehearsal.optimizer->init_weights(step, 0);
    }
    {
      const PhaseScope phase(step, "norm");
      rehearsal.optimizer->measure(step, rehearsal.totals, 1.0, 1, kGradientTokens);
    }
    const PhaseScope phase(step, "optimizer_step");
    rehearsal.optimizer->update(step);
  }
};

}  // namespace qt::test
