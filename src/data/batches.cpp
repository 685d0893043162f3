#include "src/data/batches.h"

#include <algorithm>
#include <bit>

#include "src/core/error.h"
#include "src/core/rng.h"

namespace qt {

Permutation::Permutation(std::int64_t n, std::uint64_t seed, std::uint64_t epoch)
    : n_(static_cast<std::uint64_t>(n)), seed_(seed), epoch_(epoch) {
  QT_CHECK(n >= 1, ConfigError, "a permutation of {} elements", n);
  half_bits_ = std::max(1, (static_cast<int>(std::bit_width(n_ - 1)) + 1) / 2);
}

std::int64_t Permutation::at(std::int64_t i) const {
  // Four rounds make a pseudo-random permutation of a large domain (Luby and Rackoff, 1988); eight also mix
  // small ones.
  constexpr std::uint64_t kRounds = 8;
  const RngStream stream{seed_, RngPurpose::data_order, epoch_};
  const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
  auto value = static_cast<std::uint64_t>(i);
  do {
    std::uint64_t left = value >> half_bits_, right = value & mask;
    for (std::uint64_t round = 0; round < kRounds; ++round) {
      const auto draw = rng_block(stream, (round << 32) | right);
      const std::uint64_t mixed = left ^ (((std::uint64_t{draw[1]} << 32) | draw[0]) & mask);
      left = right;
      right = mixed;
    }
    value = (left << half_bits_) | right;
  } while (value >= n_);
  return static_cast<std::int64_t>(value);
}

TokenStream::TokenStream(std::vector<ShardReader> shards) : shards_(std::move(shards)), starts_{0} {
  QT_CHECK(!shards_.empty(), DataError, "there is no token shard to read");
  for (const ShardReader& shard : shards_) starts_.push_back(starts_.back() + shard.tokens());
}

void TokenStream::copy(std::int64_t begin, std::span<std::int32_t> out) const {
  QT_CHECK(begin >= 0 && static_cast<std::int64_t>(out.size()) <= tokens() - begin, DataError,
           "tokens {} to {} lie beyond the {} of the data", begin,
           begin + static_cast<std::int64_t>(out.size()), tokens());
  auto shard =
      static_cast<std::size_t>(std::upper_bound(starts_.begin(), starts_.end(), begin) - starts_.begin()) - 1;
  while (!out.empty()) {
    const std::int64_t n =
        std::min<std::int64_t>(static_cast<std::int64_t>(out.size()), starts_[shard + 1] - begin);
    shards_[shard].copy(begin - starts_[shard], out.first(static_cast<std::size_t>(n)));
    out = out.subspan(static_cast<std::size_t>(n));
    begin += n;
    ++shard;
  }
}

TokenBatches::TokenBatches(TokenStream stream, std::int64_t row_tokens, std::uint64_t seed, RowOrder order)
    : stream_(std::move(stream)), row_tokens_(row_tokens), seed_(seed), order_(order) {
  QT_CHECK(row_tokens > 0, ConfigError, "rows of {} tokens", row_tokens);
  rows_ = (stream_.tokens() - 1) / row_tokens;
  if (rows_ < 1) {
    throw DataError(
        fmt::format("the training data has {} tokens, one row needs {}", stream_.tokens(), row_tokens + 1),
        "use more text or a smaller --seq-len");
  }
}

std::int64_t TokenBatches::first_token(std::int64_t position) const {
  if (order_ == RowOrder::random) {
    // A stream that no epoch of a permutation has. The remainder prefers small offsets by less than one part
    // in 2^64 / tokens.
    const RngStream draws{seed_, RngPurpose::data_order, ~std::uint64_t{0}};
    const auto bits = rng_block(draws, static_cast<std::uint64_t>(position));
    const std::uint64_t draw = (std::uint64_t{bits[1]} << 32) | bits[0];
    return static_cast<std::int64_t>(draw % static_cast<std::uint64_t>(stream_.tokens() - row_tokens_));
  }
  const std::int64_t epoch = position / rows_, index = position % rows_;
  if (order_ == RowOrder::sequential) return index * row_tokens_;
  return Permutation(rows_, seed_, static_cast<std::uint64_t>(epoch)).at(index) * row_tokens_;
}

void TokenBatches::fill(std::int64_t first_row, std::int64_t rows, std::span<std::int32_t> inputs,
                        std::span<std::int32_t> targets) const {
  const auto T = static_cast<std::size_t>(row_tokens_);
  const auto elems = static_cast<std::size_t>(rows) * T;
  QT_CHECK(first_row >= 0 && rows >= 0 && inputs.size() == elems && targets.size() == elems, ShapeError,
           "{} rows of {} tokens do not match buffers of {} and {}", rows, T, inputs.size(), targets.size());
  std::vector<std::int32_t> row(T + 1);
  for (std::int64_t r = 0; r < rows; ++r) {
    stream_.copy(first_token(first_row + r), row);
    const auto to = static_cast<std::ptrdiff_t>(static_cast<std::size_t>(r) * T);
    std::copy(row.begin(), row.end() - 1, inputs.begin() + to);
    std::copy(row.begin() + 1, row.end(), targets.begin() + to);
  }
}

EvalBatches::EvalBatches(TokenStream stream, std::int64_t row_tokens, std::vector<std::int32_t> token_bytes,
                         std::int64_t max_targets)
    : stream_(std::move(stream)), row_tokens_(row_tokens), token_bytes_(std::move(token_bytes)) {
  QT_CHECK(row_tokens > 0, ConfigError, "rows of {} tokens", row_tokens);
  bytes_known_ = std::any_of(token_bytes_.begin(), token_bytes_.end(), [](auto bytes) { return bytes > 0; });
  targets_ = stream_.tokens() - 1;
  if (max_targets > 0) targets_ = std::min(targets_, max_targets);
  if (targets_ < 1) {
    throw DataError(fmt::format("the validation data has {} tokens: nothing to predict", stream_.tokens()),
                    "use more text, or a larger --val-fraction");
  }
  std::vector<std::int32_t> chunk(std::size_t{1} << 16);
  for (std::int64_t done = 0; done < targets_;) {
    const auto n = static_cast<std::size_t>(
        std::min<std::int64_t>(targets_ - done, static_cast<std::int64_t>(chunk.size())));
    const std::span<std::int32_t> part(chunk.data(), n);
    stream_.copy(1 + done, part);
    for (const std::int32_t id : part) {
      QT_CHECK(static_cast<std::size_t>(id) < token_bytes_.size(), DataError,
               "the validation data has token {}, the tokenizer only {}", id, token_bytes_.size());
      total_bytes_ += bytes_of(id);
    }
    done += static_cast<std::int64_t>(n);
  }
}

void EvalBatches::fill(std::int64_t first_row, std::int64_t rows, std::span<std::int32_t> inputs,
                       std::span<std::int32_t> targets) const {
  const auto T = static_cast<std::size_t>(row_tokens_);
  const auto elems = static_cast<std::size_t>(rows) * T;
  QT_CHECK(first_row >= 0 && rows >= 0 && inputs.size() == elems && targets.size() == elems, ShapeError,
           "{} rows of {} tokens do not match buffers of {} and {}", rows, T, inputs.size(), targets.size());
  std::fill(inputs.begin(), inputs.end(), 0);
  std::fill(targets.begin(), targets.end(), kIgnore);
  const std::int64_t begin = first_row * row_tokens_;
  const std::int64_t n = std::clamp<std::int64_t>(targets_ - begin, 0, static_cast<std::int64_t>(elems));
  stream_.copy(std::min(begin, targets_), inputs.first(static_cast<std::size_t>(n)));
  stream_.copy(std::min(begin + 1, targets_), targets.first(static_cast<std::size_t>(n)));
}

}  // namespace qt
