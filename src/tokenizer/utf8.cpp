#include "src/tokenizer/utf8.h"

#include <cstdint>
#include <cstring>

namespace qt {
namespace {

bool is_continuation(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

}  // namespace

CodePoint utf8_at(std::string_view text, std::size_t pos) {
  const auto lead = static_cast<unsigned char>(text[pos]);
  if (lead < 0x80) return {lead, 1};
  int bytes = 0;
  char32_t value = 0, smallest = 0;
  if ((lead & 0xE0) == 0xC0) {
    bytes = 2, value = lead & 0x1F, smallest = 0x80;
  } else if ((lead & 0xF0) == 0xE0) {
    bytes = 3, value = lead & 0x0F, smallest = 0x800;
  } else if ((lead & 0xF8) == 0xF0) {
    bytes = 4, value = lead & 0x07, smallest = 0x10000;
  } else {
    return {};
  }
  if (text.size() - pos < static_cast<std::size_t>(bytes)) return {};
  for (int i = 1; i < bytes; ++i) {
    const char c = text[pos + static_cast<std::size_t>(i)];
    if (!is_continuation(c)) return {};
    value = (value << 6) | (static_cast<unsigned char>(c) & 0x3F);
  }
  if (value < smallest || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) return {};
  return {value, bytes};
}

CodePoint utf8_before(std::string_view text, std::size_t end) {
  for (std::size_t bytes = 1; bytes <= 4 && bytes <= end; ++bytes) {
    if (is_continuation(text[end - bytes])) continue;
    const CodePoint found = utf8_at(text.substr(0, end), end - bytes);
    return found.bytes == static_cast<int>(bytes) ? found : CodePoint{};
  }
  return {};
}

std::size_t utf8_valid_end(std::string_view text, std::size_t pos) {
  while (pos < text.size()) {
    std::uint64_t eight = 0;
    if (text.size() - pos >= 8) {  // ASCII in steps of eight
      std::memcpy(&eight, text.data() + pos, 8);
      if ((eight & 0x8080808080808080u) == 0) {
        pos += 8;
        continue;
      }
    }
    const int bytes = utf8_at(text, pos).bytes;
    if (bytes == 0) break;
    pos += static_cast<std::size_t>(bytes);
  }
  return pos;
}

std::size_t utf8_invalid_end(std::string_view text, std::size_t pos) {
  while (pos < text.size() && utf8_at(text, pos).bytes == 0) ++pos;
  return pos;
}

std::size_t utf8_boundary(std::string_view text, std::size_t at) {
  if (at >= text.size()) return text.size();
  for (std::size_t back = 0; back <= 3 && back <= at; ++back) {
    if (is_continuation(text[at - back])) continue;
    const int bytes = utf8_at(text, at - back).bytes;
    return static_cast<std::size_t>(bytes) > back ? at - back : at;
  }
  return at;
}

std::size_t utf8_prefix(std::string_view text, std::int64_t code_points) {
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (!is_continuation(text[i]) && code_points-- == 0) return i;
  }
  return text.size();
}

void utf8_append(std::string& out, char32_t value) {
  const auto put = [&](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (value < 0x80) {
    put(value);
  } else if (value < 0x800) {
    put(0xC0 | (value >> 6)), put(0x80 | (value & 0x3F));
  } else if (value < 0x10000) {
    put(0xE0 | (value >> 12)), put(0x80 | ((value >> 6) & 0x3F)), put(0x80 | (value & 0x3F));
  } else {
    put(0xF0 | (value >> 18)), put(0x80 | ((value >> 12) & 0x3F)), put(0x80 | ((value >> 6) & 0x3F));
    put(0x80 | (value & 0x3F));
  }
}

bool is_white_space(char32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

}  // namespace qt
