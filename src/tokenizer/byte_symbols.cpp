#include "src/tokenizer/byte_symbols.h"

#include <array>

#include "src/tokenizer/utf8.h"

namespace qt {

namespace {

// GPT-2's bytes_to_unicode(): printable Latin-1 stands for itself, the 68 other bytes for U+0100 onwards.
struct ByteSymbols {
  std::array<char32_t, 256> symbol{};
  std::array<int, 512> byte{};  // of a code point; -1

  ByteSymbols() {
    byte.fill(-1);
    char32_t next = 256;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
      const char32_t c = printable ? static_cast<char32_t>(b) : next++;
      symbol[static_cast<std::size_t>(b)] = c;
      byte[c] = b;
    }
  }
};

const ByteSymbols& byte_symbols() {
  static const ByteSymbols symbols;
  return symbols;
}

}  // namespace

std::string to_symbols(std::string_view bytes) {
  std::string text;
  for (const char c : bytes) utf8_append(text, byte_symbols().symbol[static_cast<unsigned char>(c)]);
  return text;
}

std::optional<std::string> from_symbols(std::string_view text) {
  std::string bytes;
  for (std::size_t pos = 0; pos < text.size();) {
    const CodePoint c = utf8_at(text, pos);
    if (c.bytes == 0 || c.value >= byte_symbols().byte.size() || byte_symbols().byte[c.value] < 0)
      return std::nullopt;
    bytes.push_back(static_cast<char>(byte_symbols().byte[c.value]));
    pos += static_cast<std::size_t>(c.bytes);
  }
  return bytes;
}

}  // namespace qt
