// Tokenizers as GPT-2's world stores them, to and from ours:
//
//   vocab.json + merges.txt            Hugging Face; gpt2_vocab.json + gpt2_merges.txt; OpenAI's encoder.json
//   +
//                                      vocab.bpe. Tokens in printable characters that stand for bytes.
//   gpt2.tiktoken, r50k_base.tiktoken  tiktoken: "base64 rank" a line, no special tokens
//
// Both become a bpe tokenizer with the split pattern "gpt2". Its ids are the file's: the 256 bytes, the
// merges in their order, then the special tokens (<|endoftext|>, 50256 in GPT-2, which opens every document).
// Files with ids in another order are refused, as are vocabularies that another split pattern made.
// Tokenizer::load() finds them: a tiktoken file, either file of a pair, or a folder (tokenizer.txt, then the
// pairs, then the one
// *.tiktoken in it).
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "src/io/file_system.h"
#include "src/tokenizer/tokenizer.h"

namespace qt {

// DataError names file, line or token.
Tokenizer parse_gpt2(std::string_view vocab_json, const std::string& vocab_origin, std::string_view merges,
                     const std::string& merges_origin);
Tokenizer parse_tiktoken(std::string_view file, const std::string& origin);

// Whether the first line is "base64 rank".
bool looks_like_tiktoken(std::string_view file);

// Writes vocab.json and merges.txt into an existing folder, each atomically. ConfigError unless the tokenizer
// is bpe with the split pattern "gpt2": no other one could be read back with the same ids.
void save_gpt2(const Tokenizer& tokenizer, FileSystem& fs, const std::filesystem::path& folder);

}  // namespace qt
