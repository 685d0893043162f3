// The printable characters that stand for bytes in GPT-2's vocabulary files and in every byte-level
// tokenizer.json.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace qt {

// A UTF-8 character for each byte.
std::string to_symbols(std::string_view bytes);

// The bytes that a word of symbols stands for; nothing when one of its characters stands for none.
std::optional<std::string> from_symbols(std::string_view text);

}  // namespace qt
