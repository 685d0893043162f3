// Update rules that live in tests alone: what a rule needs to be added, which is no production file.
#pragma once

#include "kernels/ops.h"
#include "kernels/scratch.h"
#include "optim/update_rule.h"

namespace qt::test {

// By the op AdamW with a second moment that stays 1:
//   m = beta1 m + (1 - beta1) factor grad,  master = decay master + s m
// `m`: f32 [n], or undefined: zeros that nobody keeps.
inline void descend(const SlabUpdate& slab, const TensorView& master, const TensorView& grad,
                    TensorView m = {}) {
  const std::int64_t n = master.elems();
  const Buffer zeros = slab.step.alloc("zeros", MemoryTag::scratch, DType::f32, {n});
  const Buffer ones = slab.step.alloc("ones", MemoryTag::scratch, DType::f32, {n});
  slab.backend.run(Fill{.x = zeros, .value = 0});
  slab.backend.run(Fill{.x = ones, .value = 1});
  slab.backend.run(AdamW{.master = master,
                         .grad = grad,
                         .m = m.defined() ? m : zeros.view(),
                         .v = ones,
                         .params = slab.step_params,
                         .group = slab.param.group,
                         .rng = slab.draws,
                         .first_element = slab.first});
}

inline AdamHyper descent_hyper(double lr, double weight_decay, double beta1) {
  const auto b1 = static_cast<float>(beta1);
  return {.s = static_cast<float>(-lr),
          .decay = static_cast<float>(1 - lr * weight_decay),
          .beta1 = b1,
          .one_minus_beta1 = 1.0f - b1,
          .beta2 = 1};
}

// Gradient descent: master = (1 - lr weight_decay) master - lr factor grad. Keeps nothing.
inline constexpr UpdateRule kSgd = {
    .name = "sgd",
    .hyper = [](const OptimizerOptions& o, ParamGroup, double lr,
                std::int64_t) { return descent_hyper(lr, o.weight_decay, 0); },
    .update = [](const SlabUpdate& slab) { descend(slab, slab.master, slab.grad); }};

// ---- a rule of whole matrices ----

inline void multiply(const MatrixUpdate& at, Matmul op) {
  Buffer scratch;
  if (const std::int64_t bytes = scratch_bytes(op, at.backend.target()); bytes > 0) {
    scratch = at.step.alloc(Matmul::kName, MemoryTag::scratch, DType::u8, {bytes});
    op.scratch = scratch;
  }
  at.backend.run(op);
}

inline constexpr StatePiece kMomentum[] = {{.name = "momentum"}};

// A step of the kind that makes a matrix orthogonal, on the momentum M of the gradient:
//   M = beta1 M + (1 - beta1) factor grad,  D = M + M M^T M,
//   master = (1 - lr weight_decay) master - lr (1 - beta1) factor D
// for matrices; AdamW for the others.
inline constexpr UpdateRule kCubic = {
    .name = "cubic",
    .state = kMomentum,
    .hyper = [](const OptimizerOptions& o, ParamGroup, double lr,
                std::int64_t) { return descent_hyper(lr, o.weight_decay, o.beta1); },
    .update = [](const SlabUpdate& slab) { descend(slab, slab.master, slab.direction); },
    .others = &rules::adamw,
    .gather =
        [](const SlabUpdate& slab) {
          const Buffer unused =
              slab.step.alloc("unused", MemoryTag::scratch, DType::f32, {slab.grad.elems()});
          slab.backend.run(Fill{.x = unused, .value = 0});
          descend(slab, unused, slab.grad, slab.state[0]);
          slab.backend.run(Cast{.x = slab.state[0], .y = slab.direction});
        },
    .transform =
        [](const MatrixUpdate& at) {
          const TensorView& M_NK = at.direction_NK;
          const std::int64_t N = at.param.N, K = at.param.K;
          const Buffer square_NN = at.step.alloc("square", MemoryTag::scratch, M_NK.dtype, {N, N});
          const Buffer cube_NK = at.step.alloc("cube", MemoryTag::scratch, M_NK.dtype, {N, K});
          multiply(at, {.a = M_NK, .b = M_NK, .c = square_NN, .layout = GemmLayout::nt});
          multiply(at, {.a = square_NN, .b = M_NK, .c = cube_NK, .layout = GemmLayout::nn});
          at.backend.run(Add{.a = M_NK, .b = cube_NK, .y = M_NK});
        },
    .direction = DType::f32};

// The same of the gradient itself: keeps nothing.
inline constexpr UpdateRule kCubicOfGradient = [] {
  UpdateRule rule = kCubic;
  rule.name = "cubic of the gradient";
  rule.state = {};
  rule.gather = [](const SlabUpdate& slab) { slab.backend.run(Cast{.x = slab.grad, .y = slab.direction}); };
  return rule;
}();

// As kCubic with a matrix of 16-bit numbers.
inline constexpr UpdateRule kCubic16 = [] {
  UpdateRule rule = kCubic;
  rule.name = "cubic16";
  rule.direction = DType::bf16;
  return rule;
}();

}  // namespace qt::test
