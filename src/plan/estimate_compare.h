// The choices that `qtrain estimate --compare` puts beside a run: each is planned like the run itself.
#pragma once

#include "src/plan/estimate_text.h"

namespace qt {

// The same model with other weights, smaller models, fewer tokens, and the same run at less power. The first
// row has 16-bit weights; losses are given as the distance above its loss. A choice that fits only with --ckpt-activations takes
// it and says so. input.card must be set.
CompareTable compare_choices(const PlanRequest& request, const EstimateInput& input);

}  // namespace qt
