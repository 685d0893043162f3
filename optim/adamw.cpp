// AdamW with f32 moments.
#include "kernels/ops.h"
#include "optim/update_rule.h"

namespace qt {

namespace {

constexpr StatePiece kMoments[] = {{.name = "m"}, {.name = "v"}};

void update(const SlabUpdate& slab) {
  slab.backend.run(AdamW{.master = slab.master,
                         .grad = slab.grad,
                         .m = slab.state[0],
                         .v = slab.state[1],
                         .params = slab.step_params,
                         .group = slab.param.group,
                         .rng = slab.draws,
                         .first_element = slab.first});
}

}  // namespace

AdamHyper adamw_hyper(const OptimizerOptions& options, ParamGroup group, double lr, std::int64_t t) {
  const double decay = group != ParamGroup::norm ? options.weight_decay : 0.0;
  return adam_hyper(lr, options.beta1, options.beta2, options.eps, decay, t);
}

const UpdateRule rules::adamw = {.name = "adamw", .state = kMoments, .hyper = adamw_hyper, .update = update};

}  // namespace qt
