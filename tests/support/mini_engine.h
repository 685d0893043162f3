// The smallest engine that has every kind of tensor a checkpoint stores: packed matrices with scales, plain
// norms, masters, 8-bit and f32 moments. For tests that save thousands of times; tiny_run.h has one to train.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "src/train/engine.h"
#include "src/train/run_state.h"
#include "tests/support/test_backend.h"

namespace qt::test {

inline std::unique_ptr<Engine> mini_engine() {
  EngineOptions e;
  e.model.name = "mini";
  e.model.n_layer = 1;
  e.model.n_head = 2;
  e.model.n_kv_head = 1;
  e.model.n_embd = 32;
  e.model.vocab_size = 32;
  e.model.seq_len = 8;
  e.layout.compute = DType::f32;
  e.layout.gradient = DType::f32;
  e.layout.weights = FormatId::nf4;
  e.layout.checkpoint_activations = true;
  e.layout.micro_batch_rows = 1;
  e.optim.rule = &rules::adamw8;
  e.optim.peak_lr = {3e-3, 0.02, 0.004, 3e-3};
  const Target target = test_target(1);
  return std::make_unique<Engine>(make_test_backend(target), e, Engine::rehearse(e, target));
}

inline RunState state_at(std::int64_t step) {
  RunState state;
  state.step = state.applied = state.window = step;
  state.vocab_hash = state.data_hash = "none";
  return state;
}

// How often a test repeats itself: `few` in every run, what the environment says under scripts/prove.
inline int repeats(const char* variable, int few) {
  const char* wanted = std::getenv(variable);
  return wanted != nullptr ? std::atoi(wanted) : few;
}

}  // namespace qt::test
