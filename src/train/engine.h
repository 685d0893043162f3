// Engine: one run's device side. Owns backend, arenas, model and optimizer, in that order, and knows the
// phases of a run: micro_step, norm, optimizer_step, eval_step, sample, logits, init.
//
// The planner constructs the same class on the null backend and calls the same methods: a step has no second
// description. The loop around it (data, schedule, logs, checkpoints, signals) is
// src/train/trainer.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "optim/optimizer.h"
#include "src/memory/arena.h"
#include "src/model/decoder.h"
#include "src/model/model.h"
#include "src/train/stored_form.h"

namespace qt {

struct EngineOptions {
  ModelConfig model;
  ModelOptions layout;
  OptimizerOptions optim;
  std::int64_t accumulation = 1;   // micro-batches per optimizer step
  std::int64_t sample_tokens = 0;  // positions a sample may have; 0: the run never samples
  bool with_logits = false;        // rehearse logits() too: parity tests
  bool inference = false;          // weights only: no gradients, no optimizer; evaluate and sample

  std::int64_t micro_batch_tokens() const { return layout.micro_batch_rows * model.seq_len; }
  std::int64_t step_tokens() const { return micro_batch_tokens() * accumulation; }
};

// What a rehearsal leaves: every byte of the run and the work of each phase.
struct Rehearsed {
  ArenaPlan state;               // device: weights, gradients, resident master and moments
  ArenaPlan step;                // device: activations, logits, scratch, slots
  ArenaPlan host;                // paged master and moments
  BackendTotals micro_step;      // one micro-batch, forward and backward
  BackendTotals optimizer_step;  // norm, update, paging
  BackendTotals eval_step;       // one micro-batch, forward only

  std::int64_t device_bytes() const { return state.bytes + step.bytes; }
  BackendTotals train_step(std::int64_t accumulation) const;
};

struct SampleOptions {
  std::int64_t new_tokens = 64;
  double temperature = 1.0;  // 0: always the likeliest token
  std::int64_t top_k = 0;    // 0: all
  std::int64_t ids = 0;      // draw among the first so many ids: a model's vocabulary may be padded; 0: all
  std::uint64_t seed = 0;
  std::uint64_t stream = 0;  // a training run uses the step: the same step samples the same text
};

class Engine {
 public:
  // Runs every phase on the null backend for `target`.
  static Rehearsed rehearse(const EngineOptions& options, const Target& target);

  // Allocates what the plan says, once. Throws FitError when the system refuses, PlanError when plan and
  // options differ.
  Engine(std::unique_ptr<Backend> backend, EngineOptions options, const Rehearsed& plan);
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;
  ~Engine();

  const EngineOptions& options() const { return options_; }
  Backend& backend() { return *backend_; }
  Model& model() { return *model_; }
  // Throws what counts as a defect of ours with EngineOptions::inference; so does all that trains.
  Optimizer& optimizer();

  void init_weights(std::uint64_t seed);
  // After masters were loaded without compute copies.
  void encode_weights();

  // Seconds that paging all of master and moments in and out takes with nothing to hide behind; 0 when
  // nothing is paged. Changes no state.
  double time_paging();

  // Hands out micro-batch `micro` of the window; the spans must stay valid until the next call.
  using FetchBatch = std::function<HostBatch(std::int64_t micro)>;
  // Called after every micro-batch; may throw StopRequested, which drops the window and leaves weights and
  // moments alone.
  using BetweenBatches = std::function<void(std::int64_t done)>;

  // Gradients and loss of one window of `accumulation` micro-batches. Gradients are multiplied by loss_scale
  // (a power of two, so that nothing is rounded) on their way through 16-bit numbers.
  void accumulate(const FetchBatch& fetch, const BetweenBatches& between, double loss_scale = 1);
  // Norm and constants of the step, free of the window's loss_scale; t counts applied steps from 1.
  StepStats measure(double lr_multiplier, std::int64_t t, double loss_scale = 1);
  // Applies the step measured last.
  void update();
  // The three in order; the update is left out when the norm or the loss is not finite.
  StepStats train_step(const FetchBatch& fetch, const BetweenBatches& between, double lr_multiplier,
                       std::int64_t t, double loss_scale = 1);

  // Sum of losses in nats and number of targets of one micro-batch.
  struct EvalSums {
    double nats = 0;
    double targets = 0;
  };
  EvalSums evaluate(const HostBatch& batch);

  // Continues `prompt`. Deterministic: draws depend on (seed, stream, position) alone. `between` as in
  // accumulate().
  std::vector<std::int32_t> sample(std::span<const std::int32_t> prompt, const SampleOptions& how,
                                   const BetweenBatches& between = {});

  // f32 logits [B * T, V] of one micro-batch; only with EngineOptions::with_logits.
  void logits(std::span<const std::int32_t> ids, std::span<float> out);

  // Everything a checkpoint stores: the compute copies, then the optimizer's state; fixed order. Their bytes
  // go to and from files through stored_form().
  std::vector<NamedView> weights() const;
  std::vector<NamedView> state() const;
  StoredForm& stored_form() { return *stored_form_; }

  // For the check "planned equals used".
  std::int64_t used_device_bytes() const { return state_->used_bytes() + step_->used_bytes(); }
  std::int64_t used_host_bytes() const { return host_->used_bytes(); }

 private:
  Engine(std::unique_ptr<Backend> backend, EngineOptions options);  // records
  void build();
  void rehearse_training(Rehearsed& plan, const HostBatch& batch);

  EngineOptions options_;
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<MemoryRegion> device_memory_;
  std::unique_ptr<MemoryRegion> host_memory_;
  std::unique_ptr<Arena> state_;
  std::unique_ptr<Arena> host_;
  std::unique_ptr<Arena> step_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<StoredForm> stored_form_;
  TensorView totals_;                 // f64 [2]: sum of losses and number of targets
  std::vector<float> sample_logits_;  // sized once: nothing large is allocated after step 0
  std::vector<std::int32_t> sample_order_;
};

}  // namespace qt
