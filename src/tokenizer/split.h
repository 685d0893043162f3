// Cuts text into the pieces that byte-pair merges never cross, with the regular expressions of nanochat and
// GPT-2 run by PCRE2. Any bytes are allowed: a maximal run of bytes that are not UTF-8 is one piece of its
// own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace qt {

class Splitter {
 public:
  // Work allowed for one piece. The patterns need at most a few steps per byte of a window (kWindowBytes in
  // tokenizer.h), so that the limit is only met if a pattern is changed for a worse one.
  static constexpr std::uint32_t kMatchLimit = 50'000'000;

  // `name`: "nanochat" or "gpt2"; ConfigError names the choices.
  explicit Splitter(std::string_view name, std::uint32_t match_limit = kMatchLimit);
  ~Splitter();
  Splitter(Splitter&&) noexcept;
  Splitter& operator=(Splitter&&) noexcept;

  const std::string& name() const { return name_; }
  static std::vector<std::string> names();

  // The greatest cut 0 < i < text.size() with split(text) == split(text[0, i)) + split(text[i, ...)) whatever
  // follows `text`; 0 when there is none. This is what lets a file of any size be encoded window by window.
  std::size_t last_safe_cut(std::string_view text) const;

 private:
  friend class PieceCursor;
  struct Impl;
  std::string name_;
  std::unique_ptr<Impl> impl_;
};

// Walks the pieces of one text: their concatenation is the text. `text` and `splitter` must outlive the
// cursor. Several cursors may use one splitter at the same time. next() throws DataError with the offset when
// PCRE2 gives up.
class PieceCursor {
 public:
  PieceCursor(const Splitter& splitter, std::string_view text);
  ~PieceCursor();
  bool next(std::string_view& piece);

 private:
  struct Scratch;
  const Splitter& splitter_;
  std::string_view text_;
  std::size_t pos_ = 0;
  std::size_t valid_end_ = 0;  // text_[pos_, valid_end_) is valid UTF-8
  std::unique_ptr<Scratch> scratch_;
};

}  // namespace qt
