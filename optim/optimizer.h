// Optimizer: updates Params by an UpdateRule. Owns the master and what the rule keeps, resident or paged; writes the
// compute copies.
//
// One step is two phases of the step arena. "norm" reads all gradients once and leaves the step's constants
// in device memory; "optimizer_step" then streams master and state through the device, updates, and
// re-encodes the compute copy in the same pass. A non-finite norm ends the step after the first phase:
// nothing has been written.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "optim/update_rule.h"
#include "quant/param.h"
#include "quant/stored_layout.h"
#include "src/memory/arena.h"
#include "src/memory/pager.h"

namespace qt {

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
  // Places its memory: master and state in `host` when paged, else in `state`; scalars in `state`. `params`
  // must outlive the optimizer and have their compute copies and gradients placed. `gradients` are the
  // regions that hold them all. max_slab_bytes bounds what is paged at once; the result does not depend on
  // it. ConfigError for a beta outside [0, 1) or a master neither f32 nor bf16.
  Optimizer(Backend& backend, Arena& state, Arena& host, ParamList& params, std::vector<TensorView> gradients,
            const OptimizerOptions& options, std::int64_t max_slab_bytes = kMaxSlabBytes);
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  const OptimizerOptions& options() const { return options_; }

  // Fresh weights: draws every master from (seed, the param's stream), rounded to nearest where it is bf16,
  // and encodes it. State starts as its StatePiece says.
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

  // Of every param the master, then the state in the order of the rule.
  std::vector<NamedView> state() const;

 private:
  struct ParamState {
    TensorView master;               // f32 | bf16 [n]
    std::vector<TensorView> pieces;  // as UpdateRule::state lists them
  };
  // Of a rule that gathers, a slab holds either the state or the master.
  struct SlabOrigin {
    std::size_t param = 0;
    bool has_master = true;
    bool has_state = true;
    std::int64_t first = 0;
    std::int64_t elems = 0;
  };

  const UpdateRule& rule_of(ParamGroup group) const;
  // Appends slabs that cover a param, with the parts that `origin` says.
  void cut_slabs(SlabOrigin origin, std::int64_t max_slab_bytes);
  Slab slab_of(const SlabOrigin& origin) const;
  static std::span<const TensorView> state_in(const SlabOrigin& origin, std::span<const TensorView> parts);
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
