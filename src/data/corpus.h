// A corpus as a list of files, read part by part: which files a command line means, where documents begin,
// and how to continue in the middle. Text files are one document each; JSONL files one document a line, in
// its field "text".
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "src/data/byte_source.h"

namespace qt {

enum class TextFormat { text, jsonl };

struct CorpusFile {
  std::filesystem::path path;
  TextFormat format = TextFormat::text;
  Compression compression = Compression::none;
  std::int64_t stored_bytes = 0;  // as they lie on disk
  std::string stamp;  // changes when the content does: modification time, or a hash of piped input
};

// Files as they are; folders with all text and JSONL files below them, sorted by path, but for the tokenizers
// that qtrain wrote there. ConfigError names a path that does not exist or a folder without usable files.
// Names decide: .jsonl and .ndjson, else text; .gz and .zst on top of either.
std::vector<CorpusFile> expand_inputs(const std::vector<std::string>& paths);

// Looks at the first byte that is not white space: '{' means JSONL. For input without a name.
TextFormat detect_format(const std::filesystem::path& path, Compression compression);

// A place where a part begins. Offsets count decompressed bytes.
struct CorpusPosition {
  std::int64_t file = 0;
  std::int64_t offset = 0;
  std::int64_t line = 0;  // lines before it; kept for JSONL, where messages name lines

  friend bool operator==(const CorpusPosition&, const CorpusPosition&) = default;
  bool operator<(const CorpusPosition& other) const {
    return file != other.file ? file < other.file : offset < other.offset;
  }
};

// Part of a document: the whole of it in JSONL, a window of it in a text file.
struct CorpusPart {
  std::string_view text;  // valid until the next call
  CorpusPosition begin;
  bool opens_document = false;
};

class CorpusReader {
 public:
  // A JSONL line above this is an error; it bounds what the parser needs (about 15 bytes per byte at the
  // worst).
  static constexpr std::size_t kMaxLineBytes = std::size_t{16} << 20;

  // How many bytes at the front of a text make the next part; 0 asks for more (Tokenizer::next_window).
  using Window = std::function<std::size_t(std::string_view available, bool at_end)>;

  // Reads the parts that begin in [begin, end). `resume`, when it lies after `begin`, must be the begin of a
  // part that an earlier reader of the same range gave out; documents open where they did then. `files` must
  // outlive the reader.
  CorpusReader(const std::vector<CorpusFile>& files, CorpusPosition begin, CorpusPosition end, Window window,
               CorpusPosition resume = {});
  ~CorpusReader();
  CorpusReader(const CorpusReader&) = delete;
  CorpusReader& operator=(const CorpusReader&) = delete;

  // False at the end of the range. DataError names file and line (JSONL) or file and offset (damaged
  // compression).
  bool next(CorpusPart& part);

 private:
  struct Json;
  void open_file();
  void close_file();
  bool fill();
  bool next_text(CorpusPart& part);
  bool next_jsonl(CorpusPart& part);
  std::string_view buffered() const { return std::string_view(buffer_).substr(used_); }

  const std::vector<CorpusFile>& files_;
  CorpusPosition begin_, end_, at_;
  Window window_;
  std::unique_ptr<ByteSource> source_;
  std::string buffer_;
  std::size_t used_ = 0;
  bool source_done_ = false;
  std::unique_ptr<Json> json_;
};

}  // namespace qt
