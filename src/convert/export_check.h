// A forward pass over a few tokens that holds a strip of one matrix at a time: what an export is checked with
// where the whole model would not fit. Plain f32 on the host, written from the model's definition and not
// from the ops: slow, and an oracle for them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "src/convert/param_source.h"
#include "src/model/config.h"
#include "src/model/params.h"

namespace qt {

inline constexpr std::int64_t kStreamedTokens = 16;

// f32 logits after the softcap, [ids.size(), V]. At most kStreamedTokens ids, and no more than the model's
// positions; up to four are quicker. Deterministic: each sum runs in the order of its elements.
std::vector<float> streamed_logits(const ModelConfig& config, const ModelParams& model, ParamSource& source,
                                   std::span<const std::int32_t> ids);

}  // namespace qt
