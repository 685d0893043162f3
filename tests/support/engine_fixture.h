// An Engine, or a bare Model, on the cpu backend, with weights, moments and gradients read and written by
// name.
//
// "master.<param>", "m.<param>" and "v.<param>" are the names of Optimizer::state(); a bare name is a param.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "src/train/engine.h"
#include "tests/support/packed_tensor.h"
#include "tests/support/test_backend.h"

namespace qt::test {

using Floats = std::vector<float>;

// The elements of a dense f32 or bf16 view, widened.
inline Floats read_floats(Backend& backend, const TensorView& view) {
  const auto n = static_cast<std::size_t>(view.elems());
  Floats x(n);
  if (view.dtype == DType::bf16) {
    std::vector<bf16> narrow(n);
    backend.download(view, std::as_writable_bytes(std::span(narrow)));
    for (std::size_t i = 0; i < n; ++i) x[i] = to_float(narrow[i]);
  } else {
    EXPECT_EQ(view.dtype, DType::f32);
    backend.download(view, std::as_writable_bytes(std::span(x)));
  }
  return x;
}

inline std::vector<std::byte> read_bytes_of(Backend& backend, const TensorView& view) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(view.bytes()));
  backend.download(view, bytes);
  return bytes;
}

// As a file would have it.
inline std::vector<std::byte> stored_bytes_of(StoredForm& form, const NamedView& v) {
  std::vector<std::byte> staging(64 * 1024), bytes;
  form.read(v, staging,
            [&](std::span<const std::byte> piece) { bytes.insert(bytes.end(), piece.begin(), piece.end()); });
  return bytes;
}

// To an f32 or bf16 view.
inline void write_floats(Backend& backend, const TensorView& view, std::span<const float> x) {
  ASSERT_EQ(static_cast<std::int64_t>(x.size()), view.elems());
  if (view.dtype == DType::bf16) {
    std::vector<bf16> narrow(x.size());
    for (std::size_t i = 0; i < x.size(); ++i) narrow[i] = to_bf16(x[i]);
    backend.upload(std::as_bytes(std::span(narrow)), view);
  } else {
    backend.upload(std::as_bytes(x), view);
  }
}

class TestEngine {
 public:
  explicit TestEngine(const EngineOptions& options, int threads = 2) {
    const Target target = test_target(threads);
    engine_.emplace(make_test_backend(target), options, Engine::rehearse(options, target));
  }

  Engine& operator*() { return *engine_; }
  Engine* operator->() { return &*engine_; }

  // One piece of Optimizer::state() with f32 elements. Masters take effect with encode_weights().
  void set_state(const std::string& name, std::span<const float> x) {
    write_floats(engine_->backend(), state_view(name), x);
  }
  Floats state(const std::string& name) { return read_floats(engine_->backend(), state_view(name)); }

  // Every master from `of(param)`, encoded; moments as they are (zero in a new engine).
  void set_masters(const std::function<Floats(const Param&)>& of) {
    for (const Param& p : engine_->model().params()) set_state("master." + p.name, of(p));
    engine_->encode_weights();
  }

  // d(sum of losses / tokens of a step) as accumulated, times `factor`.
  Floats gradient(const Param& p, double factor = 1) {
    Floats g = read_floats(engine_->backend(), p.grad);
    for (float& x : g) x = static_cast<float>(factor * static_cast<double>(x));
    return g;
  }
  std::map<std::string, Floats> gradients(double factor = 1) {
    std::map<std::string, Floats> all;
    for (const Param& p : engine_->model().params()) all[p.name] = gradient(p, factor);
    return all;
  }

  Floats logits(std::span<const std::int32_t> ids) {
    Floats out(ids.size() * static_cast<std::size_t>(engine_->options().model.vocab_size));
    engine_->logits(ids, out);
    return out;
  }

  // All that a checkpoint stores, as bytes.
  std::map<std::string, std::vector<std::byte>> everything() {
    std::map<std::string, std::vector<std::byte>> all;
    for (const auto& list : {engine_->weights(), engine_->state()}) {
      for (const NamedView& v : list) all[v.name] = stored_bytes_of(engine_->stored_form(), v);
    }
    return all;
  }

