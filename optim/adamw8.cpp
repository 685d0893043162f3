// AdamW with 8-bit block moments (quant/q8.h) of the matrices. Embedding, head and norms keep f32 moments.
#include "kernels/ops.h"
#include "optim/update_rule.h"
#include "quant/q8.h"

namespace qt {

namespace {

static_assert(kStateBlock % kQ8BlockElems == 0);

// Code 0 of the signed map is its most negative value, not zero.
constexpr StatePiece kMoments[] = {
    {.name = "m", .dtype = DType::u8, .initial = FirstMoment::kZeroCode},
    {.name = "v", .dtype = DType::u8, .initial = SecondMoment::kZeroCode},
    {.name = "m", .scales = true, .block_elems = kQ8BlockElems},
    {.name = "v", .scales = true, .block_elems = kQ8BlockElems},
};

void update(const SlabUpdate& slab) {
  slab.backend.run(AdamW8{.master = slab.master,
                          .grad = slab.grad,
                          .m_codes = slab.state[0],
                          .v_codes = slab.state[1],
                          .m_absmax = slab.state[2],
                          .v_absmax = slab.state[3],
                          .params = slab.step_params,
                          .group = slab.param.group,
                          .rng = slab.draws,
                          .first_element = slab.first});
}

}  // namespace

const UpdateRule rules::adamw8 = {
    .name = "adamw8", .state = kMoments, .hyper = adamw_hyper, .update = update, .others = &rules::adamw};

}  // namespace qt
