// The oracle of an export: a forward pass over a few tokens, by which export compares what it has written with
// what it meant to write, also where the whole model would not fit, since it holds a strip of one matrix at a time.
//
// Plain f32 on the host, written from the definition of the model. It deliberately shares no code with Block and the
// ops: a mistake in one of them does not hide in the other. tests/convert/test_export.cpp compares both. Slow.
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
