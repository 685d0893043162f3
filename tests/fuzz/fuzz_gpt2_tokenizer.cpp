// Any two texts as vocab.json and merges.txt, or one as a tiktoken file. The first byte chooses: 0 a tiktoken
// file; 1 the pair as it is, parted by a line "---"; otherwise the input is put behind the 256 bytes that
// every vocabulary begins with, so that mutations reach the merges. What is accepted must survive a second
// round.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include <fmt/format.h>

#include "src/core/error.h"
#include "src/tokenizer/base64.h"
#include "src/tokenizer/gpt2_files.h"
#include "src/tokenizer/utf8.h"

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void check(const qt::Tokenizer& tokenizer, std::string_view text) {
  require(qt::Tokenizer::parse(tokenizer.serialise(), "again").hash() == tokenizer.hash());
  require(tokenizer.decode(tokenizer.encode(text)) == text);
}

// The bytes of GPT-2's table in its order: those that print, then the others.
std::string byte_tokens() {
  std::string json = "{";
  int id = 0;
  const auto add = [&](char32_t c) {
    std::string word;
    if (c == U'"' || c == U'\\') word = "\\";
    qt::utf8_append(word, c);
    json += fmt::format("\"{}\":{},", word, id++);
  };
  for (char32_t c = 33; c <= 255; ++c) {
    if (c <= 126 || (c >= 161 && c != 173)) add(c);
  }
  for (char32_t c = 256; c < 256 + 68; ++c) add(c);
  return json;
}

std::string tiktoken_bytes() {
  std::string lines;
  for (int b = 0; b < 256; ++b)
    lines += fmt::format("{} {}\n", qt::to_base64(std::string(1, static_cast<char>(b))), b);
  return lines;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t bytes) {
  if (bytes == 0) return 0;
  const std::string_view input(reinterpret_cast<const char*>(data) + 1, bytes - 1);
  try {
    switch (data[0] % 4) {
      case 0: check(qt::parse_tiktoken(input, "t"), input); break;
      case 1: {
        const std::size_t cut = std::min(input.find("\n---\n"), input.size());
        check(qt::parse_gpt2(input.substr(0, cut), "v", input.substr(std::min(cut + 5, input.size())), "m"),
              input);
        break;
      }
      case 2: {  // further tokens as JSON, their merges behind the line
        static const std::string start = byte_tokens();
        const std::size_t cut = std::min(input.find("\n---\n"), input.size());
        check(qt::parse_gpt2(start + std::string(input.substr(0, cut)), "v",
                             input.substr(std::min(cut + 5, input.size())), "m"),
              input);
        break;
      }
      default: {
        static const std::string start = tiktoken_bytes();
        check(qt::parse_tiktoken(start + std::string(input), "t"), input);
      }
    }
  } catch (const qt::DataError&) {
    // The only way to refuse.
  }
  return 0;
}
