#include "src/data/byte_source.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>
#include <vector>

#include <zlib.h>
#include <zstd.h>

#include "src/core/error.h"

namespace qt {
namespace {

constexpr std::size_t kInputBytes = std::size_t{256} << 10;

class PlainSource final : public ByteSource {
 public:
  explicit PlainSource(const std::filesystem::path& path) : name_(path.string()) {
    fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    QT_CHECK(fd_ >= 0, DataError, "{}: cannot open: {}", name_, std::strerror(errno));
  }
  ~PlainSource() override { ::close(fd_); }
  PlainSource(const PlainSource&) = delete;
  PlainSource& operator=(const PlainSource&) = delete;

  std::size_t read(std::span<char> out) override {
    while (true) {
      const ssize_t n = ::read(fd_, out.data(), out.size());
      if (n < 0 && errno == EINTR) continue;
      QT_CHECK(n >= 0, DataError, "{}: read at byte {} failed: {}", name_, offset_, std::strerror(errno));
      offset_ += n;
      return static_cast<std::size_t>(n);
    }
  }

  void skip(std::int64_t bytes) override {
    const off_t end = ::lseek(fd_, 0, SEEK_END);
    QT_CHECK(end >= 0 && offset_ + bytes <= end, DataError, "{}: ends before byte {}: it has changed", name_,
             offset_ + bytes);
    offset_ += bytes;
    QT_CHECK(::lseek(fd_, offset_, SEEK_SET) == offset_, DataError, "{}: seek to byte {} failed: {}", name_,
             offset_, std::strerror(errno));
  }

 private:
  std::string name_;
  int fd_ = -1;
  std::int64_t offset_ = 0;
};

// What gzip and zstd share: compressed input in a buffer, skipping by reading.
class CompressedSource : public ByteSource {
 public:
  explicit CompressedSource(const std::filesystem::path& path)
      : name_(path.string()), file_(path), input_(kInputBytes) {}

  void skip(std::int64_t bytes) override {
    std::vector<char> dropped(kInputBytes);
    while (bytes > 0) {
      const auto wanted =
          static_cast<std::size_t>(std::min<std::int64_t>(bytes, static_cast<std::int64_t>(dropped.size())));
      const std::size_t n = read({dropped.data(), wanted});
      QT_CHECK(n > 0, DataError, "{}: ends {} bytes too early: it has changed", name_, bytes);
      bytes -= static_cast<std::int64_t>(n);
    }
  }

 protected:
  // More compressed bytes; none at the end of the file.
  std::span<char> refill() {
    const std::size_t n = file_.read(input_);
    compressed_bytes_ += static_cast<std::int64_t>(n);
    return {input_.data(), n};
  }
  [[noreturn]] void fail(const char* what) const {
    throw DataError(fmt::format("{}: {} near compressed byte {}", name_, what, compressed_bytes_),
                    "the file is damaged or its download was cut off: fetch it again");
  }

 private:
  std::string name_;
  PlainSource file_;
  std::vector<char> input_;
  std::int64_t compressed_bytes_ = 0;
};

class GzipSource final : public CompressedSource {
 public:
  explicit GzipSource(const std::filesystem::path& path) : CompressedSource(path) {
    // 15: the largest window; + 16: gzip framing only.
    QT_CHECK(inflateInit2(&stream_, 15 + 16) == Z_OK, DataError, "{}: zlib cannot start", path.string());
  }
  ~GzipSource() override { inflateEnd(&stream_); }

  std::size_t read(std::span<char> out) override {
    stream_.next_out = reinterpret_cast<Bytef*>(out.data());
    stream_.avail_out = static_cast<uInt>(out.size());
    while (stream_.avail_out == out.size() && !out.empty()) {
      if (stream_.avail_in == 0) {
        const auto more = refill();
        if (more.empty()) {
          if (inside_member_) fail("the gzip data is cut off");
          return 0;
        }
        stream_.next_in = reinterpret_cast<Bytef*>(more.data());
        stream_.avail_in = static_cast<uInt>(more.size());
      }
      inside_member_ = true;
      const int rc = inflate(&stream_, Z_NO_FLUSH);
      if (rc == Z_STREAM_END) {
        // Members may follow one another, as `cat a.gz b.gz` makes them.
        inside_member_ = false;
        inflateReset(&stream_);
      } else if (rc != Z_OK && rc != Z_BUF_ERROR) {
        fail("the gzip data is damaged");
      }
    }
    return out.size() - stream_.avail_out;
  }

 private:
  z_stream stream_ = {};
  bool inside_member_ = true;  // an empty file is not a gzip file
};

class ZstdSource final : public CompressedSource {
 public:
  explicit ZstdSource(const std::filesystem::path& path)
      : CompressedSource(path), stream_(ZSTD_createDStream(), ZSTD_freeDStream) {
    QT_CHECK(stream_, DataError, "{}: zstd cannot start", path.string());
  }

  std::size_t read(std::span<char> out) override {
    ZSTD_outBuffer output{out.data(), out.size(), 0};
    while (output.pos == 0 && !out.empty()) {
      if (input_.pos == input_.size && !output_pending_) {
        const auto more = refill();
        if (more.empty()) {
          if (inside_frame_) fail("the zstd data is cut off");
          return 0;
        }
        input_ = {more.data(), more.size(), 0};
      }
      const std::size_t rc = ZSTD_decompressStream(stream_.get(), &output, &input_);
      if (ZSTD_isError(rc)) fail(ZSTD_getErrorName(rc));
      inside_frame_ = rc != 0;
      output_pending_ = output.pos == output.size && inside_frame_;
    }
    return output.pos;
  }

 private:
  std::unique_ptr<ZSTD_DStream, std::size_t (*)(ZSTD_DStream*)> stream_;
  ZSTD_inBuffer input_ = {};
  bool inside_frame_ = true;
  bool output_pending_ = false;  // a full output buffer may have left decoded bytes inside
};

}  // namespace

Compression compression_of(const std::filesystem::path& path) {
  if (path.extension() == ".gz") return Compression::gzip;
  if (path.extension() == ".zst") return Compression::zstd;
  return Compression::none;
}

std::unique_ptr<ByteSource> ByteSource::open(const std::filesystem::path& path, Compression compression) {
  switch (compression) {
    case Compression::gzip: return std::make_unique<GzipSource>(path);
    case Compression::zstd: return std::make_unique<ZstdSource>(path);
    case Compression::none: break;
  }
  return std::make_unique<PlainSource>(path);
}

}  // namespace qt
