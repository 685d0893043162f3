// UTF-8 as the tokenizers need it: strict decoding of one code point, and finding where text stops being
// valid. Nothing here throws: any bytes may be training text, and what is invalid is encoded byte by byte.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace qt {

struct CodePoint {
  char32_t value = 0;
  int bytes = 0;  // 0: no valid sequence starts here (overlong forms, surrogates and > U+10FFFF are invalid)
};

// The code point that starts at text[pos]; pos < text.size().
CodePoint utf8_at(std::string_view text, std::size_t pos);

// The code point that ends just before text[end]; end > 0.
CodePoint utf8_before(std::string_view text, std::size_t end);

// End of the longest valid run from `pos` on, and end of the run of bytes that start no valid sequence.
std::size_t utf8_valid_end(std::string_view text, std::size_t pos);
std::size_t utf8_invalid_end(std::string_view text, std::size_t pos);

// The greatest boundary between code points that is <= at (`at` itself where the bytes are not UTF-8).
std::size_t utf8_boundary(std::string_view text, std::size_t at);

// Bytes of the first `code_points` code points (bytes that are not UTF-8 continuations count as one each).
std::size_t utf8_prefix(std::string_view text, std::int64_t code_points);

void utf8_append(std::string& out, char32_t value);

// Unicode's White_Space property (PropList.txt): what \s means in the regular expressions of tiktoken.
// PCRE2's own \s under UCP differs from it by U+180E.
bool is_white_space(char32_t value);

}  // namespace qt
