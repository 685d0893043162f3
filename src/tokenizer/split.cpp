#include "src/tokenizer/split.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "src/core/error.h"
#include "src/tokenizer/utf8.h"

namespace qt {
namespace {

// \s written out as White_Space (see is_white_space), so that every tool that claims these patterns agrees.
#define QT_WS R"(\t-\r \x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})"

struct NamedPattern {
  const char* name;
  const char* regex;
  bool newline_ends_a_piece;  // see last_safe_cut
};

constexpr NamedPattern kPatterns[] = {
    {"nanochat",
     R"('(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^)" QT_WS
     R"(\p{L}\p{N}]++[\r\n]*|[)" QT_WS R"(]*[\r\n]|[)" QT_WS R"(]+(?![^)" QT_WS R"(])|[)" QT_WS R"(]+)",
     true},
    {"gpt2",
     R"('(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^)" QT_WS R"(\p{L}\p{N}]+|[)" QT_WS R"(]+(?![^)" QT_WS
     R"(])|[)" QT_WS R"(]+)",
     false},
};
#undef QT_WS

const NamedPattern* find_pattern(std::string_view name) {
  for (const NamedPattern& pattern : kPatterns) {
    if (name == pattern.name) return &pattern;
  }
  return nullptr;
}

std::string pcre2_message(int code) {
  unsigned char text[256] = {};
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

template <auto kFree>
struct Freed {
  template <class T>
  void operator()(T* pointer) const {
    kFree(pointer);
  }
};

}  // namespace

struct Splitter::Impl {
  const NamedPattern* pattern = nullptr;
  std::unique_ptr<pcre2_code, Freed<pcre2_code_free>> code;
  std::unique_ptr<pcre2_match_context, Freed<pcre2_match_context_free>> context;
};

struct PieceCursor::Scratch {
  std::unique_ptr<pcre2_match_data, Freed<pcre2_match_data_free>> match;
};

Splitter::Splitter(std::string_view name, std::uint32_t match_limit)
    : name_(name), impl_(std::make_unique<Impl>()) {
  impl_->pattern = find_pattern(name);
  QT_CHECK(impl_->pattern, ConfigError, "split pattern '{}' is not known; choose {}", name,
           fmt::join(names(), " or "));
  int error = 0;
  std::size_t offset = 0;
  impl_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(impl_->pattern->regex), PCRE2_ZERO_TERMINATED,
                                  PCRE2_UTF | PCRE2_ANCHORED, &error, &offset, nullptr));
  QT_CHECK(impl_->code, ConfigError, "PCRE2 refuses the split pattern '{}' at {}: {}", name, offset,
           pcre2_message(error));
  impl_->context.reset(pcre2_match_context_create(nullptr));
  QT_CHECK(impl_->context, ConfigError, "PCRE2 has no memory for the split pattern '{}'", name);
  pcre2_set_match_limit(impl_->context.get(), match_limit);
  pcre2_set_depth_limit(impl_->context.get(), match_limit);
  // Without JIT the interpreter gives the same pieces more slowly, so a refusal here is not an error.
  pcre2_jit_compile(impl_->code.get(), PCRE2_JIT_COMPLETE);
}

Splitter::~Splitter() = default;
Splitter::Splitter(Splitter&&) noexcept = default;
Splitter& Splitter::operator=(Splitter&&) noexcept = default;

std::vector<std::string> Splitter::names() {
  std::vector<std::string> all;
  for (const NamedPattern& pattern : kPatterns) all.emplace_back(pattern.name);
  return all;
}

// Why these cuts are safe. No alternative of either pattern has white space after something else, except
// nanochat's punctuation followed by line ends; and none looks behind. So a space after a non-space always
// starts a piece, and the look-ahead of the white-space alternatives never reaches across it. In nanochat a
// run of white space up to a line end is taken by the alternative without look-ahead, so the place after a
// line end and before a non-space is safe too; in GPT-2's it is not, but the place before a line end that
// follows a non-space is.
std::size_t Splitter::last_safe_cut(std::string_view text) const {
  const bool after_newline = impl_->pattern->newline_ends_a_piece;
  for (std::size_t i = text.size(); i-- > 1;) {
    const char c = text[i];
    if (c == ' ' || (c == '\n' && !after_newline)) {
      const CodePoint before = utf8_before(text, i);
      if (before.bytes > 0 && !is_white_space(before.value)) return i;
    } else if (after_newline && text[i - 1] == '\n') {
      const CodePoint after = utf8_at(text, i);
      if (after.bytes > 0 && !is_white_space(after.value)) return i;
    }
  }
  return 0;
}

PieceCursor::PieceCursor(const Splitter& splitter, std::string_view text)
    : splitter_(splitter), text_(text), scratch_(std::make_unique<Scratch>()) {
  scratch_->match.reset(pcre2_match_data_create(1, nullptr));
  QT_CHECK(scratch_->match, DataError, "PCRE2 has no memory to split text");
}

PieceCursor::~PieceCursor() = default;

bool PieceCursor::next(std::string_view& piece) {
  if (pos_ == text_.size()) return false;
  if (pos_ == valid_end_) {
    valid_end_ = utf8_valid_end(text_, pos_);
    if (valid_end_ == pos_) {
      valid_end_ = utf8_invalid_end(text_, pos_);
      piece = text_.substr(pos_, valid_end_ - pos_);
      pos_ = valid_end_;
      return true;
    }
  }
  const int rc = pcre2_match(splitter_.impl_->code.get(), reinterpret_cast<PCRE2_SPTR>(text_.data() + pos_),
                             valid_end_ - pos_, 0, PCRE2_NO_UTF_CHECK, scratch_->match.get(),
                             splitter_.impl_->context.get());
  QT_CHECK(rc > 0, DataError, "cannot split the text at byte {}: PCRE2 with pattern '{}' says: {}", pos_,
           splitter_.name(), pcre2_message(rc));
  const std::size_t bytes = pcre2_get_ovector_pointer(scratch_->match.get())[1];
  QT_CHECK(bytes > 0, DataError, "cannot split the text at byte {}: pattern '{}' matched nothing", pos_,
           splitter_.name());
  piece = text_.substr(pos_, bytes);
  pos_ += bytes;
  return true;
}

}  // namespace qt
