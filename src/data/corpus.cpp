#include "src/data/corpus.h"

#include <algorithm>
#include <chrono>

#include <simdjson.h>

#include "src/core/error.h"
#include "src/io/run_folder.h"

namespace qt {
namespace {

namespace fs = std::filesystem;
constexpr std::size_t kReadBytes = std::size_t{256} << 10;

// The name without .gz or .zst.
fs::path plain_name(const fs::path& path) {
  return compression_of(path) == Compression::none ? path.filename() : path.stem();
}

TextFormat format_of(const fs::path& path) {
  const auto extension = plain_name(path).extension();
  return extension == ".jsonl" || extension == ".ndjson" ? TextFormat::jsonl : TextFormat::text;
}

bool looks_like_text(const fs::path& path) {
  const auto extension = plain_name(path).extension();
  for (const char* known : {".txt", ".text", ".md", ".jsonl", ".ndjson"}) {
    if (extension == known) return true;
  }
  return false;
}

// A tokenized folder or a run may lie below a folder of text: what qtrain wrote there is not text to train
// on.
bool is_our_tokenizer(const fs::path& path) {
  if (path.filename() != kTokenizerFile) return false;
  constexpr std::string_view kStart = "qtrain-tokenizer ";
  std::string start(kStart.size(), '\0');
  const auto source = ByteSource::open(path, Compression::none);
  return source->read(start) == kStart.size() && start == kStart;
}

CorpusFile describe(const fs::path& path) {
  const auto written = fs::last_write_time(path).time_since_epoch();
  return {path, format_of(path), compression_of(path), static_cast<std::int64_t>(fs::file_size(path)),
          std::to_string(std::chrono::duration_cast<std::chrono::nanoseconds>(written).count())};
}

bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\r") == std::string_view::npos; }

}  // namespace

std::vector<CorpusFile> expand_inputs(const std::vector<std::string>& paths) {
  std::vector<CorpusFile> files;
  for (const std::string& name : paths) {
    const fs::path path = fs::absolute(name).lexically_normal();
    std::error_code ignored;
    if (fs::is_regular_file(path, ignored)) {
      files.push_back(describe(path));
    } else if (fs::is_directory(path, ignored)) {
      std::vector<fs::path> found;
      for (const auto& entry : fs::recursive_directory_iterator(path)) {
        if (!entry.is_regular_file() || !looks_like_text(entry.path())) continue;
        if (!is_our_tokenizer(entry.path())) found.push_back(entry.path());
      }
      if (found.empty()) {
        throw ConfigError(fmt::format("{}: the folder holds no text", name),
                          "files ending in .txt, .text, .md, .jsonl or .ndjson are read, also with .gz or "
                          ".zst; name others "
                          "one by one");
      }
      std::sort(found.begin(), found.end());
      for (const auto& file : found) files.push_back(describe(file));
    } else {
      throw ConfigError(fmt::format("{}: no such file or folder", name));
    }
  }
  return files;
}

TextFormat detect_format(const fs::path& path, Compression compression) {
  const auto source = ByteSource::open(path, compression);
  std::string start(4096, '\0');
  while (const std::size_t n = source->read(start)) {
    const auto first = std::string_view(start).substr(0, n).find_first_not_of(" \t\r\n");
    if (first != std::string_view::npos) return start[first] == '{' ? TextFormat::jsonl : TextFormat::text;
  }
  return TextFormat::text;
}

struct CorpusReader::Json {
  simdjson::dom::parser parser{kMaxLineBytes + simdjson::SIMDJSON_PADDING};
  std::string line;  // a copy with the padding that simdjson reads past the end
};

CorpusReader::CorpusReader(const std::vector<CorpusFile>& files, CorpusPosition begin, CorpusPosition end,
                           Window window, CorpusPosition resume)
    : files_(files),
      begin_(begin),
      end_(end),
      at_(begin < resume ? resume : begin),
      window_(std::move(window)) {}

CorpusReader::~CorpusReader() = default;

void CorpusReader::open_file() {
  const CorpusFile& file = files_[static_cast<std::size_t>(at_.file)];
  source_ = ByteSource::open(file.path, file.compression);
  source_->skip(at_.offset);
  buffer_.clear();
  used_ = 0;
  source_done_ = false;
}

void CorpusReader::close_file() {
  source_.reset();
  at_ = {at_.file + 1, 0, 0};
}

// Reads on; false when the source is at its end. Never reads past the end of the range in its last file.
bool CorpusReader::fill() {
  if (source_done_) return false;
  buffer_.erase(0, used_);
  used_ = 0;
  std::size_t wanted = kReadBytes;
  if (at_.file == end_.file && files_[static_cast<std::size_t>(at_.file)].format == TextFormat::text) {
    const std::int64_t left = end_.offset - at_.offset - static_cast<std::int64_t>(buffer_.size());
    wanted =
        static_cast<std::size_t>(std::clamp<std::int64_t>(left, 0, static_cast<std::int64_t>(kReadBytes)));
  }
  const std::size_t before = buffer_.size();
  buffer_.resize(before + wanted);
  const std::size_t n = wanted == 0 ? 0 : source_->read({buffer_.data() + before, wanted});
  buffer_.resize(before + n);
  source_done_ = n == 0;
  return !source_done_;
}

bool CorpusReader::next(CorpusPart& part) {
  while (at_ < end_ && at_.file < static_cast<std::int64_t>(files_.size())) {
    if (!source_) open_file();
    const bool jsonl = files_[static_cast<std::size_t>(at_.file)].format == TextFormat::jsonl;
    if (jsonl ? next_jsonl(part) : next_text(part)) return true;
    if (at_ < end_) close_file();
  }
  return false;
}

bool CorpusReader::next_text(CorpusPart& part) {
  std::size_t bytes = 0;
  do {
    bytes = window_(buffered(), source_done_);
  } while (bytes == 0 && fill());
  if (bytes == 0 && source_done_) bytes = window_(buffered(), true);
  if (bytes == 0) return false;
  part.text = buffered().substr(0, bytes);
  part.begin = at_;
  part.opens_document = at_.offset == (at_.file == begin_.file ? begin_.offset : 0);
  used_ += bytes;
  at_.offset += static_cast<std::int64_t>(bytes);
  return true;
}

bool CorpusReader::next_jsonl(CorpusPart& part) {
  const std::string name = files_[static_cast<std::size_t>(at_.file)].path.string();
  if (!json_) json_ = std::make_unique<Json>();
  std::size_t searched = 0;
  while (at_ < end_) {
    const std::size_t newline = buffered().find('\n', searched);
    if (newline == std::string_view::npos) {
      searched = buffered().size();
      QT_CHECK(searched <= kMaxLineBytes, DataError, "{}:{}: the line is longer than {} bytes", name,
               at_.line + 1, kMaxLineBytes);
      if (fill()) continue;
      if (searched == 0) return false;
    }
    const std::string_view line = buffered().substr(0, newline);
    QT_CHECK(line.size() <= kMaxLineBytes, DataError, "{}:{}: the line is longer than {} bytes", name,
             at_.line + 1, kMaxLineBytes);
    part.begin = at_;
    part.opens_document = true;
    json_->line.assign(line);
    json_->line.append(simdjson::SIMDJSON_PADDING, '\0');
    const std::size_t taken = line.size() + (newline == std::string_view::npos ? 0 : 1);
    used_ += taken;
    at_.offset += static_cast<std::int64_t>(taken);
    ++at_.line;
    searched = 0;
    if (is_blank(std::string_view(json_->line).substr(0, line.size()))) continue;
    simdjson::dom::element document;
    if (const auto error = json_->parser.parse(json_->line.data(), line.size(), false).get(document)) {
      throw DataError(
          fmt::format("{}:{}: not a JSON document: {}", name, at_.line, simdjson::error_message(error)),
          "each line of a JSONL file must be one JSON object in UTF-8");
    }
    if (const auto error = document["text"].get(part.text)) {
      throw DataError(
          fmt::format("{}:{}: field \"text\": {}", name, at_.line, simdjson::error_message(error)),
          "each line must be an object with the document as a string in its field \"text\"");
    }
    return true;
  }
  return false;
}

}  // namespace qt
