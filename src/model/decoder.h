// Decoder: next-token logits with a key/value cache, one sequence at a time.
//
// The forward pass is the Model's. Its buffers are the Decoder's: all memory is requested at construction,
// inside one open phase of the step arena, so that feeding any number of tokens fits the plan.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "src/memory/fixed_buffers.h"
#include "src/model/model.h"

namespace qt {

class Decoder {
 public:
  // Room for max_tokens positions, at most the model's sequence length. The phase must stay open for the
  // decoder's life.
  Decoder(Model& model, std::int64_t max_tokens);
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;

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

  void plan_buffers(BufferSource& step);
  // The largest scratch of any op of any piece, by running them on a backend that only counts.
  std::int64_t largest_scratch_bytes();
  static BatchContext batch_at(std::int64_t position) { return {.rows = 1, .first_position = position}; }

  Model& model_;
  std::int64_t max_tokens_;
  std::int64_t piece_tokens_;
  std::int64_t position_ = 0;

  std::vector<Buffer> cache_buffers_;
  std::vector<KeyValues> caches_;  // per layer [capacity, G, D]
  FixedBuffers memory_;
  StepContext ctx_;
  Buffer logits_;  // [1, V] f32
};

}  // namespace qt
