// tokenizer.json: a tokenizer as Hugging Face's `tokenizers` stores it, to and from ours.
//
// Written: bpe and bytes as a byte-level BPE with its merges, char as a BPE without any. Special tokens are
// added tokens: there, unlike here, a text that spells one becomes one.
// Read: byte-level BPE with ids in our order (256 bytes, the merges in their order, then a known set of
// special tokens) and one of our split patterns as pre-tokenizer; and what was written.
#pragma once

#include <string>
#include <string_view>

#include "src/tokenizer/tokenizer.h"

namespace qt {

// ConfigError for a vocabulary of numbers, which stand for no text.
std::string hf_tokenizer_json(const Tokenizer& tokenizer);
// tokenizer_config.json beside it.
std::string hf_tokenizer_config_json(const Tokenizer& tokenizer, std::int64_t max_tokens);

// Ids of the tokens that open a document, end a reply and fill a row; -1 where the vocabulary has none.
struct HfSpecialIds {
  std::int32_t bos = -1;
  std::int32_t eos = -1;
  std::int32_t pad = -1;
};
HfSpecialIds hf_special_ids(const Tokenizer& tokenizer);

// DataError naming `origin` and what cannot be read.
Tokenizer parse_hf_tokenizer(std::string_view file, const std::string& origin);

}  // namespace qt
