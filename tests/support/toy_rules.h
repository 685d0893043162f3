// Update rules that live in tests alone: what a rule needs to be added, which is no production file.
#pragma once

#include "kernels/ops.h"
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

}  // namespace qt::test
