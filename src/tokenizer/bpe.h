// A byte-level BPE vocabulary and its encoder: rank-greedy merging as tiktoken does it, O(n log n) for a
// piece of n bytes. Splitting text into pieces and special tokens are the tokenizer's business.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace qt {

// (left token, right token) -> merged token; open addressing.
class PairTable {
 public:
  explicit PairTable(std::size_t capacity);
  void insert(std::int32_t left, std::int32_t right, std::int32_t merged);  // at most `capacity` times
  std::int32_t find(std::int32_t left, std::int32_t right) const;           // -1 when there is no such merge

 private:
  struct Slot {
    std::uint64_t key = 0;
    std::int32_t merged = -1;
  };
  std::size_t slot_of(std::uint64_t key) const;
  std::vector<Slot> slots_;
};

// Working memory of an encoder, reused between pieces. `steps` counts elementary operations (heap pops and
// pair look-ups), so that a test can bound the work.
struct BpeScratch {
  std::vector<std::int32_t> ids, prev, next, rank;
  std::vector<std::uint64_t> heap;
  std::int64_t steps = 0;
};

class BpeVocab {
 public:
  static constexpr std::size_t kMaxTokenBytes = 65536;

  // tokens[id] = the bytes of token id: the 256 single bytes first, in any order, then the merges in the
  // order in which they were made. Every later token must come apart into exactly two earlier ones under the
  // merges before it, which is what makes id order and merge order the same thing. DataError names `origin`
  // and the token.
  BpeVocab(const std::vector<std::string>& tokens, const std::string& origin);

  std::int32_t size() const { return static_cast<std::int32_t>(offsets_.size()) - 1; }
  std::string_view token(std::int32_t id) const {  // 0 <= id < size()
    const auto i = static_cast<std::size_t>(id);
    return std::string_view(bytes_).substr(offsets_[i], offsets_[i + 1] - offsets_[i]);
  }
  // The two tokens that merge id >= 256 is made of.
  std::pair<std::int32_t, std::int32_t> parts(std::int32_t id) const {
    return parts_[static_cast<std::size_t>(id) - 256];
  }

  // Appends the tokens of one piece. Safe from several threads with a scratch each.
  void encode_piece(std::string_view piece, std::vector<std::int32_t>& out, BpeScratch& scratch) const;

 private:
  void merge_short(BpeScratch& s) const;
  void merge_long(BpeScratch& s) const;
  std::int32_t find_token(std::string_view bytes) const;
  void add_token(std::int32_t id);

  std::string bytes_;
  std::vector<std::uint32_t> offsets_;
  std::vector<std::pair<std::int32_t, std::int32_t>> parts_;
  std::int32_t byte_id_[256];
  PairTable pairs_;
  std::vector<std::int32_t> by_bytes_;  // open addressing over the hash of a token's bytes; -1 is free
  std::size_t longest_bytes_ = 1;
};

}  // namespace qt
