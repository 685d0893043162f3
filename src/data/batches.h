// Rows of tokens for training and for evaluation. The order is a pure function of (seed, position): there is
// no state to save, and any position is reached at once.
//
// T row length in tokens; a row is T inputs and, one further, T targets
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "src/data/shard.h"

namespace qt {

// A pseudo-random permutation of [0, n): a Feistel network over the next even number of bits, with Philox as
// its round function, walked until it lands inside (at most four applications on average). at() costs the
// same everywhere.
class Permutation {
 public:
  Permutation(std::int64_t n, std::uint64_t seed, std::uint64_t epoch);  // n >= 1
  std::int64_t at(std::int64_t i) const;                                 // 0 <= i < n

 private:
  std::uint64_t n_;
  std::uint64_t seed_, epoch_;
  int half_bits_;
};

// The tokens of several shards as one sequence, in the order of the list.
class TokenStream {
 public:
  explicit TokenStream(std::vector<ShardReader> shards);  // DataError when there is none
  std::int64_t tokens() const { return starts_.back(); }
  // out[i] = token begin + i, across shards; begin + out.size() <= tokens().
  void copy(std::int64_t begin, std::span<std::int32_t> out) const;

 private:
  std::vector<ShardReader> shards_;
  std::vector<std::int64_t> starts_;  // of each shard, and the total
};

enum class RowOrder { shuffled, sequential, random };

// Training rows over the whole stream; rows may cross from one shard into the next.
//
// shuffled, sequential: consecutive windows of T tokens; the last (tokens - 1) % T tokens of the stream are
// left out. Position p of a run is row p % rows_per_epoch() of epoch p / rows_per_epoch(); shuffled, each
// epoch has an order of its own.
//
// random: as nanoGPT draws them. Each row starts at a token of its own, uniform in [0, tokens - T),
// independent of all others: there are no epochs, and some tokens come twice before others come once.
class TokenBatches {
 public:
  // DataError when the stream is shorter than T + 1 tokens.
  TokenBatches(TokenStream stream, std::int64_t row_tokens, std::uint64_t seed,
               RowOrder order = RowOrder::shuffled);

  std::int64_t tokens() const { return stream_.tokens(); }
  // random: rows that hold as many tokens as the stream.
  std::int64_t rows_per_epoch() const { return rows_; }
  std::int64_t row_tokens() const { return row_tokens_; }

  // Positions first_row .. first_row + rows - 1 of the run, first_row >= 0. inputs and targets: [rows, T]
  // each.
  void fill(std::int64_t first_row, std::int64_t rows, std::span<std::int32_t> inputs,
            std::span<std::int32_t> targets) const;

 private:
  std::int64_t first_token(std::int64_t position) const;

  TokenStream stream_;
  std::int64_t row_tokens_, rows_;
  std::uint64_t seed_;
  RowOrder order_;
};

// Evaluation rows: every token but the first is the target of exactly one place, in order. What is left of
// the last row is padded with input 0 and target kIgnore. A token sees the tokens before it in its row.
class EvalBatches {
 public:
  static constexpr std::int32_t kIgnore = -1;

  // token_bytes: Tokenizer::token_bytes_table(); all 0 where the vocabulary is not known, and then there are
  // no bits per byte and every target counts. max_targets limits the evaluation to the first so many targets
  // (0: all).
  EvalBatches(TokenStream stream, std::int64_t row_tokens, std::vector<std::int32_t> token_bytes,
              std::int64_t max_targets = 0);

  std::int64_t rows() const { return (targets_ + row_tokens_ - 1) / row_tokens_; }
  std::int64_t row_tokens() const { return row_tokens_; }
  std::int64_t targets() const { return targets_; }

  // Bytes of text that all targets stand for: the divisor of bits per byte.
  std::int64_t total_bytes() const { return total_bytes_; }
  bool bytes_known() const { return bytes_known_; }
  // Whether the loss of a target counts: not for kIgnore, nor for special tokens where they can be told.
  bool scored(std::int32_t target) const {
    return target >= 0 && (!bytes_known_ || token_bytes_[static_cast<std::size_t>(target)] > 0);
  }
  // Of one target; 0 for special tokens and kIgnore.
  std::int32_t bytes_of(std::int32_t target) const {
    return target < 0 ? 0 : token_bytes_[static_cast<std::size_t>(target)];
  }

  // Rows first_row .. first_row + rows - 1; rows beyond rows() are all padding, so that batches can have one
  // shape.
  void fill(std::int64_t first_row, std::int64_t rows, std::span<std::int32_t> inputs,
            std::span<std::int32_t> targets) const;

 private:
  TokenStream stream_;
  std::int64_t row_tokens_;
  std::vector<std::int32_t> token_bytes_;
  bool bytes_known_ = true;
  std::int64_t targets_ = 0, total_bytes_ = 0;
};

}  // namespace qt
