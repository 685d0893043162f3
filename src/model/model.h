// Model: the list of parameters, the order of blocks, what is kept and what is recomputed, the chunked loss
// head.
//
// It places its own persistent memory (compute copies, gradients, RoPE tables) in the state arena at
// construction and everything else in the step arena, phase by phase. It knows no optimizer and no file.
// Legend: B rows of T tokens, N = B T, C width, V vocabulary, M tokens of a loss chunk.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/backend.h"
#include "quant/param.h"
#include "src/memory/arena.h"
#include "src/model/block.h"
#include "src/model/config.h"
#include "src/model/params.h"

namespace qt {

struct ModelOptions {
  DType compute = DType::f32;           // activations and unpacked weights: f32 | bf16 | f16
  DType gradient = DType::f32;          // accumulators: f32 | bf16; those of norms and biases are always f32
  FormatId weights = FormatId::none;    // packed format of the block matrices, see format_of()
  bool checkpoint_activations = false;  // keep only block inputs; recompute a block in its backward
  std::int64_t micro_batch_rows = 1;    // B; evaluation uses the same shape
  std::int64_t loss_chunk_tokens = 0;   // M; 0: as many as kLogitsChunkBytes of f32 logits hold
  bool gradients = true;                // false: forward only, no accumulators are placed
  std::uint64_t seed = 0;               // of dropout

  // Of a param's weight. Embedding, head and vectors are never packed.
  FormatId format_of(const Param& p) const {
    return p.group == ParamGroup::matrix ? weights : FormatId::none;
  }
  // Of a weight that is not packed. Vectors cost nothing and are added in f32: they stay as the master has them.
  DType dense_dtype_of(const Param& p) const { return p.group == ParamGroup::norm ? DType::f32 : compute; }
};

// Logits of a chunk in f32: at a 65,536 vocabulary 512 tokens, wide enough for full GEMM speed.
inline constexpr std::int64_t kLogitsChunkBytes = 128 * 1024 * 1024;

// One micro-batch on the host: B * T ids and targets (-1: not scored), row after row.
struct HostBatch {
  std::span<const std::int32_t> ids;
  std::span<const std::int32_t> targets;
  std::int64_t first_row = 0;  // of the run's data order: what dropout draws by
};

class Model {
 public:
  // `backend`, `state` and `step` must outlive the model. Records into or replays from both arenas; `state`
  // must be inside its phase. Throws ConfigError for a configuration that does not work.
  Model(Backend& backend, Arena& state, Arena& step, ModelConfig config, ModelOptions options);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const ModelConfig& config() const { return config_; }
  const ModelOptions& options() const { return options_; }
  ParamList& params() { return params_; }
  const ParamList& params() const { return params_; }
  // All gradients, rank 1: one region, or with 16-bit accumulators a second for norms and biases; none
  // without gradients. Each param's part starts on a multiple of 256 elements, gaps are zero.
  const std::vector<TensorView>& gradients() const { return gradients_; }
  std::int64_t loss_chunk_tokens() const { return chunk_tokens_; }
  const std::vector<Block>& blocks() const { return blocks_; }
  // The backend, and the step arena.
  StepContext& context() { return ctx_; }

  // Fills what is derived and never stored: RoPE tables. Once, before the first step.
  void prepare();

  // One micro-batch, forward and backward, inside an open phase of the step arena. Adds to the gradients
  // (each token's share times grad_scale) and to totals (f64 [2]: sum of losses in nats, number of targets).
  void forward_backward(const HostBatch& batch, float grad_scale, const TensorView& totals);

  // Forward only; adds to totals.
  void evaluate(const HostBatch& batch, const TensorView& totals);

  // Forward only; f32 logits after the softcap, [B * T, V], to the host. For parity tests: it holds all of
  // them at once.
  void logits(std::span<const std::int32_t> ids, std::span<float> out);

  // The parts of a forward pass that keeps nothing, in their order, for callers that bring a memory of their
  // own. hidden(): embedding and blocks, x [N, C] of batch.rows sequences; caches: one a block, or none.
  // final_norm(): in place. head(): f32 logits [M, V] after the softcap.
  Buffer hidden(StepContext& ctx, std::span<const std::int32_t> ids, const BatchContext& batch,
                std::span<const KeyValues> caches = {}) const;
  void final_norm(StepContext& ctx, const TensorView& x_NC) const;
  void head(StepContext& ctx, const TensorView& xf_MC, const TensorView& logits_MV) const;

 private:
  void place(Arena& state);
  void place_gradients(Arena& state);
  BatchContext batch_context(const HostBatch& batch, bool training) const;
  Norm last_norm() const { return {config_, params_, roles_.final_norm}; }
  Linear head_weight() const { return Linear(params_[roles_.head]); }
  // Token and position embedding, dropout, and the norm where there is one.
  void embed(Backend& backend, const TensorView& ids_N, const BatchContext& batch, const TensorView& x_NC,
             const TensorView& rstd_N) const;
  std::int64_t batch_tokens() const { return options_.micro_batch_rows * config_.seq_len; }
  void require_batch(std::span<const std::int32_t> ids) const;
  // As of evaluation: hidden() and final_norm() in the step arena.
  Buffer forward_hidden(const HostBatch& batch);
  void loss_chunks(const TensorView& xf_NC, const TensorView& targets_N, const TensorView& totals,
                   float grad_scale, const TensorView& dx_NC);

  Backend& backend_;
  StepContext ctx_;
  ModelConfig config_;
  ModelOptions options_;
  std::int64_t chunk_tokens_ = 0;
  ParamList params_;
  ModelRoles roles_;
  std::vector<Block> blocks_;
  std::vector<TensorView> gradients_;
  RopeTables rope_;
};

}  // namespace qt
