// Learns the merges of a byte-level BPE from text that is already cut into pieces: count each distinct piece,
// then join the most frequent pair of neighbours again and again (Sennrich et al., 2016). Memory stays
// bounded whatever the size of the corpus.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace qt {

// Distinct pieces and how often each occurred.
class PieceCounts {
 public:
  // 8 MiB of distinct pieces are about a million words; learning from them takes about 0.3 GiB. When a corpus
  // has more, the rarest are dropped until half of that is left, so that a count is exact as long as the cap
  // was never reached and otherwise short by at most pruned_below() per drop.
  static constexpr std::size_t kMaxBytes = std::size_t{8} << 20;

  explicit PieceCounts(std::size_t max_bytes = kMaxBytes);
  void add(std::string_view piece, std::int64_t times = 1);

  std::size_t size() const { return entries_.size(); }
  std::string_view piece(std::size_t i) const {
    return std::string_view(bytes_).substr(entries_[i].offset, entries_[i].length);
  }
  std::int64_t count(std::size_t i) const { return entries_[i].count; }
  std::size_t total_bytes() const { return bytes_.size(); }
  std::int64_t pruned_below() const { return pruned_below_; }  // 0: nothing was ever dropped

 private:
  struct Entry {
    std::uint32_t offset = 0, length = 0;
    std::int64_t count = 0;
  };
  std::size_t find_slot(std::string_view piece) const;
  void rebuild_slots();
  void prune();

  std::size_t max_bytes_;
  std::string bytes_;
  std::vector<Entry> entries_;
  std::vector<std::uint32_t> slots_;  // index into entries_ plus one; 0 is free
  std::int64_t pruned_below_ = 0;
};

// Returns the 256 single bytes followed by up to `merges` merged tokens; fewer when no pair is left. The pair
// joined next is the one with the highest count; among equals the one with the smallest (left id, right id).
// A run "aaa" counts the pair (a, a) twice, as nanochat's trainer does. `poll` is called now and then and may
// throw. The result does not depend on the order in which pieces were added.
std::vector<std::string> train_bpe(const PieceCounts& pieces, std::int64_t merges,
                                   const std::function<void()>& poll = {});

}  // namespace qt
