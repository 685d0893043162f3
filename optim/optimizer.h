// Optimizer: updates Params. Owns the master and the moments, resident or paged; writes the compute copies.
//
// One step is two phases of the step arena. "norm" reads all gradients once and leaves the step's constants
// in device memory; "optimizer_step" then streams master and moments through the device, updates, and
// re-encodes the compute copy in the same pass. A non-finite norm ends the step after the first phase:
// nothing has been written.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/backend.h"
#include "quant/param.h"
#include "quant/stored_layout.h"
#include "src/memory/arena.h"
#include "src/memory/pager.h"

namespace qt {

// One row per optimizer that --optim names.
struct OptimizerInfo {
  std::string_view name;
  bool eight_bit_moments = false;  // of the matrices; embedding, head and norms always keep f32 moments
};
const std::vector<OptimizerInfo>& optimizer_table();
// Throws ConfigError listing the table.
const OptimizerInfo& optimizer_by_name(std::string_view name);

// Experiments that show what the master copy and the matrices' training are worth (docs/benchmarks.md).
enum class OptimizerControl : std::uint8_t { none, no_master, frozen_matrices };

struct OptimizerOptions {
  std::string name = "adamw8";
  std::array<double, kParamGroups> peak_lr{};  // by ParamGroup
  double beta1 = 0.8;
  double beta2 = 0.95;
  double eps = 1e-10;
  double weight_decay = 0;  // of matrices, embedding and head; never of norm weights and biases
  double max_norm = 1.0;    // global-norm clipping after accumulation; 0: off
  bool paged = true;        // master and moments in host memory
  // f32, or bf16 of matrices, embedding and head, which updates then round stochastically with draws from
  // `seed`. Vectors keep f32: they weigh nothing, and are added in f32.
  DType master = DType::f32;
  std::uint64_t seed = 0;
  OptimizerControl control = OptimizerControl::none;
};

// A named piece of state for checkpoints and hashes. The shape is the tensor's own where it has one.
struct NamedView {
  std::string name;
  TensorView view;
  StoredLayout layout;  // of the view in memory, against that of files
};

struct StepStats {
  double loss = 0;  // nats per scored token over the window
  double norm = 0;  // global gradient norm before clipping
  bool finite = true;
  double tokens = 0;  // scored ones

  // Whether update() changes anything: a window without a scored token has no gradient and counts as no
  // update.
  bool applied() const { return finite && tokens > 0; }
};

class Optimizer {
 public:
  // Places its memory: master and moments in `host` when paged, else in `state`; scalars in `state`. `params`
  // must outlive the optimizer and have their compute copies and gradients placed. `gradients` are the
  // regions that hold them all. max_slab_bytes bounds what is paged at once; the result does not depend on
  // it. ConfigError for an unknown name, a beta outside [0, 1) or a master neither f32 nor bf16.
  Optimizer(Backend& backend, Arena& state, Arena& host, ParamList& params, std::vector<TensorView> gradients,
            OptimizerOptions options, std::int64_t max_slab_bytes = kMaxSlabBytes);
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  const OptimizerOptions& options() const { return options_; }

  // Fresh weights: draws every master from (seed, the param's stream), rounded to nearest where it is bf16,
  // and encodes it. Moments start at zero.
  void init_weights(Arena& step, std::uint64_t seed);
  // Masters were written from outside: encode all compute copies again.
  void encode_weights(Arena& step);

  // Phase "norm" (the caller opens it): norm, clipping factor and this step's constants. totals: f64 [2], the
  // window's sum of losses and its number of targets. t counts applied steps from 1 and names the draws of
  // the update that follows; gradient_tokens is what each token's gradient was divided by.
  StepStats measure(Arena& step, const TensorView& totals, double lr_multiplier, std::int64_t t,
                    double gradient_tokens);
  // Phase "optimizer_step" (the caller opens it). Throws DivergedError naming tensor and index when a weight
  // that is encoded is not finite; one that is not packed shows in the next loss.
  void update(Arena& step);

  // Streams everything in and out unchanged, as update() does, and computes nothing: for timing.
  void page_through(Arena& step);
  // Bytes that travel each way in one update when paged.
  std::int64_t paged_bytes() const;

  // master, m, v of every param in stored form, in a fixed order.
  std::vector<NamedView> state() const;

 private:
  struct ParamState {
    TensorView master;              // f32 | bf16 [n]
    TensorView m, v;                // f32 [n], or u8 codes [n]
    TensorView m_absmax, v_absmax;  // 8-bit only: f32 [ceil(n / 256)]
    bool eight_bit = false;
  };
  struct SlabOrigin {
    std::size_t param = 0;
    std::int64_t first = 0;
    std::int64_t elems = 0;
  };

  void cut_slabs(std::int64_t max_slab_bytes);
  // Views of elements [first, first + elems) of a param's state.
  Slab slab_of(std::size_t param, std::int64_t first, std::int64_t elems) const;
  void update_slab(const SlabOrigin& origin, std::span<const TensorView> parts);
  void encode_slab(const SlabOrigin& origin, const TensorView& master);
  void check_finite();

  Backend& backend_;
  Pager pager_;
  ParamList& params_;
  std::vector<TensorView> gradients_;
  OptimizerOptions options_;
  std::vector<ParamState> states_;
  std::vector<Slab> slabs_;
  std::vector<SlabOrigin> origins_;
  TensorView grad_sumsq_;   // f64 [gradient regions]
  TensorView step_params_;  // f32 [kStepParamFloats]
  TensorView stats_;        // f64 [kStepStatDoubles]
  TensorView bad_index_;    // f64 [params]
  std::int64_t t_ = 0;      // of the step measured last
};

}  // namespace qt
