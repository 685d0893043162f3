#include "src/data/corpus_cut.h"

#include <numeric>
#include <string>

#include "src/core/error.h"
#include "src/tokenizer/utf8.h"

namespace qt {
namespace {

constexpr std::size_t kReadBytes = std::size_t{256} << 10;

CorpusReader::Window whole() {
  return [](std::string_view available, bool) { return available.size(); };
}

std::int64_t text_bytes_of(const std::vector<CorpusFile>& files, std::size_t i, std::int64_t before,
                           const ScanPoll& poll) {
  const CorpusFile& file = files[i];
  if (file.format == TextFormat::text && file.compression == Compression::none) return file.stored_bytes;
  const auto number = static_cast<std::int64_t>(i);
  CorpusReader reader(files, {number, 0, 0}, {number + 1, 0, 0}, whole());
  CorpusPart part;
  std::int64_t bytes = 0;
  while (reader.next(part)) {
    bytes += static_cast<std::int64_t>(part.text.size());
    poll(before + bytes);
  }
  return bytes;
}

// The offset just behind the first line end at or after `offset`; -1 when the file has none there.
std::int64_t after_line_end(const CorpusFile& file, std::int64_t offset) {
  const auto source = ByteSource::open(file.path, file.compression);
  source->skip(offset);
  std::string bytes(kReadBytes, '\0');
  while (const std::size_t n = source->read(bytes)) {
    const std::size_t newline = std::string_view(bytes).substr(0, n).find('\n');
    if (newline != std::string_view::npos) return offset + static_cast<std::int64_t>(newline) + 1;
    offset += static_cast<std::int64_t>(n);
  }
  return -1;
}

std::int64_t character_near(const CorpusFile& file, std::int64_t offset) {
  const std::int64_t start = std::max<std::int64_t>(0, offset - 4);
  const auto source = ByteSource::open(file.path, file.compression);
  source->skip(start);
  std::string bytes(16, '\0');
  bytes.resize(source->read(bytes));
  return start + static_cast<std::int64_t>(utf8_boundary(bytes, static_cast<std::size_t>(offset - start)));
}

}  // namespace

std::vector<std::int64_t> scan_corpus(const std::vector<CorpusFile>& files, const ScanPoll& poll) {
  std::vector<std::int64_t> text_bytes;
  std::int64_t total = 0;
  for (std::size_t i = 0; i < files.size(); ++i) {
    text_bytes.push_back(text_bytes_of(files, i, total, poll));
    total += text_bytes.back();
    poll(total);
  }
  return text_bytes;
}

CorpusCut cut_corpus(const std::vector<CorpusFile>& files, const std::vector<std::int64_t>& text_bytes,
                     double fraction, const ScanPoll& poll) {
  const std::int64_t total = std::accumulate(text_bytes.begin(), text_bytes.end(), std::int64_t{0});
  const auto wanted =
      total - static_cast<std::int64_t>(static_cast<double>(total) * fraction);  // bytes of training
  const auto end = static_cast<std::int64_t>(files.size());
  if (fraction <= 0) return {{end, 0, 0}, total, 0};

  // The file that holds byte `wanted` of the text, and the text before it.
  std::size_t i = 0;
  std::int64_t before = 0;
  while (i + 1 < files.size() && before + text_bytes[i] <= wanted) before += text_bytes[i++];
  CorpusCut cut{{end, 0, 0}, total, 0};
  const auto number = static_cast<std::int64_t>(i);
  if (files[i].format == TextFormat::text) {
    const std::int64_t offset = wanted - before;
    std::int64_t found = offset == 0 ? 0 : after_line_end(files[i], offset);
    if (found < 0 || (found == text_bytes[i] && i + 1 == files.size()))
      found = character_near(files[i], offset);
    cut.at = {number, found, 0};
    cut.train_bytes = before + found;
  } else {
    CorpusReader reader(files, {number, 0, 0}, {number + 1, 0, 0}, whole());
    CorpusPart part;
    std::int64_t seen = before, last_start = before;
    CorpusPosition last = {number, 0, 0};
    bool reached = false;
    while (!reached && reader.next(part)) {
      reached = seen >= wanted;
      last = part.begin;
      last_start = seen;
      seen += static_cast<std::int64_t>(part.text.size());
      poll(before);
    }
    // Where only the last document of all straddles the cut, it is the validation part.
    if (reached || i + 1 == files.size()) {
      cut.at = last;
      cut.train_bytes = last_start;
    } else {
      cut.at = {number + 1, 0, 0};
      cut.train_bytes = before + text_bytes[i];
    }
  }
  cut.val_bytes = total - cut.train_bytes;
  if (cut.train_bytes == 0 || cut.val_bytes == 0) {
    throw ConfigError(
        fmt::format("{} bytes of text cannot be cut into training and validation with --val-fraction {}",
                    total, fraction),
        "give the validation text as files of its own, or more text");
  }
  return cut;
}

}  // namespace qt
