// The choices that `qtrain estimate --compare` puts beside a run: each is planned like the run itself.
#pragma once

#include "src/options/options.h"
#include "src/plan/estimate_text.h"

namespace qt {

// The same model with other weights, smaller models, fewer tokens, and the same run at less power. The first
// row has 16-bit weights; losses are given as the distance above its loss. `options`: what the user asked for; a choice that
// fits only with --ckpt-activations takes it and says so. input.card must be set.
CompareTable compare_choices(const Options& options, const Target& target, const Limits& limits,
                             std::int64_t vocab_size, const EstimateInput& input);

}  // namespace qt
