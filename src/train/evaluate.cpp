#include "src/train/evaluate.h"

#include <algorithm>
#include <numbers>
#include <vector>

#include <fmt/format.h>

#include "src/core/units.h"

namespace qt {

std::string eval_text(const EvalResult& result) {
  const std::string bpb = result.bpb ? fmt::format("{:.4f} bits per byte, ", *result.bpb) : std::string();
  return fmt::format("{}loss {:.4f} over {} tokens", bpb, result.loss, format_thousands(result.tokens));
}

EvalResult evaluate(Engine& engine, const EvalBatches& validation, const std::function<void()>& poll) {
  const std::int64_t rows = engine.options().layout.micro_batch_rows;
  std::vector<std::int32_t> ids(static_cast<std::size_t>(engine.options().micro_batch_tokens())),
      targets(ids.size());
  EvalResult result;
  double nats = 0;
  for (std::int64_t first = 0; first < validation.rows(); first += rows) {
    poll();
    validation.fill(first, rows, ids, targets);
    for (std::int32_t& target : targets) {
      result.bytes += validation.bytes_of(target);
      // Special tokens stand for no text: neither their loss nor their bytes count, as in nanochat.
      if (!validation.scored(target)) target = EvalBatches::kIgnore;
    }
    const Engine::EvalSums sums = engine.evaluate(HostBatch{ids, targets});
    nats += sums.nats;
    result.tokens += static_cast<std::int64_t>(sums.targets);
  }
  result.loss = nats / static_cast<double>(std::max<std::int64_t>(result.tokens, 1));
  if (result.bytes > 0) result.bpb = nats / std::numbers::ln2 / static_cast<double>(result.bytes);
  return result;
}

}  // namespace qt