 private:
  const TensorView& state_view(const std::string& name) {
    state_list_ = engine_->state();
    for (const NamedView& piece : state_list_) {
      if (piece.name == name) return piece.view;
    }
    throw std::out_of_range("the optimizer has no state named " + name);
  }

  std::optional<Engine> engine_;
  std::vector<NamedView> state_list_;
};

// A window held as one piece of ids and targets, `rows` rows of a micro-batch at a time.
inline Engine::FetchBatch fetch_from(std::span<const std::int32_t> ids, std::span<const std::int32_t> targets,
                                     std::int64_t micro_batch_tokens) {
  return [=](std::int64_t micro) {
    const auto n = static_cast<std::size_t>(micro_batch_tokens), first = static_cast<std::size_t>(micro) * n;
    return HostBatch{ids.subspan(first, n), targets.subspan(first, n)};
  };
}

// Random non-zero weights with spread that keeps activations near 1 and bends no softcap.
inline Floats lively_weights(const Param& p, std::uint64_t seed = 1) {
  const float stddev = p.group == ParamGroup::embedding ? 1.0f : 1.0f / std::sqrt(static_cast<float>(p.K));
  Floats w = normal(static_cast<std::size_t>(p.elems()), seed * 1000 + p.rng_stream);
  for (float& x : w) x *= stddev;
  return w;
}

inline std::vector<std::int32_t> random_ids(std::size_t n, std::int64_t vocab, std::uint64_t seed) {
  std::vector<std::int32_t> ids(n);
  const RngStream stream{.seed = seed, .purpose = RngPurpose::data_order};
  for (std::size_t i = 0; i < n; ++i) {
    ids[i] = static_cast<std::int32_t>(rng_u32(stream, i) % static_cast<std::uint32_t>(vocab));
  }
  return ids;
}

// Model and optimizer without an Engine, for what an Engine does not offer: small slabs, logits of the
// Decoder.
struct Parts {
  Backend& backend;
  Arena& step;
  Model& model;
  Optimizer* optimizer;  // nullptr without OptimizerOptions
};

// Runs `body` on the null backend, which records, then on cpu at the planned offsets. What the second run
// leaves counts.
inline void run_planned(const ModelConfig& config, const ModelOptions& options,
                        const std::optional<OptimizerOptions>& optim, const std::function<void(Parts&)>& body,
                        int threads = 2, std::int64_t max_slab_bytes = kMaxSlabBytes) {
  const Target target = test_target(threads);
  const auto pass = [&](Backend& backend, Arena& state, Arena& host, Arena& step) {
    std::optional<Model> model;
    std::optional<Optimizer> optimizer;
    {
      const PhaseScope in_state(state, "state");
      const PhaseScope in_host(host, "state");
      model.emplace(backend, state, step, config, options);
      if (optim) {
        optimizer.emplace(backend, state, host, model->params(), model->gradients(), *optim, max_slab_bytes);
      }
    }
    model->prepare();
    Parts parts{backend, step, *model, optimizer ? &*optimizer : nullptr};
    body(parts);
  };
  Arena state("state", Space::device), host("host", Space::host), step("step", Space::device);
  {
    const auto backend = make_backend("null", target);
    pass(*backend, state, host, step);
  }
  for (Arena* arena : {&state, &host, &step}) arena->finish();

  const auto backend = make_test_backend(target);
  const auto device_memory = backend->allocate(Space::device, state.plan().bytes + step.plan().bytes);
  const auto host_memory = backend->allocate(Space::host, std::max<std::int64_t>(host.plan().bytes, 1));
  Arena state_on(state.plan(), device_memory->base());
  Arena host_on(host.plan(), host_memory->base());
  Arena step_on(step.plan(), device_memory->base() + state.plan().bytes);
  pass(*backend, state_on, host_on, step_on);
}

}  // namespace qt::test
