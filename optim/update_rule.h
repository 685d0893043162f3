// UpdateRule: what a method keeps of each parameter beside the master, and how it updates both. Optimizer
// (optim/optimizer.h) does the rest: memory, paging, the compute copies.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "kernels/backend.h"
#include "optim/rule_table.h"
#include "quant/param.h"
#include "quant/tensor_names.h"
#include "src/memory/arena.h"

namespace qt {

struct OptimizerOptions {
  const UpdateRule* rule = &rules::adamw8;     // outlives the optimizer
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
};

// Slabs are cut between blocks of so many elements of a parameter.
inline constexpr std::int64_t kStateBlock = 256;

// A tensor that a rule keeps for each of its parameters, paged with the master.
struct StatePiece {
  std::string_view name;
  // Holds the scales of the piece of this name: adamw8 has "m" in 8 bits, and the scales of "m" in f32.
  bool scales = false;
  DType dtype = DType::f32;
  std::int64_t block_elems = 1;  // elements of the parameter to one of the piece: a divisor of kStateBlock
  double initial = 0;            // of every element before the first step

  // Of the piece for n elements of the parameter.
  std::int64_t elems_of(std::int64_t n) const { return (n + block_elems - 1) / block_elems; }
  std::string tensor_name(const Param& p) const {
    const std::string codes = moment_of(name, p.name);
    return scales ? scales_of(codes) : codes;
  }
};

// Elements [first, first + n) of a parameter in one step. Views are dense, of rank 1, in device memory; `first` is
// a multiple of kStateBlock. master is not defined in UpdateRule::gather(), direction only for rules that have it;
// state is empty in the update() of such rules.
struct SlabUpdate {
  Backend& backend;
  Arena& step;  // in the phase optimizer_step: for scratch
  const Param& param;
  std::int64_t first = 0;
  TensorView master;                  // in/out [n] f32 | bf16
  TensorView grad;                    // in     [n] f32 | bf16
  std::span<const TensorView> state;  // in/out [elems_of(n)], as UpdateRule::state lists them
  TensorView direction;               // out of gather(), in of update(): [n] UpdateRule::direction
  TensorView step_params;             // in     [kStepParamFloats] f32, of PrepareStep
  RngStream draws;                    // for rounding a bf16 master: element i takes draw first + i
};

// A whole parameter in one step, between gather() and update() of its slabs.
struct MatrixUpdate {
  Backend& backend;
  Arena& step;  // as above
  const Param& param;
  TensorView direction_NK;  // in/out [N, K] UpdateRule::direction
  TensorView step_params;   // in     [kStepParamFloats] f32
};

// How a parameter is updated. A rule that works element by element has update() alone, which gets a slab's master,
// state and gradient. A rule that works on whole matrices has three passes over each parameter:
//   gather     slab by slab: updates the state by the gradient, and writes what the matrix is made of
//   transform  ops on the matrix [N, K], which lies in the step arena
//   update     slab by slab: applies the matrix to the master
// Master and state are never on the device as a whole, so that a matrix may be larger than a slab. The ops leave
// master and state alone when step_params says that the step is skipped. Results of gather() and update() must not
// depend on where slabs are cut.
struct UpdateRule {
  std::string_view name;
  std::span<const StatePiece> state;  // fewer than kMaxSlabParts
  // The constants of applied step t (from 1) for a group: what PrepareStep leaves in step_params.
  AdamHyper (*hyper)(const OptimizerOptions& options, ParamGroup group, double lr, std::int64_t t) = nullptr;
  void (*update)(const SlabUpdate& slab) = nullptr;
  // Updates embedding, head and norms; nullptr: this rule does.
  const UpdateRule* others = nullptr;

  void (*gather)(const SlabUpdate& slab) = nullptr;  // nullptr: the rule works element by element
  void (*transform)(const MatrixUpdate& matrix) = nullptr;
  DType direction = DType::bf16;  // of the matrix that is gathered
};

// AdamW's constants (quant/adam_math.h); vectors do not decay.
AdamHyper adamw_hyper(const OptimizerOptions& options, ParamGroup group, double lr, std::int64_t t);

// A rule of the table, or one that was added. Throws ConfigError listing their names.
const UpdateRule& update_rule_by_name(std::string_view name);
// Adds a rule that --optim may name and that lives to the end of the program: for programs that try a rule of
// their own. Not for several threads.
void add_update_rule(const UpdateRule& rule);

}  // namespace qt
