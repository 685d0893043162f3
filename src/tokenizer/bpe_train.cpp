#include "src/tokenizer/bpe_train.h"

#include <algorithm>
#include <bit>
#include <queue>

#include <xxhash.h>

#include "src/core/error.h"

namespace qt {

PieceCounts::PieceCounts(std::size_t max_bytes) : max_bytes_(max_bytes), slots_(1024, 0) {}

std::size_t PieceCounts::find_slot(std::string_view piece) const {
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = XXH3_64bits(piece.data(), piece.size()) & mask;
  while (slots_[slot] != 0 && this->piece(slots_[slot] - 1) != piece) slot = (slot + 1) & mask;
  return slot;
}

void PieceCounts::rebuild_slots() {
  slots_.assign(std::bit_ceil(4 * entries_.size() + 1024), 0);
  for (std::size_t i = 0; i < entries_.size(); ++i)
    slots_[find_slot(piece(i))] = static_cast<std::uint32_t>(i + 1);
}

void PieceCounts::add(std::string_view piece, std::int64_t times) {
  if (piece.empty()) return;
  std::size_t slot = find_slot(piece);
  if (slots_[slot] == 0) {
    if (bytes_.size() + piece.size() > max_bytes_ && !entries_.empty()) {
      prune();
      slot = find_slot(piece);
    }
    entries_.push_back(
        {static_cast<std::uint32_t>(bytes_.size()), static_cast<std::uint32_t>(piece.size()), 0});
    bytes_ += piece;
    slots_[slot] = static_cast<std::uint32_t>(entries_.size());
  }
  entries_[slots_[slot] - 1].count += times;
  if (2 * entries_.size() > slots_.size()) rebuild_slots();
}

// Drops every piece with a count up to the smallest one that leaves at most half of the bytes.
void PieceCounts::prune() {
  std::vector<std::size_t> order(entries_.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::sort(order.begin(), order.end(),
            [&](auto a, auto b) { return entries_[a].count > entries_[b].count; });
  std::size_t kept_bytes = 0;
  std::int64_t threshold = 0;
  for (const std::size_t i : order) {
    kept_bytes += entries_[i].length;
    if (kept_bytes > max_bytes_ / 2) {
      threshold = entries_[i].count;
      break;
    }
  }
  std::string bytes;
  std::vector<Entry> entries;
  for (std::size_t i = 0; i < entries_.size(); ++i) {
    if (entries_[i].count <= threshold) continue;
    entries.push_back({static_cast<std::uint32_t>(bytes.size()), entries_[i].length, entries_[i].count});
    bytes += piece(i);
  }
  bytes_.swap(bytes);
  entries_.swap(entries);
  pruned_below_ = std::max(pruned_below_, threshold + 1);
  rebuild_slots();
}

namespace {

constexpr std::int32_t kEdge = -1;  // stands between two pieces
constexpr std::uint32_t kNil = 0xFFFFFFFFu;

struct Pair {
  std::int32_t left = 0, right = 0;
  std::int64_t count = 0;
  std::uint32_t head = kNil, tail = kNil;  // occurrences, by position, in text order
};

struct Candidate {
  std::int64_t count = 0;
  std::int32_t left = 0, right = 0;
  std::uint32_t pair = 0;
  bool operator<(const Candidate& other) const {  // std::priority_queue gives the greatest first
    if (count != other.count) return count < other.count;
    if (left != other.left) return left > other.left;
    return right > other.right;
  }
};

// All distinct pieces in one array, an edge mark before, between and after them. A token is written at its
// first and at its last byte, so that both neighbours of a position can be found with the token lengths
// alone. Every adjacent pair is in the occurrence list of its kind, and only there: a merge touches just the
// places where it happens, and counts never have to be taken again. About 20 bytes per byte of text.
class Trainer {
 public:
  explicit Trainer(const PieceCounts& pieces);
  bool merge_next();  // false when no pair is left
  std::vector<std::string> take_tokens() { return std::move(tokens_); }

 private:
  std::uint32_t pair_index(std::int32_t left, std::int32_t right);
  void link(std::uint32_t pos, std::int32_t left, std::int32_t right);
  void unlink(std::uint32_t pos, std::int32_t left, std::int32_t right);
  void rehash();
  std::uint32_t length(std::int32_t token) const {
    return static_cast<std::uint32_t>(tokens_[static_cast<std::size_t>(token)].size());
  }
  std::size_t slot_of(std::int32_t left, std::int32_t right) const;

  std::vector<std::string> tokens_;
  std::vector<std::int32_t> sym_;
  std::vector<std::uint32_t> piece_of_, next_, prev_;
  std::vector<std::int64_t> weight_;
  std::vector<Pair> pairs_;
  std::vector<std::uint32_t> slots_;  // index into pairs_ plus one
  std::priority_queue<Candidate> heap_;
};

Trainer::Trainer(const PieceCounts& pieces) : slots_(1 << 16, 0) {
  for (int byte = 0; byte < 256; ++byte) tokens_.emplace_back(1, static_cast<char>(byte));
  const std::size_t total = pieces.total_bytes() + pieces.size() + 1;
  QT_CHECK(total < kNil, ConfigError, "BPE training: {} bytes of distinct pieces are too many", total);
  sym_.reserve(total);
  piece_of_.reserve(total);
  sym_.push_back(kEdge);
  piece_of_.push_back(0);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    weight_.push_back(pieces.count(i));
    for (const char c : pieces.piece(i)) {
      sym_.push_back(static_cast<unsigned char>(c));
      piece_of_.push_back(static_cast<std::uint32_t>(i));
    }
    sym_.push_back(kEdge);
    piece_of_.push_back(static_cast<std::uint32_t>(i));
  }
  next_.resize(sym_.size(), kNil);
  prev_.resize(sym_.size(), kNil);
  for (std::uint32_t pos = 1; pos + 1 < sym_.size(); ++pos) {
    if (sym_[pos] != kEdge && sym_[pos + 1] != kEdge) link(pos, sym_[pos], sym_[pos + 1]);
  }
  for (std::uint32_t i = 0; i < pairs_.size(); ++i)
    heap_.push({pairs_[i].count, pairs_[i].left, pairs_[i].right, i});
}

std::size_t Trainer::slot_of(std::int32_t left, std::int32_t right) const {
  const std::uint64_t key =
      (std::uint64_t{static_cast<std::uint32_t>(left)} << 32) | static_cast<std::uint32_t>(right);
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = static_cast<std::size_t>((key * 0x9E3779B97F4A7C15u) >> 32) & mask;
  while (slots_[slot] != 0) {
    const Pair& pair = pairs_[slots_[slot] - 1];
    if (pair.left == left && pair.right == right) break;
    slot = (slot + 1) & mask;
  }
  return slot;
}

void Trainer::rehash() {
  slots_.assign(2 * slots_.size(), 0);
  for (std::uint32_t i = 0; i < pairs_.size(); ++i) slots_[slot_of(pairs_[i].left, pairs_[i].right)] = i + 1;
}

std::uint32_t Trainer::pair_index(std::int32_t left, std::int32_t right) {
  std::size_t slot = slot_of(left, right);
  if (slots_[slot] == 0) {
    if (2 * (pairs_.size() + 1) > slots_.size()) {
      rehash();
      slot = slot_of(left, right);
    }
    pairs_.push_back({left, right});
    slots_[slot] = static_cast<std::uint32_t>(pairs_.size());
  }
  return slots_[slot] - 1;
}

void Trainer::link(std::uint32_t pos, std::int32_t left, std::int32_t right) {
  Pair& pair = pairs_[pair_index(left, right)];
  pair.count += weight_[piece_of_[pos]];
  prev_[pos] = pair.tail;
  next_[pos] = kNil;
  (pair.tail == kNil ? pair.head : next_[pair.tail]) = pos;
  pair.tail = pos;
}

void Trainer::unlink(std::uint32_t pos, std::int32_t left, std::int32_t right) {
  Pair& pair = pairs_[pair_index(left, right)];
  pair.count -= weight_[piece_of_[pos]];
  (prev_[pos] == kNil ? pair.head : next_[prev_[pos]]) = next_[pos];
  (next_[pos] == kNil ? pair.tail : prev_[next_[pos]]) = prev_[pos];
}

bool Trainer::merge_next() {
  // A count can only have fallen since its candidate was pushed: new occurrences always involve a new token.
  Candidate best;
  while (true) {
    if (heap_.empty()) return false;
    best = heap_.top();
    heap_.pop();
    const std::int64_t count = pairs_[best.pair].count;
    if (count == best.count) break;
    if (count > 0) heap_.push({count, best.left, best.right, best.pair});
  }
  const auto merged = static_cast<std::int32_t>(tokens_.size());
  tokens_.push_back(tokens_[static_cast<std::size_t>(best.left)] +
                    tokens_[static_cast<std::size_t>(best.right)]);
  const std::size_t first_new = pairs_.size();
  // Occurrences stand in text order, so a run "aaaa" is merged from its left.
  while (pairs_[best.pair].head != kNil) {
    const std::uint32_t pos = pairs_[best.pair].head;
    const std::uint32_t right_pos = pos + length(best.left), after_pos = right_pos + length(best.right);
    const std::int32_t before = sym_[pos - 1], after = sym_[after_pos];
    if (before != kEdge) {
      unlink(pos - length(before), before, best.left);
      link(pos - length(before), before, merged);
    }
    unlink(pos, best.left, best.right);
    if (after != kEdge) {
      unlink(right_pos, best.right, after);
      link(pos, merged, after);
    }
    sym_[pos] = sym_[after_pos - 1] = merged;
  }
  for (std::size_t i = first_new; i < pairs_.size(); ++i) {
    const Pair& pair = pairs_[i];
    if (pair.count > 0) heap_.push({pair.count, pair.left, pair.right, static_cast<std::uint32_t>(i)});
  }
  return true;
}

}  // namespace

std::vector<std::string> train_bpe(const PieceCounts& pieces, std::int64_t merges,
                                   const std::function<void()>& poll) {
  Trainer trainer(pieces);
  for (std::int64_t done = 0; done < merges; ++done) {
    if (poll && done % 64 == 0) poll();
    if (!trainer.merge_next()) break;
  }
  return trainer.take_tokens();
}

}  // namespace qt
