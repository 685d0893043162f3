#include "src/tokenizer/bpe.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <limits>

#include <xxhash.h>

#include "src/core/error.h"

namespace qt {
namespace {

// Up to here scanning all pairs for the best one is faster than keeping a heap.
constexpr std::size_t kShortPiece = 40;
constexpr std::int32_t kNone = std::numeric_limits<std::int32_t>::max();

// Open addressing at most half full.
std::size_t table_slots(std::size_t capacity) { return std::bit_ceil(2 * capacity + 2); }

std::uint64_t pair_key(std::int32_t left, std::int32_t right) {
  return (std::uint64_t{static_cast<std::uint32_t>(left)} << 32) | static_cast<std::uint32_t>(right);
}

}  // namespace

PairTable::PairTable(std::size_t capacity) : slots_(table_slots(capacity)) {}

std::size_t PairTable::slot_of(std::uint64_t key) const {
  const std::uint64_t mixed =
      key * 0x9E3779B97F4A7C15u;  // Fibonacci hashing: the high bits are the mixed ones
  const std::size_t mask = slots_.size() - 1;
  std::size_t slot = static_cast<std::size_t>(mixed >> 32) & mask;
  while (slots_[slot].merged >= 0 && slots_[slot].key != key) slot = (slot + 1) & mask;
  return slot;
}

void PairTable::insert(std::int32_t left, std::int32_t right, std::int32_t merged) {
  const std::uint64_t key = pair_key(left, right);
  slots_[slot_of(key)] = {key, merged};
}

std::int32_t PairTable::find(std::int32_t left, std::int32_t right) const {
  return slots_[slot_of(pair_key(left, right))].merged;
}

BpeVocab::BpeVocab(const std::vector<std::string>& tokens, const std::string& origin)
    : pairs_(tokens.size()), by_bytes_(table_slots(tokens.size()), -1) {
  QT_CHECK(tokens.size() >= 256, DataError, "{}: {} tokens, but the 256 single bytes alone are more", origin,
           tokens.size());
  std::fill(std::begin(byte_id_), std::end(byte_id_), -1);
  offsets_.push_back(0);
  BpeScratch scratch;
  std::vector<std::int32_t> made_of;
  for (std::size_t i = 0; i < tokens.size(); ++i) {
    const auto id = static_cast<std::int32_t>(i);
    const std::string& token = tokens[i];
    QT_CHECK(!token.empty() && token.size() <= kMaxTokenBytes, DataError,
             "{}: token {} has {} bytes (1 to {} are allowed)", origin, i, token.size(), kMaxTokenBytes);
    QT_CHECK(token.size() <= std::numeric_limits<std::uint32_t>::max() - bytes_.size(), DataError,
             "{}: the tokens before {} already fill 4 GiB", origin, i);
    if (i < 256) {
      QT_CHECK(token.size() == 1, DataError,
               "{}: token {} has {} bytes; the first 256 must be the single bytes", origin, i, token.size());
      auto& known = byte_id_[static_cast<unsigned char>(token[0])];
      QT_CHECK(known < 0, DataError, "{}: token {} repeats token {}", origin, i, known);
      known = id;
    } else {
      made_of.clear();
      encode_piece(token, made_of, scratch);
      QT_CHECK(made_of.size() != 1, DataError, "{}: token {} repeats token {}", origin, i, made_of[0]);
      QT_CHECK(made_of.size() == 2, DataError,
               "{}: token {} does not come from joining two earlier tokens (its bytes encode to {})", origin,
               i, made_of.size());
      parts_.emplace_back(made_of[0], made_of[1]);
      pairs_.insert(made_of[0], made_of[1], id);
    }
    bytes_ += token;
    offsets_.push_back(static_cast<std::uint32_t>(bytes_.size()));
    longest_bytes_ = std::max(longest_bytes_, token.size());
    add_token(id);
  }
}

void BpeVocab::add_token(std::int32_t id) {
  const std::size_t mask = by_bytes_.size() - 1;
  const std::string_view bytes = token(id);
  std::size_t slot = XXH3_64bits(bytes.data(), bytes.size()) & mask;
  while (by_bytes_[slot] >= 0) slot = (slot + 1) & mask;
  by_bytes_[slot] = id;
}

std::int32_t BpeVocab::find_token(std::string_view bytes) const {
  const std::size_t mask = by_bytes_.size() - 1;
  std::size_t slot = XXH3_64bits(bytes.data(), bytes.size()) & mask;
  while (by_bytes_[slot] >= 0 && token(by_bytes_[slot]) != bytes) slot = (slot + 1) & mask;
  return by_bytes_[slot];
}

void BpeVocab::encode_piece(std::string_view piece, std::vector<std::int32_t>& out, BpeScratch& s) const {
  if (piece.empty()) return;
  // A token's own bytes always encode to that token (the constructor made sure of it), and most pieces of
  // natural text are tokens.
  if (piece.size() <= longest_bytes_) {
    if (const std::int32_t id = find_token(piece); id >= 0) {
      ++s.steps;
      out.push_back(id);
      return;
    }
  }
  s.ids.resize(piece.size());
  for (std::size_t i = 0; i < piece.size(); ++i) s.ids[i] = byte_id_[static_cast<unsigned char>(piece[i])];
  piece.size() <= kShortPiece ? merge_short(s) : merge_long(s);
  out.insert(out.end(), s.ids.begin(), s.ids.end());
}

void BpeVocab::merge_short(BpeScratch& s) const {
  auto& ids = s.ids;
  s.rank.resize(ids.size());
  const auto rank_at = [&](std::size_t i) {
    ++s.steps;
    const std::int32_t merged = i + 1 < ids.size() ? pairs_.find(ids[i], ids[i + 1]) : -1;
    return merged < 0 ? kNone : merged;
  };
  for (std::size_t i = 0; i < ids.size(); ++i) s.rank[i] = rank_at(i);
  while (true) {
    // min_element gives the leftmost of equals, as merging left to right demands.
    const auto best = std::min_element(s.rank.begin(), s.rank.end());
    if (*best == kNone) return;
    const auto at = static_cast<std::size_t>(best - s.rank.begin());
    ids[at] = *best;
    ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    s.rank.erase(best + 1);
    s.rank[at] = rank_at(at);
    if (at > 0) s.rank[at - 1] = rank_at(at - 1);
  }
}

// A linked list of tokens and a heap of (rank, position). An entry is out of date when the rank at its
// position has changed since; each merge adds at most two entries, so there are fewer than 3n pops and 3n
// look-ups.
void BpeVocab::merge_long(BpeScratch& s) const {
  const auto n = static_cast<std::int32_t>(s.ids.size());
  s.prev.resize(s.ids.size());
  s.next.resize(s.ids.size());
  s.rank.resize(s.ids.size());
  s.heap.clear();
  const auto at = [](auto& values, std::int32_t i) -> auto& { return values[static_cast<std::size_t>(i)]; };
  const auto update = [&](std::int32_t i) {
    ++s.steps;
    const std::int32_t right = at(s.next, i);
    const std::int32_t merged = right < n ? pairs_.find(at(s.ids, i), at(s.ids, right)) : -1;
    at(s.rank, i) = merged < 0 ? kNone : merged;
    if (merged >= 0)
      s.heap.push_back((std::uint64_t{static_cast<std::uint32_t>(merged)} << 32) |
                       static_cast<std::uint32_t>(i));
    return merged >= 0;
  };
  const auto push = [&](std::int32_t i) {
    if (update(i)) std::push_heap(s.heap.begin(), s.heap.end(), std::greater<>{});
  };
  for (std::int32_t i = 0; i < n; ++i) at(s.prev, i) = i - 1, at(s.next, i) = i + 1;
  for (std::int32_t i = 0; i < n; ++i) update(i);
  std::make_heap(s.heap.begin(), s.heap.end(), std::greater<>{});
  while (!s.heap.empty()) {
    ++s.steps;
    std::pop_heap(s.heap.begin(), s.heap.end(), std::greater<>{});
    const std::uint64_t top = s.heap.back();
    s.heap.pop_back();
    const auto rank = static_cast<std::int32_t>(top >> 32);
    const auto i = static_cast<std::int32_t>(top & 0xFFFFFFFFu);
    if (at(s.rank, i) != rank) continue;
    const std::int32_t gone = at(s.next, i), after = at(s.next, gone);
    at(s.ids, i) = rank;
    at(s.rank, gone) = kNone;
    at(s.next, i) = after;
    if (after < n) at(s.prev, after) = i;
    push(i);
    if (at(s.prev, i) >= 0) push(at(s.prev, i));
  }
  std::size_t kept = 0;
  for (std::int32_t i = 0; i < n; i = at(s.next, i)) s.ids[kept++] = at(s.ids, i);
  s.ids.resize(kept);
}

}  // namespace qt
