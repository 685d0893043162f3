// The loss over a validation split.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "src/data/batches.h"
#include "src/train/engine.h"

namespace qt {

struct EvalResult {
  double loss = 0;            // nats per token of text
  std::optional<double> bpb;  // bits per byte of text; none where the bytes of tokens are not known
  std::int64_t tokens = 0;
  std::int64_t bytes = 0;
};

// "1.2345 bits per byte, loss 3.2100 over 65,536 tokens"
std::string eval_text(const EvalResult& result);

// One pass over a validation split, in micro-batches of the engine's shape. `poll` is called between them and
// may throw.
EvalResult evaluate(Engine& engine, const EvalBatches& validation, const std::function<void()>& poll);

}  // namespace qt
