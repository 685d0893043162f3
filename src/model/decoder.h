// Decoder: next-token logits with a key/value cache, one sequence at a time.
//
// All its memory is requested at construction, inside one open phase of the step arena: feeding tokens then
// runs ops only, so that any number of tokens fits the plan.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "src/model/model.h"

namespace qt {

class Decoder {
 public:
  // Room for max_tokens positions, at most the model's sequence length. The phase must stay open for the
  // decoder's life.
  Decoder(Model& model, std::int64_t max_tokens);

  std::int64_t position() const { return position_; }
  std::int64_t capacity() const { return max_tokens_; }
  // Forgets everything fed so far.
  void reset() { position_ = 0; }

  // Appends tokens and writes the f32 logits (after the softcap) that follow the last of them to `logits` (V
  // floats). Long prompts go through in pieces of kPrefillTokens. Throws ConfigError when they pass the
  // capacity.
  void feed(std::span<const std::int32_t> tokens, std::span<float> logits);

 private:
  static constexpr std::int64_t kPrefillTokens = 128;

  void feed_piece(std::span<const std::int32_t> tokens);
  void block(std::size_t index, std::int64_t n);
  void norm(const Norm& norm, const TensorView& x, const TensorView& y);

  Model& model_;
  std::int64_t max_tokens_;
  std::int64_t piece_tokens_;
  std::int64_t position_ = 0;

  std::vector<Buffer> k_cache_, v_cache_;  // per layer [capacity, G, D]
  Buffer ids_;                             // [P]
  Buffer x_, x1_, a_, q_, y_;              // [P, C]
  Buffer h_, r_;                           // [P, F]
  Buffer rstd_;                            // [P * max(1, H)] f32
  Buffer mean_;                            // [P] f32, LayerNorm only
  Buffer lse_;                             // [H * P] f32
  Buffer logits_;                          // [1, V] f32
  Buffer scratch_;
};

}  // namespace qt
