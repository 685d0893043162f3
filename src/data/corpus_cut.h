// Where the training part of a corpus ends and the validation part begins, and how many bytes of text each
// has. It needs a pass of its own, because the tokenizer may only learn from the training part.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "src/data/corpus.h"

namespace qt {

struct CorpusCut {
  CorpusPosition at;             // parts that begin before it are training
  std::int64_t train_bytes = 0;  // of text: decompressed, and for JSONL the decoded field "text" alone
  std::int64_t val_bytes = 0;
};

// Called after each part that was read with the bytes of text so far; may throw to stop.
using ScanPoll = std::function<void(std::int64_t text_bytes)>;

// Bytes of text in each file. Uncompressed text files are not read for it.
std::vector<std::int64_t> scan_corpus(const std::vector<CorpusFile>& files, const ScanPoll& poll);

// The last `fraction` (0 to below 1) of the text becomes validation. A text file that straddles the cut is
// cut after the first line end behind it (at a character, when there is none); a JSONL document that
// straddles it stays in training. ConfigError when one of the two would be empty though fraction > 0.
CorpusCut cut_corpus(const std::vector<CorpusFile>& files, const std::vector<std::int64_t>& text_bytes,
                     double fraction, const ScanPoll& poll);

}  // namespace qt
