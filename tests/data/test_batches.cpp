// The order of batches as a pure function of seed and position, and evaluation rows that score every token
// once.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include <fmt/format.h>
#include <gtest/gtest.h>

#include "src/core/error.h"
#include "src/data/batches.h"
#include "tests/support/text.h"

namespace qt {
namespace {

using Ids = std::vector<std::int32_t>;

TEST(Permutation, IsABijectionForManySizes) {
  std::vector<std::int64_t> sizes(130);
  std::iota(sizes.begin(), sizes.end(), 1);
  for (const std::int64_t n : {255, 256, 257, 1000, 4095, 4096, 4097, 65537}) sizes.push_back(n);
  for (const std::int64_t n : sizes) {
    const Permutation permutation(n, 42, 7);
    std::vector<bool> hit(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) {
      const std::int64_t to = permutation.at(i);
      ASSERT_TRUE(to >= 0 && to < n);
      ASSERT_FALSE(hit[static_cast<std::size_t>(to)]) << n;
      hit[static_cast<std::size_t>(to)] = true;
    }
  }
  // The largest sizes are only sampled: distinct places stay distinct.
  const Permutation huge(std::int64_t{1} << 50, 42, 7);
  std::set<std::int64_t> seen;
  for (std::int64_t i = 0; i < 1000; ++i) seen.insert(huge.at(i << 30));
  EXPECT_EQ(seen.size(), 1000u);
}

TEST(Permutation, DependsOnSeedAndEpochAndNothingElse) {
  const auto list = [](std::uint64_t seed, std::uint64_t epoch) {
    std::vector<std::int64_t> all;
    for (std::int64_t i = 0; i < 100; ++i) all.push_back(Permutation(100, seed, epoch).at(i));
    return all;
  };
  EXPECT_EQ(list(1, 0), list(1, 0));
  EXPECT_NE(list(1, 0), list(2, 0));
  EXPECT_NE(list(1, 0), list(1, 1));
  EXPECT_NE(list(1, 0), list(std::uint64_t{1} << 40 | 1, 0));
}

TEST(Permutation, LooksRandom) {
  // Displacement of a random permutation averages n/3 with a standard deviation of about n * 0.3 / sqrt(n);
  // neighbours that stay neighbours are about two in all.
  constexpr std::int64_t n = 10007;
  const Permutation permutation(n, 3, 0);
  double moved = 0;
  int neighbours = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    moved += std::abs(static_cast<double>(permutation.at(i) - i));
    if (i > 0 && std::abs(permutation.at(i) - permutation.at(i - 1)) == 1) ++neighbours;
  }
  EXPECT_NEAR(moved / n, n / 3.0, 5 * 0.3 * std::sqrt(n));
  EXPECT_LT(neighbours, 15);
}

class Batches : public testing::Test {
 protected:
  // Tokens 0, 1, 2, ...: a token is its own position. Shards of awkward lengths.
  TokenStream stream(std::int64_t tokens) {
    std::vector<ShardReader> readers;
    std::int64_t begin = 0;
    for (int shard = 0; begin < tokens; ++shard) {
      const std::int64_t n = std::min<std::int64_t>(tokens - begin, 1 + (shard * 37) % 101);
      Ids ids(static_cast<std::size_t>(n));
      std::iota(ids.begin(), ids.end(), static_cast<std::int32_t>(begin));
      readers.emplace_back(write_shard(folder_ / fmt::format("s{}.bin", shard), ids), 65536);
      begin += n;
    }
    return TokenStream(std::move(readers));
  }
  static std::filesystem::path write_shard(const std::filesystem::path& path, const Ids& ids) {
    ShardWriter writer(path, 65536, std::string(32, 'a'));
    writer.append(ids);
    writer.finish(posix_fs(), 0);
    return path;
  }
  Folder folder_;
};

TEST_F(Batches, AnEpochVisitsEveryRowOnceAndTargetsAreInputsOneFurther) {
  const TokenBatches batches(stream(1003), 10, 5);
  ASSERT_EQ(batches.rows_per_epoch(), 100);
  Ids inputs(1000), targets(1000);
  for (const std::int64_t epoch : {0, 1, 5}) {
    batches.fill(100 * epoch, 100, inputs, targets);
    std::vector<int> starts;
    for (std::size_t r = 0; r < 100; ++r) {
      starts.push_back(inputs[10 * r] / 10);
      for (std::size_t i = 0; i < 10; ++i) {
        ASSERT_EQ(inputs[10 * r + i], inputs[10 * r] + static_cast<int>(i));
        ASSERT_EQ(targets[10 * r + i], inputs[10 * r + i] + 1);
      }
    }
    EXPECT_FALSE(std::is_sorted(starts.begin(), starts.end()));
    std::sort(starts.begin(), starts.end());
    for (int r = 0; r < 100; ++r) ASSERT_EQ(starts[static_cast<std::size_t>(r)], r);
  }
}

TEST_F(Batches, AnyPositionIsReachedAtOnceAndEqualsWalkingThere) {
  const TokenBatches batches(stream(2000), 7, 9);
  Ids all_in(7 * 900), all_out(7 * 900);
  batches.fill(0, 900, all_in, all_out);  // more than three epochs of 285 rows
  for (const std::int64_t first : {0, 1, 284, 285, 286, 600, 897}) {
    Ids in(7 * 3), out(7 * 3);
    batches.fill(first, 3, in, out);
    EXPECT_TRUE(std::equal(in.begin(), in.end(), all_in.begin() + 7 * first)) << first;
    EXPECT_TRUE(std::equal(out.begin(), out.end(), all_out.begin() + 7 * first)) << first;
  }
  Ids in(7), out(7);
  EXPECT_NO_THROW(batches.fill((std::int64_t{1} << 52) + 3, 1, in, out));
  EXPECT_THROW(batches.fill(0, 2, in, out), ShapeError);
  EXPECT_THROW(batches.fill(-1, 1, in, out), ShapeError);
}

TEST_F(Batches, SequentialOrderFollowsTheText) {
  const TokenBatches batches(stream(101), 10, 5, RowOrder::sequential);
  Ids inputs(120), targets(120);
  batches.fill(0, 12, inputs, targets);  // ten rows, then the next epoch
  for (int i = 0; i < 120; ++i) EXPECT_EQ(inputs[static_cast<std::size_t>(i)], i % 100);
}

TEST_F(Batches, RandomOrderDrawsEachRowFromSeedAndPositionAlone) {
  constexpr std::int64_t kTokens = 1003, kRow = 10, kRows = 20'000;
  const TokenBatches batches(stream(kTokens), kRow, 5, RowOrder::random);
  Ids inputs(kRow * kRows), targets(kRow * kRows);
  batches.fill(0, kRows, inputs, targets);
  std::vector<int> hits(kTokens - kRow);
  bool off_the_grid = false;
  for (std::size_t r = 0; r < kRows; ++r) {
    const std::int32_t start = inputs[kRow * r];
    ASSERT_TRUE(start >= 0 && start < kTokens - kRow);
    ++hits[static_cast<std::size_t>(start)];
    off_the_grid |= start % kRow != 0;
    for (std::size_t i = 0; i < kRow; ++i) {
      ASSERT_EQ(inputs[kRow * r + i], start + static_cast<int>(i));
      ASSERT_EQ(targets[kRow * r + i], start + static_cast<int>(i) + 1);
    }
  }
  EXPECT_TRUE(off_the_grid);
  // Every start is possible, the first and the last too (a mean of 20 hits: none is missed but once in 10^6),
  // and chi-squared over 993 places stays within five standard deviations of its mean.
  EXPECT_EQ(std::count(hits.begin(), hits.end(), 0), 0);
  const double mean = static_cast<double>(kRows) / static_cast<double>(hits.size());
  double chi = 0;
  for (const int count : hits) chi += (count - mean) * (count - mean) / mean;
  EXPECT_NEAR(chi, 992, 5 * std::sqrt(2 * 992.0));

  for (const std::int64_t first :
       {0, 1, 99, 100, 101, 19'997}) {  // any position at once, also past an "epoch"
    Ids in(kRow * 3), out(kRow * 3);
    batches.fill(first, 3, in, out);
    EXPECT_TRUE(std::equal(in.begin(), in.end(), inputs.begin() + kRow * first)) << first;
  }
  Ids other(kRow * 100), out(kRow * 100), again(kRow * 100);
  TokenBatches(stream(kTokens), kRow, 6, RowOrder::random).fill(0, 100, other, out);
  TokenBatches(stream(kTokens), kRow, 5, RowOrder::random).fill(0, 100, again, out);
  EXPECT_FALSE(std::equal(other.begin(), other.end(), inputs.begin()));
  EXPECT_TRUE(std::equal(again.begin(), again.end(), inputs.begin()));
  EXPECT_NO_THROW(
      batches.fill((std::int64_t{1} << 52) + 3, 3, std::span(other).first(30), std::span(out).first(30)));
}

TEST_F(Batches, RandomOrderOfTheShortestStreamIsItsOnlyRow) {
  const TokenBatches batches(stream(11), 10, 5, RowOrder::random);
  Ids in(50), out(50);
  batches.fill(0, 5, in, out);
  for (std::size_t r = 0; r < 5; ++r) EXPECT_EQ(in[10 * r], 0);
}

TEST_F(Batches, TooLittleDataForOneRowSaysHowMuchIsNeeded) {
  EXPECT_NO_THROW(TokenBatches(stream(11), 10, 1));
  EXPECT_NE(
      thrown<DataError>([&] { TokenBatches(stream(10), 10, 1); }).find("has 10 tokens, one row needs 11"),
      std::string::npos);
  EXPECT_THROW(TokenStream({}), DataError);
}

TEST_F(Batches, EvaluationScoresEveryTokenButTheFirstExactlyOnce) {
  for (const std::int64_t tokens : {2, 10, 11, 12, 101, 205}) {
    std::vector<std::int32_t> bytes(300, 3);
    bytes[1] = 0;  // as for a special token
    const EvalBatches eval(stream(tokens), 10, bytes);
    ASSERT_EQ(eval.targets(), tokens - 1);
    EXPECT_EQ(eval.total_bytes(), 3 * (tokens - 2));
    std::vector<int> scored(static_cast<std::size_t>(tokens), 0);
    std::int64_t sum = 0;
    for (std::int64_t row = 0; row < eval.rows() + 3; row += 4) {  // reaches beyond the last row
      Ids inputs(40), targets(40);
      eval.fill(row, 4, inputs, targets);
      for (std::size_t i = 0; i < 40; ++i) {
        sum += eval.bytes_of(targets[i]);
        if (targets[i] == EvalBatches::kIgnore) {
          EXPECT_EQ(inputs[i], 0);
          continue;
        }
        EXPECT_EQ(targets[i], inputs[i] + 1);
        ++scored[static_cast<std::size_t>(targets[i])];
      }
    }
    EXPECT_EQ(scored[0], 0);
    EXPECT_TRUE(std::all_of(scored.begin() + 1, scored.end(), [](int times) { return times == 1; }));
    EXPECT_EQ(sum, eval.total_bytes());
  }
  EXPECT_EQ(EvalBatches(stream(205), 10, std::vector<std::int32_t>(300, 1), 50).targets(), 50);
  EXPECT_THROW(EvalBatches(stream(1), 10, std::vector<std::int32_t>(300, 1)), DataError);
  EXPECT_THROW(EvalBatches(stream(205), 10, std::vector<std::int32_t>(100, 1)), DataError);
}

TEST_F(Batches, WithoutAVocabularyEveryTargetIsScoredAndThereAreNoBytes) {
  std::vector<std::int32_t> bytes(300, 3);
  bytes[7] = 0;
  const EvalBatches known(stream(205), 10, bytes),
      unknown(stream(205), 10, std::vector<std::int32_t>(300, 0));
  EXPECT_TRUE(known.bytes_known());
  EXPECT_FALSE(unknown.bytes_known());
  EXPECT_EQ(unknown.total_bytes(), 0);
  for (const std::int32_t id : {0, 7, 299}) {
    EXPECT_EQ(known.scored(id), id != 7);
    EXPECT_TRUE(unknown.scored(id));
  }
  EXPECT_FALSE(known.scored(EvalBatches::kIgnore));
  EXPECT_FALSE(unknown.scored(EvalBatches::kIgnore));
}

}  // namespace
}  // namespace qt
