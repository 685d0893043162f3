// How well token frequencies alone predict the validation text: the bar that a model has to get below.
#pragma once

#include <cstdint>
#include <span>

namespace qt {

// Bits per byte of the validation split under the token unigram model of the training split,
//
//   p(t) = (train[t] + 1) / (sum of train + V)                    add-one smoothing over all V tokens
//   bpb  = sum over t with bytes[t] > 0 of val[t] * -log2 p(t)  /  sum over t of val[t] * bytes[t]
//
// so special tokens (0 bytes) count in the model but are not scored, as in every other bits-per-byte figure
// here. The spans have the same length V. Returns 0 when the validation split stands for no bytes.
double unigram_bpb(std::span<const std::int64_t> train, std::span<const std::int64_t> val,
                   std::span<const std::int32_t> bytes);

}  // namespace qt
